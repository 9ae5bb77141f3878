"""A plan installed on a transformer: follows the sampler's steps, keeps what later steps need, restores exactly."""

import inspect
import math
import warnings
from collections import Counter
from collections.abc import Callable, Hashable
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ditfastattn.batch import (
    ConditionCheck,
    check_batch,
    check_same_shape,
    judge_timestep,
    like_queries,
    on_gpu,
    timestep_value,
)
from ditfastattn.clock import StepClock
from ditfastattn.errors import ApplyError, DitFastAttnError, StepError
from ditfastattn.execute import Context, Contexts
from ditfastattn.guidance import GuidanceCheck
from ditfastattn.identity import Identity, identity_of
from ditfastattn.install import Overrides
from ditfastattn.kernels import make_kernel
from ditfastattn.kernels.base import Kernel
from ditfastattn.layout import Layout
from ditfastattn.models.base import Call, ModelAdapter
from ditfastattn.order import Ordering, order_for
from ditfastattn.planned import Planned
from ditfastattn.runner import Run, Runner
from ditfastattn.sampler_fit import check_begun
from ditfastattn.sampler_graphs import SamplerGraphs
from ditfastattn.samplers import set_timesteps
from ditfastattn.summary import SessionSummary, SiteSummary
from ditfastattn.watch import Watch
from plans import Method, Plan, PlanError, PlanMismatch, SiteName


