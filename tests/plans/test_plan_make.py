"""Plans by rule: what is computed at which step, and the command that writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from plan_examples import COND_FIRST, DIT_12, LATTE_28, UNCOND_FIRST, dpm_solver, heun

import plans
from plans import CrossShape, MlpShape, Plan
from plans.cli import main
from plans.macs import plan_macs, total_macs
from plans.make import fora, pab, skip, spaced, spaced_calls, taylorseer

GOLDEN = Path(__file__).parent / "golden"
DIT, LATTE = str(GOLDEN / "dit-12x50.json"), str(GOLDEN / "latte-28x20.json")


def full(steps: int = 10, **changes: object) -> Plan:
    return Plan.full(**({"model": DIT_12, "sampler": dpm_solver(steps), "guidance": COND_FIRST} | changes))  # type: ignore[arg-type]


def letters(plan: Plan, site: str = "attn") -> str:
    """A column as text; all layers of a site must have the same."""
    columns = {plan.column(layer, site) for layer in range(plan.model.shape(site).layers)}  # type: ignore[arg-type]
    (column,) = columns
    return "".join(method.letter for method in column)


def test_fora() -> None:
    plan = fora(full(), 3)
    assert letters(plan) == letters(plan, "mlp") == "F..F..F..F"
    assert total_macs(plan).percent == plan_macs(plan).percent == 40
    assert "FORA (arXiv 2407.01425)" in plan.note and "every 3rd step" in plan.note
    only = fora(plan, 2, mlp=False)
    assert tuple(only.sites) == ("attn",) and letters(only) == "F.F.F.F.F." and only.model == DIT_12
    assert fora(full(), 3, shape=MlpShape(layers=12, hidden=77)).model.mlp == MlpShape(layers=12, hidden=77)
    assert letters(fora(full(), 1)) == "F" * 10


def test_taylorseer_begins_with_the_order_that_there_is() -> None:
    plan = taylorseer(full(), 3, 2)
    assert letters(plan) == letters(plan, "mlp") == "F..F11F22F"
    assert letters(taylorseer(full(), 2, 1, mlp=False)) == "F.F1F1F1F1"
    assert letters(taylorseer(full(sampler=heun(4)), 3, 1)) == "F..F11F"
    assert letters(taylorseer(full(sampler=heun(4)), 1, 1)) == "F" * 7
    with pytest.raises(ValueError, match="no forecast of order 3; use 1 to 2"):
        taylorseer(full(), 3, 3)


def test_spaced_fits_between_intervals() -> None:
    assert letters(spaced(full(), 4, 0)) == letters(spaced(full(), 4, 0), "mlp") == "F..F..F..F"
    assert [letters(spaced(full(), computed, 1)) for computed in (2, 3, 4, 7, 10)] == [
        "F........F", "F...F1111F", "F..F11F11F", "FF1FF1FF1F", "F" * 10
    ]  # fmt: skip
    assert letters(spaced(full(), 5, 2)) == "F.F1F2F22F"
    assert spaced(full(11), 6, 1).sites == taylorseer(full(11), 2, 1).sites


def test_spaced_calls_are_at_the_same_steps() -> None:
    for computed, order in ((2, 0), (4, 1), (5, 2), (7, 0)):
        assert letters(spaced_calls(full(), computed, order), "model") == letters(spaced(full(), computed, order))


@pytest.mark.parametrize("make", [spaced, spaced_calls])
def test_what_cannot_be_spaced(make: Callable[[Plan, int, int], Plan]) -> None:
    for computed in (0, 1, 11):
        with pytest.raises(ValueError, match=f"{computed} of 10 steps cannot be computed: give 2 to 10"):
            make(full(), computed, 0)
    for order in (-1, 3):
        with pytest.raises(ValueError, match=f"no forecast of order {order}"):
            make(full(), 5, order)


def test_pab_leaves_the_ends_alone() -> None:
    plan = pab(full(20), 3)
    assert letters(plan) == "FFF" + "F..F..F..F..F." + "FFF" and tuple(plan.sites) == ("attn",)
    video = Plan.full(model=LATTE_28, sampler=dpm_solver(20), guidance=UNCOND_FIRST)
    both = pab(video, 2, 4)
    assert letters(both) == "FFF" + "F." * 7 + "FFF"
    assert letters(both, "temporal") == "FFF" + "F...F...F...F." + "FFF"
    assert both.window_of("temporal") == video.window_of("temporal")
    with pytest.raises(ValueError, match="no temporal attention"):
        pab(full(), 2, 3)
    for intervals in ((2, 0), (2, -1), (0, 2)):
        with pytest.raises(ValueError, match=f"the interval is {min(intervals)}"):
            pab(video, *intervals)


def test_pab_broadcasts_cross_attention_where_there_is_one() -> None:
    video = Plan.full(model=LATTE_28, sampler=dpm_solver(20), guidance=UNCOND_FIRST)
    plan = pab(video, 2, 4, 6)
    assert letters(plan, "cross") == "FFF" + "F.....F.....F." + "FFF"
    assert letters(plan) == "FFF" + "F." * 7 + "FFF" and "mlp" not in plan.sites
    assert (
        plan.model.cross == CrossShape(layers=28, words=120) and "cross-attention every 6th, in the middle" in plan.note
    )
    assert pab(plan, 2, 4) == pab(video, 2, 4)
    assert pab(plan, 2, 4, 1).sites["cross"] == video.with_cross().sites["cross"]
    own = full().with_cross(CrossShape(layers=5, words=9))
    assert pab(own, 2, None, 3).model.cross == own.model.cross
    with pytest.raises(ValueError, match="DiTTransformer2DModel is not known to have cross-attention"):
        pab(full(), 2, None, 3)
    with pytest.raises(ValueError, match="the interval is 0"):
        pab(video, 2, 2, 0)


def test_skip() -> None:
    plan = skip(full(), 3, 1)
    assert letters(plan, "model") == "F..F11F11F" and letters(plan) == "F..F..F..F"
    assert total_macs(plan).percent == 40
    assert letters(skip(full(), 2), "model") == "F.F.F.F.F."
    for interval in (0, -1):
        with pytest.raises(ValueError, match=f"the interval is {interval}"):
            skip(full(), interval)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fora", "--from", DIT, "--interval", "5"], fora(plans.load(DIT), 5)),
        (["fora", "--from", DIT, "--interval", "5", "--attention-only"], fora(plans.load(DIT), 5, mlp=False)),
        (["taylorseer", "--from", DIT, "--interval", "4", "--order", "1"], taylorseer(plans.load(DIT), 4, 1)),
        (["pab", "--from", LATTE, "--interval", "2", "--temporal-interval", "3"], pab(plans.load(LATTE), 2, 3)),
        (["pab", "--from", LATTE, "--interval", "2", "--cross-interval", "5"], pab(plans.load(LATTE), 2, None, 5)),
        (["skip", "--from", DIT, "--interval", "2", "--order", "2"], skip(plans.load(DIT), 2, 2)),
        (
            ["fora", "--from", LATTE, "--interval", "2", "--mlps", "56,4608"],
            fora(plans.load(LATTE), 2, shape=MlpShape(layers=56, hidden=4608)),
        ),
    ],
)
def test_the_command(arguments: list[str], expected: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "made.json")
    assert main(["make", *arguments, "--out", out]) == 0
    assert plans.load(out) == expected
    printed = capsys.readouterr().out
    assert expected.note in printed and "no record of a calibration" not in printed
    assert main(["show", out]) == 0 and main(["stats", out]) == 0 and main(["diff", arguments[2], out]) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["fora", "--from", DIT, "--interval", "0"],
            "the interval is 0; computing every 2nd step, say, is an interval",
        ),
        (["fora", "--from", "none.json", "--interval", "2"], "none.json does not exist"),
        (["fora", "--from", LATTE, "--interval", "2"], "--mlps"),
        (["fora", "--from", DIT, "--interval", "2", "--mlps", "4608"], "write it like 28,4608"),
        *(
            (["fora", "--from", DIT, "--interval", "2", "--mlps", f"{layers},{hidden}"], "from 1 to 10,000")
            for layers, hidden in (("9" * 26, 1), ("9" * 5000, 1), (10_001, 1), (12, 10_000_001), (0, 7), (12, -1))
        ),
        (["pab", "--from", DIT, "--interval", "2", "--cross-interval", "3"], "not known to have cross-attention"),
        (["skip", "--from", DIT, "--interval", "2", "--order", "3"], "no forecast of order 3; use 0 to 2"),
    ],
)
def test_what_makes_no_plan_is_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["make", *arguments, "--out", str(tmp_path / "made.json")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
