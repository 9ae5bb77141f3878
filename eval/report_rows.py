"""The rows of ``python -m eval report``: what is known of each run, measured where it has to be.

A measurement is kept beside the report with a key of all it depends on, so that a second report measures only what is
new.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibration.settings import THRESHOLDS
from eval.latency import read_results
from eval.metric_settings import Settings
from eval.metrics import measure
from eval.networks import Network
from eval.perceptual import Perceptual
from eval.runs import Run, RunError
from eval.similarity import as_json, compare
from eval.sources import open_source
from plans import CrossShape, Plan, load
from plans.files import write_text
from plans.macs import counts_mlps, plan_macs, total_macs

FULL = "full"
SPLITS, SMALLEST_SPLIT = 10, 100  # of the Inception Score, which means nothing in a split of a few images
MACS_TOLERANCE = 0.5  # percent of full attention, within which a measured latency is taken for a plan's


@dataclass
class Row:
    """One run. ``measures``: results of `eval.metrics.measure` by metric; ``similarity``: to the full run."""

    name: str
    run: Run
    plan: Plan | None
    measures: dict[str, Any] = field(default_factory=dict)
    similarity: dict[str, Any] | None = None
    latency: dict[str, Any] | None = None
    is_full: bool = False

    @property
    def attention_macs(self) -> float:
        """Percent of full attention, projections counted (DiTFastAttn's convention)."""
        return 100.0 if self.plan is None else plan_macs(self.plan).percent

    def total_macs(self, cross: CrossShape | None) -> float:
        """Percent of attention and MLPs of an uncompressed run of as many steps; and of the cross-attention of another
        row's plan, which a plan without the site computes."""
        if self.plan is None:
            return 100.0
        counted = self.plan if cross is None or "cross" in self.plan.sites else self.plan.with_cross(cross)
        return total_macs(counted).percent


def counts_whole_run(rows: Sequence[Row]) -> bool:
    """Whether plans save more than attention, or runs differ in steps: attention alone does not tell what they cost."""
    return any(row.run.steps != rows[0].run.steps or (row.plan and counts_mlps(row.plan)) for row in rows)


def costs(rows: Sequence[Row]) -> list[float]:
    """What each run costs, in percent of the full run, the first: its attention, or, where `counts_whole_run`, its
    attention and MLPs over all steps."""
    if not counts_whole_run(rows):
        return [row.attention_macs for row in rows]
    cross = cross_of(rows)
    return [row.total_macs(cross) * row.run.steps / max(1, rows[0].run.steps) for row in rows]


def cross_of(rows: Sequence[Row]) -> CrossShape | None:
    """The cross-attention of the rows' model, where a plan reuses or shares it: the MACs of all then count it."""
    return next((row.plan.model.cross for row in rows if row.plan and row.plan.model.cross), None)


def cost_name(rows: Sequence[Row]) -> str:
    if not counts_whole_run(rows):
        return "attention MACs"
    return "MACs of attention and MLPs" if cross_of(rows) is None else "MACs of attention, cross-attention and MLPs"


def plan_of(run: Run) -> Plan | None:
    """The plan that a run followed, from the copy in its folder; None for an uncompressed run.

    Raises:
        RunError: the record names a plan and the folder holds none.
        PlanError: the plan's file is broken.
    """
    if run.record.get("plan") is None:
        return None
    file = run.path / "plan.json"
    if not file.exists():
        raise RunError(f"{run.path} followed a plan, and its plan.json is missing; sample into another folder again")
    return load(file)


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """A row for each run, the full one first, then by falling cost.

    The full one has no plan, and of those the most steps; others without a plan are of fewer steps.

    Raises:
        RunError: no run without a plan, or two of the most steps; two of one name.
    """
    plain = [(run, plan) for run in runs for plan in [plan_of(run)]]
    most = max((run.steps for run, plan in plain if plan is None), default=0)
    full = [run for run, plan in plain if plan is None and run.steps == most]
    if len(full) != 1:
        found = ", ".join(str(run.path) for run in full) or "none"
        raise RunError(f"a report compares with one run without a plan, and there is {found}; name exactly one")
    rows = [Row(_name(run, plan, full[0]), run, plan, is_full=run is full[0]) for run, plan in plain]
    names = [row.name for row in rows]
    for name in names:
        if names.count(name) > 1:
            same = " and ".join(str(row.run.path) for row in rows if row.name == name)
            raise RunError(f"{same} are both {name!r}; rename one folder or leave it out")
    rows.sort(key=lambda row: not row.is_full)
    cost = {row.name: percent for row, percent in zip(rows, costs(rows), strict=True)}
    return sorted(rows, key=lambda row: (not row.is_full, -cost[row.name]))


def _name(run: Run, plan: Plan | None, full: Run) -> str:
    """full, D1 .. D6 for the paper's thresholds, else the folder's name; with the steps where they are not the full
    run's."""
    if run is full:
        return FULL
    threshold = plan.calibration.threshold if plan and plan.calibration else None
    paper = {value: name for name, value in THRESHOLDS.items()}
    name = run.name if threshold is None else paper.get(threshold, f"{threshold:g}")
    return name if run.steps == full.steps else f"{name}, {run.steps} steps"


@dataclass(frozen=True)
class Measuring:
    """How rows are measured; ``network`` None leaves out what needs features, ``reference`` None the distance."""

    network: Network | None
    reference: Path | None
    perceptual: Perceptual | None
    size: int | None = None  # ADM's centre crop of a reference folder
    batch: int = 64
    device: str = "cpu"

    @property
    def metrics(self) -> list[str]:
        if self.network is None:
            return []
        return ["is"] if self.reference is None else ["fid", "is"]


def measure_rows(rows: Sequence[Row], how: Measuring, kept: Path) -> None:
    """Fills in ``measures`` and ``similarity``.

    Args:
        kept: folder of what was measured before; a file is used again if nothing it depends on has changed.
    """
    full = rows[0]
    for row in rows:
        if how.network is not None:
            splits = max(1, min(SPLITS, row.run.n // SMALLEST_SPLIT))
            key = _key(
                row.run, how.network.name, how.network.digest, how.metrics, splits, _state(how.reference), how.size
            )
            # A network whose weights cannot be seen may have changed: it is asked again.
            file = kept / f"{row.name}.metrics.json" if how.network.digest else None
            row.measures = _read(file, key) or {}
            if not row.measures:
                row.measures = measure(
                    row.run.images_path,
                    how.reference,
                    how.network,
                    how.metrics,
                    size=how.size,
                    settings=Settings(splits=splits),
                    batch=how.batch,
                )
                _keep(file, key, row.measures)
        if not row.is_full:
            network = None if how.perceptual is None else how.perceptual.name
            key = _key(row.run, _images(full.run), network)
            file = kept / f"{row.name}.similarity.json"
            row.similarity = _read(file, key)
            if row.similarity is None:
                row.similarity = as_json(
                    row.run, full.run, compare(row.run, full.run, how.perceptual, how.batch, how.device)
                )
                _keep(file, key, row.similarity)


def add_latency(rows: Sequence[Row], file: Path) -> str | None:
    """Fills in ``latency`` from the file of ``python -m eval latency``, if it has this model and a plan for every row.

    Returns:
        Where the numbers come from, or None where they are left out.
    """
    if counts_whole_run(rows):  # plans were timed by their share of attention
        return None
    model = _short(str(rows[0].run.record.get("model", "")))
    for result in read_results(file):
        if _short(str(result["model"])) != model:
            continue
        found = [_nearest(result["rows"], row.attention_macs) for row in rows]
        if None in found:
            continue
        for row, entry in zip(rows, found, strict=True):
            row.latency = entry
        source = f"{result['command']} on {result['device']}, {result['dtype']}, batch {result['batch']}"
        if any("synthetic" in str(row.latency.get("plan_origin")) for row in rows if row.latency):
            source += ", of synthetic plans with these shares of MACs"
        return source
    return None


def _nearest(entries: Sequence[dict[str, Any]], percent: float) -> dict[str, Any] | None:
    """Our own row of these attention MACs."""
    ours = [entry for entry in entries if str(entry["variant"]).startswith("ours")]
    best = min(ours, key=lambda entry: abs(entry["attention_macs"] - percent), default=None)
    return best if best and abs(best["attention_macs"] - percent) <= MACS_TOLERANCE else None


def _short(model: str) -> str:
    return model.rstrip("/").split("/")[-1].lower()


def _images(run: Run) -> str:
    return open_source(run.images_path).fingerprint()


def _state(path: Path | None) -> str | None:
    """Changes where reference images or statistics do: a file by name, size and time, a folder by its files."""
    if path is None:
        return None
    if path.is_file():
        status = path.stat()
        return f"{path.name} {status.st_size} {status.st_mtime_ns}"
    return open_source(path, crop=1).fingerprint()


def _key(run: Run, *parts: Any) -> str:
    return hashlib.sha256(json.dumps([_images(run), *parts]).encode()).hexdigest()


def _read(file: Path | None, key: str) -> dict[str, Any] | None:
    if file is None or not file.exists():
        return None
    try:
        content = json.loads(file.read_text())
        return content["found"] if content["key"] == key else None
    except (ValueError, KeyError, TypeError):  # not ours, or torn: measured again
        return None


def _keep(file: Path | None, key: str, found: dict[str, Any]) -> None:
    if file is not None:
        write_text(file, json.dumps({"key": key, "found": found}, indent=1) + "\n")
