"""One's own transformer: the README's program as it stands there, and what registering it wrongly leads to."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from block_formula import band
from diffusers.utils import BaseOutput
from small_models import same, small_pipeline
from torch import Tensor, nn

import ditfastattn
from calibration.errors import CalibrationError
from calibration.subjects import sampled_by
from ditfastattn.errors import ApplyError, StepError
from ditfastattn.models import REGISTRY
from plans import GuidanceSpec, Method, Plan, PlanMismatch, SamplerSpec, Window, load

README = Path(__file__).parents[2] / "README.md"
TIMES = (900.0, 600.0, 300.0)
WINDOW = Window(left=5, right=2)


def programs() -> list[str]:
    """The README's on a module of one's own: from its class to a session, and on to a plan that is found for it."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    first = next(index for index, block in enumerate(blocks) if "ditfastattn.register" in block)
    return blocks[first : first + 2]


@pytest.fixture
def registry() -> Iterator[None]:
    """What a test registers is forgotten."""
    before = dict(REGISTRY._added)
    yield
    REGISTRY._added.clear()
    REGISTRY._added.update(before)


@pytest.fixture
def mine(registry: None) -> dict[str, Any]:
    """The README's program after it ran."""
    names: dict[str, Any] = {"__name__": "readme"}
    torch.manual_seed(0)
    exec(programs()[0], names)
    return names


def described(**changes: Any) -> dict[str, Any]:
    """What the README registers, changed."""
    return {
        "guided": "cond_first",
        "attentions": lambda model: model.layers,
        "qkv": lambda attention, x: attention.qkv(x).unflatten(2, (3, 4, 16)).unbind(2),
        "project": lambda attention, heads: attention.out(heads.flatten(2)),
        "call": lambda x, time, label: ditfastattn.Call(x, time, label),
        "shape": lambda model: {"tokens": 64, "heads": 4, "head_dim": 16, "in_channels": 3, "out_channels": 3},
    } | changes


def plan_for(model: Any, rows: list[list[Method]] | None = None, layout: str = "cond_first", **changes: Any) -> Plan:
    scale = 1.0 if layout == "none" else 4.0
    plan = Plan.full(
        model=ditfastattn.model_spec(model),
        guidance=GuidanceSpec(scale=scale, layout=layout),  # type: ignore[arg-type]
        sampler=SamplerSpec(class_name="Mine", settings={}, timesteps=TIMES),
        window=WINDOW,
    )
    plan = plan if rows is None else plan.with_methods([[Method.FULL] * 3, *rows])
    return plan.model_copy(update=changes)


