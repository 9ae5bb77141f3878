"""Plans of two sites: attention between the tokens of a frame, and between frames."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from plan_examples import DIT_12, LATTE_28, UNCOND_FIRST, dpm_solver, golden, synthetic

import plans
from plans import Method, ModelSpec, Plan, PlanError, TemporalShape, Window
from plans.cli import main
from plans.macs import method_macs, plan_macs, shares, site_macs, store_macs
from plans.render import changes, headline, terminal

GOLDEN = Path(__file__).parent / "golden"
SMALL = ModelSpec(
    class_name="Video",
    layers=3,
    heads=2,
    head_dim=4,
    tokens=12,
    in_channels=4,
    out_channels=8,
    temporal=TemporalShape(layers=2, frames=5),
)


def small_plan() -> Plan:
    plan = Plan.full(
        model=SMALL,
        sampler=dpm_solver(3),
        guidance=UNCOND_FIRST,
        window=Window(left=2, right=1),
        temporal_window=Window(left=0, right=1),
    )
    full, ast, both, asc = Method.FULL, Method.AST, Method.WA_RS_ASC, Method.ASC
    plan = plan.with_methods([[full] * 3, [ast, both, Method.WA_RS], [full, both, asc]])
    return plan.with_methods([[full] * 2, [both, Method.WA_RS], [ast, asc]], site="temporal")


def test_shapes_of_the_sites() -> None:
    assert DIT_12.sites == ("attn",) and SMALL.sites == ("attn", "temporal")
    shapes = [SMALL.shape(site) for site in SMALL.sites]
    assert [(shape.layers, shape.tokens, shape.rows) for shape in shapes] == [(3, 12, 5), (2, 5, 12)]
    assert DIT_12.shape("attn").rows == 1
    with pytest.raises(ValueError, match="no site 'temporal', only attn"):
        DIT_12.shape("temporal")


def test_the_default_windows_are_an_eighth_of_tokens_and_frames() -> None:
    plan = Plan.full(model=LATTE_28, sampler=dpm_solver(4), guidance=UNCOND_FIRST)
    assert (plan.window_of("attn"), plan.window_of("temporal")) == (
        Window(left=128, right=128),
        Window(left=2, right=2),
    )
    with pytest.raises(ValueError, match="no temporal attention"):
        Plan.full(model=DIT_12, sampler=dpm_solver(4), guidance=UNCOND_FIRST, temporal_window=Window(left=0, right=0))


def test_a_round_trip_keeps_both_sites_and_their_windows(tmp_path: Path) -> None:
    plan = small_plan()
    plans.save(plan, tmp_path / "plan.json")
    again = plans.load(tmp_path / "plan.json")
    assert again == plan and again.column(1, "temporal") == (Method.FULL, Method.WA_RS, Method.ASC)
    assert again.window_of("temporal") == Window(left=0, right=1)
    document = json.loads((tmp_path / "plan.json").read_text())
    assert document["model"]["temporal"] == {"layers": 2, "frames": 5}
    assert "window" not in document["sites"]["attn"]


def test_a_plan_of_one_site_is_written_without_a_word_of_sites_it_has_not() -> None:
    text = plans.dumps(golden()["dit-12x50"])
    assert "temporal" not in text and text.count('"window"') == 1


def test_sites_are_written_in_one_order() -> None:
    plan = small_plan()
    turned = Plan(**dict(plan) | {"sites": dict(reversed(plan.sites.items()))})
    assert turned == plan and plans.dumps(turned) == plans.dumps(plan)


def _changed(**sites: Any) -> dict[str, Any]:
    plan = small_plan()
    return dict(plan) | {
        "sites": plan.sites | {name: plan.sites[name].model_copy(update=sites[name]) for name in sites}
    }


def test_broken_sites_are_refused() -> None:
    plan = small_plan()
    full, temporal = Method.FULL, plan.sites["temporal"]
    cases: list[tuple[dict[str, Any], str]] = [
        (dict(plan) | {"sites": {"attn": plan.sites["attn"]}}, "those of the model are attn, temporal"),
        (dict(plan) | {"model": SMALL.model_copy(update={"temporal": None})}, "those of the model are attn"),
        (_changed(temporal={"window": None}), "sites.temporal.window is missing"),
        (_changed(attn={"window": Window(left=1, right=1)}), "sites.attn.window is one too many"),
        (_changed(temporal={"window": Window(left=1, right=6)}), "more than the model's 5 frames"),
        (_changed(temporal={"methods": temporal.methods[:2]}), "sites.temporal.methods has 2 rows"),
        (_changed(temporal={"losses": ((None,) * 3,) * 3}), "has 3 cells, but the model has 2 temporal layers"),
        (_changed(temporal={"methods": ((full, Method.AST),) * 3}), "AST in temporal layer 1"),
        (
            _changed() | {"guidance": plans.GuidanceSpec(scale=1.0, layout="none")},
            "guidance layout is 'none'",
        ),
    ]
    for fields, message in cases:
        with pytest.raises(ValueError, match=re.escape(message)):
            Plan(**fields)
    with pytest.raises(ValueError, match="no site 'temporal'"):
        golden()["full-12x4"].with_methods([[full] * 12] * 4, site="temporal")


def test_an_unknown_site_in_a_file_is_named(tmp_path: Path) -> None:
    text = (
        (GOLDEN / "latte-28x20.json")
        .read_text()
        .replace('"temporal": {\n      "methods"', '"words": {\n      "methods"')
    )
    with pytest.raises(PlanError, match=r"sites\.words is 'words', which is wrong: input should be 'attn', 'temp"):
        plans.loads(text)


def test_model_differences_name_layers_and_frames() -> None:
    plan = small_plan()
    other = SMALL.model_copy(update={"temporal": TemporalShape(layers=1, frames=8)})
    assert plan.differences(model=other) == [
        "temporal layers: the plan has 2, this model 1",
        "frames: the plan has 5, this model 8",
    ]
    assert plan.differences(model=SMALL.model_copy(update={"temporal": None})) == [
        "temporal attention: the plan has 2 layers of 5 frames, this model none"
    ]


@pytest.mark.parametrize("convention", ["module", "core"])
def test_macs_of_a_video_by_hand(convention: Any) -> None:
    """12 tokens in each of 5 frames: 5 rows of 12 between tokens, 12 rows of 5 between frames."""
    plan = small_plan()

    def cell(method: Method, tokens: int, window: Window) -> int:
        return method_macs(method, tokens=tokens, width=8, window=window, convention=convention)

    spatial = [5 * sum(cell(m, 12, Window(left=2, right=1)) for m in row) for row in plan.methods]
    rows = plan.sites["temporal"].methods
    temporal = [12 * sum(cell(m, 5, Window(left=0, right=1)) for m in row) for row in rows]
    total = plan_macs(plan, convention)
    assert total.steps == tuple(a + b for a, b in zip(spatial, temporal, strict=True))
    assert site_macs(plan, "temporal", convention).steps == tuple(temporal)
    assert total.full_step == spatial[0] + temporal[0]
    columns = [plan.column(layer, "temporal") for layer in range(2)]
    stores = [store_macs(column, 0, tokens=5, width=8, window=Window(left=0, right=1)) for column in columns]
    assert site_macs(plan, "temporal", convention).stores[0] == 12 * sum(stores) > 0
    assert shares(plan)[Method.FULL] == 100 * 6 / 15
    assert shares(plan, ("temporal",))[Method.FULL] == 100 * 2 / 6


def test_show_draws_one_grid_a_site() -> None:
    plan = small_plan()
    text = terminal(plan)
    assert "3 spatial and 2 temporal layers, 5 frames" in headline(plan)
    spatial, temporal = text.split("temporal, between frames: 12 rows of 5 tokens, window 0,1")
    assert "attn, between the tokens of a frame: 5 rows of 12 tokens, window 2,1" in spatial
    for site, part in (("attn", spatial), ("temporal", temporal)):
        for layer in range(plan.model.shape(site).layers):  # type: ignore[arg-type]
            cells = "".join(method.letter for method in plan.column(layer, site))  # type: ignore[arg-type]
            assert f"\n    {layer} {cells}\n" in part


def test_the_picture_has_one_grid_a_site() -> None:
    pytest.importorskip("matplotlib")
    from plans.figure import figure

    assert [axes.get_ylabel() for axes in figure(small_plan()).axes] == ["attn layer", "temporal layer", "MACs %"]
    assert [axes.get_ylabel() for axes in figure(golden()["full-12x4"]).axes] == ["layer", "MACs %"]


def test_stats_and_diff_speak_of_both_sites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = synthetic(LATTE_28, dpm_solver(20), UNCOND_FIRST)
    grid = [list(row) for row in before.sites["temporal"].methods]
    old, grid[7][3] = grid[7][3], Method.FULL
    after = before.with_methods(grid, before.sites["temporal"].losses, site="temporal")
    plans.save(after, tmp_path / "after.json")
    golden_file = str(GOLDEN / "latte-28x20.json")
    assert main(["diff", golden_file, str(tmp_path / "after.json")]) == 1
    out = capsys.readouterr().out
    assert "temporal cells: 1 of 560 differ" in out and f"1  {old} -> FULL" in out
    assert "cells of temporal as in the second plan" in changes(before, after, "temporal")
    assert main(["stats", golden_file, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    parts = [found["sites"][site]["core"]["plan_macs"] for site in ("attn", "temporal")]
    assert sum(parts) == found["core"]["plan_macs"] == plan_macs(before, "core").total
    assert (found["sites"]["temporal"]["tokens"], found["sites"]["temporal"]["rows"]) == (16, 1024)
    assert main(["stats", golden_file]) == 0
    assert f"{shares(before, ('temporal',))[Method.AST]:11.1f}" in capsys.readouterr().out
