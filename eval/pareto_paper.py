"""Plans of the paper's own search."""

from __future__ import annotations

from collections.abc import Iterator

from calibration.calibrate import calibrate
from eval.pareto_bench import Bench, Candidate


def paper(bench: Bench, base: int) -> Iterator[Candidate]:
    """DiTFastAttn's own search, by its own loss."""
    for threshold in (0.005, 0.01, 0.025, 0.05):
        found = calibrate(bench.pipe, bench.settings(base, threshold=threshold)).plan
        yield "DiTFastAttn", f"mrae {threshold:g}", found, base