def inputs(dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Calls of three steps, guided."""
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(2, 3, 8, 8, generator=generator, dtype=dtype).repeat(2, 1, 1, 1) for _ in TIMES]
    labels = torch.tensor([3, 7, 10, 10])
    return [(x, torch.full((4,), time, dtype=dtype), labels) for x, time in zip(noise, TIMES, strict=True)]


@torch.no_grad()
def outputs(model: Any, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [model(*call) for call in inputs(dtype)]


def test_the_readmes_program_runs_and_is_short(mine: dict[str, Any]) -> None:
    assert len([line for line in programs()[0].splitlines() if line.strip()]) < 40
    assert [tuple(output.shape) for output in mine["outputs"]] == [(2, 3, 8, 8)] * 3
    counts = mine["session"].summary().methods
    assert counts == {Method.FULL: 3, Method.ASC: 1, Method.WA_RS: 1, Method.AST: 4}


def test_the_readmes_calibration_runs_and_is_short(
    mine: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(programs()[1].splitlines()) <= 25
    exec(programs()[1], mine)
    found = mine["found"].plan
    assert load("mine.json") == found and found.sampler.class_name == "DPMSolverMultistepScheduler"
    assert {method for row in found.methods for method in row} > {Method.FULL}
    assert mine["x"].shape == (1, 3, 8, 8) and torch.isfinite(mine["x"]).all()
    assert {file.name for file in tmp_path.iterdir()} == {"mine.json", "mine.trace.jsonl", "mine.png"}


def test_an_all_full_plan_changes_no_bit(mine: dict[str, Any]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = mine["model"].to(dtype)
        plain = outputs(model, dtype)
        with ditfastattn.apply(model, plan_for(model)):
            assert all(torch.equal(a, b) for a, b in zip(outputs(model, dtype), plain, strict=True))


@pytest.mark.parametrize("layout", ["cond_first", "uncond_first"])
@pytest.mark.parametrize("method", [Method.WA_RS, Method.ASC, Method.WA_RS_ASC])
def test_each_method_equals_the_formula(mine: dict[str, Any], method: Method, layout: str) -> None:
    """FULL, then the method twice, then AST, on the whole model in float64."""
    model = mine["model"].double()
    conditional = slice(0, 2) if layout == "cond_first" else slice(2, 4)
    ditfastattn.register(mine["MyTransformer"], **described(guided=layout))
    rows = [[method] * 3, [method, Method.AST, method]]
    kept: list[dict[str, Tensor]] = [{}, {}, {}]

    def attend(layer: int, attention: Any, x: Tensor, chosen: Method) -> Tensor:
        if chosen is Method.AST:
            return kept[layer]["output"]
        q, k, v = attention.qkv(x).unflatten(2, (3, 4, 16)).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT / 4
        full = scores.softmax(-1) @ v
        window = scores.masked_fill(~band(WINDOW, range(64)), -torch.inf).softmax(-1) @ v
        core = window + kept[layer]["residual"] if chosen in (Method.WA_RS, Method.WA_RS_ASC) else full
        if chosen in (Method.FULL, Method.ASC):
            kept[layer]["residual"] = full - window
        if chosen in (Method.ASC, Method.WA_RS_ASC):
            core = core[conditional].repeat(2, 1, 1, 1)
        kept[layer]["output"] = attention.out(core.transpose(1, 2).flatten(2))
        return kept[layer]["output"]

    with ditfastattn.apply(model, plan_for(model, rows, layout)):
        ours = outputs(model, torch.float64)
    with torch.no_grad():
        for call, chosen, output in zip(inputs(torch.float64), [[Method.FULL] * 3, *rows], ours, strict=True):
            x, time, label = call
            h = model.enter(x.flatten(2).mT) + model.label(label)[:, None] * time[:, None, None] / 1000
            for layer, attention in enumerate(model.layers):
                h = h + attend(layer, attention, h, chosen[layer])
            expected = model.leave(h).mT.unflatten(2, (8, 8))
            torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)


def test_everything_is_put_back(mine: dict[str, Any]) -> None:
    model = mine["model"]
    before, plain = [dict(module.__dict__) for module in model.modules()], outputs(model)
    with ditfastattn.apply(model, plan_for(model, [[Method.ASC] * 3, [Method.AST] * 3])) as session:
        compressed = outputs(model)
        assert session.summary().peak_cache_bytes == session.summary().predicted_peak_cache_bytes > 0
    assert same(before, [dict(module.__dict__) for module in model.modules()])
    assert torch.equal(outputs(model)[2], plain[2]) and not torch.equal(compressed[2], plain[2])


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


class Rotated(nn.Module):
    """Attention with further arguments: an angle for each token, and something for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(64, 64) for _ in range(3))

    def split(self, x: Tensor, angles: Tensor, each: Tensor | None = None) -> tuple[Tensor, ...]:
        q, k, v = (part(x).unflatten(2, (4, 16)) for part in (self.q, self.k, self.v))
        return q * angles.cos()[:, None, None], k * angles.sin()[:, None, None], v

    def forward(self, x: Tensor, angles: Tensor, each: Tensor | None = None) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in self.split(x, angles, each))
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


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


@pytest.mark.parametrize("each", [False, True])
def test_further_arguments_of_attention_are_passed_on_unless_they_are_per_image(
    mine: dict[str, Any], each: bool
) -> None:
    class Other(mine["MyTransformer"]):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Rotated() for _ in range(3))

        def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
            h = self.enter(x.flatten(2).mT) + self.label(label)[:, None]
            for attention in self.layers:
                h = h + attention(h, torch.arange(64), each=time if each else None)
            return self.leave(h).mT.unflatten(2, (8, 8))

    model = Other().eval()
    description = described(qkv=Rotated.split, project=lambda attention, heads: heads.flatten(2))
    ditfastattn.register(Other, **description)
    plain = outputs(model)
    with ditfastattn.apply(model, plan_for(model, [[Method.ASC] * 3] * 2)):
        if each:
            with pytest.raises(StepError, match="one entry for each row of the batch"):
                outputs(model)
        else:
            # The conditional half goes on as it would; the other has its attention.
            assert torch.equal(outputs(model)[2][:2], plain[2][:2])


def test_its_mlps_are_out_of_reach(mine: dict[str, Any]) -> None:
    model = mine["model"]
    with pytest.raises(ApplyError, match="plans cannot reach the MLPs of this model; use one without"):
        ditfastattn.apply(model, plan_for(model).with_mlp())


def test_its_steps_can_be_skipped_and_its_attention_forecast(mine: dict[str, Any]) -> None:
    model = mine["model"]
    plain = outputs(model)
    with ditfastattn.apply(model, plan_for(model).skipping([Method.FULL, Method.FULL, Method.AST_1])):
        skipped = outputs(model)
    assert all(torch.equal(a, b) for a, b in zip(skipped[:2], plain[:2], strict=True))
    torch.testing.assert_close(skipped[2], 2 * plain[1] - plain[0])  # 900, 600, 300
    with ditfastattn.apply(model, plan_for(model, [[Method.FULL] * 3, [Method.AST_1] * 3])):
        assert not torch.equal(outputs(model)[2], plain[2])


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
