"""Errors of cells from one run, against running each cell in its place."""

from typing import Any

import numpy as np
import pytest
import torch
from small_models import label_denoiser, small_pipeline

from calibration.bench import bench
from calibration.calibrate import empty_plan
from calibration.error_table import measure
from calibration.loss import relative_l2
from calibration.parts import Parts
from calibration.priced import priced
from calibration.prices import Macs
from calibration.response import respond
from calibration.settings import Settings
from ditfastattn.cache import Cell
from ditfastattn.models import adapt
from ditfastattn.ranks import ALONE
from ditfastattn.sampling import Trajectory
from plans import Method, Plan

STEPS, LABELS = 4, (1, 2)
METHODS = [Method.AST, Method.AST_1, Method.ASC, Method.WA_RS, Method.WA_RS_ASC]


@pytest.fixture
def pipe() -> Any:
    return small_pipeline()


def begun(pipe: Any) -> tuple[Any, Any]:
    """A run, and what opens a probe on its model."""
    settings = Settings(threshold=0.1, labels=LABELS, steps=STEPS)
    adapter, denoiser = adapt(pipe.transformer), label_denoiser(pipe, LABELS, settings.guidance_scale)
    run = Trajectory(denoiser, pipe.scheduler, STEPS, 0, range(len(LABELS)))
    rows = run.latents.new_empty((denoiser.rows, *run.latents.shape[1:]))
    call = adapter.read_call((rows,), {"timestep": run.timesteps[0], **denoiser.arguments})
    plan = empty_plan(adapter, pipe.scheduler, settings, denoiser.condition.latent_shape)
    return run, lambda: bench(adapter, plan, call, settings, ALONE)


class Nothing:
    def attention(self, part: int, output: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return output

    def follower(self, part: int, output: torch.Tensor) -> torch.Tensor:
        return output


class Moved(Nothing):
    """One output, moved."""

    def __init__(self, which: int, off: torch.Tensor) -> None:
        self.which, self.off = which, off

    def attention(self, part: int, output: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return self.follower(part, output)

    def follower(self, part: int, output: torch.Tensor) -> torch.Tensor:
        return output + self.off if part == self.which else output


@torch.no_grad()
def test_response_is_what_a_small_move_does(pipe: Any) -> None:
    run, opened = begun(pipe)
    with opened() as probe:
        parts = Parts(probe, ("mlp",))
        assert len(parts) == 2 * probe.layers and {part.site for part in parts.parts} == {"attn", "mlp"}
        output, response = respond(
            parts, lambda: run.predict(0), run.guided, Nothing(), 400, torch.Generator().manual_seed(0)
        )
        assert torch.equal(output, parts.call(lambda: run.predict(0), Nothing()))
        scale = float(run.guided(output).double().square().sum())
        for part in range(len(parts)):
            shape = response.gradients[part].shape[1:]
            off = 1e-2 * torch.randn(shape, generator=torch.Generator().manual_seed(part))
            moved = parts.call(lambda: run.predict(0), Moved(part, off))
            exact = relative_l2(run.guided(output), run.guided(moved), ALONE) ** 2
            along = response.along(part, off).double().square().sum() / 400
            assert float(along) / scale == pytest.approx(exact, rel=0.25)
    assert all(parameter.requires_grad for parameter in pipe.transformer.parameters())


@torch.no_grad()
def test_errors_are_those_of_cells_in_their_places(pipe: Any) -> None:
    run, opened = begun(pipe)
    with opened() as probe:
        times = run.timesteps.tolist()
        fork = run.fork()
        table = measure(probe, run, times, METHODS, longest=2, stride=1, projections=200)
        full = [Method.FULL] * probe.layers
        for step in range(STEPS):

            def predict(step: int = step) -> torch.Tensor:
                return fork.predict(step)

            for layer in range(probe.layers) if step else ():
                for method in (Method.AST, Method.ASC, Method.WA_RS, Method.WA_RS_ASC):

                    def behaviour(index: int, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
                        cell = Cell(method if index == layer else Method.FULL)  # noqa: B023
                        return probe.run_block(index, cell, probe.caches[index], hidden, *args, **kwargs)

                    changed = fork.guided(probe.call(predict, behaviour))
                    reference = fork.guided(probe.call(predict, lambda i, h, *a, **k: probe.run_block(
                        i, Cell(Method.FULL), probe.caches[i], h, *a, **k)))  # fmt: skip
                    age = 0 if method is Method.ASC else 1
                    found = table.at(step, method, age, 0)[layer]
                    exact = relative_l2(reference, changed, ALONE) ** 2
                    assert found == pytest.approx(exact, rel=0.4, abs=1e-12)
            fork.advance(step, probe.commit(predict, full))


@torch.no_grad()
def test_what_cannot_be_reused_is_infinite_and_far_is_worse(pipe: Any) -> None:
    run, opened = begun(pipe)
    with opened() as probe:
        few = measure(probe, run.fork(), run.timesteps.tolist(), METHODS, longest=2, stride=2, projections=64)
        again = measure(probe, run.fork(), run.timesteps.tolist(), METHODS, longest=2, stride=2, projections=64)
    assert np.isinf(few.at(1, Method.AST, 2, 0)).all() and np.isinf(few.at(2, Method.AST_1, 1, 2)).all()
    assert np.isinf(few.at(3, Method.AST, 3, 0)).all()
    assert few.at(3, Method.AST, 2, 0).sum() > few.at(3, Method.AST, 1, 0).sum()
    assert (few.at(2, Method.FULL, 0, 0) == 0).all() and np.isfinite(few.at(2, Method.AST, 1, 0)).all()
    for key, along in few.along.items():
        np.testing.assert_array_equal(along, again.along[key])
    assert few.block_runs == probe.layers * (STEPS + 2 * 64 * 2)
    every = range(probe.layers)
    one = few.together(3, Method.AST, 1, 0, [1])
    assert one == pytest.approx(few.at(3, Method.AST, 1, 0)[1])
    summed = np.sqrt(few.at(3, Method.AST, 1, 0)).sum() ** 2
    assert few.together(3, Method.AST, 1, 0, every) <= summed * (1 + 1e-9)


@pytest.mark.parametrize("mlps", [False, True])
def test_heun_has_no_forecast_from_two_outputs_at_one_timestep(mlps: bool) -> None:
    """Heun's timesteps come in pairs: 0, 1 1, 2 2, 3 3."""
    settings = Settings(loss="drift", steps=4, labels=LABELS)
    found = priced(small_pipeline(layers=2, sampler="heun"), settings, mlps)
    times = found.plan.sampler.timesteps
    assert len(times) == 7 and times[1] == times[2] != times[3] == times[4]
    table = found.table
    assert np.isinf(table.at(3, Method.AST_1, 1, 1)).all() and np.isfinite(table.at(3, Method.AST_1, 2, 1)).all()
    assert np.isinf(table.at(5, Method.AST_2, 1, 1)).all() and np.isfinite(table.at(5, Method.AST_2, 1, 2)).all()
    for share in (0.9, 0.75):  # what is chosen can be run
        plan = found.menu.costing(share * Macs().of(found.plan))
        assert Plan.model_validate(plan.model_dump()) == plan != found.plan


def test_a_single_step_has_one_plan() -> None:
    found = priced(small_pipeline(layers=2), Settings(loss="drift", steps=1, labels=LABELS), True)
    full = Macs().of(found.plan)
    assert found.menu.costing(full) == found.rhythms.costing(full) == found.plan
