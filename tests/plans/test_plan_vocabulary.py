"""Forecasts, MLPs and skipped steps: the rules of their cells, their MACs, and how they are shown."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_examples import COND_FIRST, DIT_12, LATTE_28, NO_GUIDANCE, UNCOND_FIRST, dpm_solver, golden, heun

import plans
from plans import CrossShape, Method, MlpShape, Plan
from plans.cli import main
from plans.forecast import feasible, forecast_weights
from plans.macs import cross_macs, full_macs, mlp_macs, plan_macs, shares, shown_macs, total_macs
from plans.render import costline, headline, legend_order, siteline, terminal

F, C, A, A1, A2, W = Method.FULL, Method.ASC, Method.AST, Method.AST_1, Method.AST_2, Method.WA_RS
MLP = MlpShape(layers=12, hidden=1536)


def full(steps: int = 6, **changes: object) -> Plan:
    return Plan.full(**({"model": DIT_12, "sampler": dpm_solver(steps), "guidance": COND_FIRST} | changes))  # type: ignore[arg-type]


def grid(*column: Method) -> list[list[Method]]:
    """The same column in each of the 12 layers."""
    return [[method] * 12 for method in column]


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=4, unique=True), st.integers(-60, 60), st.randoms())
def test_a_forecast_is_the_polynomial_through_the_outputs(times: list[int], timestep: int, random: object) -> None:
    """Exact for every polynomial of its order, by Newton's divided differences in fractions."""
    values = [Fraction(random.randint(-9, 9)) for _ in times]  # type: ignore[attr-defined]
    table, total, factor = list(values), Fraction(0), Fraction(1)
    for order, time in enumerate(times):
        total += table[0] * factor
        factor *= timestep - time
        table = [(table[i + 1] - table[i]) / (times[i + order + 1] - times[i]) for i in range(len(table) - 1)]
    weights = forecast_weights(float(timestep), [float(time) for time in times])
    scale = sum(abs(weight) for weight in weights) * 9 + 1
    assert abs(sum(w * float(v) for w, v in zip(weights, values, strict=True)) - float(total)) < 1e-12 * scale
    assert abs(sum(weights) - 1) < 1e-12 * scale


def test_weights_by_hand() -> None:
    assert forecast_weights(700.0, (900.0, 800.0)) == (-1.0, 2.0)
    assert forecast_weights(700.0, (1000.0, 900.0, 800.0)) == (1.0, -3.0, 3.0)
    assert forecast_weights(750.0, (900.0, 800.0)) == (-0.5, 1.5)  # not evenly spaced


def test_a_forecast_needs_its_outputs() -> None:
    assert full().with_methods(grid(F, C, A1, W, A2, A2)).methods[4][0] is A2  # every method but AST computes
    with pytest.raises(ValueError, match="step 1 has AST_1 in layer 0, which extrapolates 2 outputs, but only 1 of"):
        full().with_methods(grid(F, A1, F, F, F, F))
    with pytest.raises(ValueError, match="step 3 has AST_2 in layer 0, which extrapolates 3 outputs, but only 2 of"):
        full().with_methods(grid(F, A, F, A2, F, F))
    two_calls = full(sampler=heun(4))
    two_calls.with_methods(grid(F, F, A1, F, A, F, F))
    with pytest.raises(ValueError, match="two of the 2 outputs that it extrapolates are both at timestep 666; use AST"):
        two_calls.with_methods(grid(F, F, F, A1, F, F, F))


def test_feasible_takes_the_highest_order_that_there_is() -> None:
    times = (9.0, 8.0, 7.0, 6.0, 5.0, 4.0)
    assert feasible((F, A2, F, A2, F, A2), times) == (F, A, F, A1, F, A2)
    assert feasible((F, F, A2, A1, F, F), (9.0, 9.0, 8.0, 8.0, 7.0, 7.0)) == (F, F, A, A, F, F)


