"""Rows that are followed again: what they stand for, what is measured anew, and that all else in the file stays."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from small_models import small_pipeline

from calibration.smoothcache import smoothcache_errors
from ditfastattn.errors import DitFastAttnError
from eval import pareto, pareto_again, pareto_file
from eval.cli import main
from eval.pareto_again import Again
from eval.pareto_bench import Bench, Way, full_plan, share
from eval.pareto_time import Faster
from plans import Plan, make, save
from plans.macs import total_macs

STEPS = 6
RECORD = {"model": "small", "base_steps": STEPS, "run": "now", "timed": "so"}


class Clock:
    """A stopwatch that keeps what it timed."""

    def __init__(self) -> None:
        self.timed: list[tuple[Way, int]] = []

    def speedup(self, way: Way, steps: int) -> Faster:
        self.timed.append((way, steps))
        if steps == 4:
            raise RuntimeError("out of memory")
        return Faster(2.0, 1.9, 2.1)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("model") / "small"
    small_pipeline(layers=2).save_pretrained(folder)
    given = ["--model", str(folder), "--base-steps", str(STEPS), "--n", "1", "--labels", "1", "--device", "cpu"]
    return Bench(pareto.parser().parse_args(given))


def row(method: str, setting: str, way: Way = None, steps: int = STEPS, **changes: Any) -> dict[str, Any]:
    macs = 100 * (share(total_macs(way)) if isinstance(way, Plan) else 1.0) * steps / STEPS
    known = {"model": "small", "method": method, "setting": setting, "base_steps": STEPS, "steps": steps,
             "total_macs": round(macs, 2), "attention_macs": 1.0, "speedup": 1.2, "psnr": 20.0, "ssim": 0.9,
             "latent_rel_l2": 0.1, "fd": 3.0}  # fmt: skip
    return {**known, **changes}


def test_times_are_measured_anew_and_nothing_else(bench: Bench, tmp_path: Path, capsys: Any) -> None:
    full = full_plan(bench, STEPS)
    plan, errors = smoothcache_errors(bench.pipe, bench.settings(STEPS))
    fora, smooth, mine = make.fora(full, 2), make.smoothcache(plan, errors, 5.0), make.skip(full, 3)
    mine = mine.model_copy(update={"note": "found at some speed: cells"})
    save(mine, tmp_path / "plans" / f"small-{STEPS}-1.5x.json")
    save(mine, tmp_path / "plans" / f"small-dpm{STEPS}-speedup-1.2.json")  # as plans ship
    rows = [
        row("full", "uncompressed"),
        row("fewer steps", "3", steps=3, speedup=None),
        row("fewer steps", "4", steps=4),
        row("FORA", "interval 2", fora),
        row("FORA", "interval 3", make.fora(full, 3), total_macs=99.0),
        row("SmoothCache", "threshold 5", smooth),
        row("ours", "1.5 x: cells", mine),
        row("ours", "2 x: cells", mine),
        row("ours", "1.2 x: cells", mine),
        row("ours", "1.5 x: another", mine),  # of the same MACs, by another search
        row("ours", "1.5 x: cells", mine, plan="0" * 12),
        row("ours", "1.5 x: cells", mine, plan=pareto_file.digest(mine)),
        row("DiTFastAttn", "mrae 0.05", fora),
        row("SmoothCache", "threshold oops", smooth),
        row("L2C", "interval 2", fora),
        row("full", "uncompressed", model="another"),
        row("FORA", f"interval 2; {pareto_file.SPEED_ALONE}", fora),
    ]
    file, before = tmp_path / "pareto.json", copy.deepcopy(rows)
    older = {"model": "small", "base_steps": STEPS, "methods": ["full", "FORA"]}
    pareto_file.write(file, [older], rows)
    clock: Any = Clock()
    Again(bench, RECORD, file, tmp_path / "plans").times(clock)
    found = pareto_file.read(file)
    assert clock.timed == [(None, 6), (None, 3), (None, 4), (fora, 6), (smooth, 6), *[(mine, 6)] * 3]
    anew = [index for index, one in enumerate(found["rows"]) if one.get("timed_in") == "now"]
    assert anew == [0, 1, 3, 5, 6, 8, 11]
    for index, (one, known) in enumerate(zip(found["rows"], before, strict=True)):
        if index in anew:
            assert (one["speedup"], one["speedup_low"], one["speedup_high"]) == (2.0, 1.9, 2.1)
            assert (
                tuple(one) == tuple(k for k in pareto_file.KEYS if k != "fd_in" and (k != "plan" or index == 11))
                and one["run"] is None
            )
            known["speedup"] = 2.0
        assert {name: one[name] for name in known} == known
    assert found["runs"] == [older, {**RECORD, "methods": ["full", "fewer steps", "FORA", "SmoothCache", "ours"]}]
    said = capsys.readouterr().out
    assert "2.00 x [1.90 to 2.10], before 1.20 x" in said and "before not timed" in said
    reasons = [
        "of the MACs, the row 99.00 %",
        "its note is",
        "digest begins 000000000000",
        "could not convert",
        "small-6-mrae-0.05.json",
    ]
    for reason in (*reasons, "has no such way", "out of memory"):
        assert reason in said
    with pytest.raises(DitFastAttnError, match=r"has no rows of small from 5 steps"):
        Again(bench, {**RECORD, "base_steps": 5}, file, tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"guidance": 4.0}, "at guidance 2: give it as --guidance"),
        ({"timed": "medians; batch 8, float16"}, "timed with batch 32, float16, and this is batch 8, float16"),
    ],
)
def test_rows_of_another_kind_are_left(bench: Bench, tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    file = tmp_path / "pareto.json"
    known = {**RECORD, "guidance": 2.0, "timed": "medians; batch 32, float16", "methods": ["full"]}
    pareto_file.write(file, [known], [row("full", "uncompressed")])
    Again(bench, {**known, "run": "now"}, file, tmp_path)
    with pytest.raises(DitFastAttnError, match=sentence):
        Again(bench, {**known, **change}, file, tmp_path)


def test_distances_and_the_picture(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fora, attention = make.fora(full_plan(bench, STEPS), 2), make.pab(full_plan(bench, STEPS), 2)
    save(attention, tmp_path / f"small-{STEPS}-1.2x-attention.json")
    rows = [
        row("full", "uncompressed"),
        row("fewer steps", "3", steps=3),
        row("fewer steps", "4", steps=4, fd=9.0),  # near to no share
        row("FORA", "interval 2", fora),
        row("ours, attention only", "1.2 x", attention),
    ]
    file, before = tmp_path / "pareto.json", copy.deepcopy(rows)
    pareto_file.write(file, [], rows)
    bench.args.fd, bench.args.fd_dtype, bench.args.fd_shares = 2, None, (0.5, 0.8)
    again = Again(bench, RECORD, file, tmp_path)
    seen = []

    def distance(pixels: Any) -> float:
        seen.append(pixels)
        return float(len(seen))

    again.distances(distance)  # type: ignore[arg-type]
    found = pareto_file.read(file)
    assert [one["fd"] for one in found["rows"]] == [1.0, 2.0, 9.0, 3.0, 4.0]
    for one, known in zip(found["rows"], before, strict=True):
        assert {**one, "fd": known["fd"]} == {**known, **({"fd_in": "now"} if "fd_in" in one else {})}
        assert ("fd_in" in one) == (one["fd"] != 9.0)
    assert all(pixels.shape[0] == 2 for pixels in seen) and not (seen[0] == seen[1]).all()
    assert found["runs"] == [{**RECORD, "methods": ["full", "fewer steps", "FORA", "ours, attention only"]}]
    drawn: dict[str, Any] = {}
    monkeypatch.setattr("eval.pareto_grid.save", lambda *given: drawn.update(given=given))
    again.picture(tmp_path / "grid.png")
    target, model, base, reference, shown, _ = drawn["given"]
    assert (target.name, model, base, len(reference)) == ("grid.png", "small", STEPS, 1)
    assert {(one.row["method"], one.row["setting"]) for one in shown} >= {("FORA", "interval 2"), ("fewer steps", "3")}
    assert pareto_file.read(file) == found


@pytest.mark.parametrize(
    ("text", "more", "sentence"),
    [
        (None, [], "does not exist: name a pareto.json"),
        ("{}", [], "no pareto.json: it has no list of rows"),
        ("not JSON", [], "no pareto.json: it has no list of rows"),
        ('{"runs": [], "rows": [{"model": "m"}]}', [], "rows without base_steps, latent_rel_l2, method, setting"),
        ('{"runs": [], "rows": []}', ["--only", "ours"], "leave --only out"),
        ('{"runs": [], "rows": []}', ["--plans", "nowhere"], "--plans nowhere is no folder"),
    ],
)
def test_refusals(
    text: str | None, more: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pareto.json"
    if text is not None:
        file.write_text(text)
    assert main(["pareto", "--again", str(file), "--device", "cpu", *more]) == 2
    assert sentence in capsys.readouterr().err


def test_plans_of_no_rows_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pareto", "--plans", str(tmp_path), "--device", "cpu"]) == 2
    assert "--again, which was not given" in capsys.readouterr().err


def test_dbcache_is_known_by_its_settings(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("eval.pareto_cache_dit.missing", lambda: None)
    known = pareto_again.Known(bench, STEPS, tmp_path)
    (way, steps), *_ = (found for (method, _), found in known._by_rule.items() if method.startswith("cache-dit"))
    assert way is not None and not isinstance(way, Plan)
    assert known.way({"method": way.method, "setting": way.setting, "steps": steps, "total_macs": 12.0}) == (way, steps)
