"""Modulations computed ahead: those of every step, however many are computed at a time, run after run."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_models import small_pipeline
from small_pixart import small_pixart_pipeline

from ditfastattn import ahead
from ditfastattn.ahead import Ahead
from ditfastattn.models import adapt
from ditfastattn.models.base import Call, PreparedModel

TIMES = torch.tensor([999.0, 800.0, 650.5, 400.0, 3.0])


def subject(made: Any, device: str = "cpu") -> tuple[PreparedModel, Call]:
    adapter = adapt(made().transformer.to(device))
    assert isinstance(adapter, PreparedModel)
    given = adapter.example(4, 16)
    return adapter, adapter.read_call((), given)


def others(call: Call) -> Call:
    assert call.condition is not None
    return replace(call, condition=call.condition.flip(0))


@pytest.mark.parametrize("made", [small_pipeline, small_pixart_pipeline])
@pytest.mark.parametrize("at_a_time", [1, 2, 4, 100])
def test_every_step_has_its_own(made: Any, at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, call = subject(made)
    monkeypatch.setattr(ahead, "BYTES_AHEAD", at_a_time * adapter.conditioning(TIMES[:1], call).blocks.nbytes)
    found = Ahead(adapter, call, TIMES)
    assert found.steps == min(at_a_time, len(TIMES))
    for told in (call, others(call)):
        found.begin(told)
        for step in (*range(len(TIMES)), 1):  # the last of them anew
            alone = adapter.conditioning(TIMES[step : step + 1], told)
            for ours, expected in zip(found.at(step), (alone.blocks[0], alone.head[0]), strict=True):
                torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("made", [small_pipeline, small_pixart_pipeline])
def test_captured_it_is_the_same(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, call = subject(made, "cuda")
    times = TIMES.to("cuda")
    monkeypatch.setattr(ahead, "BYTES_AHEAD", 2 * adapter.conditioning(times[:1], call).blocks.nbytes)
    eager, captured = Ahead(adapter, call, times), Ahead(adapter, call, times)
    captured.capture()
    for told in (call, others(call)):
        eager.begin(told)
        captured.begin(told)
        for step in range(len(times)):
            assert all(torch.equal(a, b) for a, b in zip(captured.at(step), eager.at(step), strict=True))
