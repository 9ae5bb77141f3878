"""One's own transformer: what registering it wrongly leads to, and what is refused of one that is registered."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers.utils import BaseOutput
from readme_program import described, inputs, outputs, plan_for
from small_models import small_pipeline
from torch import Tensor, nn

import ditfastattn
from calibration.errors import CalibrationError
from calibration.subjects import sampled_by
from ditfastattn.errors import ApplyError, StepError
from plans import Method, PlanMismatch


def test_a_batch_that_is_not_guided_as_said_is_refused(mine: dict[str, Any]) -> None:
    model = mine["model"]
    (x, time, label), *_ = inputs()
    with ditfastattn.apply(model, plan_for(model)), torch.no_grad():
        with pytest.raises(PlanMismatch, match="in that order"):
            model(x, time, label.flip(0))
        with pytest.raises(PlanMismatch, match="in that order"):
            model(x[:3], time[:3], label[:3])
    with (
        ditfastattn.apply(model, plan_for(model, layout="none")),
        pytest.raises(PlanMismatch, match="holds both guidance branches"),
    ):
        model(x, time, label)


def test_plans_of_other_models_and_orders_are_refused(mine: dict[str, Any]) -> None:
    model, pipe = mine["model"], small_pipeline()
    with pytest.raises(PlanMismatch, match="class_name: the plan has MyTransformer, this model DiTTransformer2DModel"):
        ditfastattn.apply(pipe.transformer, plan_for(model))
    rows = [[Method.WA_RS] * 3] * 2
    with pytest.raises(ApplyError, match="the tokens in hilbert order, which needs whole blocks"):
        ditfastattn.apply(model, plan_for(model, rows, token_order="hilbert"))
    for wish in ("compile", "graphs"):
        with pytest.raises(ApplyError, match="by its attention alone, and they need the whole block") as error:
            ditfastattn.apply(model, plan_for(model), **{wish: True})
        assert "\n" not in str(error.value)


def test_calibration_says_that_it_cannot_call_it(mine: dict[str, Any]) -> None:
    with pytest.raises(CalibrationError, match=r"the forward of MyTransformer is called with .* FromLabels"):
        sampled_by(mine["model"])


def test_an_unknown_module_is_told_what_is_missing() -> None:
    class Unknown(nn.Module):
        pass

    with pytest.raises(ApplyError, match=r"Unknown is not supported.*describe it with ditfastattn\.register\(Unknown"):
        ditfastattn.model_spec(Unknown())
    with pytest.raises(ApplyError, match="DiTTransformer2DModel is known already; register a subclass"):
        ditfastattn.register(type(small_pipeline().transformer), **described())
    with pytest.raises(ApplyError, match="takes a class of modules"):
        ditfastattn.register(Unknown(), **described())  # type: ignore[arg-type]
    with pytest.raises(ApplyError, match="guided= is one of none, cond_first, uncond_first, not 'first'"):
        ditfastattn.register(Unknown, **described(guided="first"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attentions": lambda model: model.blocks}, "attentions= registered for MyTransformer does not fit"),
        ({"attentions": lambda model: []}, "must give modules, one a layer"),
        ({"attentions": lambda model: [model.layers[0]] * 3}, "one attention module in several places"),
        ({"shape": lambda model: {"tokens": 64, "heads": 4}}, "a plan needs tokens, heads, head_dim, in_channels"),
        ({"shape": lambda model: dict.fromkeys(("tokens", "heads", "depth"), 4)}, "positive integers"),
        ({"shape": lambda model: None}, "gave None, but a plan needs tokens"),
        (
            {"shape": lambda model: {"tokens": model.nope}},
            "shape= registered for MyTransformer does not fit this model",
        ),
    ],
)
def test_a_registration_that_does_not_fit_the_model_is_refused(
    mine: dict[str, Any], change: dict[str, Any], words: str
) -> None:
    ditfastattn.register(mine["MyTransformer"], **described(**change))
    with pytest.raises(ApplyError, match=words):
        ditfastattn.model_spec(mine["model"])


def _tokens(model: Any) -> dict[str, int]:
    return {"tokens": 32, "heads": 4, "head_dim": 16, "in_channels": 3, "out_channels": 3}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"qkv": lambda attention, x: attention.qkv(x).chunk(3, dim=2)}, r"but a plan needs q, k and v of \(4, 64, 4"),
        (
            {"qkv": lambda attention, x: attention.qkv(x).unflatten(2, (3, 4, 16)).flip(2).unbind(2)},
            "Attention's own forward is not project",
        ),
        ({"project": lambda attention, heads: heads.flatten(2)}, "the registration misses something"),
        ({"call": lambda x, time: ditfastattn.Call(x, time, None)}, "does not take this call's arguments"),
        ({"call": lambda x, time, label: (x, time, label)}, "must return ditfastattn.Call"),
        ({"call": lambda *given: given[7]}, r"does not take this call's arguments \(IndexError"),
        ({"call": lambda x, time, label: ditfastattn.Call(x.flatten(), time, label)}, r"not latents \(768,\)"),
        ({"call": lambda x, time, label: ditfastattn.Call(x, "late", label)}, "gave 'late' as timestep"),
        ({"call": lambda x, time, label: ditfastattn.Call(x, time, [label])}, "condition and mask as tensors"),
        (
            {
                "call": lambda x, time, label: ditfastattn.Call(x, time, None),
                "unconditional": lambda label: label == 10,
            },
            "gave no condition, which its unconditional= reads",
        ),
        (
            {"unconditional": lambda label: label.nope},
            r"unconditional= registered for MyTransformer failed \(Attribute",
        ),
        (
            {"unconditional": lambda label: (label == 10).any()},
            r"gave a tensor \(\), but a plan needs one bool for each",
        ),
        ({"unconditional": lambda label: "last"}, "gave a str, but a plan needs one bool for each of the 4 rows"),
        ({"qkv": lambda attention, x: attention.nope}, r"qkv= registered for Attention failed \(AttributeError"),
        ({"qkv": lambda attention, x: (x, None, x)}, "qkv= gave tuple for Attention"),
        ({"project": lambda attention, heads: attention.nope}, "project= registered for Attention failed"),
        ({"project": lambda attention, heads: None}, "project= gave a NoneType"),
        ({"shape": _tokens}, r"called with \(4, 64, 64\).* 4 rows and the 32 tokens"),
    ],
)
def test_a_registration_that_says_something_wrong_is_refused_at_the_first_call(
    mine: dict[str, Any], change: dict[str, Any], words: str
) -> None:
    model = mine["model"]
    ditfastattn.register(mine["MyTransformer"], **described(**change))
    with ditfastattn.apply(model, plan_for(model)), pytest.raises(StepError, match=words):
        outputs(model)


def test_attention_called_by_name_is_told_to_take_its_input_first(mine: dict[str, Any]) -> None:
    class ByName(mine["MyTransformer"]):  # type: ignore[misc]
        def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
            return self.layers[0](x=self.enter(x.flatten(2).mT))

    model = ByName().eval()
    with (
        ditfastattn.apply(model, plan_for(model)),
        pytest.raises(StepError, match="block 0 was called without a positional argument"),
    ):
        outputs(model)


def test_its_mlps_are_out_of_reach(mine: dict[str, Any]) -> None:
    model = mine["model"]
    with pytest.raises(ApplyError, match="plans cannot reach the MLPs of this model; use one without"):
        ditfastattn.apply(model, plan_for(model).with_mlp())


def edited(mine: dict[str, Any], attend: Any, leave: Any = lambda output: output) -> Any:
    """The README's model with another loop over its layers: ``attend(model, h, time, label)``."""

    class Edited(mine["MyTransformer"]):  # type: ignore[misc]
        def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Any:
            h = self.enter(x.flatten(2).mT) + self.label(label)[:, None] * time[:, None, None] / 1000
            return leave(self.leave(attend(self, h, time, label)).mT.unflatten(2, (8, 8)))

    ditfastattn.register(Edited, **described())
    return Edited().eval()