class Session:
    """What :func:`ditfastattn.apply` returns. Use it as a context manager, or call :meth:`remove`.

    Nothing is patched on classes; all state lives here. Every transformer call is placed at its step by the timestep
    it is given; one that does not fit the plan raises StepError or PlanMismatch before it computes anything.
    """

    def __init__(
        self, adapter: ModelAdapter, plan: Plan, kernel: str, scheduler: Any, pipeline: Any, runner: Runner
    ) -> None:
        self.plan = plan
        self._adapter = adapter
        self._runner = runner
        self._kernel_name = kernel
        self._scheduler = scheduler
        self._pipeline = pipeline
        self._clock = StepClock(plan.sampler.timesteps)
        self._watch = Watch()
        self._overrides = Overrides()
        self._layout = Layout(plan.guidance.layout)
        used = order_for(plan.token_order, chain.from_iterable(plan.methods))
        self._ordering = Ordering(used, plan.window, adapter.per_image)
        self._contexts: Contexts = {}
        self._kernels: dict[Hashable, Kernel] = {}  # by what they were made for; a prepared step holds on to its own
        self._planned = Planned(plan)
        self._run: Run | None = None
        self._condition: ConditionCheck | None = None
        self._guidance = GuidanceCheck(plan.guidance, runner.captures)
        self._sampler_graphs = SamplerGraphs(scheduler)
        self._stepped = False  # the sampler's step followed the last model call
        self._removed = False
        self._identity: Identity = ()  # of the model when it was last found without obstacles
        self._dtype = adapter.dtype
        self._used: Counter[tuple[SiteName, Method]] = Counter()
        self._begun = self._finished = 0
        self._install()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, exception: object, *_: object) -> None:
        if exception is not None:
            self._watch.forget()  # one fault is enough
        self.remove()

    def remove(self) -> None:
        """Gives the model and the sampler back as they were and frees the caches. Harmless when called twice.

        What another tool has wrapped since (CPU offload) stays where it is, passing calls on unchanged, with a warning;
        when that tool is undone, a second call takes it off too.

        Raises:
            StepError, PlanMismatch: the last run, ended early, was not the plan's, which a GPU tells only now. The plan
                is off nevertheless.
        """
        self._removed = True
        try:
            self._watch.drain()
        finally:
            self._take_off()

    def _take_off(self) -> None:
        self._end_run()
        self._runner.close()
        self._sampler_graphs.close()
        self._guidance.close()
        foreign = self._overrides.restore()
        if foreign:
            names = ", ".join(f"{type(owner).__name__}.{name}" for owner, name in foreign[:3])
            warnings.warn(
                f"another tool has wrapped {names} after the plan was applied; the plan is off, but undo that tool and "
                "call remove() again to have the attributes back as they were",
                stacklevel=2,
            )

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise ApplyError("a model that follows a plan cannot be copied or pickled: remove the plan first")

    def expect_new_run(self) -> None:
        """The next model call begins a run, at whatever step. Needed only for a run that starts in the middle on a
        bare transformer; a known sampler announces its runs by ``set_timesteps``."""
        self._end_run()
        self._clock.expect_new_run()

    def summary(self) -> SessionSummary:
        """What has happened so far: methods used, MACs saved, cache bytes, kernel."""
        measured, predicted = self._runner.measured, self._runner.predicted
        sites = {
            site: SiteSummary(
                methods={method: count for (where, method), count in self._used.items() if where == site},
                peak_cache_bytes=measured.sites.get(site, 0),
                predicted_peak_cache_bytes=predicted.sites.get(site, 0),
                kernel=self._contexts[site].kernel.report() if site in self._contexts else None,
            )
            for site in self.plan.sites
        }
        return SessionSummary(
            sites=sites,
            plan=self.plan,
            runs_begun=self._begun,
            runs_finished=self._finished,
            cache_bytes=sum(self._runner.cache_bytes().values()),
            peak_cache_bytes=measured.total,
            predicted_peak_cache_bytes=predicted.total,
            runtime=self._runner.report() + self._sampler_graphs.report(),
        )

    # ------------------------------------------------------------------------------------------------ installation

    def _install(self) -> None:
        model = self._adapter.model
        self._overrides.set(model, "forward", partial(self._forward, model.forward))
        self._runner.install(self._overrides)
        if (entry := self._adapter.guided_entry) is not None:
            self._overrides.set(model, entry, partial(self._guided_forward, getattr(model, entry)))
        if self._scheduler is not None:
            scheduler = self._scheduler
            self._overrides.set(scheduler, "set_timesteps", _instead(scheduler.set_timesteps, self._set_timesteps))
            self._overrides.set(scheduler, "step", _instead(scheduler.step, self._scheduler_step))

    # ------------------------------------------------------------------------------------------------ a model call

    def _forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The transformer's forward."""
        if self._removed:
            return original(*args, **kwargs)
        call = self._adapter.read_call(args, kwargs)
        try:
            with torch.cuda.device_of(call.latents):  # kernels, graphs and events go to the current GPU
                step, begins = self._begin_step(call)
                output, result = self._runner.forward(step, call, original, args, kwargs)
                if not begins:
                    self._check_later(step, call)
                self._finish_step(step, output)
            return result
        except BaseException:
            self._end_run()
            raise

    def _guided_forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A method of the transformer that is given the guidance scale, and calls its forward."""
        scale, planned = self._adapter.given_scale(args, kwargs), self.plan.guidance.scale
        if not self._removed and not math.isclose(scale, planned, rel_tol=1e-6):
            raise PlanMismatch([f"guidance scale: the plan has {planned:g}, this run {scale:g}"])
        return original(*args, **kwargs)

    def _begin_step(self, call: Call) -> tuple[int, bool]:
        """The step of a call, and whether it begins a run."""
        self._check_pipeline()
        self._watch.poll()
        if self._follows(call):
            step, begins = self._clock.follow(), False
        else:
            begin_index = getattr(self._scheduler, "begin_index", None)
            step, begins = self._clock.tick(timestep_value(call.timestep), begin_index)
        if begins:
            self._begin_run(step, call)
        else:
            self._check_stepped(step)
            assert self._run is not None
            check_same_shape(step, call, self._run.call)
        return step, begins

    def _follows(self, call: Call) -> bool:
        """Whether the step is known without the timestep: in the middle of a run of a known sampler it follows from
        the sampler's own steps, and a timestep on the GPU could not be read without waiting for the GPU."""
        return self._scheduler is not None and on_gpu(call.timestep) and self._clock.goes_on

    def _check_later(self, step: int, call: Call) -> None:
        """What is compared on the device, after the step's own work has been handed to it."""
        assert self._condition is not None
        self._condition.check(step, call, self._watch)
        if on_gpu(call.timestep):
            planned = self.plan.sampler.timesteps[step]
            self._watch.post(call.timestep.flatten(), partial(judge_timestep, step, planned))

    def _check_pipeline(self) -> None:
        """A part of the pipeline that was exchanged would run uncompressed, or by another sampler, unnoticed."""
        if self._pipeline is None:
            return
        for name, ours in (("scheduler", self._scheduler), ("transformer", self._adapter.model)):
            if getattr(self._pipeline, name) is not ours:
                raise StepError(f"the pipeline's {name} was replaced after the plan was applied: apply the plan anew")

    def _begin_run(self, step: int, call: Call) -> None:
        self._runner.end()
        self._watch.forget()
        self._check_model()
        check_batch(self.plan, self._adapter, call)
        self._contexts = {site: self._context(site, call) for site in self.plan.attention_sites}
        self._ordering.fit(self._adapter.grid(*call.latents.shape[-2:]), call.latents.device)
        self._run = Run(
            self.plan,
            call,
            step,
            self._planned.cells(step),
            self._contexts,
            self._layout,
            self._ordering,
            self._dtype.itemsize,
            self._identity,
        )
        self._condition = ConditionCheck(call)
        self._runner.begin(self._run)
        self._begun += 1

    def _context(self, site: SiteName, call: Call) -> Context:
        """Kernel and window of a site; the kernel is that of earlier runs of this shape."""
        sample, window = like_queries(self.plan, site, call.latents, self._dtype), self.plan.window_of(site)
        key = (sample.shape, sample.dtype, sample.device, window)
        if key not in self._kernels:
            self._kernels[key] = make_kernel(self._kernel_name, sample, window)
        return Context(self._kernels[key], window, self._layout)

    def _check_model(self) -> None:
        """What was refused at apply() may have come since."""
        identity = identity_of(self._adapter.model)
        faults: list[str] = []
        if identity != self._identity:
            faults = self._adapter.obstacles() + self._runner.obstacles()
            self._identity, self._dtype = () if faults else identity, self._adapter.dtype
        replaced = [owner for owner, _ in self._overrides.replaced()]
        if any(block.module is owner for block in self._adapter.blocks for owner in replaced):
            faults.append("the forward of its blocks was replaced by another tool")
        if faults:
            raise StepError("the transformer was changed after the plan was applied: " + "; ".join(faults))

    def _check_stepped(self, step: int) -> None:
        if self._scheduler is not None and not self._stepped:
            raise StepError(
                f"the sampler's step was not called between the last model call and this one (step {step}): another "
                "sampler runs this transformer; apply the plan to the pipeline that is run, or to the bare transformer"
            )

    def _finish_step(self, step: int, output: Tensor) -> None:
        assert self._run is not None
        self._used.update(self._planned.counts(self._run.entered_at)[step - self._run.entered_at])
        if self._scheduler is not None:
            self._guidance.expect(output)
        self._stepped = False
        if step + 1 == self.plan.steps:
            self._watch.drain()
            self._finished += 1

    def _end_run(self) -> None:
        """Drops all that belongs to a run; only a new one can follow."""
        self._clock.forget()
        self._watch.forget()
        self._guidance.forget()
        self._run = self._condition = None
        self._runner.end()

    # ------------------------------------------------------------------------------------------------- the sampler

    def _set_timesteps(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._removed:
            return original(*args, **kwargs)
        if self._runner.prepares and len(args) < 2 and "device" in inspect.signature(original).parameters:
            # Timesteps left on the CPU would be moved, and waited for, at every step.
            kwargs.setdefault("device", self._adapter.device)
        self._judge_what_is_left()
        result = set_timesteps(original, self.plan.sampler, *args, **kwargs)
        self._check_pipeline()
        self._end_run()
        check_begun(self._scheduler, self.plan)
        self._clock.expect_new_run()
        return result

    def _judge_what_is_left(self) -> None:
        """A run that was stopped early may have faults that had not arrived."""
        try:
            self._watch.drain()
        except (DitFastAttnError, PlanError) as error:
            self._end_run()
            raise StepError(f"the run before this one, which ended early, was not the plan's: {error}") from error

    def _scheduler_step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._stepped = True
        if self._guidance.awaits and not self._removed:
            try:
                self._guidance.check(args[0] if args else kwargs["model_output"], self._watch)
                if not self._clock.goes_on:
                    self._watch.drain()
            except BaseException:
                self._end_run()
                raise
        if not self._runner.captures or self._removed or self._run is None or not on_gpu(args[0] if args else None):
            return original(*args, **kwargs)
        with torch.cuda.device_of(args[0]):
            return self._sampler_graphs.step(self._run.entered_at, self._clock.step, original, args, kwargs)


def _instead(original: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """``ours``, given ``original`` first. Pipelines ask by the signature whether a sampler takes their generator."""
    stand_in = partial(ours, original)
    stand_in.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    return stand_in
