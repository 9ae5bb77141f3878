"""What a run takes besides the model's own work: the sampler, guidance, and the session that follows its steps.

It is measured on a real run of a plan that calls the model once and reuses its output in all steps after.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ditfastattn.api import apply
from ditfastattn.cost.rows import BEGIN, HOST_STEP, STEP
from ditfastattn.cost.timing import once
from ditfastattn.execute import Context
from ditfastattn.kernels import CHOSEN
from ditfastattn.kernels.auto import Auto
from ditfastattn.layout import Layout
from ditfastattn.models.base import Call, PreparedModel
from ditfastattn.models.labelled import Labelled
from ditfastattn.samplers import make_sampler, sampler_spec
from plans import GuidanceSpec, Method, Plan

SCALE = 4.0
STEPS = 12  # of the run that is measured: few enough for all launches to fit into a GPU's queue
HALF = STEPS // 2 - 1
RUNS = 3
TRAINING = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}


class Sampling:
    """Runs of a model on random latents, as a pipeline without text encoder and VAE would make them.

    Args:
        given: arguments of a call on all rows, as ``PreparedModel.example`` has them.
        call: the same by meaning.
        scheduler: itself, not a copy: a session may follow its steps.
    """

    def __init__(
        self, adapter: PreparedModel, call: Call, given: Mapping[str, Any], layout: Layout, scheduler: Any
    ) -> None:
        self._adapter, self._layout, self.scheduler = adapter, layout, scheduler
        names = {id(value): name for name, value in given.items()}
        self._latents_name, self._timestep_name = names[id(call.latents)], names[id(call.timestep)]
        self._given = dict(given)
        self._rows = len(call.latents)
        images = self._rows if layout is Layout.NONE else self._rows // 2
        self._noise = torch.randn_like(call.latents[:images])
        if isinstance(adapter, Labelled) and layout is not Layout.NONE:
            assert call.condition is not None
            labels = call.condition % adapter.null_label
            labels[images:] = adapter.null_label
            self._given[names[id(call.condition)]] = labels

    def begin(self, steps: int) -> None:
        """A new run, at its first step."""
        self.scheduler.set_timesteps(steps)
        self._timesteps = self.scheduler.timesteps
        self._step, self._latents = 0, self._noise * self.scheduler.init_noise_sigma

    def advance(self, steps: int) -> None:
        """The next steps. Nothing waits for the device."""
        for _ in range(steps):
            timestep = self._timesteps[self._step]
            latents = self.scheduler.scale_model_input(self._latents, timestep)
            self._latents = self.scheduler.step(self._guided(latents, timestep), timestep, self._latents).prev_sample
            self._step += 1

    def _guided(self, latents: Tensor, timestep: Tensor) -> Tensor:
        guided, channels = self._layout is not Layout.NONE, latents.shape[1]
        rows = torch.cat([latents, latents]) if guided else latents
        timesteps = timestep.to(rows.device).expand(self._rows)
        inputs = {**self._given, self._latents_name: rows, self._timestep_name: timesteps}
        output = self._adapter.unwrap(self._adapter.model(**inputs))[:, :channels]
        if not guided:
            return output
        cond, uncond = output.chunk(2) if self._layout is Layout.COND_FIRST else output.chunk(2)[::-1]
        return uncond + SCALE * (cond - uncond)

    def run(self, steps: int) -> float:
        """Seconds of a whole run, from its first model call on."""
        self.begin(steps)
        return seconds(lambda: self.advance(steps), self._adapter.device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of ``work``, until the device has done it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def plan_of(adapter: PreparedModel, context: Context, scheduler: Any, steps: int) -> Plan:
    """All FULL, for runs by :class:`Sampling`."""
    scale = 1.0 if context.layout is Layout.NONE else SCALE
    return Plan.full(
        model=adapter.spec(),
        sampler=sampler_spec(scheduler, steps),
        guidance=GuidanceSpec(scale=scale, layout=context.layout.value),
        window=context.window,
    )


def usual_scheduler() -> Any:
    """DPM-Solver++, which the paper samples by. Others' steps take about as long: a few operations on latents."""
    return make_sampler("dpm", TRAINING)


def session_rows(
    adapter: PreparedModel, call: Call, given: Mapping[str, Any], context: Context, compile: bool, graphs: bool
) -> dict[str, float]:
    """Microseconds of STEP and BEGIN; with graphs STEP is the device's alone, and HOST_STEP the host's.

    BEGIN is the whole first step, its model call and all.

    Raises:
        ApplyError: the model cannot follow a plan, or follows one already.
    """
    scheduler, device = usual_scheduler(), adapter.device
    kernel = CHOSEN + context.kernel.name if isinstance(context.kernel, Auto) else context.kernel.name
    plan = plan_of(adapter, context, scheduler, STEPS)
    plan = plan.skipping([Method.FULL, *[Method.AST] * (STEPS - 1)])
    sampling = Sampling(adapter, call, given, context.layout, scheduler)
    captured = graphs and device.type == "cuda"
    begins, devices, hosts = [], [], []
    with (
        torch.no_grad(),
        apply(adapter.model, plan, kernel=kernel, scheduler=scheduler, compile=compile, graphs=graphs),
    ):
        for _ in range(RUNS + 1):
            sampling.begin(STEPS)
            begins.append(1e6 * seconds(lambda: sampling.advance(1), device))
            # The last step of a run waits for the device, so it is left out. Half of the others tell the device's time
            # where it never waits for the host, half the host's where nothing is waiting.
            devices.append(once(lambda: sampling.advance(HALF), device, head_start=captured).device / HALF)
            hosts.append(once(lambda: sampling.advance(HALF), device, head_start=False).host / HALF)
            sampling.advance(1)
    rows = {STEP: statistics.median(devices[1:]), BEGIN: statistics.median(begins[1:])}  # the first prepares
    return rows | ({HOST_STEP: statistics.median(hosts[1:])} if captured else {})
