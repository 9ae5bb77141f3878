"""Plans of the paper's own search."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from calibration.calibrate import calibrate
from eval.pareto_bench import Bench, Candidate
from eval.pareto_file import plan_name
from plans import save


def paper(bench: Bench, base: int) -> Iterator[Candidate]:
    """DiTFastAttn's own search, by its own loss. The plans are saved beside the rows."""
    model = Path(bench.args.model).name
    for threshold in (0.005, 0.01, 0.025, 0.05):
        found = calibrate(bench.pipe, bench.settings(base, threshold=threshold)).plan
        save(found, bench.args.out / "plans" / plan_name(model, base, f"mrae-{threshold:g}"))
        yield "DiTFastAttn", f"mrae {threshold:g}", found, base
