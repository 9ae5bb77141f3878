"""What some images are to be, as their transformer is told: labels or prompts, and the shape of their latents.

A family's adapter makes one, of labels (:class:`FromLabels`) or of prompts (:class:`FromPrompts`), and the user of a
transformer of one's own writes one down; whoever samples needs to know no more.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from ditfastattn.errors import ApplyError, LoadError
from ditfastattn.layout import Layout

# Of a transformer call, by name: tensors, mappings of them, and what is passed on as it is.
Arguments = Mapping[str, Any]


class VideoSize(NamedTuple):
    """Of a video: its frames, and their pixels."""

    frames: int
    height: int
    width: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """ "16x240x426". Raises ValueError for anything else."""
        parts = text.strip().lower().split("x")
        if len(parts) != 3 or not all(part.isdecimal() and 0 < int(part) < 2**16 for part in parts):
            raise ValueError(f"a video's size is FRAMESxHEIGHTxWIDTH in pixels, such as 16x240x426, not {text!r}")
        return cls(*(int(part) for part in parts))

    def __str__(self) -> str:
        return "x".join(map(str, self))


@dataclass(frozen=True)
class Condition:
    """B images, one a row of every tensor in ``conditional`` and ``unconditional``.

    Args:
        conditional, unconditional: what the transformer is called with besides latents and timestep, in either branch
            of guidance: the same names in both, tensors (B, ...), mappings of such, or anything else, passed on.
            ``unconditional`` is None where there is no guidance.
        latent_shape: of one image, channels first: (C, h, w), or (C, T, h, w) of a video.
        guided_channels: how many of these channels guidance moves; the others are the conditional branch's. None: all.
        latents_dtype: of the latents between the steps. None: that of the transformer.
        images: B, where no tensor says it (a transformer that is told nothing).

    Raises:
        ApplyError: arguments of different names or lengths in both branches, or another kind of shape.
    """

    conditional: Arguments
    unconditional: Arguments | None
    latent_shape: tuple[int, ...]
    guided_channels: int | None = None
    latents_dtype: torch.dtype | None = None
    images: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "latent_shape", tuple(self.latent_shape))
        if len(self.latent_shape) not in (3, 4) or not all(isinstance(n, int) and n > 0 for n in self.latent_shape):
            raise ApplyError(
                f"latent_shape is that of one image, (C, h, w), or of one video, (C, T, h, w), not {self.latent_shape}"
            )
        branches = [self.conditional] if self.unconditional is None else [self.conditional, self.unconditional]
        if len(names := [sorted(branch) for branch in branches]) == 2 and names[0] != names[1]:
            raise ApplyError(
                f"both branches of a condition have the same arguments, but the conditional one has {names[0]} and the "
                f"unconditional one {names[1]}"
            )
        shapes = [tuple(tensor.shape) for branch in branches for tensor in _tensors(branch)]
        rows = {shape[0] if shape else 0 for shape in shapes} | ({self.images} if self.images is not None else set())
        if len(rows) != 1 or not min(rows):
            raise ApplyError(
                "every tensor of a condition has one entry for each image, (B, ...), in both branches (without tensors "
                f"images= is B), but these are {', '.join(map(str, shapes)) or 'none'}, images={self.images}"
            )

    def __len__(self) -> int:
        """B, the number of images."""
        return len(next(_tensors(self.conditional))) if self.images is None else self.images

    def of(self, images: Sequence[int]) -> "Condition":
        """The same of some of the images, in that order."""

        def chosen(tensor: Tensor) -> Tensor:
            return tensor[list(images)]

        return replace(
            self,
            conditional=_each(chosen, self.conditional),
            unconditional=None if self.unconditional is None else _each(chosen, self.unconditional),
            images=None if self.images is None else len(images),
        )

    def arguments(self, layout: Layout) -> dict[str, Any]:
        """Of a call on all images: tensors (2B, ...), both branches as ``layout`` says, or (B, ...) without guidance.

        Raises:
            ApplyError: guidance without an unconditional branch.
        """
        if layout is Layout.NONE:
            return dict(self.conditional)
        if self.unconditional is None:
            raise ApplyError(
                "guidance needs the arguments of the unconditional branch too, Condition(conditional, unconditional, "
                "...): give them, or sample at a guidance scale of 1"
            )
        branches = (self.conditional, self.unconditional)
        first, second = branches if layout is Layout.COND_FIRST else branches[::-1]
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
    usual_prompts = 6  # how many they are calibrated on; the authors' number for PixArt
    usual_video: VideoSize | None = None  # of a model whose videos may be of any size
    takes_negative = True  # False: its unconditional branch reads a caption of the model's own
    encoders: tuple[str, ...]  # parts of the pipeline that only encoding needs

    def check_encoders(self, pipe: Any) -> None:
        """Raises LoadError if the pipeline lacks what encodes prompts."""
        lacking = [name for name in self.encoders if getattr(pipe, name, None) is None]
        if lacking:
            raise LoadError(
                f"this {type(pipe).__name__} has no {' and no '.join(lacking)}, so it cannot encode prompts: load it "
                "from a folder or hub id that has them all"
            )

    @torch.no_grad()
    def condition(
        self, pipe: Any, prompts: Sequence[str], negative_prompt: str = "", video: VideoSize | None = None
    ) -> Condition:
        """Images of these prompts, encoded by the pipeline; the negative prompt is the unconditional branch of all.

        Args:
            video: of a model whose videos may be of any size; None takes ``usual_video``.

        Raises:
            LoadError: the pipeline lacks what encodes prompts.
            ApplyError: a size or a negative prompt for a model that takes none.
        """
        self.check_subject(pipe, negative_prompt, video)
        self.check_encoders(pipe)
        return self.encoded(pipe, list(prompts), negative_prompt, video or self.usual_video)

    def check_subject(self, pipe: Any, negative_prompt: str, video: VideoSize | None) -> None:
        """Raises ApplyError for a size or a negative prompt of a model that takes none."""
        name = type(pipe).__name__
        if video is not None and self.usual_video is None:
            raise ApplyError(f"{name} was made for one size: leave the size of a video ({video}) out")
        if negative_prompt and not self.takes_negative:
            raise ApplyError(f"{name} guides away from a caption of its own: leave the negative prompt out")

    @abstractmethod
    def encoded(self, pipe: Any, prompts: list[str], negative_prompt: str, video: VideoSize | None) -> Condition:
        """What :meth:`condition` returns, of a pipeline that has what it needs."""


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