def test_a_layer_that_runs_twice_or_not_at_all_is_refused(mine: dict[str, Any]) -> None:
    def looped(model: Any, h: Tensor, time: Tensor, label: Tensor, late: bool, order: list[int]) -> Tensor:
        for layer in order if late == bool(time[0] < 900) else range(3):
            h = h + model.layers[layer](h)
        return h

    for late in (False, True):
        step = int(late)
        twice = edited(mine, lambda *given, late=late: looped(*given, late=late, order=[0, 1, 1, 2]))
        with (
            ditfastattn.apply(twice, plan_for(twice)),
            pytest.raises(StepError, match=f"block 1 was called twice at step {step}"),
        ):
            outputs(twice)
        skipping = edited(mine, lambda *given, late=late: looped(*given, late=late, order=[0, 2]))
        for rows in ([[Method.WA_RS, Method.AST, Method.FULL]] * 2, None):
            with (
                ditfastattn.apply(skipping, plan_for(skipping, rows)),
                pytest.raises(StepError, match=f"block 1 did not run at step {step}"),
            ):
                outputs(skipping)


def test_what_the_model_returns_must_show_its_output(mine: dict[str, Any]) -> None:
    def through(model: Any, h: Tensor, *_: Tensor) -> Tensor:
        return sum((layer(h) for layer in model.layers), h)

    for leave in (lambda output: (output, None), lambda output: BaseOutputOf(sample=output)):
        model = edited(mine, through, leave)
        with ditfastattn.apply(model, plan_for(model)):
            outputs(model)
    for leave in (lambda output: {"sample": output}, lambda output: None, lambda output: ()):
        model = edited(mine, through, leave)
        with (
            ditfastattn.apply(model, plan_for(model)),
            pytest.raises(StepError, match="in which a plan cannot find its output: return the tensor"),
        ):
            outputs(model)


