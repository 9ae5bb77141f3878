"""The clock of whole runs: the first is not counted, the others' median is."""

from typing import Any

import pytest
from small_models import full_plan, small_pipeline

from calibration import run_time
from ditfastattn.sampling import label_condition


@pytest.mark.parametrize(("given", "told"), [({}, 3.0), ({"runs": 1}, 7.0), ({"runs": 5}, 5.0)])
def test_the_median_of_runs_after_one(monkeypatch: pytest.MonkeyPatch, given: dict[str, int], told: float) -> None:
    """By a clock on which the runs take 100, 7, 1, 3, 9 and 5 milliseconds."""
    readings = iter([time for took in (0.1, 0.007, 0.001, 0.003, 0.009, 0.005) for time in (0.0, took)])
    monkeypatch.setattr(run_time.time, "perf_counter", lambda: next(readings))
    sampled: list[Any] = []
    monkeypatch.setattr(run_time, "sample_latents", lambda *run, **how: sampled.append(run))
    pipe: Any = small_pipeline(layers=1)
    ms = run_time.run_ms(
        pipe, full_plan(pipe, 3), label_condition(pipe.transformer, [0]), "sdpa", compile=False, **given
    )
    assert ms == pytest.approx(told) and len(sampled) == given.get("runs", 3) + 1