def test_the_mlps_are_a_site_of_a_plan_that_says_so() -> None:
    plan = full().with_mlp()
    assert plan.model.mlp == MLP and plan.sites["mlp"].methods == tuple(map(tuple, grid(F, F, F, F, F, F)))
    changed = plan.with_methods(grid(F, C, A, F, A1, A2), site="mlp")
    assert plans.loads(plans.dumps(changed)) == changed
    assert Plan.full(model=plan.model, sampler=plan.sampler, guidance=plan.guidance) == plan
    with pytest.raises(ValueError, match="step 1 has WA_RS in mlp layer 0; the site mlp has only AST, AST_1, AST_2, A"):
        plan.with_methods(grid(F, W, F, F, F, F), site="mlp")
    with pytest.raises(ValueError, match="guidance layout is 'none'"):
        full(guidance=NO_GUIDANCE).with_mlp().with_methods(grid(F, C, F, F, F, F), site="mlp")
    with pytest.raises(ValueError, match="mlp exactly if model"):
        Plan(**dict(plan) | {"model": DIT_12})
    with pytest.raises(ValueError, match="has the site mlp already"):
        plan.with_mlp()
    video = Plan.full(model=LATTE_28, sampler=dpm_solver(4), guidance=UNCOND_FIRST)
    with pytest.raises(ValueError, match="cannot be guessed"):
        video.with_mlp()
    assert video.with_mlp(MlpShape(layers=56, hidden=4608)).model.shape("mlp").rows == 16


def test_a_skipped_step_computes_nothing() -> None:
    plan = full().with_mlp().skipping((F, A, F, A1, F, A2))
    assert plan.skipped == {1, 3, 5} and full().skipped == frozenset()
    for name in ("attn", "mlp"):
        assert plan.column(0, name) == (F, A, F, A, F, A)  # type: ignore[arg-type]
    assert plans.loads(plans.dumps(plan)) == plan
    again = full().skipping((F, A, F, A1, F, A2)).with_mlp()
    assert again == plan
    with pytest.raises(
        ValueError, match=r"step 1 has AST in the model, so nothing of it is computed, but FULL in layer"
    ):
        plan.with_methods(grid(F, F, F, A, F, A))
    with pytest.raises(
        ValueError, match="step 1 has ASC in the model; the site model has only AST, AST_1, AST_2, FULL"
    ):
        full().skipping((F, C, F, F, F, F))
    with pytest.raises(ValueError, match="step 2 has AST_1 in the model, which extrapolates 2 outputs"):
        full().skipping((F, A, A1, F, F, F))


def test_plans_without_them_are_written_as_before() -> None:
    text = plans.dumps(golden()["dit-12x50"])
    assert "mlp" not in text and "AST_" not in text and '"model": {\n    "methods"' not in text


def test_another_models_mlps_are_differences() -> None:
    plan = full().with_mlp()
    narrow = plan.model.model_copy(update={"mlp": MlpShape(layers=12, hidden=768)})
    assert plan.differences(model=narrow) == ["MLPs' hidden width: the plan has 1536, this model 768"]
    assert plan.differences(model=DIT_12) == ["MLPs: the plan has 12 of width 1536, this model no site mlp"]


