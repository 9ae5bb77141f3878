"""One's own transformer, as :func:`ditfastattn.register` was told of it: its self-attention alone is taken over."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ditfastattn.errors import ApplyError, DitFastAttnError, StepError
from ditfastattn.layout import Layout
from ditfastattn.models.agreement import agree, softmax_attention
from ditfastattn.models.arguments import kind_of, tensors_of
from ditfastattn.models.base import BlockAdapter, Call, ModelAdapter
from ditfastattn.models.obstacles import common_obstacles
from plans import ModelSpec, PlanError, TokenOrder

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
    predict: Callable[..., Any]


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
        self._agreed: set[Hashable] = set()  # kinds of calls whose outcome was compared

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
        for other in tensors_of((args, kwargs)):
            if other.dim() and other.shape[0] == expected[0] > 1:
                raise StepError(
                    f"{name} also takes a tensor {tuple(other.shape)} with one entry for each row of the batch, which "
                    "a plan that computes half of the rows cannot pass on"
                )
        call = AttentionCall(hidden_states, args, kwargs)
        if (kind := kind_of((args, kwargs))) not in self._agreed:
            self._compare(call)
            self._agreed.add(kind)
        return call

    def qkv(self, state: AttentionCall, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self._model.description.qkv(self.module, state.hidden[rows], *state.args, **state.kwargs)
        return q, k, v

    def project(self, core: Tensor, out: Tensor | None = None) -> Tensor:
        return self._model.description.project(self.module, core)

    def finish(self, state: AttentionCall, attention_output: Tensor) -> Tensor:
        return attention_output.clone()  # the model's to change in place; what is kept for later steps must not be

    def _compare(self, call: AttentionCall) -> None:
        """Full attention by the description against the module's own forward, once for each kind of call.

        Raises:
            StepError: they differ.
        """
        spec, name = self._model.spec(), type(self.module).__name__
        heads = (*call.hidden.shape[:2], spec.heads, spec.head_dim)
        parts = _asked("qkv", name, self._model.description.qkv, self.module, call.hidden, *call.args, **call.kwargs)
        shapes = [tuple(p.shape) for p in parts] if _all_tensors(parts) else type(parts).__name__
        if shapes != [heads] * 3:
            raise StepError(f"qkv= gave {shapes} for {name}, but a plan needs q, k and v of {heads}: (B, N, H, D)")
        ours = _asked("project", name, self._model.description.project, self.module, softmax_attention(*parts))
        if not isinstance(ours, Tensor):
            raise StepError(f"project= gave a {type(ours).__name__} for {name}, but a plan needs a tensor (B, N, C)")
        theirs = type(self.module).forward(self.module, call.hidden, *call.args, **call.kwargs)
        if not isinstance(theirs, Tensor) or not agree(ours, theirs):
            raise StepError(
                f"{name}'s own forward is not project(softmax(q k^T / sqrt(D)) v) of what qkv= and project= gave: the "
                "registration misses something (a norm, a rotation, a mask, another scale, a second output?)"
            )


class DescribedModel(ModelAdapter):
    """A registered transformer. Its plans can be followed in eager mode, the tokens in raster order."""

    why_eager = "it was registered by its attention alone, and they need the whole block"
    runs_between = True

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
        except Exception as error:  # whatever a user's function raises
            message = f"the attentions= registered for {name} does not fit this model ({_reason(error)})"
            raise ApplyError(message) from error
        if not found or not all(isinstance(module, nn.Module) for module in found):
            raise ApplyError(f"the attentions= registered for {name} must give modules, one a layer, not {found!r}")
        if len(set(map(id, found))) < len(found):
            raise ApplyError(f"{name} runs one attention module in several places, which a plan cannot tell apart")
        return found

    def _described_spec(self) -> ModelSpec:
        name = type(self.model).__name__
        try:
            given: Any = self.description.shape(self.model)
        except Exception as error:  # whatever a user's function raises
            raise ApplyError(f"the shape= registered for {name} does not fit this model ({_reason(error)})") from error
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
        except Exception as error:  # whatever a user's function raises
            reason = _reason(error)
            raise StepError(
                f"the call= registered for {name} does not take this call's arguments ({reason})"
            ) from error
        if not isinstance(call, Call) or not isinstance(call.latents, Tensor) or call.latents.dim() < 3:
            raise StepError(
                f"the call= registered for {name} must return ditfastattn.Call(latents, timestep, ...) with latents "
                f"(B, C, h, w), not {_shown(call)}"
            )
        if not isinstance(call.timestep, Tensor | Real):
            raise StepError(f"the call= registered for {name} gave {call.timestep!r} as timestep: a number or a tensor")
        if not isinstance(call.condition, Tensor | None) or not isinstance(call.mask, Tensor | None):
            raise StepError(f"the call= registered for {name} must give condition and mask as tensors, or as None")
        if call.condition is None and self.description.unconditional is not None:
            raise StepError(
                f"the call= registered for {name} gave no condition, which its unconditional= reads: give both or none"
            )
        self.rows = call.latents.shape[0]
        return call

    def unwrap(self, output: Any) -> Tensor:
        listed = output.to_tuple() if hasattr(output, "to_tuple") else output  # diffusers' and transformers' outputs
        bare = listed[0] if isinstance(listed, list | tuple) and listed else output
        if not isinstance(bare, Tensor):
            raise StepError(
                f"{type(self.model).__name__} returned a {type(output).__name__}, in which a plan cannot find its "
                "output: return the tensor, a tuple that begins with it, or one of diffusers' outputs"
            )
        return bare

    def predict(self, latents: Tensor, timestep: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        try:
            output = self.description.predict(self.model, latents, timestep, **arguments)
        except (DitFastAttnError, PlanError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a user's function or model raises
            raise StepError(
                f"the predict= registered for {type(self.model).__name__}, called with latents {tuple(latents.shape)}, "
                f"the timestep and {', '.join(arguments) or 'nothing else'}, failed ({_reason(error)})"
            ) from error
        return self.unwrap(output)

    def _unconditional(self, call: Call) -> Tensor | None:
        """(B,) bool, on the CPU."""
        if self.description.unconditional is None or call.condition is None:
            return None
        name, rows = type(self.model).__name__, call.latents.shape[0]
        found = _asked("unconditional", name, self.description.unconditional, call.condition)
        if not isinstance(found, Tensor) or found.shape != (rows,):
            raise StepError(
                f"the unconditional= registered for {name} gave {_shown(found)}, but a plan needs one bool for each of "
                f"the {rows} rows"
            )
        return found.bool().cpu()

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


def _asked(argument: str, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a registered function returns. Raises StepError for whatever it raises."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        raise StepError(f"the {argument}= registered for {name} failed ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _shown(value: Any) -> str:
    """A value in a message: tensors by their shape."""
    if isinstance(value, Call) and isinstance(value.latents, Tensor):
        return f"latents {tuple(value.latents.shape)}"
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _all_tensors(parts: Any) -> bool:
    return isinstance(parts, Tensor | list | tuple) and all(isinstance(part, Tensor) for part in parts)
