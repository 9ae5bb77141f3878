"""What some images are to be, as their transformer is told: labels or prompts, and the shape of their latents.

A family's adapter makes one, of labels (:class:`FromLabels`) or of prompts (:class:`FromPrompts`); whoever samples
needs to know no more.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ditfastattn.errors import LoadError
from ditfastattn.layout import Layout

# Of a transformer call, by name: tensors, mappings of them, and what is passed on as it is.
Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Condition:
    """B images, one a row of every tensor in ``conditional`` and ``unconditional``.

    Args:
        conditional, unconditional: what the transformer is called with besides latents and timestep, in either branch
            of guidance: the same names in both, tensors (B, ...), mappings of such, or anything else, passed on.
        layout: how the branches lie in a guided batch.
        latent_shape: of one image, channels first: (C, h, w), or (C, T, h, w) of a video.
    """

    conditional: Arguments
    unconditional: Arguments
    layout: Layout
    latent_shape: tuple[int, ...]

    def __len__(self) -> int:
        """B, the number of images."""
        return len(next(_tensors(self.conditional)))

    def of(self, images: Sequence[int]) -> "Condition":
        """The same of some of the images, in that order."""

        def chosen(tensor: Tensor) -> Tensor:
            return tensor[list(images)]

        return replace(
            self, conditional=_each(chosen, self.conditional), unconditional=_each(chosen, self.unconditional)
        )

    def arguments(self, guided: bool) -> dict[str, Any]:
        """Of a call on all images: tensors (2B, ...), both branches as ``layout`` says, or (B, ...) unguided."""
        if not guided:
            return dict(self.conditional)
        branches = (self.conditional, self.unconditional)
        first, second = branches if self.layout is Layout.COND_FIRST else branches[::-1]
        return _each(lambda one, other: torch.cat([one, other]), first, second)


class FromLabels(ABC):
    """An adapter of models that are sampled by class labels."""

    usual_guidance = 4.0  # what DiTFastAttn calibrates DiT at

    @abstractmethod
    def condition(self, labels: Sequence[int]) -> Condition:
        """Images of these classes."""


class FromPrompts(ABC):
    """An adapter of models that are sampled by prompts."""

    usual_guidance: float  # what such models are calibrated at
    encoders: tuple[str, ...]  # parts of the pipeline that only encoding needs

    def check_encoders(self, pipe: Any) -> None:
        """Raises LoadError if the pipeline lacks what encodes prompts."""
        lacking = [name for name in self.encoders if getattr(pipe, name, None) is None]
        if lacking:
            raise LoadError(
                f"this {type(pipe).__name__} has no {' and no '.join(lacking)}, so it cannot encode prompts: load it "
                "from a folder or hub id that has them all"
            )

    @abstractmethod
    def condition(self, pipe: Any, prompts: Sequence[str], negative_prompt: str) -> Condition:
        """Images of these prompts, encoded by the pipeline; the negative prompt is the unconditional branch of all.

        Raises:
            LoadError: the pipeline lacks what encodes prompts.
        """


def _each(change: Callable[..., Tensor], *trees: Arguments) -> dict[str, Any]:
    """``change`` of the tensors that stand in the same place of every tree; the rest as the first tree has it."""
    found: dict[str, Any] = {}
    for name, value in trees[0].items():
        same = [tree[name] for tree in trees]
        if isinstance(value, Tensor):
            found[name] = change(*same)
        else:
            found[name] = _each(change, *same) if isinstance(value, Mapping) else value
    return found


def _tensors(tree: Arguments) -> Iterator[Tensor]:
    for value in tree.values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            yield from _tensors(value)
