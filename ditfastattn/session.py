"""A plan installed on a transformer: follows the sampler's steps, keeps what later steps need, restores exactly."""

import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ditfastattn.batch import check_batch, check_same_run, timestep_value
from ditfastattn.cache import Cell, LayerCache, entering_at, liveness, predicted_bytes
from ditfastattn.clock import StepClock
from ditfastattn.errors import ApplyError, StepError
from ditfastattn.execute import Context, run_block
from ditfastattn.guidance import guidance_fault
from ditfastattn.install import Overrides
from ditfastattn.kernels import make_kernel
from ditfastattn.layout import Layout
from ditfastattn.models.base import Call, ModelAdapter
from ditfastattn.order import Ordering, order_for
from ditfastattn.samplers import settings_of
from ditfastattn.summary import SessionSummary
from plans import Method, Plan, PlanMismatch
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
        used = order_for(plan.token_order, chain.from_iterable(plan.methods))
        self._ordering = Ordering(used, plan.window, adapter.per_image)
        self._context: Context | None = None
        self._step: int | None = None  # the step whose model call is running now
        self._entered_at = 0
        self._cells: list[tuple[Cell, ...]] = []
        self._first_call: Call | None = None
        self._last_output: Tensor | None = None  # until the sampler steps with it
        self._stepped = False  # the sampler's step followed the last model call
        self._removed = False
        self._used: Counter[Method] = Counter()
        self._begun = self._finished = self._peak_bytes = self._predicted_peak_bytes = 0
        self._install()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Gives the model and the sampler back as they were and frees the caches. Harmless when called twice.

        What another tool has wrapped since (CPU offload) stays where it is, passing calls on unchanged, with a warning;
        when that tool is undone, a second call takes it off too.
        """
        self._removed = True
        self._end_run()
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
            self._overrides.set(block.module, "forward", partial(self._block_forward, layer, block.module.forward))
        if self._scheduler is not None:
            scheduler = self._scheduler
            self._overrides.set(scheduler, "set_timesteps", partial(self._set_timesteps, scheduler.set_timesteps))
            self._overrides.set(scheduler, "step", partial(self._scheduler_step, scheduler.step))

    def _forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The transformer's forward."""
        if self._removed:
            return original(*args, **kwargs)
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

    def _block_forward(
        self, layer: int, original: Callable[..., Tensor], hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """A block's forward. The tokens stand in the plan's order from the first block's input to the last's output."""
        if self._removed:
            return original(hidden_states, *args, **kwargs)
        if self._step is None or self._context is None:
            raise StepError(
                f"block {layer} was called outside of its transformer's forward, so its step is unknown: another tool "
                "replaced the transformer's forward after the plan was applied (CPU offload?), or a block was called "
                "by itself; remove the plan first"
            )
        cell = self._cells[layer][self._step - self._entered_at]
        self._used[cell.method] += 1
        hidden = self._ordering.enter(hidden_states, *args, **kwargs) if layer == 0 else hidden_states
        block = self._adapter.blocks[layer]
        hidden = run_block(block, cell, self._caches[layer], self._context, hidden, *args, **kwargs)
        return self._ordering.leave(hidden) if layer + 1 == self.plan.layers else hidden

    # ------------------------------------------------------------------------------------------------ a model call

    def _begin_step(self, call: Call) -> int:
        self._check_pipeline()
        begin_index = getattr(self._scheduler, "begin_index", None)
        step, begins = self._clock.tick(timestep_value(call.timestep), begin_index)
        if begins:
            self._begin_run(step, call)
        else:
            self._check_stepped(step)
            assert self._first_call is not None
            check_same_run(step, call, self._first_call)
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
        self._check_model()
        check_batch(self.plan, self._adapter, call)
        kernel = self._context.kernel if self._context else None
        sample = _like_queries(self.plan, call.latents, self._adapter.model.dtype)
        if kernel is None or kernel.not_supported_reasons(sample, self.plan.window):
            kernel = make_kernel(self._kernel_name, sample, self.plan.window)
        self._context = Context(kernel, self.plan.window, self._layout)
        height, width = call.latents.shape[-2:]
        self._ordering.fit(self._adapter.grid(height, width), call.latents.device)
        self._entered_at = step
        self._cells = [liveness(entering_at(self.plan.column(layer), step)) for layer in range(self.plan.layers)]
        condition = None if call.condition is None else call.condition.clone()  # the caller may reuse its buffer
        self._first_call = Call(call.latents, call.timestep, condition)
        self._begun += 1
        batch, tokens, heads, head_dim = sample.shape
        row_bytes = tokens * heads * head_dim * sample.element_size()
        predicted = max(predicted_bytes(self._cells, batch, row_bytes))
        self._predicted_peak_bytes = max(self._predicted_peak_bytes, predicted)

    def _check_model(self) -> None:
        """What was refused at apply() may have come since."""
        faults = self._adapter.obstacles()
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
        self._last_output = output if guided else None
        self._stepped = False

    def _end_run(self) -> None:
        """Drops all that belongs to a run; only a new one can follow."""
        self._clock.forget()
        self._last_output = self._first_call = None
        for cache in self._caches:
            cache.clear()

    def _cache_bytes(self) -> int:
        return sum(cache.nbytes() for cache in self._caches)

    # ------------------------------------------------------------------------------------------------- the sampler

    def _set_timesteps(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if self._removed:
            return result
        self._check_pipeline()
        self._end_run()
        try:
            actual = SamplerSpec(
                class_name=type(self._scheduler).__name__,
                settings=settings_of(self._scheduler, self.plan.sampler.settings),
                timesteps=tuple(float(t) for t in self._scheduler.timesteps),
            )
        except ValueError as error:  # timesteps that increase, say
            raise PlanMismatch([f"timesteps: the sampler's are not those of a plan ({_first_line(error)})"]) from error
        differences = self.plan.differences(sampler=actual)
        if differences:
            raise PlanMismatch(differences)
        self._clock.expect_new_run()
        return result

    def _scheduler_step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._stepped = True
        if self._last_output is not None and not self._removed:
            output, self._last_output = self._last_output, None
            self._check_guidance(output, args[0] if args else kwargs["model_output"])
        return original(*args, **kwargs)

    def _check_guidance(self, output: Tensor, guided: Tensor) -> None:
        """Refuses a run that is guided otherwise than the plan, as soon as it can be told."""
        rows = self._layout.conditional_rows(output.shape[0])
        half = output.shape[0] // 2
        cond, uncond = (output[:half], output[half:]) if rows.start == 0 else (output[half:], output[:half])
        fault = guidance_fault(cond, uncond, guided[:half], self.plan.guidance.scale)
        if fault:
            self._end_run()
            raise PlanMismatch([fault])


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return lines[min(2, len(lines) - 1)] if lines else type(error).__name__


def _like_queries(plan: Plan, latents: Tensor, dtype: torch.dtype) -> Tensor:
    """An empty (B, N, H, D) tensor of the queries' shape, dtype and device, for a kernel to judge."""
    shape = (latents.shape[0], plan.model.tokens, plan.model.heads, plan.model.head_dim)
    return torch.empty(shape, dtype=dtype, device=latents.device)
