"""The report of a few runs: rows, numbers kept, pages, and the paper's figures."""

import base64
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from metric_tools import network
from runs_for_tests import noisy, pictures, write_run

from eval import paper, report_rows
from eval.cli import main as eval_main
from eval.metrics import measure
from eval.report_rows import Measuring, add_latency, cost_name, costs, measure_rows, rows_of
from eval.runs import Run, RunError
from plans import CrossShape, load, save
from plans.macs import total_macs
from plans.make import spaced

LIBRARY = Path(__file__).parents[2] / "plans" / "library"
NOISE = {"0.15": 60, "0.025": 6}  # threshold -> how far its images are from the full ones


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Uncompressed, D6 and D1, in that order."""
    images = pictures(12)
    made = [
        write_run(tmp_path / "a-full", images, npz=True, plan=None, sampler="dpm", throughput={"images_per_s": 2.0})
    ]
    for threshold, sigma in NOISE.items():
        run = write_run(tmp_path / f"at-{threshold}", noisy(images, sigma), plan="sha256:x", sampler="dpm")
        shutil.copy(LIBRARY / f"demo-dpm50-mrae-{threshold}.json", run / "plan.json")
        made.append(run)
    return made


def arguments(runs: list[Path], tmp_path: Path, *more: str) -> list[str]:
    common = ["--lpips", "none", "--latency", str(tmp_path / "none.json"), "--out", str(tmp_path / "out")]
    return ["report", *map(str, runs), *common, *more]


def test_the_table_has_every_run_with_its_own_numbers(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = write_run(tmp_path / "real", pictures(20, seed=3)) / "images"
    assert eval_main(arguments(runs, tmp_path, "--network", "metric_tools:tiny", "--reference", str(real))) == 0
    result = json.loads((tmp_path / "out" / "report.json").read_text())
    names = [row["name"] for row in result["rows"]]
    assert names == ["full", "D1", "D6"]  # by falling attention MACs, whatever order they were named in
    full, d1, d6 = result["rows"]
    assert full["attention_macs"] == 100 and d1["attention_macs"] == pytest.approx(64.471, abs=1e-3)
    assert full["similarity"] is None and full["images_per_second"] == 2.0
    assert d1["similarity"]["summary"]["psnr"]["median"] > d6["similarity"]["summary"]["psnr"]["median"] + 10
    expected = measure(runs[1], real, "metric_tools:tiny", ["fid"])["fid"]
    assert d6["metrics"]["fid"]["value"] == expected["value"]
    assert "not FID" in d6["metrics"]["fid"]["title"]
    printed = capsys.readouterr().out
    assert "attention MACs" in printed and "64.5 %" in printed
    assert d1["metrics"]["is"]["settings"]["splits"] == 1 and "±" not in printed  # 12 images are one split


def test_the_page_is_whole_without_a_network(runs: list[Path], tmp_path: Path) -> None:
    assert eval_main(arguments(runs, tmp_path, "--network", "none", "--title", "A <b> & title")) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 2 and "<link" not in page and "<script" not in page
    for source in sources:
        head, data = source.split(",", 1)
        assert head == "data:image/png;base64" and base64.b64decode(data).startswith(b"\x89PNG")
    assert "A &lt;b&gt; &amp; title" in page
    assert page.count("<table") == 5 and page.count("<tr>") == 5 + 3 + 7 * 3 + 5
    for text in ("64.5 %", "412.24", "219.97", "31.27", "Table 5", "do not compare", "no Frechet distance"):
        assert text in page
    written = (tmp_path / "out" / "report.md").read_text()
    assert "![Samples](samples.png)" in written and "| D1 | 64.5 % |" in written
    for line in written.splitlines():  # every line of a table has as many cells as its head
        if line.startswith("|---"):
            width = line.count("|")
        elif line.startswith("| ") and not line.startswith("| plan"):
            assert line.count("|") == width


def test_what_was_measured_is_kept_until_something_changes(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(samples: Path, *rest: object, **more: object) -> dict[str, object]:
        calls.append(Path(samples).name)
        return measure(samples, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(report_rows, "measure", counted)
    how = Measuring(network(), None, None)

    def rows() -> list[report_rows.Row]:
        made = rows_of([Run.open(path) for path in runs])
        measure_rows(made, how, tmp_path / "kept")
        return made

    first = rows()
    assert len(calls) == 3
    assert [row.measures["is"]["value"] for row in rows()] == [row.measures["is"]["value"] for row in first]
    assert len(calls) == 3
    shutil.copy(runs[1] / "images" / "000000.png", runs[1] / "images" / "000001.png")
    changed = rows()
    assert calls[3:] == ["at-0.15"]
    assert changed[2].similarity != first[2].similarity and changed[1].similarity == first[1].similarity
    (tmp_path / "kept" / "D1.metrics.json").write_text("{")  # torn: measured again
    rows()
    assert len(calls) == 5


def test_latency_is_taken_only_where_it_fits_every_row(runs: list[Path], tmp_path: Path) -> None:
    def entry(variant: str, macs: float, ms: float) -> dict[str, object]:
        return {"variant": variant, "attention_macs": macs, "ms_per_step": ms}

    measured = [entry("eager", 100.0, 9.0), entry("ours, all FULL", 100.0, 4.0), entry("ours, plan", 64.5, 3.0)]
    about = {"model": "tiny", "batch": 8, "command": "c", "device": "d", "dtype": "float32"}
    file = tmp_path / "latency.json"
    file.write_text(json.dumps([{**about, "model": "other", "rows": measured}, {**about, "rows": measured}]))
    rows = rows_of([Run.open(path) for path in runs])
    assert add_latency(rows, file) is None and rows[0].latency is None  # D6 was not timed
    assert add_latency(rows[:2], file) == "c on d, float32, batch 8"
    assert [row.latency["ms_per_step"] for row in rows[:2] if row.latency] == [4.0, 3.0]


def test_the_papers_numbers_stand_beside_runs_of_the_same_settings(runs: list[Path], tmp_path: Path) -> None:
    assert paper.matching("facebook/DiT-XL-2-512", "dpm", 50, 4.0) is paper.TABLE_1_DIT
    assert paper.matching("weights/DiT-XL-2-512x512.pt", "iddpm", 250, 1.5) is paper.TABLE_5
    assert paper.matching("facebook/DiT-XL-2-512", "dpm", 50, 1.5) is None
    assert paper.matching("demo", "dpm", 50, 4.0) is None
    d3 = paper.TABLE_1_DIT.row("D3")
    assert d3 is not None and (d3.attention_flops, d3.inception_score, d3.fid) == (59, 411.74, 23.76)
    assert [len(table.rows) for table in paper.TABLES] == [7, 7, 7, 5]
    for run in runs:
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**record, "model": "facebook/DiT-XL-2-512", "steps": 50}))
    assert eval_main(arguments(runs, tmp_path, "--network", "none")) == 0
    written = (tmp_path / "out" / "report.md").read_text()
    assert "paper: FID" in written and re.search(r"\| D6 \|.*\| 34 % \| 16\.80 \| 352\.20 \|", written)


def test_what_makes_no_report_is_one_sentence(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunError, match="there is none"):
        rows_of([Run.open(runs[1])])
    twice = tmp_path / "twice"
    shutil.copytree(runs[1], twice)
    with pytest.raises(RunError, match="are both 'D6'"):
        rows_of([Run.open(path) for path in (*runs, twice)])
    (twice / "plan.json").unlink()
    with pytest.raises(RunError, match=r"plan\.json is missing"):
        rows_of([Run.open(runs[0]), Run.open(twice)])
    record = json.loads((runs[2] / "run.json").read_text())
    (runs[2] / "run.json").write_text(json.dumps({**record, "seed": 9}))
    assert eval_main(arguments(runs, tmp_path, "--network", "none")) == 2
    assert "seed: 9 and 0" in capsys.readouterr().err
    (runs[2] / "run.json").write_text(json.dumps({**record, "finished": None}))
    assert eval_main(arguments(runs, tmp_path, "--network", "none")) == 2
    assert "is not finished" in capsys.readouterr().err


def test_runs_that_save_more_than_attention_are_put_at_the_macs_of_the_whole_run(
    runs: list[Path], tmp_path: Path
) -> None:
    images = pictures(12)
    skipping = spaced(load(runs[1] / "plan.json"), 25, 0)
    expected = {"D1": total_macs(load(runs[2] / "plan.json")).percent, "skip": total_macs(skipping).percent}
    made = write_run(tmp_path / "skip", noisy(images, 20), plan="sha256:y", sampler="dpm")
    save(skipping, made / "plan.json")
    half = write_run(tmp_path / "half", noisy(images, 3), plan=None, sampler="dpm", steps=2)
    sixth = write_run(tmp_path / "sixth", noisy(images, 60), plan="sha256:x", sampler="dpm", steps=2)
    shutil.copy(runs[1] / "plan.json", sixth / "plan.json")
    assert eval_main(arguments([half, made, sixth, *runs], tmp_path, "--network", "none")) == 0
    result = json.loads((tmp_path / "out" / "report.json").read_text())
    cost = {row["name"]: row["macs_of_full_run"] for row in result["rows"]}
    assert {name: cost[name] for name in expected} == pytest.approx(expected, abs=1e-3)
    assert cost["full"] == 100 and cost["half, 2 steps"] == 50
    assert cost["D6, 2 steps"] == pytest.approx(cost["D6"] / 2, abs=1e-3)
    assert list(cost.values()) == sorted(cost.values(), reverse=True)
    assert "4 steps (also of 2)" in (tmp_path / "out" / "report.md").read_text()
    axis = cost_name(rows_of([Run.open(path) for path in (runs[0], half)]))
    assert axis == "MACs of attention and MLPs" and cost_name(rows_of([Run.open(runs[0])])) == "attention MACs"


def test_cross_attention_counts_in_every_row_where_a_plan_has_it(runs: list[Path], tmp_path: Path) -> None:
    """The same attention with cross-attention computed in a site of its own and without costs the same."""
    images = pictures(12)
    without = load(runs[1] / "plan.json").with_mlp()
    shape = CrossShape(layers=without.layers, words=300)
    for name, plan in {"with": without.with_cross(shape), "without": without}.items():
        made = write_run(tmp_path / name, noisy(images, 20), plan="sha256:y", sampler="dpm")
        plan = plan.model_copy(update={"calibration": None})
        save(plan, made / "plan.json")
    rows = rows_of([Run.open(tmp_path / name) for name in ("a-full", "with", "without")])
    percents = costs(rows)
    assert percents[1] == pytest.approx(percents[2]) == pytest.approx(total_macs(without.with_cross(shape)).percent)
    assert cost_name(rows) == "MACs of attention, cross-attention and MLPs"
    assert eval_main(arguments([row.run.path for row in rows], tmp_path, "--network", "none")) == 0
    assert (
        "MACs are those of self- and cross-attention, their projections" in (tmp_path / "out" / "report.md").read_text()
    )


def test_equal_images_have_no_place_in_the_plot_and_are_said_to_be_equal(runs: list[Path], tmp_path: Path) -> None:
    record = json.loads((runs[1] / "run.json").read_text())
    same = write_run(tmp_path / "same", pictures(12), **{**record, "n": 12})
    shutil.copy(runs[1] / "plan.json", same / "plan.json")
    assert eval_main(arguments([runs[0], same], tmp_path, "--network", "none")) == 0
    assert "| equal (equal) |" in (tmp_path / "out" / "report.md").read_text()
    assert np.isfinite(json.loads((tmp_path / "out" / "report.json").read_text())["rows"][1]["attention_macs"])