def test_macs_with_mlps_by_hand() -> None:
    """256 tokens of 384 channels through 1536: attention 4 N C^2 + 2 N^2 C, an MLP 8 N C^2."""
    attention, mlp = 4 * 256 * 384**2 + 2 * 256**2 * 384, 8 * 256 * 384**2
    plan = full().with_mlp().with_methods(grid(F, A, C, F, A1, F), site="mlp").with_methods(grid(F, F, F, C, A, A1))
    assert [steps // 12 for steps in mlp_macs(plan).steps] == [mlp, 0, mlp // 2, mlp, 0, mlp]
    total = total_macs(plan)
    assert total.full_step == 12 * (attention + mlp) == 12 * (full_macs(DIT_12) + mlp)
    expected = (attention + mlp, attention, attention + mlp // 2, attention // 2 + mlp, 0, mlp)
    assert [steps // 12 for steps in total.steps] == list(expected)
    skipping = full().skipping((F, A, F, A, F, A))
    assert total_macs(skipping).percent == total_macs(skipping.with_mlp()).percent == 50
    assert plan_macs(skipping).percent == 50
    with pytest.raises(ValueError, match="does not say how many MLPs"):
        total_macs(golden()["latte-28x20"])


def pixart(steps: int = 6) -> Plan:
    """256 tokens, 12 layers of 384 channels, under the name of a model that has cross-attention."""
    model = DIT_12.model_copy(update={"class_name": "PixArtTransformer2DModel"})
    return full(steps, model=model, guidance=UNCOND_FIRST)


def test_cross_attention_is_a_site_of_a_plan_that_says_so() -> None:
    plan = pixart().with_cross()
    assert plan.model.cross == CrossShape(layers=12, words=300) and tuple(plan.sites) == ("attn", "cross")
    assert plan.sites["cross"].methods == tuple(map(tuple, grid(F, F, F, F, F, F)))
    changed = plan.with_methods(grid(F, C, A, F, A1, A2), site="cross")
    assert plans.loads(plans.dumps(changed)) == changed
    assert pixart().with_mlp().with_cross() == plan.with_mlp() and tuple(plan.with_mlp().sites) == (*plan.sites, "mlp")
    assert pixart().skipping((F, A, F, F, F, F)).with_cross().column(0, "cross") == (F, A, F, F, F, F)
    assert "cross" not in plans.dumps(pixart().with_mlp())
    for method in (W, Method.WA_RS_ASC):
        with pytest.raises(
            ValueError, match=f"step 1 has {method} in cross layer 0; the site cross has only AST, AST_1"
        ):
            plan.with_methods(grid(F, method, F, F, F, F), site="cross")
    with pytest.raises(ValueError, match="has the site cross already"):
        plan.with_cross()
    with pytest.raises(ValueError, match="not known to have cross-attention"):
        full().with_cross()
    with pytest.raises(ValueError, match="cross and mlp exactly if model"):
        Plan(**dict(plan) | {"model": pixart().model})
    fewer = plan.model.model_copy(update={"cross": CrossShape(layers=6, words=300)})
    assert plan.differences(model=fewer) == ["cross-attention layers: the plan has 12, this model 6"]
    absent = "cross-attention: the plan has 12 layers over 300 words, this model no site cross"
    assert plan.differences(model=pixart().model) == [absent]


def test_macs_of_cross_attention_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """256 tokens and 300 words of 384 channels: q and the out-projection, k and v, scores and sums."""
    one = 2 * 256 * 384**2 + 2 * 300 * 384**2 + 2 * 256 * 300 * 384
    attention, mlp = 4 * 256 * 384**2 + 2 * 256**2 * 384, 8 * 256 * 384**2
    plan = pixart().with_cross().with_methods(grid(F, A, C, F, A1, F), site="cross")
    assert [steps // 12 for steps in cross_macs(plan).steps] == [one, 0, one // 2, one, 0, one]
    assert cross_macs(plan).full_step == 12 * one
    total = total_macs(plan)
    assert total.full_step == 12 * (attention + one + mlp) and total.steps[1] == 12 * (attention + mlp)
    assert plan_macs(plan) == plan_macs(pixart()) and total_macs(pixart()).full_step == 12 * (attention + mlp)
    assert f"with cross-attention and MLPs {total.percent:.1f} %" in costline(plan)
    assert "cross, outputs before they are added: 300 words; MACs 58.3 % of full" in siteline(plan, "cross")
    assert siteline(plan, "cross") in terminal(plan)
    with pytest.raises(ValueError, match="does not say how large cross-attention is"):
        cross_macs(pixart())
    video = Plan.full(model=LATTE_28, sampler=dpm_solver(4), guidance=UNCOND_FIRST).with_cross()
    tokens, width = 16 * 1024, 1152
    by_hand = 28 * (2 * (tokens + 120) * width**2 + 2 * tokens * 120 * width)
    assert cross_macs(video).full_step == by_hand
    assert shown_macs(video).full_step == plan_macs(video).full_step + by_hand and "with cross-attention 1" in costline(
        video
    )
    plans.save(plan, tmp_path / "plan.json")
    plans.save(pixart(), tmp_path / "without.json")
    assert main(["stats", str(tmp_path / "plan.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sites"]["cross"]["module"]["plan_macs"] == cross_macs(plan).total
    assert main(["stats", str(tmp_path / "plan.json")]) == 0
    assert "attention, projections counted, cross-attention, and MLPs" in capsys.readouterr().out
    for files, change in (("plan without", f"{total.percent:.2f} % -> 100.00 %"), ("without plan", "100.00 % -> ")):
        assert main(["diff", *(str(tmp_path / f"{name}.json") for name in files.split())]) == 1
        assert f"attention, cross-attention and MLP MACs: {change}" in capsys.readouterr().out


def test_layers_of_skipped_steps_are_not_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, other = full().with_mlp().skipping((F, F, A1, F, F, A1)), full().with_mlp().skipping((F, F, A1, F, A1, F))
    text = terminal(plan)
    assert "6 steps, 4 model calls" in headline(plan)
    assert "\n    3 FF FF \n" in text and "\n    0 FF1FF1\n" in text
    assert legend_order(plan) == (F, A1) and "the last output again" not in text
    assert shares(plan)[F] == pytest.approx(100 * 4 / 6) and shares(plan)[A1] == pytest.approx(100 * 2 / 6)
    assert shares(plan, ("attn",)) == shares(plan) == shares(plan, ("model",))
    for name, one in (("a", plan), ("b", other)):
        plans.save(one, tmp_path / f"{name}.json")
    assert main(["diff", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 1
    out = capsys.readouterr().out
    assert "\n    3 ---- F\n" in out
    assert "12  FULL -> not called" in out and "12  not called -> FULL" in out and "AST ->" not in out


def test_every_site_and_forecast_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = full().with_mlp().with_methods(grid(F, F, F, A1, A2, F), site="mlp").skipping((F, F, F, F, F, A))
    text = terminal(plan)
    assert f"with MLPs {total_macs(plan).percent:.1f} %" in costline(plan)
    assert siteline(plan, "attn") == f"attn: 256 tokens, window 32,32; MACs {plan_macs(plan).percent:.1f} % of full"
    assert siteline(plan, "attn") in text
    assert siteline(plan, "mlp") in text and "hidden width 1536; MACs 50.0 % of full" in text
    assert "model, its output: 1 of 6 steps are skipped" in text
    assert "\n    3 FFF12 \n" in text and "\n    0 FFFFF.\n" in text and "forecast from the last 3 outputs" in text
    plans.save(plan, tmp_path / "plan.json")
    before = full().with_mlp()
    plans.save(before, tmp_path / "before.json")
    assert main(["stats", str(tmp_path / "plan.json"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total"]["percent"] == total_macs(plan).percent
    assert found["sites"]["mlp"]["module"]["plan_macs"] == mlp_macs(plan).total
    assert found["sites"]["model"]["shares_percent"]["AST"] == shares(plan, ("model",))[A] == pytest.approx(100 / 6)
    assert main(["stats", str(tmp_path / "plan.json")]) == 0
    printed = capsys.readouterr().out.split("attention, projections counted, and MLPs")[1]
    assert f"this plan, % of all FULL  {total_macs(plan).percent:12.2f}" in printed
    assert f"this plan, G              {total_macs(plan).total / 1e9:12.2f}" in printed
    assert main(["diff", str(tmp_path / "before.json"), str(tmp_path / "plan.json")]) == 1
    out = capsys.readouterr().out
    assert "site model: the second has it, the first calls the model in every step" in out
    assert "FULL -> AST_2" in out and "attention and MLP MACs: 100.00 % ->" in out


@pytest.mark.parametrize("steps", [6, 50])
def test_the_picture_has_every_site(steps: int) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from plans.figure import figure

    column = (*[F] * 3, A1, A2, *[F] * (steps - 5))
    plan = full(steps).with_mlp().with_methods(grid(*column), site="mlp").skipping((F,) * (steps - 1) + (A,))
    drawn = figure(plan)
    assert [axes.get_ylabel() for axes in drawn.axes] == ["attn layer", "mlp layer", "model", "MACs %"]
    bars = [patch.get_height() for patch in drawn.axes[-1].patches]
    assert bars == pytest.approx(total_macs(plan).step_percents)
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    for text in (text for legend in drawn.legends for text in legend.get_texts()):
        assert text.get_window_extent().x1 <= canvas.get_width_height()[0]
    labels = [axes.yaxis.label.get_window_extent() for axes in drawn.axes]
    assert all(above.y0 > below.y1 for above, below in pairwise(labels))
