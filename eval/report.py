"""``python -m eval report RUN...``: one table and one page of an uncompressed run and its compressed ones.

Attention MACs, latency, Frechet distance, Inception Score and the similarity to the uncompressed run, with the plot of
quality against MACs, the same images of every run, and what the paper reports. Written as Markdown, as one HTML file
that opens without a network, and as JSON.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from calibration.calibrate import package_versions
from ditfastattn.errors import MetricError
from ditfastattn.ranks import ALONE
from eval import paper
from eval.arguments.report import parser
from eval.metrics import METRICS
from eval.networks import INCEPTION, load_network
from eval.perceptual import HOW, load_perceptual
from eval.report_page import Page, html, markdown, paper_tables, result_table
from eval.report_plots import grid, pareto
from eval.report_rows import (
    Measuring,
    Row,
    add_latency,
    cost_name,
    costs,
    counts_whole_run,
    cross_of,
    measure_rows,
    rows_of,
)
from eval.runs import Run, RunError
from plans.files import write_text


def write_report(rows: Sequence[Row], out: Path, *, title: str, how: Measuring, latency: str | None,
                 command: str) -> None:  # fmt: skip
    """report.md, report.html, report.json and the pictures, from rows that are measured."""
    record = rows[0].run.record
    reported = paper.matching(
        str(record.get("model")),
        str(record.get("sampler")),
        int(record.get("steps", 0)),
        float(record.get("guidance", 0)),
    )
    pictures = []
    if pareto(rows, reported, out / "pareto.png"):
        pictures.append((f"Quality against {cost_name(rows)}", out / "pareto.png", _plot_note(reported)))
    indices = grid(rows, out / "samples.png")
    shown = ", ".join(map(str, indices))
    pictures.append(("Samples", out / "samples.png", f"Images {shown} of every run, chosen by their place alone."))
    page = Page(
        title=title,
        facts=_facts(rows),
        table=result_table(rows, reported),
        notes=_notes(rows, how, latency),
        pictures=pictures,
        paper=paper_tables(),
        paper_note=_paper_note(reported),
        command=command,
        versions=", ".join(f"{name} {version}" for name, version in package_versions().items()),
        date=date.today().isoformat(),
    )
    write_text(out / "report.md", markdown(page))
    write_text(out / "report.html", html(page))
    write_text(out / "report.json", json.dumps(_as_json(rows, page, latency), indent=1) + "\n")


def _facts(rows: Sequence[Row]) -> list[tuple[str, str]]:
    record = rows[0].run.record
    facts = [
        ("model", str(record.get("model", "not recorded"))),
        ("images", f"{rows[0].run.n:,} of each run, seed {record.get('seed')}"),
        ("sampler", f"{record.get('sampler')}, {_steps(rows)}, guidance {record.get('guidance')}"),
        ("dtype", str(record.get("dtype", "not recorded"))),
        ("sampled on", str(record.get("device", "not recorded"))),
    ]
    reference = next((row.measures["fid"]["reference"] for row in rows if "fid" in row.measures), None)
    if reference:
        count = "an unknown number of" if reference["count"] is None else f"{reference['count']:,}"
        facts.append(("reference", f"{reference['name']}, {count} images"))
    return facts


def _steps(rows: Sequence[Row]) -> str:
    steps = rows[0].run.steps
    others = sorted({row.run.steps for row in rows} - {steps}, reverse=True)
    also = f" (also of {', '.join(map(str, others))})" if others else ""
    return f"{steps} steps{also}"


def _notes(rows: Sequence[Row], how: Measuring, latency: str | None) -> list[str]:
    notes = ["Attention MACs count the projections, as the paper does; storing residuals is not counted."]
    if counts_whole_run(rows):
        attention = "self-attention, its" if cross_of(rows) is None else "self- and cross-attention, their"
        notes = [
            f"MACs are those of {attention} projections and the MLPs, over all steps, in percent of the full run's, as "
            "some of these runs save more than attention; storing residuals is not counted."
        ]
    notes.append(
        f"Transformer, a step: {latency}."
        if latency
        else "No latency was measured for this model and these plans (python -m eval latency); images/s are those of "
        "sampling, with everything that ran beside it."
    )
    notes.append("Similarity is the median over the images, and in brackets what the worst 5 % do not reach.")
    if how.perceptual is None:
        notes.append(f"LPIPS is left out: {HOW}.")
    if how.network is None or how.reference is None:
        notes.append("No reference images or no network were given, so there is no Frechet distance.")
    said = [warning for row in rows for result in row.measures.values() for warning in result.get("warnings", [])]
    return notes + [f"Warning: {warning}." for warning in dict.fromkeys(said)]


def _plot_note(reported: paper.Table | None) -> str:
    if reported is None:
        return "Each point is one run."
    return f"Each point is one run; dashed: {paper.SOURCE}, {reported.table}."


def _paper_note(reported: paper.Table | None) -> str:
    said = f"{paper.SOURCE}, Tables 1 and 5, on an A100. "
    if reported:
        return said + f"These runs have the settings of {reported.table}, whose numbers stand beside them above."
    return said + "These runs have another model or other settings, so the numbers do not compare with those above."


def _as_json(rows: Sequence[Row], page: Page, latency: str | None) -> dict[str, Any]:
    return {
        "command": page.command,
        "versions": package_versions(),
        "date": page.date,
        "latency": latency,
        "facts": dict(page.facts),
        "rows": [
            {
                "name": row.name,
                "steps": row.run.steps,
                "attention_macs": round(row.attention_macs, 3),
                **({"macs_of_full_run": round(percent, 3)} if counts_whole_run(rows) else {}),
                "images_per_second": row.run.images_per_second,
                "latency": row.latency,
                "metrics": row.measures,
                "similarity": None if row.similarity is None else {
                    key: value for key, value in row.similarity.items() if key != "images"
                },
            }
            for row, percent in zip(rows, costs(rows), strict=True)
        ],
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is not measured yet, print the table, write the page."""
    options = parser().parse_args(argv)
    options.device = ALONE.device(options.device)
    if options.batch < 1:
        raise RunError(f"--batch must be at least 1, got {options.batch}")
    rows = rows_of([Run.open(path) for path in options.runs])
    network, chosen = None, options.network or (INCEPTION if options.reference else "none")
    if options.reference is not None and not options.reference.exists():
        raise MetricError(f"{options.reference} does not exist; --reference takes a folder of images or statistics")
    if chosen != "none":
        network = load_network(chosen, options.device, options.weights)
    elif options.reference is not None:
        raise MetricError(f"--reference needs a --network to measure {METRICS[0]} with; leave one of them out")
    perceptual = load_perceptual(options.lpips, options.device)
    how = Measuring(network, options.reference, perceptual, options.size, options.batch, options.device)
    measure_rows(rows, how, options.out / "measured")
    latency = add_latency(rows, options.latency)
    model = Path(str(rows[0].run.record.get("model", "a model"))).name
    title = options.title or f"{model}: full and compressed attention"
    command = shlex.join(["python", "-m", "eval", "report", *(sys.argv[2:] if argv is None else argv)])
    write_report(rows, options.out, title=title, how=how, latency=latency, command=command)
    print_table(rows)
    print(f"\nwritten: {options.out / 'report.html'}, report.md, report.json")


def print_table(rows: Sequence[Row]) -> None:
    """The report's table in columns."""
    table = result_table(rows, None)
    widths = [max(len(line[i]) for line in [table.head, *table.rows]) for i in range(len(table.head))]
    for line in [table.head, *table.rows]:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
