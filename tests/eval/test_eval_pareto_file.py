"""pareto.json, and what is made of its rows: the table, the plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from eval import pareto_cache_dit, pareto_file, pareto_plot, pareto_table, readme
from plans import Window, load


def row(method: str = "FORA", macs: float = 50.0, **changes: Any) -> dict[str, Any]:
    known = {"model": "m", "method": method, "setting": "", "base_steps": 50, "steps": 50, "total_macs": macs,
             "attention_macs": macs, **dict.fromkeys(pareto_file.TIMES), "psnr": 20.0, "ssim": 0.9,
             "latent_rel_l2": 0.1, "fd": None}  # fmt: skip
    return {**known, **changes}


def test_the_file_keeps_what_is_not_measured_anew(tmp_path: Path) -> None:
    file = tmp_path / "pareto.json"

    def table(model: str, base: int) -> pareto_file.Table:
        return pareto_file.Table(file, {"model": model, "base_steps": base, "run": "now"})

    for model, base in (("a", 50), ("a", 20), ("b", 50)):
        one = table(model, base)
        one.add(row("FORA", model=model, base_steps=base))
        one.add(row("PAB", model=model, base_steps=base))
    again = table("a", 50)
    again.add(row("PAB", model="a"))
    again.rows[0]["fd"] = 3.0
    again.write()
    found = pareto_file.read(file)
    where = [(r["model"], r["base_steps"], r["method"]) for r in found["rows"]]
    others = [("a", 20, "FORA"), ("a", 20, "PAB"), ("b", 50, "FORA"), ("b", 50, "PAB")]
    assert where == [("a", 50, "FORA"), *others, ("a", 50, "PAB")]
    runs = [(run["model"], run["base_steps"], run["methods"]) for run in found["runs"]]
    both = ["FORA", "PAB"]
    assert runs == [("a", 50, ["FORA"]), ("a", 20, both), ("b", 50, both), ("a", 50, ["PAB"])]
    assert found["rows"][-1]["fd"] == 3.0 and file.read_text().count("\n") == 4 + 2 + 4 + 6
    assert list(tmp_path.iterdir()) == [file]


def test_what_is_not_measured_anew_stays(tmp_path: Path) -> None:
    """Distances by a run that times nothing: speedups stay, and how they were measured."""
    file = tmp_path / "pareto.json"
    timed = pareto_file.Table(file, {"model": "m", "base_steps": 50, "run": "first", "timed": "so"})
    timed.add(row("FORA", setting="2", speedup=1.5, speedup_low=1.4, speedup_high=1.6))
    timed.add(row("PAB", setting="2", speedup=1.2, fd=4.0))
    timed.add(row("ours", setting="1.5 x", speedup=1.5, fd=5.0, psnr=30.0))
    table = pareto_file.Table(file, {"model": "m", "base_steps": 50, "run": "second", "fd": "thus"})
    for method, setting in (("FORA", "2"), ("FORA", "3"), ("PAB", "2")):
        table.add(row(method, setting=setting, fd=None if method == "PAB" else 7.0))
    table.add(row("ours", setting="1.5 x", psnr=31.0))  # another plan of the same name
    table.write()
    found = pareto_file.read(file)
    assert [(r["method"], r["setting"], r["speedup"], r["fd"]) for r in found["rows"]] == [
        ("FORA", "2", 1.5, 7.0), ("FORA", "3", None, 7.0), ("PAB", "2", 1.2, 4.0),
        ("ours", "1.5 x", None, None)
    ]  # fmt: skip
    assert [(run.get("timed"), run["methods"]) for run in found["runs"]] == [
        ("so", ["FORA", "PAB"]), (None, ["FORA", "PAB", "ours"])
    ]  # fmt: skip
    assert [(r["run"], r["timed_in"], r["speedup_low"], r["speedup_high"]) for r in found["rows"]] == [
        ("second", "first", 1.4, 1.6), ("second", None, None, None), ("second", "first", None, None),
        ("second", None, None, None)
    ]  # fmt: skip
    assert all(tuple(r) == pareto_file.KEYS for r in found["rows"])


def test_a_distance_is_of_one_plan(tmp_path: Path) -> None:
    """What another plan of the same setting, MACs and PSNR had does not stay."""
    file = tmp_path / "pareto.json"
    for name, kept, digest in (("first", 7.0, "a"), ("second", 7.0, "a"), ("third", None, "b"), ("fourth", None, None)):
        table = pareto_file.Table(file, {"model": "m", "base_steps": 50, "run": name, "fd": "so"})
        table.add(row("ours", setting="2 x: cells", fd=7.0 if name == "first" else None), digest)
        table.write()
        (found,) = pareto_file.read(file)["rows"]
        assert (found["fd"], found["plan"]) == (kept, digest)


def test_a_digest_is_of_what_a_plan_does() -> None:
    plan = load("demo-dpm50-mrae-0.05")
    same = plan.model_copy(update={"note": "another", "calibration": None})
    assert pareto_file.digest(plan) == pareto_file.digest(same) != pareto_file.digest(load("demo-dpm50-mrae-0.1"))
    assert pareto_file.digest(plan) != pareto_file.digest(plan.model_copy(update={"window": Window(left=1, right=1)}))
    assert pareto_file.digest(None) is None


def test_other_searches_are_left_out() -> None:
    kept = [row("FORA"), row("FORA"), row("ours", setting="2 x: a"), row("ours", setting="1.5 x: a"),
            row("ours", setting="2 x: a", base_steps=20), row("ours, attention only", setting="2 x")]  # fmt: skip
    others = [row("ours", setting="2 x: b"), row("ours, attention only", setting="2 x")]
    assert pareto_file.without_other_searches([*kept, *others]) == kept


def test_rows_of_older_files_are_filled_up(tmp_path: Path) -> None:
    """They know neither quartiles nor the run that they are of."""
    file = tmp_path / "pareto.json"
    older = {name: value for name, value in row("FORA", speedup=1.5).items() if not name.startswith("speedup_")}
    run = {"model": "m", "base_steps": 50, "timed": "so", "methods": ["FORA"]}
    file.write_text(json.dumps({"runs": [run], "rows": [older]}))
    pareto_file.Table(file, {"model": "m", "base_steps": 50, "run": "now"}).add(row("FORA"))
    found = pareto_file.read(file)
    assert found["rows"] == [{**row("FORA", speedup=1.5), "plan": None, "run": "now", "timed_in": None, "fd_in": None}]
    assert [run.get("run") for run in found["runs"]] == [None, "now"]


def test_times() -> None:
    known = {"speedup_low": 1.501, "speedup_high": 1.53}
    assert pareto_table.times(row(speedup=1.52, **known)) == "1.52 x [1.50 to 1.53]"
    assert pareto_table.times(row(speedup=1.52, **dict.fromkeys(known, 1.519))) == "1.52 x"
    assert pareto_table.times(row(speedup=1.52)) == pareto_table.times({"speedup": 1.52}) == "1.52 x"


def test_nearest_rows() -> None:
    rows = [row("full", 100.0), row("FORA", 50.0, latent_rel_l2=0.3), row("FORA", 50.2, latent_rel_l2=0.2),
            row("FORA", 34.0), row("PAB", 84.0), row("skip", 58.0)]  # fmt: skip
    assert pareto_file.nearest(rows, 0.5) == [rows[2], rows[5]]
    assert pareto_file.nearest(rows, 1.0) == [] and pareto_file.nearest(rows, 0.8) == [rows[4]]


def test_table_of_speedups() -> None:
    """Of each other method its best row that is as fast, and of those the best two."""
    mine = row("ours", 60.0, setting="1.6 x: drift", speedup=1.6, psnr=30.0)
    others = [
        row("FORA", 50.0, setting="2", speedup=1.7, psnr=24.0),
        row("FORA", 60.0, setting="3", speedup=1.56, psnr=25.0),
        row("PAB", 70.0, setting="a", speedup=1.5, psnr=29.0),  # too slow
        row("skip", 70.0, setting="b", speedup=2.0, psnr=20.0),
        row("SmoothCache", 70.0, setting="c", speedup=1.9, psnr=26.0),
        row("full", 100.0, speedup=9.0, psnr=None),
    ]
    lines = pareto_table.at_speedups([*others, mine])[2:]
    assert lines[1] == (
        "| m, 50 | 1.6 x | 30.0 dB, 1.60 x (drift) | 26.0 dB, 1.90 x (SmoothCache c) | 25.0 dB, 1.56 x (FORA 3) |"
    )
    assert lines[2] == "| m, 50 | 2 x |  | 20.0 dB, 2.00 x (skip b) |  |"


def test_plans_that_ship_are_rows() -> None:
    """By name, what was asked for, steps and note; of their rows the first, which the table shows. Rows name runs."""
    found = json.loads((readme.RESULTS / "pareto.json").read_text())
    rows: dict[tuple[str, int, str], dict[str, Any]] = {}
    for row in found["rows"]:
        if row["method"] == "ours":
            rows.setdefault((row["model"], row["base_steps"], row["setting"].partition(" x")[0]), row)
    shipped = sorted((readme.ROOT / "plans" / "library").glob("*-speedup-*.json"))
    assert len(shipped) == 10
    for file in shipped:
        plan, (name, asked) = load(file), file.stem.split("-speedup-")
        model, base = name.split("-dpm")
        _, _, how = plan.note.partition("pareto: ")
        shown = rows[model, int(base), asked]
        assert (shown["setting"], shown["steps"]) == (f"{asked} x: {how}", plan.steps)
        assert shown["plan"] == pareto_file.digest(plan)
    records = [(run["model"], run["base_steps"], run["run"]) for run in found["runs"] if "run" in run]
    for one in found["rows"]:
        for of in filter(None, (one.get(name) for name in ("run", "timed_in", "fd_in"))):
            assert records.count((one["model"], one["base_steps"], of)) == 1
        if one["method"].startswith("ours"):  # of a plan nothing is measured before it is found
            assert all(one[what] is None or one[what] >= one["run"] for what in ("timed_in", "fd_in"))


def test_table_of_distances() -> None:
    """A column for each model and its steps, the uncompressed images first; of rows that have a distance."""
    rows = [
        row("FORA", 50.0, fd=12.34, psnr=30.0),
        row("FORA", 34.0, fd=20.0, psnr=25.0),
        row("PAB", 70.0, base_steps=20, fd=9.0),
        row("skip", 50.0),
        row("full", 100.0, psnr=None, fd=10.0),
    ]
    result = {"runs": [{"fd": "5 images to x.npz"}, {}, {"fd": "5 images to x.npz"}], "rows": rows}
    lines = pareto_table.distances(result, "f.json")
    assert lines[0] == "| way | m, 50 steps | m, 20 steps |"
    assert lines[2:5] == [
        "| uncompressed | 10.0 |  |",
        "| FORA | 12.3 (50 %, 30.0 dB); 20.0 (34 %, 25.0 dB) |  |",
        "| PAB |  | 9.0 (70 %, 20.0 dB) |",
    ]
    assert lines[-1].count("5 images to x.npz") == 1 and "f.json" in lines[-1]
    assert pareto_table.distances({"runs": [{}], "rows": []}, "f.json")[0].startswith("Not measured yet")


def test_plot(tmp_path: Path) -> None:
    rows = [
        row("full", 100.0, fd=29.75),
        row("FORA", 50.0, speedup=1.913, fd=31.2),
        row("SmoothCache", 80.0, psnr=None),
    ]
    known = pareto_file.read(Path(readme.__file__).with_name("results") / "pareto.json")["rows"]
    curves = {pareto_plot.curve_of(one) for one in known if one["psnr"] is not None}
    assert "skip, order 2" in curves and curves <= set(pareto_plot.STYLES)  # nobody's rows are left out
    caches = [pareto_cache_dit.DualBlockCache(*setting) for setting in pareto_cache_dit.SETTINGS]
    assert {pareto_plot.curve_of(row(way.method, setting=way.setting)) for way in caches} <= set(pareto_plot.STYLES)
    pareto_plot.plot([*rows, row("FORA", 20.0, model="n")], tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as image:
        assert image.height > 900  # speed-ups have a line of their own
    assert "| demo" in readme.pareto()
