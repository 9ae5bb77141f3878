"""Pictures show every cell, fit the terminal, and are the same every time."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from plan_examples import COND_FIRST, DIT_28, dpm_solver, golden, synthetic

from plans import Method, Plan, PlanError
from plans.macs import plan_macs
from plans.make import fora
from plans.method import PAPER
from plans.render import COLORS, changes, headline, legend_order, noteline, terminal, timestep_label

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def _grid(text: str, layers: int) -> list[str]:
    """The letters of each layer, panels put together again."""
    rows = [""] * layers
    for line in text.splitlines():
        if found := re.fullmatch(r" *(\d+) ([.BWCF-]+)", line):
            rows[int(found[1])] += found[2]
    return rows


@pytest.mark.parametrize("name", sorted(name for name, plan in golden().items() if len(plan.sites) == 1))
@pytest.mark.parametrize("width", [1, 20, 40, 80, 300])
def test_every_cell_is_shown_within_the_width(name: str, width: int) -> None:
    plan = golden()[name]
    text = terminal(plan, width=width)
    expected = ["".join(method.letter for method in plan.column(layer)) for layer in range(plan.layers)]
    assert _grid(text, plan.layers) == expected
    picture = text[text.index("\n    0 ") :]
    if width >= 20:
        assert max(len(line) for line in picture.splitlines()) <= width


def test_colours_change_nothing_but_colours() -> None:
    plan = golden()["dit-12x50"]
    coloured = terminal(plan, color=True)
    assert "\x1b[48;2;" in coloured
    assert ANSI.sub("", coloured) == terminal(plan, color=False)
    assert "\x1b" not in terminal(plan, color=False)


def test_plain_text_is_ascii_when_asked() -> None:
    plan = golden()["dit-12x50"]
    assert terminal(plan, unicode=False).isascii()
    assert not terminal(plan, unicode=True).isascii()


def test_axis_names_steps_and_timesteps() -> None:
    lines = terminal(golden()["dit-12x50"], width=80).splitlines()
    assert " step 0         10        20        30        40" in lines
    assert "    t 999       799       599       400       200" in lines


def test_macs_of_each_step_as_tenths() -> None:
    plan = golden()["no-guidance-12x20"]
    line = next(line for line in terminal(plan, unicode=False).splitlines() if line.startswith(" MACs "))
    tenths = ["#" if percent > 95 else str(round(percent / 10)) for percent in plan_macs(plan).step_percents]
    assert line == " MACs " + "".join(tenths)


def test_headline_and_legend() -> None:
    plan = golden()["heun-12x19"]
    text = terminal(plan)
    assert headline(plan) in text
    assert "mrae, threshold 0.05" in text
    assert f"{plan_macs(plan).percent:.1f} % of full" in text
    assert all(re.search(rf"{re.escape(method.letter)}  {method} +\d", text) for method in PAPER)
    assert "AST_1" not in text  # as plans without forecasts always looked
    assert "no guidance" in terminal(golden()["no-guidance-12x20"])
    by_hand = golden()["full-12x4"]  # whose note says where it is from
    assert "no record of a calibration" not in terminal(by_hand)
    assert "no record of a calibration" in terminal(by_hand.model_copy(update={"note": ""}))


def test_a_plan_by_rule_shows_its_note_and_the_methods_it_has() -> None:
    plan = fora(golden()["full-12x4"], 2)
    text = terminal(plan)
    assert plan.note in " ".join(text.split()) and "WA_RS" not in text and "ASC" not in text
    assert max(map(len, text.splitlines()[2:])) <= 80
    assert legend_order(plan) == (Method.FULL, Method.AST)
    tried = golden()["dit-12x50"]
    assert tried.calibration is not None
    other = legend_order(tried.model_copy(update={"sites": plan.sites}))
    assert set(other) == {Method.FULL, *tried.calibration.methods} and other[0] is Method.FULL
    assert noteline(plan.model_copy(update={"note": "a\n  b"})) == "a b"


def test_another_order_than_the_raster_is_in_the_headline() -> None:
    plan = golden()["dit-12x50"]
    assert "order" not in headline(plan)
    assert headline(plan.model_copy(update={"token_order": "hilbert"})).endswith(", guidance 4, hilbert order")


@pytest.mark.parametrize(("timestep", "label"), [(999.0, "999"), (12.4, "12"), (0.9875, "0.99"), (0.0, "0")])
def test_timestep_labels(timestep: float, label: str) -> None:
    assert timestep_label(timestep) == label


def test_changes_show_only_what_changed() -> None:
    before = golden()["dit-12x50"]
    grid = [list(row) for row in before.methods]
    grid[20][4] = Method.FULL
    after = before.with_methods(grid, before.losses)
    rows = _grid(changes(before, after), 12)
    assert rows[4] == "-" * 20 + "F" + "-" * 29
    assert {row for layer, row in enumerate(rows) if layer != 4} == {"-" * 50}


def _luminance(color: str) -> float:
    """Relative luminance of an sRGB colour (WCAG 2)."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_colours_get_lighter_with_less_work_apart_from_hue() -> None:
    """Window and both, full and ASC and AST stay apart in grey; ASC and WA_RS differ in blue against red."""
    light = {method: _luminance(color) for method, color in COLORS.items()}
    assert light[Method.FULL] < light[Method.ASC] < light[Method.WA_RS_ASC] < light[Method.AST]
    assert light[Method.FULL] < light[Method.WA_RS] < light[Method.WA_RS_ASC]


