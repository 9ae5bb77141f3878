"""Samplers by short name, and a sampler's settings as a plan records them."""

import inspect
import math
from collections.abc import Callable, Container
from typing import Any

import numpy as np
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    SchedulerMixin,  # from_pretrained looks for it in this module, to load the sampler of a saved pipeline
)

from ditfastattn.errors import DitFastAttnError, LoadError
from plans import PlanError, SamplerSpec
from plans.resample import TRAINING


class IDDPMScheduler(DDPMScheduler):
    """DDPM with the learned-range variance of arXiv 2102.09672, Eq. 15; refuses an output that lacks the variance."""

    def step(
        self, model_output: Any, timestep: Any, sample: Any, generator: Any = None, return_dict: bool = True
    ) -> Any:
        if model_output.shape[1] != 2 * sample.shape[1]:
            raise LoadError(
                "iddpm needs the variance that the model predicts, and diffusers' pipelines drop it: choose ddpm, or "
                "sample with ditfastattn.sampling.sample_latents"
            )
        return super().step(model_output, timestep, sample, generator, return_dict)


# What each name means beyond the class's defaults. The training betas always come from the pipeline's own config.
SAMPLERS: dict[str, tuple[type[SchedulerMixin], dict[str, Any]]] = {
    "dpm": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    "ddpm": (DDPMScheduler, {"clip_sample": False, "variance_type": "fixed_small"}),
    # Spaced as in openai/improved-diffusion, whose sampler facebookresearch/DiT and Open-Sora carry: from the last
    # training timestep to the first. A plan knows its timesteps, so another spacing would not fit their loops.
    "iddpm": (
        IDDPMScheduler,
        {"clip_sample": False, "variance_type": "learned_range", "timestep_spacing": "linspace"},
    ),
    "heun": (HeunDiscreteScheduler, {}),
}
_NO_DEFAULT = object()
_PROBED = 5  # steps, of which one is left out to see what a sampler makes of the others


def make_sampler(name: str, config: Any) -> Any:
    """A scheduler of that name for a model trained as ``config`` says.

    Args:
        name: "dpm" (DPM-Solver++ 2M, arXiv 2211.01095), "ddim", "ddpm" (fixed variance), "iddpm" (learned-range
            variance, arXiv 2102.09672; only :func:`ditfastattn.sampling.sample_latents` passes it the variance that
            DiTPipeline drops) or "heun".
        config: the config of the scheduler that came with the model; only what training fixed is taken from it.

    Raises:
        LoadError: no such sampler.
    """
    if name not in SAMPLERS:
        raise LoadError(f"there is no sampler {name!r}; choose one of {', '.join(SAMPLERS)}")
    if "beta_schedule" not in config:
        raise LoadError("the model's own scheduler has no beta_schedule (flow matching?); these samplers need one")
    cls, settings = SAMPLERS[name]
    # diffusers would keep what the class does not take among its settings, and its plans would differ by that.
    taken = inspect.signature(cls.__init__).parameters
    training = {key: config[key] for key in TRAINING if key in config and key in taken}
    return cls.from_config({**training, **settings})


def takes_variance(scheduler: Any) -> bool:
    """Whether a scheduler is to be given the variance that a model predicts beside the noise.

    Raises:
        LoadError: it would cut the model's output to three channels, which are those of pixels, not of latents:
            diffusers' DPM-Solvers do so where their config has the variance of the sampler that it was made from.
    """
    learned = getattr(scheduler.config, "variance_type", None) in ("learned", "learned_range")
    if not learned or isinstance(scheduler, DDPMScheduler):
        return learned
    name = type(scheduler).__name__
    if "variance_type" in inspect.signature(type(scheduler).__init__).parameters:
        raise LoadError(
            f"{name} with variance_type={scheduler.config.variance_type!r} would cut the latents to three channels: "
            "make it with ditfastattn.samplers.make_sampler(name, config), or by load_pipeline(..., sampler=name)"
        )
    return False


def begin_run(scheduler: Any, run: int | SamplerSpec) -> None:
    """``set_timesteps`` for a number of inference steps, or for the run that a plan records.

    Raises:
        LoadError: timesteps of the plan's own, which the sampler does not take.
    """
    if not isinstance(run, SamplerSpec):
        scheduler.set_timesteps(run)
    elif run.own_timesteps:
        set_timesteps(scheduler.set_timesteps, run, len(run.timesteps))
    else:
        scheduler.set_timesteps(inference_steps(scheduler, len(run.timesteps)))


