"""How far an error at one step moves the final latents: measured before a search that weighs its losses by it.

The search's own loss looks at one step. What its error does to the image differs from step to step by up to two orders
of magnitude, so each step is disturbed alone, by the error that compression itself makes there (every layer on the
cheapest candidate, reusing what the step before stored), and sampled on uncompressed to the end:

    sensitivity = relative L2 of the final latents / relative L2 of the guided prediction at that step

The whole costs about T / 2 runs of T steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

from torch import Tensor

from calibration.errors import CalibrationError
from calibration.loss import relative_l2
from calibration.probe import Probe
from ditfastattn.cache import Cell
from ditfastattn.ranks import Ranks
from plans import Method


class Run(Protocol):
    """One sampling run, a step at a time, as :class:`ditfastattn.sampling.Trajectory` is one."""

    latents: Tensor  # (B, C, h, w), of videos (B, C, T, h, w)

    def predict(self, step: int) -> Tensor:
        """The transformer's output for the latents as they are."""

    def guided(self, output: Tensor) -> Tensor:
        """The prediction that the sampler goes by, shaped as the latents, from the transformer's output."""

    def advance(self, step: int, output: Tensor) -> None:
        """Moves the latents on by the transformer's output at ``step``."""

    def fork(self) -> Self:
        """A second run that stands where this one stands; neither moves the other."""


@dataclass(frozen=True)
class Sensitivity:
    """Of one step. ``loss``: relative L2 of the guided prediction there; ``drift``: of the final latents."""

    loss: float
    drift: float

    @property
    def value(self) -> float:
        """Final drift by loss; 0 where the disturbance changed nothing."""
        return self.drift / self.loss if self.loss else 0.0


UNDISTURBED = Sensitivity(0.0, 0.0)  # step 0, which is FULL by rule


def measure(
    probe: Probe,
    run: Run,
    timesteps: Sequence[float],
    method: Method,
    ranks: Ranks,
    done: Sequence[Sensitivity] = (),
    on_step: Callable[[Sensitivity], None] | None = None,
) -> list[Sensitivity]:
    """Sensitivities of all steps, that of step 0 as :data:`UNDISTURBED`.

    Args:
        run: at its beginning, where it is left.
        method: what every layer of the disturbed step does.
        done: of the first steps, measured before.
        on_step: called with each step's sensitivity as it is measured, not with those of ``done``.

    Raises:
        CalibrationError: an output that is not finite.
    """
    found = list(done)
    if len(found) == len(timesteps):
        return found
    undisturbed = run.fork()
    _finish(probe, undisturbed, timesteps, 0)
    run = run.fork()
    for index, timestep in enumerate(timesteps):
        probe.blocks.begin_step(timestep)
        disturbed = None if index < max(1, len(found)) else _output(probe, run, index, method)
        output = probe.commit(_prediction(run, index), [Method.FULL] * probe.layers)
        if index >= len(found):
            found.append(UNDISTURBED if disturbed is None else Sensitivity(
                loss=relative_l2(run.guided(output), run.guided(disturbed), ranks),
                drift=_drift(probe, run, undisturbed, timesteps, index, disturbed, ranks),
            ))  # fmt: skip
            if on_step:
                on_step(found[index])
        run.advance(index, output)
    return found


def _drift(
    probe: Probe, run: Run, undisturbed: Run, timesteps: Sequence[float], index: int, output: Tensor, ranks: Ranks
) -> float:
    """How far the run ends from the undisturbed one if ``output`` is what the model gives at step ``index``."""
    branch = run.fork()
    branch.advance(index, output)
    _finish(probe, branch, timesteps, index + 1)
    found = relative_l2(undisturbed.latents, branch.latents, ranks)
    if found != found:
        raise CalibrationError(
            f"sampling with an error at step {index} ends in NaN or infinite values: check the checkpoint, or use "
            "--dtype float32 or bfloat16"
        )
    return found


def _finish(probe: Probe, run: Run, timesteps: Sequence[float], first: int) -> None:
    """Samples on uncompressed, from step ``first`` to the end."""
    for index in range(first, len(timesteps)):
        probe.blocks.begin_step(timesteps[index])
        run.advance(index, _output(probe, run, index, Method.FULL))


def _output(probe: Probe, run: Run, index: int, method: Method) -> Tensor:
    """The model output with every layer on ``method``; what the probe keeps is read and left as it is."""

    def behaviour(layer: int, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return probe.run_block(layer, Cell(method), replace(probe.caches[layer]), hidden, *args, **kwargs)

    return probe.call(_prediction(run, index), behaviour)


def _prediction(run: Run, index: int) -> Callable[[], Tensor]:
    return lambda: run.predict(index)