@pytest.fixture(params=[".png", ".svg"])
def suffix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _picture(plan: Plan, path: Path) -> bytes:
    pytest.importorskip("matplotlib")
    from plans.figure import picture

    picture(plan, path)
    return path.read_bytes()


def test_pictures_are_the_same_every_time(suffix: str, tmp_path: Path) -> None:
    plan = golden()["heun-12x19"]
    first = _picture(plan, tmp_path / "new" / f"a{suffix}")
    matplotlib = pytest.importorskip("matplotlib")
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.dpi": 10}):
        assert _picture(plan, tmp_path / f"b{suffix}") == first
        assert matplotlib.rcParams["font.size"] == 20
    assert first.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [f"b{suffix}"]


def test_the_svg_has_a_box_for_every_run_in_the_methods_colour(tmp_path: Path) -> None:
    plan = golden()["dit-12x50"]
    text = _picture(plan, tmp_path / "plan.svg").decode()
    ElementTree.fromstring(text)
    for method in PAPER:
        runs = 0
        for layer in range(plan.layers):
            column = plan.column(layer)
            runs += sum(here is method and (i == 0 or column[i - 1] is not method) for i, here in enumerate(column))
        assert text.count(f"fill: {COLORS[method]}") == runs + 1  # and one in the legend


@pytest.mark.parametrize("steps", [1, 2, 50, 200])
def test_text_stays_inside_the_picture(steps: int) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from plans.figure import figure

    drawn = figure(synthetic(DIT_28, dpm_solver(steps), COND_FIRST))
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    width, height = canvas.get_width_height()
    legends = [text for legend in drawn.legends for text in legend.get_texts()]
    for text in [*drawn.texts, *legends, *(axes.xaxis.label for axes in drawn.axes)]:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, text.get_text()


@pytest.mark.parametrize(("words", "lines"), [(0, 0), (3, 1), (30, 2), (55, 3), (200, 3)])
def test_a_long_note_is_wrapped_in_the_picture(words: int, lines: int) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from plans.figure import figure

    note = " ".join(f"word{index}" for index in range(words))
    plan = golden()["dit-12x50"].model_copy(update={"note": note})
    drawn = figure(plan)
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    *_, below = boxes = [text.get_window_extent() for text in (*drawn.texts, *drawn.legends[0].get_texts()[:1])]
    assert all(above.y0 > box.y1 for above, box in itertools.pairwise(boxes))  # headline, costs, note, legend
    assert below.y0 > drawn.axes[0].get_tightbbox().y1 and max(box.x1 for box in boxes) <= canvas.get_width_height()[0]
    found = [text.get_text() for text in drawn.texts[2:]]
    assert len(found) == lines
    if words < 200:
        assert " ".join(found) == note
    else:
        assert note.startswith(" ".join(found).removesuffix("..."))


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    from plans.figure import picture

    with pytest.raises(PlanError, match=r"does not end in .png or .svg"):
        picture(golden()["full-12x4"], tmp_path / "plan.jpeg")


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PlanError, match="cannot be written"):
        _picture(golden()["full-12x4"], tmp_path / "file" / "plan.png")
