"""A plan installed on a transformer: follows the sampler's steps, keeps what later steps need, restores exactly."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ditfastattn.cache import Cell, LayerCache, entering_at, liveness, predicted_bytes
from ditfastattn.clock import StepClock
from ditfastattn.errors import StepError
from ditfastattn.execute import Context, run_block
from ditfastattn.guidance import implied_scale, same_scale
from ditfastattn.install import Overrides
from ditfastattn.kernels import make_kernel
from ditfastattn.layout import Layout
from ditfastattn.models.base import Call, ModelAdapter
from ditfastattn.summary import SessionSummary
from plans import GuidanceSpec, Method, Plan, PlanMismatch
from plans.schema import SamplerSpec


class Session:
    """What :func:`ditfastattn.apply` returns. Use it as a context manager, or call :meth:`remove`.

    Nothing is patched on classes; all state lives here. Every transformer call is placed at its step by the timestep
    it is given; one that does not fit the plan raises StepError or PlanMismatch before it computes anything.
    """

    def __init__(self, adapter: ModelAdapter, plan: Plan, kernel: str, scheduler: Any, pipeline: Any) -> None:
        self.plan = plan
        self._adapter = adapter
        self._kernel_name = kernel
        self._scheduler = scheduler
        self._pipeline = pipeline
        self._clock = StepClock(plan.sampler.timesteps)
        self._caches = [LayerCache() for _ in adapter.blocks]
        self._overrides = Overrides()
        self._layout = Layout(plan.guidance.layout)
        self._context: Context | None = None
        self._step: int | None = None  # the step whose model call is running now
        self._entered_at = 0
        self._cells: list[tuple[Cell, ...]] = []
        self._first_call: Call | None = None
        self._unverified_output: Tensor | None = None
        self._used: Counter[Method] = Counter()
        self._begun = self._finished = self._peak_bytes = self._predicted_peak_bytes = 0
        self._install()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Gives the model and the sampler back as they were and frees the caches. Harmless when called twice.

        Raises:
            ApplyError: another tool has since replaced what this session installed.
        """
        self._overrides.restore()
        self._end_run()

    def expect_new_run(self) -> None:
        """The next model call begins a run, at whatever step. Needed only for a run that starts in the middle on a
        bare transformer; a known sampler announces its runs by ``set_timesteps``."""
        self._end_run()
        self._clock.expect_new_run()

    def summary(self) -> SessionSummary:
        """What has happened so far: methods used, MACs saved, cache bytes, kernel."""
        return SessionSummary(
            methods=dict(self._used),
            plan=self.plan,
            runs_begun=self._begun,
            runs_finished=self._finished,
            cache_bytes=self._cache_bytes(),
            peak_cache_bytes=self._peak_bytes,
            predicted_peak_cache_bytes=self._predicted_peak_bytes,
            kernel=self._context.kernel.name if self._context else None,
        )

    # ------------------------------------------------------------------------------------------------ installation

    def _install(self) -> None:
        model = self._adapter.model
        self._overrides.set(model, "forward", partial(self._forward, model.forward))
        for layer, block in enumerate(self._adapter.blocks):
            self._overrides.set(block.module, "forward", partial(self._block_forward, layer))
        if self._scheduler is not None:
            scheduler = self._scheduler
            self._overrides.set(scheduler, "set_timesteps", partial(self._set_timesteps, scheduler.set_timesteps))
            self._overrides.set(scheduler, "step", partial(self._scheduler_step, scheduler.step))

    def _forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The transformer's forward."""
        call = self._adapter.read_call(args, kwargs)
        try:
            self._step = self._begin_step(call)
            output = original(*args, **kwargs)
            self._finish_step(output[0])
            return output
        except BaseException:
            self._end_run()
            raise
        finally:
            self._step = None

    def _block_forward(self, layer: int, *args: Any, **kwargs: Any) -> Tensor:
        """A block's forward."""
        if self._step is None or self._context is None:
            raise StepError(
                f"block {layer} was called outside of its transformer's forward, so its step is unknown: another tool "
                "replaced the transformer's forward after the plan was applied (CPU offload?), or a block was called "
                "by itself; remove the plan first"
            )
        cell = self._cells[layer][self._step - self._entered_at]
        self._used[cell.method] += 1
        return run_block(self._adapter.blocks[layer], cell, self._caches[layer], self._context, *args, **kwargs)

    # ------------------------------------------------------------------------------------------------ a model call

    def _begin_step(self, call: Call) -> int:
        self._check_pipeline()
        step, begins = self._clock.tick(_timestep_value(call.timestep))
        if begins:
            self._begin_run(step, call)
        else:
            self._check_same_run(step, call)
        return step

    def _check_pipeline(self) -> None:
        """A part of the pipeline that was exchanged would run uncompressed, or by another sampler, unnoticed."""
        if self._pipeline is None:
            return
        for name, ours in (("scheduler", self._scheduler), ("transformer", self._adapter.model)):
            if getattr(self._pipeline, name) is not ours:
                raise StepError(f"the pipeline's {name} was replaced after the plan was applied: apply the plan anew")

    def _begin_run(self, step: int, call: Call) -> None:
        for cache in self._caches:
            cache.clear()
        self._check_batch(call)
        kernel = self._context.kernel if self._context else None
        sample = _like_queries(self.plan, call.latents, self._adapter.model.dtype)
        if kernel is None or kernel.not_supported_reasons(sample, self.plan.window):
            kernel = make_kernel(self._kernel_name, sample, self.plan.window)
        self._context = Context(kernel, self.plan.window, self._layout)
        self._entered_at = step
        self._cells = [liveness(entering_at(self.plan.column(layer), step)) for layer in range(self.plan.layers)]
        self._first_call = call
        self._begun += 1
        batch, tokens, heads, head_dim = sample.shape
        row_bytes = tokens * heads * head_dim * sample.element_size()
        predicted = max(predicted_bytes(self._cells, batch, row_bytes))
        self._predicted_peak_bytes = max(self._predicted_peak_bytes, predicted)

    def _check_batch(self, call: Call) -> None:
        """The batch must hold the guidance branches, and the tokens, that the plan was made for."""
        height, width = call.latents.shape[-2:]
        tokens = self._adapter.tokens(height, width)
        if tokens != self.plan.model.tokens:
            raise PlanMismatch([f"tokens: the plan has {self.plan.model.tokens}, this run {tokens} ({height}x{width})"])
        if self._layout is Layout.NONE and self._adapter.is_guided(call):
            raise PlanMismatch(["guidance layout: the plan has none, this batch holds both guidance branches"])
        if self._layout is not Layout.NONE and not self._adapter.is_guided(call):
            raise PlanMismatch(
                [
                    f"guidance layout: the plan has {self._layout.value}, this batch of {call.latents.shape[0]} does "
                    "not hold a conditional and an unconditional half in that order (run with guidance_scale > 1 and "
                    "both branches in one call)"
                ]
            )

    def _check_same_run(self, step: int, call: Call) -> None:
        first = self._first_call
        assert first is not None
        here, there = call.latents, first.latents
        if (here.shape, here.dtype, here.device) != (there.shape, there.dtype, there.device):
            raise StepError(
                f"step {step} got latents {tuple(here.shape)} {here.dtype} on {here.device}, but the run began with "
                f"{tuple(there.shape)} {there.dtype} on {there.device}: begin a new run at step 0"
            )
        same = call.condition is first.condition or (
            call.condition is not None
            and first.condition is not None
            and call.condition.shape == first.condition.shape
            and torch.equal(call.condition, first.condition)
        )
        if not same:
            raise StepError(
                f"step {step} got another condition than the run began with: two runs are interleaved on one "
                "transformer, or the guidance branches come in separate calls; give each its own, or one batch"
            )

    def _finish_step(self, output: Tensor) -> None:
        assert self._step is not None
        self._peak_bytes = max(self._peak_bytes, self._cache_bytes())
        for cache, column in zip(self._caches, self._cells, strict=True):
            cell = column[self._step - self._entered_at]
            if cell.free_output:
                cache.output = None
            if cell.free_residual:
                cache.residual = None
        self._finished += self._step + 1 == self.plan.steps
        guided = self._layout is not Layout.NONE and self._scheduler is not None
        self._unverified_output = output if guided and self._step == self._entered_at else None

    def _end_run(self) -> None:
        """Drops all that belongs to a run; only a new one can follow."""
        self._clock.forget()
        self._unverified_output = self._first_call = None
        for cache in self._caches:
            cache.clear()

    def _cache_bytes(self) -> int:
        return sum(cache.nbytes() for cache in self._caches)

    # ------------------------------------------------------------------------------------------------- the sampler

    def _set_timesteps(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._check_pipeline()
        result = original(*args, **kwargs)
        actual = SamplerSpec(
            class_name=self.plan.sampler.class_name,
            settings=self.plan.sampler.settings,
            timesteps=tuple(float(t) for t in self._scheduler.timesteps),
        )
        self._end_run()
        differences = self.plan.differences(sampler=actual)
        if differences:
            raise PlanMismatch(differences)
        self._clock.expect_new_run()
        return result

    def _scheduler_step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._unverified_output is not None:
            output, self._unverified_output = self._unverified_output, None
            self._check_scale(output, args[0] if args else kwargs["model_output"])
        return original(*args, **kwargs)

    def _check_scale(self, output: Tensor, guided: Tensor) -> None:
        """Refuses a run whose guidance scale is not the plan's, after its first (uncompressed) model call."""
        rows = self._layout.conditional_rows(output.shape[0])
        half = output.shape[0] // 2
        cond, uncond = (output[:half], output[half:]) if rows.start == 0 else (output[half:], output[:half])
        scale = implied_scale(cond, uncond, guided[:half])
        if scale is not None and not same_scale(self.plan.guidance.scale, scale):
            self._end_run()
            actual = GuidanceSpec(scale=max(1.0, round(scale, 2)), layout=self.plan.guidance.layout)
            raise PlanMismatch(self.plan.differences(guidance=actual))


def _timestep_value(timestep: Any) -> float:
    """The one timestep of a call, from a number or a tensor of equal values."""
    values = set(timestep.flatten().tolist()) if isinstance(timestep, Tensor) else {timestep}
    if len(values) != 1 or None in values:
        raise StepError(f"every row of a call must be at one timestep, got {sorted(values, key=str)}")
    return float(values.pop())


def _like_queries(plan: Plan, latents: Tensor, dtype: torch.dtype) -> Tensor:
    """An empty (B, N, H, D) tensor of the queries' shape, dtype and device, for a kernel to judge."""
    shape = (latents.shape[0], plan.model.tokens, plan.model.heads, plan.model.head_dim)
    return torch.empty(shape, dtype=dtype, device=latents.device)