def set_timesteps(original: Callable[..., Any], spec: SamplerSpec, *args: Any, **kwargs: Any) -> Any:
    """A sampler's ``set_timesteps``; asked for as many steps as a plan has timesteps of its own, it makes these.

    A caller who names timesteps or noise levels is given those.

    Raises:
        LoadError: the plan has own timesteps, and the sampler takes none, or not with its settings.
    """
    takes = inspect.signature(original)
    given = takes.bind_partial(*args, **kwargs)
    named = any(given.arguments.get(name) is not None for name in ("timesteps", "sigmas"))
    if not spec.own_timesteps or named or given.arguments.get("num_inference_steps") != len(spec.timesteps):
        return original(*args, **kwargs)
    if "timesteps" not in takes.parameters:
        raise LoadError(
            f"the sampler takes no timesteps, and the plan has {len(spec.timesteps)} of its own: use one whose "
            "set_timesteps does, as DPMSolverMultistepScheduler's"
        )
    times = [int(time) if time.is_integer() else time for time in spec.timesteps]
    given.arguments |= {"num_inference_steps": None, "timesteps": times}
    try:
        return original(*given.args, **given.kwargs)
    except (DitFastAttnError, PlanError):  # another session's, on the same sampler
        raise
    except (TypeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise LoadError(f"the sampler does not take the plan's own timesteps with its settings: {reason}") from error


def check_own_timesteps(scheduler: Any) -> None:
    """Whether a sampler gives any timesteps the noise levels that they have in its own runs.

    Karras' and other spacings of noise levels, the shift of flow matching, and samplers that call the model twice at
    one time do not.

    Raises:
        LoadError: it does not, so a model that is told of such a timestep would be given other noise.
    """
    whole, part = (type(scheduler).from_config(scheduler.config) for _ in range(2))
    whole.set_timesteps(_PROBED)
    times, levels = whole.timesteps.tolist(), getattr(whole, "sigmas", None)
    kept = [step for step in range(len(times)) if step != 1]
    chosen = tuple(float(times[step]) for step in kept)
    spec = SamplerSpec(class_name=type(scheduler).__name__, settings={}, timesteps=chosen)
    set_timesteps(part.set_timesteps, spec.model_copy(update={"own_timesteps": True}), len(chosen))
    same = part.timesteps.tolist() == [times[step] for step in kept]
    if same and levels is not None:
        wanted, found = (np.asarray(each, dtype=float)[: len(kept)] for each in (levels[kept], part.sigmas))
        same = np.allclose(wanted, found, rtol=1e-4)
    if not same:
        raise LoadError(
            f"{type(scheduler).__name__} with its settings takes timesteps, but not with the noise that belongs to "
            "them, so a plan cannot have timesteps of its own there: use another sampler, or one without a shift and "
            "without a spacing of noise levels"
        )


def sampler_spec(scheduler: Any, run: int | SamplerSpec, known_settings: Container[str] | None = None) -> SamplerSpec:
    """What a plan records of a sampler: class, settings, and the timesteps it runs through.

    Computed on a copy: the scheduler itself is left alone.

    Args:
        run: as in :func:`begin_run`.
        known_settings: the settings of a plan to compare with. A setting that is not among them and has its class's
            default is left out, so that one that a newer diffusers adds does not make every older plan foreign.

    Raises:
        LoadError: timesteps of the plan's own, which the sampler does not take for what they are.
    """
    own = isinstance(run, SamplerSpec) and run.own_timesteps
    copy = type(scheduler).from_config(scheduler.config)
    begin_run(copy, run)
    if own:
        check_own_timesteps(scheduler)
    return SamplerSpec(
        class_name=type(scheduler).__name__,
        settings=settings_of(scheduler, known_settings),
        timesteps=tuple(float(t) for t in copy.timesteps),
        own_timesteps=own,
    )


def settings_of(scheduler: Any, known_settings: Container[str] | None = None) -> dict[str, Any]:
    """The settings part of :func:`sampler_spec`."""
    settings = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    if known_settings is not None:
        defaults = {name: p.default for name, p in inspect.signature(type(scheduler).__init__).parameters.items()}
        settings = {k: v for k, v in settings.items() if k in known_settings or defaults.get(k, _NO_DEFAULT) != v}
    return {key: _plain(value) for key, value in sorted(settings.items())}


def _plain(value: Any) -> Any:
    """A setting as JSON has it: no arrays, and infinities (DPM-Solver's lambda_min_clipped) as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, np.ndarray | tuple | list):
        return [_plain(item) for item in (value.tolist() if isinstance(value, np.ndarray) else value)]
    return value


def inference_steps(scheduler: Any, model_calls: int) -> int:
    """The ``num_inference_steps`` that make a sampler call the model ``model_calls`` times (Heun: 2n - 1 for n)."""
    return (model_calls + scheduler.order - 1) // int(scheduler.order)
