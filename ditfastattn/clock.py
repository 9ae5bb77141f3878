"""Which sampler step a model call belongs to: read off the timestep it is given, never counted."""

from collections.abc import Sequence

from ditfastattn.errors import StepError

TOLERANCE = 1e-3  # in timesteps; some samplers have fractional ones


class StepClock:
    """Follows one run at a time through a plan's timesteps.

    A run begins at step 0, or, after :meth:`expect_new_run`, anywhere (image to image begins in the middle). Inside
    a run every step must follow the one before it. Anything else would read caches of the wrong step, so it is
    refused before it is computed.

    Args:
        timesteps: the plan's, one per model call. A value may stand twice in a row (Heun calls the model twice).
    """

    def __init__(self, timesteps: Sequence[float]) -> None:
        self.timesteps = tuple(timesteps)
        self.step: int | None = None  # the last step that was begun
        self._new_run = False
        self._announced = False  # the run that goes on began with expect_new_run()

    def expect_new_run(self) -> None:
        """The next call begins a run, whatever came before and wherever it begins."""
        self.step = None
        self._new_run = True

    def forget(self) -> None:
        """After a refused or failed call: only a new run can follow."""
        self.step = None
        self._new_run = False

    @property
    def goes_on(self) -> bool:
        """Whether a run is under way whose next step is not a new run's first."""
        return not self._new_run and self.step is not None and self.step + 1 < len(self.timesteps)

    def follow(self) -> int:
        """The next step of the run that goes on: for a caller that knows the sampler to have stepped once since."""
        assert self.goes_on and self.step is not None
        self.step += 1
        return self.step

    def tick(self, timestep: float, begin_index: int | None = None) -> tuple[int, bool]:
        """The step of a model call at ``timestep``, and whether it begins a run.

        Args:
            begin_index: where the sampler says that its run begins; of two equal timesteps in the middle the second is
                taken without it, as diffusers' samplers do.

        Raises:
            StepError: the timestep is not in the plan, or does not follow the last one.
        """
        matches = [i for i, planned in enumerate(self.timesteps) if abs(planned - timestep) <= TOLERANCE]
        if not matches:
            raise StepError(
                f"timestep {timestep:g} is not one of the plan's {len(self.timesteps)} "
                f"({self.timesteps[0]:g} ... {self.timesteps[-1]:g}): sample with the number of steps and the sampler "
                "of the plan, or calibrate a plan for these"
            )
        last = self.step
        if self._new_run:
            first = 0 if 0 in matches else matches[-1]
            step, begins = begin_index if begin_index in matches else first, True
            self._announced = True
        elif last is not None and 0 in matches and last + 1 in matches and not self._announced:
            raise StepError(
                f"timestep {timestep:g} begins the plan twice, so a new run cannot be told from the one that "
                "goes on: call session.expect_new_run() before each run, or give apply() the scheduler"
            )
        elif last is not None and last + 1 in matches:
            step, begins = last + 1, False
        elif 0 in matches:
            step, begins = 0, True
            self._announced = False
        else:
            raise StepError(self._out_of_order(timestep, matches))
        self.step, self._new_run = step, False
        return step, begins

    def _out_of_order(self, timestep: float, matches: list[int]) -> str:
        here = f"timestep {timestep:g} (step {matches[0]})"
        if self.step is None:
            return (
                f"{here} cannot begin a run: call session.expect_new_run() before a run that starts in the middle, "
                "or give apply() the pipeline or the scheduler so that a new run is seen"
            )
        if self.step in matches:
            return (
                f"the transformer was called twice at {here}: put both guidance branches into one batch, "
                "and use a sampler whose every model call has its own entry in scheduler.timesteps"
            )
        return (
            f"{here} does not follow step {self.step}: a plan's steps must be run in order, none left out; "
            "call session.expect_new_run() before another run"
        )
