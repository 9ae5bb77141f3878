"""SmoothCache: errors of one run against plain formulas, the rule, and the command."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import label_denoiser, small_pipeline
from small_pixart import small_text_to_image

import plans
from calibration.cli import main
from calibration.settings import Settings
from calibration.smoothcache import smoothcache_errors
from calibration.subjects import condition_of
from ditfastattn.sampling import Denoiser, sample_latents
from plans import CrossShape, Plan
from plans.make import smoothcache
from plans.method import Method

STEPS, LABELS = 5, (1, 2)


@pytest.fixture(scope="module")
def measured() -> tuple[Any, Plan, dict[str, list[list[float]]]]:
    pipe = small_pipeline(layers=2)
    settings = Settings(labels=LABELS, steps=STEPS, guidance_scale=3.0)
    return pipe, *smoothcache_errors(pipe, settings, longest=2)


def test_errors_are_those_of_the_layers_own_outputs(measured: Any) -> None:
    pipe, _, errors = measured
    outputs: dict[str, list[list[torch.Tensor]]] = {"attn": [], "mlp": []}
    hooks = []
    for block in pipe.transformer.transformer_blocks:
        for site, module in (("attn", block.attn1), ("mlp", block.ff)):
            outputs[site].append([])
            keep = outputs[site][-1]
            hooks.append(module.register_forward_hook(lambda *args, keep=keep: keep.append(args[-1].double())))
    sample_latents(label_denoiser(pipe, LABELS, 3.0), pipe.scheduler, STEPS, 0, range(len(LABELS)))
    for hook in hooks:
        hook.remove()
    assert set(errors) == {"attn", "mlp"}
    for site, layers in outputs.items():
        for k in (1, 2):
            for t in range(STEPS - k):
                each = [float((o[t] - o[t + k]).abs().sum() / o[t + k].abs().sum()) for o in layers]
                assert errors[site][k - 1][t] == pytest.approx(sum(each) / len(each), rel=1e-3)
            assert all(math.isnan(value) for value in errors[site][k - 1][STEPS - k :])


def test_cross_attention_is_a_kind_of_its_own() -> None:
    pipe = small_text_to_image(layers=2)
    given = Settings(threshold=1.0, prompts=("a red fox", "two boats"), steps=STEPS, guidance_scale=3.0)
    plan, errors = smoothcache_errors(pipe, given, longest=2)
    assert tuple(errors) == tuple(plan.sites) == ("attn", "cross", "mlp")
    outputs: list[list[torch.Tensor]] = []
    for block in pipe.transformer.transformer_blocks:
        outputs.append([])
        keep = outputs[-1]
        block.attn2.register_forward_hook(lambda *args, keep=keep: keep.append(args[-1].double()))
    condition = condition_of(pipe, given)
    assert plan.model.cross == CrossShape(layers=2, words=condition.conditional["encoder_hidden_states"].shape[1])
    sample_latents(Denoiser(pipe.transformer, condition, 3.0), pipe.scheduler, STEPS, 0, range(2))
    for k in (1, 2):
        for t in range(STEPS - k):
            each = [float((o[t] - o[t + k]).abs().sum() / o[t + k].abs().sum()) for o in outputs]
            assert errors["cross"][k - 1][t] == pytest.approx(sum(each) / len(each), rel=1e-3)
    made = smoothcache(plan, errors, 1000)
    assert column(made, "cross") == "F..FF" and made.model == plan.model


def column(plan: Plan, site: str) -> str:
    (found,) = {plan.column(layer, site) for layer in range(plan.model.shape(site).layers)}  # type: ignore[arg-type]
    return "".join(method.letter for method in found)


def test_the_rule_by_hand(measured: Any) -> None:
    _, full, _ = measured
    nan = math.nan
    errors: dict[Any, list[list[float]]] = {
        "attn": [[0.3, 0.1, 0.1, 0.1, nan], [0.0, 0.2, 0.1, nan, nan]],  # a longer run that serves needs no shorter one
        "mlp": [[0.1, 0.1, 0.1, 0.1, nan], [0.2, 0.2, 0.2, nan, nan]],
    }
    plan = smoothcache(full, errors, 0.1)
    assert column(plan, "attn") == "F..FF" and column(plan, "mlp") == "F.F.F"
    assert "0.1 (relative L1)" in plan.note and "SmoothCache (arXiv 2411.10510)" in plan.note
    assert column(smoothcache(full, errors, 0.05), "attn") == "F..FF"
    assert column(smoothcache(full, errors, 0.05), "mlp") == "FFFFF"
    only = smoothcache(full, {"attn": errors["attn"]}, 0.1)
    assert tuple(only.sites) == ("attn",)


@given(st.lists(st.lists(st.floats(0, 1), min_size=STEPS, max_size=STEPS), min_size=1, max_size=3), st.floats(0, 1))
def test_nothing_is_reused_beyond_the_threshold(measured: Any, rows: list[list[float]], threshold: float) -> None:
    _, full, _ = measured
    found = smoothcache(full, {"attn": rows}, threshold).column(0, "attn")
    assert found[0] is found[-1] is Method.FULL
    computed = [step for step, method in enumerate(found) if method is Method.FULL]
    for step, after in zip(computed, [*computed[1:], STEPS], strict=True):
        length = after - step - 1
        # The last step is computed whatever the rule says, and may have cut a run by one.
        serves = length == 0 or rows[length - 1][step] <= threshold
        cut = after == STEPS - 1 and length < len(rows) and rows[length][step] <= threshold
        assert length <= len(rows) and (serves or cut)


def test_thresholds_and_errors_that_cannot_be(measured: Any) -> None:
    _, full, errors = measured
    with pytest.raises(ValueError, match="the threshold is -1"):
        smoothcache(full, errors, -1)
    with pytest.raises(ValueError, match="errors of 2 steps reused 1 later; the plan has 5 steps"):
        smoothcache(full, {"attn": [[0.1, 0.1]]}, 0.1)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "small", tmp_path / "out"
    small_pipeline(layers=2).save_pretrained(folder)
    common = ["smoothcache", "--model", str(folder), "--steps", "4", "--n-calib", "1", "--device", "cpu"]
    assert main([*common, "--threshold", "0", "1000", "--output", str(out)]) == 0
    none, all_of_it = (plans.load(out / f"small-dpm4-smoothcache-{value}.json") for value in ("0", "1000"))
    assert column(none, "mlp") == "FFFF" and column(all_of_it, "attn") == column(all_of_it, "mlp") == "F..F"
    assert "attn: error over one step" in capsys.readouterr().out
    assert main([*common, "--threshold", "1", "2", "--output", str(out / "one.json")]) == 2
    assert main([*common, "--threshold", "1", "1.0", "--output", str(out)]) == 2
    assert main([*common, "--threshold", "-1", "--output", str(out)]) == 2
    assert main([*common, "--threshold", "1", "--longest", "0", "--output", str(out)]) == 2
    said = capsys.readouterr().err
    assert (
        "is one file, but several will be written" in said
        and "a value stands twice" in said
        and "--longest 0 reuses nothing" in said
    )
