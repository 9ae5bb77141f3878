"""The page of a report, as Markdown and as one HTML file that opens without a network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from eval import paper
from eval.report_rows import Row, cost_name, costs
from eval.similarity import HIGHER_IS_CLOSER, text


@dataclass
class Grid:
    """A table ready to print: every cell is text; ``bars`` are percentages drawn behind the second column."""

    head: list[str]
    rows: list[list[str]]
    bars: list[float] = field(default_factory=list)
    title: str = ""


@dataclass
class Page:
    """Everything a report shows. ``pictures``: title, file in the report's folder, and what it shows."""

    title: str
    facts: list[tuple[str, str]]
    table: Grid
    notes: list[str]
    pictures: list[tuple[str, Path, str]]
    paper: list[Grid]
    paper_note: str
    command: str
    versions: str
    date: str


def result_table(rows: Sequence[Row], reported: paper.Table | None) -> Grid:
    """One line a run. A column stands only where a run has a number for it; "-" where this one has none."""
    columns: list[tuple[str, list[str]]] = [
        ("plan", [row.name for row in rows]),
        (cost_name(rows), [f"{percent:.1f} %" for percent in costs(rows)]),
    ]
    if all(row.latency for row in rows):
        full = rows[0].latency["ms_per_step"]  # type: ignore[index]
        cells = [
            f"{ms:.2f} ms ({full / ms:.2f} x)" for ms in (row.latency["ms_per_step"] for row in rows if row.latency)
        ]
        columns.append(("transformer, a step", cells))
    columns.append(("images/s, sampling", [_speed(row) for row in rows]))
    for metric in ("fid", "is"):
        found = [row.measures.get(metric) for row in rows]
        if any(found):
            title = next(result["title"] for result in found if result)
            columns.append((title, ["-" if result is None else _value(result) for result in found]))
    columns += _similarity_columns(rows)
    if reported:
        theirs = [reported.row(row.name) for row in rows]  # runs of other steps have other names
        for title, values in (
            ("MACs", [None if r is None else r.attention_flops for r in theirs]),
            ("FID", [None if r is None else r.fid for r in theirs]),
            ("IS", [None if r is None else r.inception_score for r in theirs]),
        ):
            if any(value is not None for value in values):
                columns.append(
                    (f"paper: {title}", [_plain(value, " %" if title == "MACs" else "") for value in values])
                )
    heads, cells_by_column = zip(*columns, strict=True)
    lines = [list(line) for line in zip(*cells_by_column, strict=True)]
    return Grid(list(heads), lines, costs(rows))


def _similarity_columns(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    known = [row.similarity for row in rows if row.similarity]
    titles = {"psnr": "PSNR to full", "ssim": "SSIM to full", "latent_rel_l2": "latents, rel. L2"}
    titles["lpips"] = next((f"{s['lpips']} to full" for s in known if s["lpips"]), "LPIPS")
    columns = []
    for measure, higher in HIGHER_IS_CLOSER.items():
        if not any(measure in similarity["summary"] for similarity in known):
            continue
        cells = []
        for row in rows:
            spread = (row.similarity or {}).get("summary", {}).get(measure)
            worst = "p5" if higher else "p95"
            cells.append("-" if not spread else f"{text(measure, spread['median'])} ({text(measure, spread[worst])})")
        columns.append((titles[measure], cells))
    return columns


def _speed(row: Row) -> str:
    return "-" if row.run.images_per_second is None else f"{row.run.images_per_second:.3g}"


def _value(result: dict[str, Any]) -> str:
    spread = "std" in result and result["settings"].get("splits") != 1  # one split has none
    return f"{result['value']:.2f}" + (f" ± {result['std']:.2f}" if spread else "")


def _plain(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:g}{unit}" if unit else f"{value:.2f}"


def paper_tables() -> list[Grid]:
    """Every table of the paper that a report may be held against."""
    found = []
    for table in paper.TABLES:
        with_flops = any(row.attention_flops is not None for row in table.rows)
        with_clip = any(row.clip is not None for row in table.rows)
        head = ["plan", *(["attention FLOPs"] if with_flops else []), "FID", "IS", *(["CLIP"] if with_clip else [])]
        lines = []
        for row in table.rows:
            flops = [_plain(row.attention_flops, " %")] if with_flops else []
            clip = [_plain(row.clip)] if with_clip else []
            lines.append([row.name, *flops, _plain(row.fid), _plain(row.inception_score), *clip])
        bars = [row.attention_flops or 0.0 for row in table.rows] if with_flops else []
        found.append(Grid(head, lines, bars, f"{table.table}: {table.title}, {table.settings}"))
    return found


def markdown(page: Page) -> str:
    """The page with its pictures beside it."""
    return _render("report.md.j2", page, lambda file: file.name)


def html(page: Page) -> str:
    """The page as one file, its pictures inside."""
    return _render("report.html.j2", page, _data_url)


def _data_url(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode("ascii")


def _render(template: str, page: Page, source: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["source"] = source
    environment.filters["cell"] = lambda value: str(value).replace("|", "\\|")
    return environment.get_template(template).render(page=page)