@dataclass
class BaseOutputOf(BaseOutput):
    sample: Tensor


class Masked(nn.Module):
    """Attention with a mask, which the registration of these tests forgets."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(64, 192), nn.Linear(64, 64)

    def forward(self, x: Tensor, more: Any = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 4, 16)).permute(2, 0, 3, 1, 4)
        if isinstance(more, dict):
            more = more["mask"]
        mask = torch.ones(64, 64).tril().bool() if more is not None else None
        heads = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(heads.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("early", "late", "words"),
    [
        (None, torch.ones(64), "the registration misses something"),
        ({"mask": None}, {"mask": torch.ones(64)}, "the registration misses something"),
        (None, (torch.ones(4),), "one entry for each row of the batch"),
        (None, {"mask": [torch.ones(4, 1)]}, "one entry for each row of the batch"),
    ],
)
def test_arguments_that_come_later_are_compared_and_refused_as_the_first(
    mine: dict[str, Any], early: Any, late: Any, words: str
) -> None:
    def attend(model: Any, h: Tensor, time: Tensor, label: Tensor) -> Tensor:
        for attention in model.layers:
            h = h + attention(h, early if time[0] > 500 else late)
        return h

    model = edited(mine, attend)
    model.layers = nn.ModuleList(Masked() for _ in range(3))
    qkv = described()["qkv"]
    ditfastattn.register(type(model), **described(qkv=lambda attention, x, more=None: qkv(attention, x)))
    calls = inputs()
    with ditfastattn.apply(model, plan_for(model)), torch.no_grad():
        model(*calls[0])
        model(*calls[1])
        with pytest.raises(StepError, match=words):
            model(*calls[2])
