"""One's own transformer: the README's program as it stands there, and plans of every kind on its model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from block_formula import band
from readme_program import WINDOW, described, inputs, outputs, plan_for, programs
from small_models import same
from torch import Tensor, nn

import ditfastattn
from ditfastattn.errors import StepError
from plans import Method, load


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


def test_its_steps_can_be_skipped_and_its_attention_forecast(mine: dict[str, Any]) -> None:
    model = mine["model"]
    plain = outputs(model)
    with ditfastattn.apply(model, plan_for(model).skipping([Method.FULL, Method.FULL, Method.AST_1])):
        skipped = outputs(model)
    assert all(torch.equal(a, b) for a, b in zip(skipped[:2], plain[:2], strict=True))
    torch.testing.assert_close(skipped[2], 2 * plain[1] - plain[0])  # 900, 600, 300
    with ditfastattn.apply(model, plan_for(model, [[Method.FULL] * 3, [Method.AST_1] * 3])):
        assert not torch.equal(outputs(model)[2], plain[2])
