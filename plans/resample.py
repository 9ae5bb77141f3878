"""A plan carried over to other timesteps, another size or another guidance: what it loses there has to be measured.

A plan's cells were decided at the timesteps of one sampler. How much attention changes from step to step depends on the
noise level, so a new step takes the cells of the old step nearest in timestep, not of the one at the same share of the
run: samplers space their steps differently, and the same index is another noise level in each of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from plans.compare import model_differences
from plans.forecast import feasible
from plans.method import Method, Window
from plans.model import OPTIONAL_SITES, ModelSpec, SiteName, TemporalShape
from plans.run import GuidanceSpec, SamplerSpec
from plans.schema import Plan
from plans.site import Site, new_site

# What makes a timestep a noise level; samplers with other ones count otherwise.
TRAINING = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
)
_UNSHARED = {Method.ASC: Method.FULL, Method.WA_RS_ASC: Method.WA_RS}


def resampled(
    plan: Plan, sampler: SamplerSpec, model: ModelSpec | None = None, guidance: GuidanceSpec | None = None
) -> Plan:
    """The plan for another sampler, size or guidance, by rule: nothing is calibrated, and no record of it is kept.

    - Every step takes all cells of the old step nearest in timestep (`nearest_steps`), step 0 is FULL at every site.
      For the same timesteps these are the same cells. Rhythms are not kept: half of the steps of a plan that computes
      every second one may all be computed, or all reuse.
    - Forecasts that now lack outputs are lowered to the highest order that they allow (`plans.forecast.feasible`).
    - Windows keep their share of the tokens, between frames of the frames, rounded to whole ones, halves up. In the
      raster's order that is the same share of an image's rows.
    - Without guidance nothing can be shared between its branches: ASC becomes FULL and WA_RS_ASC becomes WA_RS.

    Args:
        sampler: with a timestep for every model call of the new run.
        model: the same architecture with other tokens or frames; None keeps the plan's. What it has besides may be left
            open: the sites ``cross`` and ``mlp`` stay as they are in the plan.
        guidance: None keeps the plan's.

    Returns:
        A plan without calibration and losses, whose note says what it was resampled from.

    Raises:
        ValueError: a model of another class, depth or width; one with attention between frames for a plan without it,
            or the other way round; timesteps that mean another noise than the plan's.
    """
    model = _fitting(plan.model, model or plan.model)
    _check_timesteps(plan.sampler, sampler)
    guidance = guidance or plan.guidance
    old = nearest_steps(plan.sampler.timesteps, sampler.timesteps)

    def column(before: Sequence[Method]) -> tuple[Method, ...]:
        cells = [Method.FULL, *(before[step] for step in old[1:])]
        if guidance.layout == "none":
            cells = [_UNSHARED.get(method, method) for method in cells]
        return feasible(cells, sampler.timesteps)

    def site(name: SiteName) -> Site:
        window = plan.sites[name].window
        if window is not None:
            window = rescaled(window, plan.model.shape(name).tokens, model.shape(name).tokens)
        columns = [column(before) for before in zip(*plan.sites[name].methods, strict=True)]
        return new_site(list(zip(*columns, strict=True)), None, window)

    return Plan(
        model=model,
        sampler=sampler,
        guidance=guidance,
        window=rescaled(plan.window, plan.model.tokens, model.tokens),
        token_order=plan.token_order,
        sites={name: site(name) for name in plan.sites},
        calibration=None,
        note=_note(plan, sampler, model, guidance),
    )


def nearest_steps(old: Sequence[float], new: Sequence[float]) -> tuple[int, ...]:
    """For every new timestep the old step whose timestep is nearest to it, of two as near the noisier one.

    Where a sampler calls the model several times at one timestep, as Heun's does, its k-th call there takes the k-th of
    the old calls at the nearest timestep, or the last if there are fewer.
    """
    calls: Counter[float] = Counter()
    found = []
    for timestep in new:
        time = min(old, key=lambda other: abs(other - timestep))  # the first of equals; timesteps never increase
        found.append(old.index(time) + min(calls[timestep], old.count(time) - 1))
        calls[timestep] += 1
    return tuple(found)


def rescaled(window: Window, old: int, new: int) -> Window:
    """The window of ``old`` tokens that has the same share of ``new`` ones on each side, rounded, halves up."""
    return Window(left=(2 * window.left * new + old) // (2 * old), right=(2 * window.right * new + old) // (2 * old))


def _fitting(old: ModelSpec, new: ModelSpec) -> ModelSpec:
    """The new model with those of `OPTIONAL_SITES` that the plan has; raises ValueError if more than the size is
    another."""
    optional: dict[str, Any] = {
        site: getattr(old, site) and (getattr(new, site) or getattr(old, site)) for site in OPTIONAL_SITES
    }
    temporal: TemporalShape | None = new.temporal
    if temporal is not None and old.temporal is not None:
        temporal = temporal.model_copy(update={"frames": old.temporal.frames})
    same_size = new.model_copy(update={"tokens": old.tokens, "temporal": temporal, **optional})
    if differences := model_differences(old, same_size, theirs="the other model"):
        raise ValueError(
            "a plan can be resampled for another size of its own model only; calibrate one for this model: "
            + "; ".join(differences)
        )
    return new.model_copy(update=optional)


def _check_timesteps(old: SamplerSpec, new: SamplerSpec) -> None:
    """Raises ValueError if the timesteps cannot be compared."""
    for name in TRAINING:
        if name in old.settings and name in new.settings and old.settings[name] != new.settings[name]:
            raise ValueError(
                f"the plan's sampler has {name} {old.settings[name]!r}, the new one {new.settings[name]!r}, so the "
                "same timestep is another noise in each; calibrate a plan for the new one"
            )
    later, times = new.timesteps[1:], old.timesteps
    if later and len(times) > 1 and (later[0] < times[-1] or later[-1] > times[0]):
        raise ValueError(
            f"the new timesteps run from {new.timesteps[0]:g} to {later[-1]:g} and the plan's from {times[0]:g} to "
            f"{times[-1]:g}, so none of them is near one of the plan's; use a sampler that counts time as the "
            "plan's does"
        )


def _note(plan: Plan, sampler: SamplerSpec, model: ModelSpec, guidance: GuidanceSpec) -> str:
    """What changed, from what, and that nobody has measured it yet."""
    source = f"a plan of {plan.steps} steps ({plan.sampler.class_name})"
    if (record := plan.calibration) is not None:
        source += f" calibrated with {record.loss} {record.threshold:g}"
    changes = []
    if sampler != plan.sampler:
        changes.append(f"{len(sampler.timesteps)} steps ({sampler.class_name})")
    if model.tokens != plan.model.tokens:
        changes.append(f"{model.tokens} tokens instead of {plan.model.tokens}")
    if model.temporal is not None and plan.model.temporal is not None and model.temporal != plan.model.temporal:
        changes.append(f"{model.temporal.frames} frames instead of {plan.model.temporal.frames}")
    if guidance != plan.guidance:
        changes.append(f"guidance {guidance.scale:g} instead of {plan.guidance.scale:g}")
    note = f"resampled by timestep from {source} to {', '.join(changes) or 'the same run'}; not calibrated there"
    return f"{note}. That plan's note: {plan.note}" if plan.note else note
