"""One's own transformer, as :func:`ditfastattn.register` was told of it: its self-attention alone is taken over."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ditfastattn.errors import ApplyError, StepError
from ditfastattn.layout import Layout
from ditfastattn.models.agreement import agree, softmax_attention
from ditfastattn.models.base import BlockAdapter, Call, ModelAdapter, common_obstacles
from plans import ModelSpec, TokenOrder

SHAPE = ("tokens", "heads", "head_dim", "in_channels", "out_channels")


@dataclass(frozen=True)
class Description:
    """The arguments of :func:`ditfastattn.register`."""

    attentions: Callable[[Any], Sequence[nn.Module]]
    qkv: Callable[..., Sequence[Tensor]]
    project: Callable[[Any, Tensor], Tensor]
    call: Callable[..., Call]
    shape: Callable[[Any], Mapping[str, int]]
    guided: Layout
    unconditional: Callable[[Tensor], Tensor] | None


@dataclass(frozen=True)
class AttentionCall:
    """One call of an attention module."""

    hidden: Tensor  # (B, N, C)
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class DescribedAttention(BlockAdapter[AttentionCall]):
    """A self-attention module in the place of a block: before and after it there is nothing to run."""

    def __init__(self, module: nn.Module, model: "DescribedModel") -> None:
        self.module = module
        self._model = model
        self._agrees = False

    def begin(  # type: ignore[override]
        self, hidden_states: Tensor, *args: Any, skip_attention: bool, **kwargs: Any
    ) -> AttentionCall:
        name = type(self.module).__name__
        expected, given = (self._model.rows, self._model.spec().tokens), tuple(hidden_states.shape[:2])
        if hidden_states.dim() != 3 or given != expected:
            raise StepError(
                f"{name} was called with {tuple(hidden_states.shape)}, but a plan needs (B, N, C) with the latents' "
                f"{expected[0]} rows and the {expected[1]} tokens that shape= gave"
            )
        for other in (*args, *kwargs.values()):
            if isinstance(other, Tensor) and other.dim() and other.shape[0] == expected[0] > 1:
                raise StepError(
                    f"{name} also takes a tensor {tuple(other.shape)} with one entry for each row of the batch, which "
                    "a plan that computes half of the rows cannot pass on"
                )
        call = AttentionCall(hidden_states, args, kwargs)
        if not self._agrees:
            self._compare(call)
        return call

    def qkv(self, state: AttentionCall, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self._model.description.qkv(self.module, state.hidden[rows], *state.args, **state.kwargs)
        return q, k, v

    def project(self, core: Tensor, out: Tensor | None = None) -> Tensor:
        return self._model.description.project(self.module, core)

    def finish(self, state: AttentionCall, attention_output: Tensor) -> Tensor:
        return attention_output

    def _compare(self, call: AttentionCall) -> None:
        """Full attention by the description against the module's own forward, once.

        Raises:
            StepError: they differ.
        """
        spec, name = self._model.spec(), type(self.module).__name__
        heads = (*call.hidden.shape[:2], spec.heads, spec.head_dim)
        parts = self._model.description.qkv(self.module, call.hidden, *call.args, **call.kwargs)
        shapes = [tuple(part.shape) for part in parts]
        if shapes != [heads] * 3:
            raise StepError(f"qkv= gave {shapes} for {name}, but a plan needs q, k and v of {heads}: (B, N, H, D)")
        ours = self.project(softmax_attention(*parts))
        theirs = type(self.module).forward(self.module, call.hidden, *call.args, **call.kwargs)
        if not isinstance(theirs, Tensor) or not agree(ours, theirs):
            raise StepError(
                f"{name}'s own forward is not project(softmax(q k^T / sqrt(D)) v) of what qkv= and project= gave: the "
                "registration misses something (a norm, a rotation, a mask, another scale, a second output?)"
            )
        self._agrees = True


class DescribedModel(ModelAdapter):
    """A registered transformer. Its plans can be followed in eager mode, the tokens in raster order."""

    why_eager = "it was registered by its attention alone, and they need the whole block"

    def __init__(self, description: Description, model: nn.Module) -> None:
        super().__init__(model)
        self.description = description
        self.guided_layout = description.guided
        self.rows = 0  # of the call that runs now
        self._blocks = [DescribedAttention(attention, self) for attention in self._attentions()]
        self._spec = self._described_spec()

    def _attentions(self) -> list[nn.Module]:
        name = type(self.model).__name__
        try:
            found = list(self.description.attentions(self.model))
        except (AttributeError, TypeError, KeyError, IndexError) as error:
            raise ApplyError(f"the attentions= registered for {name} does not fit this model ({error})") from error
        if not found or not all(isinstance(module, nn.Module) for module in found):
            raise ApplyError(f"the attentions= registered for {name} must give modules, one a layer, not {found!r}")
        if len(set(map(id, found))) < len(found):
            raise ApplyError(f"{name} runs one attention module in several places, which a plan cannot tell apart")
        return found

    def _described_spec(self) -> ModelSpec:
        name, given = type(self.model).__name__, dict[str, Any](self.description.shape(self.model))
        try:
            return ModelSpec(class_name=name, layers=len(self._blocks), **given)
        except (ValidationError, TypeError) as error:
            raise ApplyError(
                f"the shape= registered for {name} gave {given}, but a plan needs {', '.join(SHAPE)}: positive integers"
            ) from error

    @property
    def blocks(self) -> list[DescribedAttention]:
        return self._blocks

    def spec(self) -> ModelSpec:
        return self._spec

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """One row of the registered tokens; whether a call has as many is seen by the first attention."""
        return 1, self._spec.tokens

    def obstacles(self) -> list[str]:
        found = common_obstacles(self.model)
        if self.model.training:
            found.append("it is set up for training; call eval()")
        if [block.module for block in self._blocks] != self._attentions():
            found.append("its attention modules are not those that the plan was applied to; apply the plan anew")
        return found

    def order_obstacles(self, order: TokenOrder) -> list[str]:
        if order == "raster":
            return []
        return [f"the plan puts the tokens in {order} order, which needs whole blocks; it was registered by attention"]

    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        name = type(self.model).__name__
        try:
            call = self.description.call(*args, **kwargs)
        except TypeError as error:
            raise StepError(f"the call= registered for {name} does not take this call's arguments ({error})") from error
        if not isinstance(call, Call) or not isinstance(call.latents, Tensor):
            raise StepError(f"the call= registered for {name} must return ditfastattn.Call(latents, timestep, ...)")
        self.rows = call.latents.shape[0]
        return call

    def _unconditional(self, call: Call) -> Tensor | None:
        """(B,) bool, on the CPU."""
        if self.description.unconditional is None or call.condition is None:
            return None
        return self.description.unconditional(call.condition).bool().cpu()

    def is_guided(self, call: Call) -> bool:
        rows = call.latents.shape[0]
        if rows % 2 or self.guided_layout is Layout.NONE:
            return False
        unconditional = self._unconditional(call)
        if unconditional is None:
            return True
        expected = torch.ones(rows, dtype=torch.bool)
        expected[self.guided_layout.conditional_rows(rows)] = False
        return torch.equal(unconditional, expected)

    def mixes_branches(self, call: Call) -> bool:
        unconditional = self._unconditional(call)
        if unconditional is not None:
            return bool(unconditional.any()) and not bool(unconditional.all())
        if call.condition is None or not self.is_guided(call):
            return False
        (noise, same_noise), (first, second) = call.latents.chunk(2), call.condition.chunk(2)
        return torch.equal(noise, same_noise) and not torch.equal(first, second)
