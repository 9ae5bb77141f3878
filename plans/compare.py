"""Plan against reality, or against another plan: every difference as one sentence.

"layers: the plan has 12, this model 28"
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plans.fields import Frozen
    from plans.model import ModelSpec
    from plans.run import GuidanceSpec, SamplerSpec
    from plans.schema import Plan

TIMESTEP_TOLERANCE = 1e-3  # in the sampler's own units; float32 timesteps near 1000 are exact to 6e-5

# What only some models have: what it is called, how its absence and its shape read, and what its fields are called.
_PARTS = {
    "temporal": (
        "temporal attention",
        "none",
        "{0.layers} layers of {0.frames} frames",
        {"layers": "temporal layers", "frames": "frames"},
    ),
    "cross": (
        "cross-attention",
        "no site cross",
        "{0.layers} layers over {0.words} words",
        {"layers": "cross-attention layers", "words": "words of a prompt"},
    ),
    "mlp": (
        "MLPs",
        "no site mlp",
        "{0.layers} of width {0.hidden}",
        {"layers": "MLPs", "hidden": "MLPs' hidden width"},
    ),
}


def model_differences(
    plan: ModelSpec, actual: ModelSpec, ours: str = "the plan", theirs: str = "this model"
) -> list[str]:
    names = {name: name for name in type(plan).model_fields if name not in _PARTS}
    found = _field_differences(names, plan, actual, ours, theirs)
    for part, (name, absent, shape, fields) in _PARTS.items():
        old, new = getattr(plan, part), getattr(actual, part)
        if old is not None and new is not None:
            found += _field_differences(fields, old, new, ours, theirs)
        elif old is not new:
            here, there = (absent if one is None else shape.format(one) for one in (old, new))
            found.append(f"{name}: {ours} has {here}, {theirs} {there}")
    return found


def _field_differences(names: Mapping[str, str], plan: Frozen, actual: Frozen, ours: str, theirs: str) -> list[str]:
    """The fields that are not equal; ``names`` says what each is called."""
    return [
        f"{name}: {ours} has {getattr(plan, field)}, {theirs} {getattr(actual, field)}"
        for field, name in names.items()
        if getattr(plan, field) != getattr(actual, field)
    ]


def sampler_differences(
    plan: SamplerSpec, actual: SamplerSpec, ours: str = "the plan", theirs: str = "this sampler"
) -> list[str]:
    found = []
    if plan.class_name != actual.class_name:  # whose settings are others altogether
        found.append(f"sampler: {ours} has {plan.class_name}, {theirs} {actual.class_name}")
    else:
        found += _setting_differences(plan.settings, actual.settings, ours, theirs)
    found += _timestep_differences(plan.timesteps, actual.timesteps, ours, theirs)
    return found


def guidance_differences(
    plan: GuidanceSpec, actual: GuidanceSpec, ours: str = "the plan", theirs: str = "this run"
) -> list[str]:
    found = []
    if not math.isclose(plan.scale, actual.scale, rel_tol=1e-6):
        found.append(f"guidance scale: {ours} has {plan.scale:.9g}, {theirs} {actual.scale:.9g}")
    if plan.layout != actual.layout:
        found.append(f"guidance layout: {ours} has {plan.layout}, {theirs} {actual.layout}")
    return found


def setting_differences(before: Plan, after: Plan, ours: str, theirs: str) -> list[str]:
    """Every difference in model, sampler and guidance between two plans."""
    return [
        *model_differences(before.model, after.model, ours, theirs),
        *sampler_differences(before.sampler, after.sampler, ours, theirs),
        *guidance_differences(before.guidance, after.guidance, ours, theirs),
    ]


def plan_differences(before: Plan, after: Plan, ours: str = "the first", theirs: str = "the second") -> list[str]:
    """Every difference between two plans; cells are counted, not listed."""
    found = setting_differences(before, after, ours, theirs)
    if before.sampler.own_timesteps != after.sampler.own_timesteps:
        with_own, without = (ours, theirs) if before.sampler.own_timesteps else (theirs, ours)
        found.append(f"timesteps: {with_own} gives its own to the sampler, {without} leaves them to it")
    for name in ("window", "token_order", "note"):
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            verb = "says" if name == "note" else "has"
            found.append(f"{name}: {ours} {verb} {_short(old)}, {theirs} {_short(new)}")
    found += _calibration_differences(before, after, ours, theirs)
    found += _site_differences(before, after, ours, theirs)
    return found


def _setting_differences(plan: Mapping[str, Any], actual: Mapping[str, Any], ours: str, theirs: str) -> list[str]:
    found = []
    for key in [*plan, *(key for key in actual if key not in plan)]:
        name = f"sampler setting {key}"
        if key not in actual:
            found.append(f"{name}: {ours} has {_value(plan[key])}, {theirs} has no such setting")
        elif key not in plan:
            found.append(f"{name}: {ours} has no such setting, {theirs} has {_value(actual[key])}")
        elif plan[key] != actual[key]:
            found.append(f"{name}: {ours} has {_value(plan[key])}, {theirs} {_value(actual[key])}")
    return found


def _timestep_differences(plan: Sequence[float], actual: Sequence[float], ours: str, theirs: str) -> list[str]:
    if len(plan) != len(actual):
        return [f"steps: {ours} has {len(plan)}, {theirs} {len(actual)}"]
    apart = [
        index for index, (old, new) in enumerate(zip(plan, actual, strict=True)) if abs(old - new) > TIMESTEP_TOLERANCE
    ]
    if not apart:
        return []
    first = apart[0]
    times = f"{plan[first]:.9g} in {ours}, at {actual[first]:.9g} in {theirs}"
    return [f"timesteps: step {first} is at {times} (the first of {len(apart)} that differ)"]


def _calibration_differences(before: Plan, after: Plan, ours: str, theirs: str) -> list[str]:
    old, new = before.calibration, after.calibration
    if old == new:
        return []
    if old is None or new is None:
        with_one, without = (theirs, ours) if old is None else (ours, theirs)
        return [f"calibration: {with_one} was calibrated, {without} was not"]
    return [
        f"calibration {name}: {ours} has {_short(getattr(old, name))}, {theirs} {_short(getattr(new, name))}"
        for name in type(old).model_fields
        if getattr(old, name) != getattr(new, name)
    ]


def _site_differences(before: Plan, after: Plan, ours: str, theirs: str) -> list[str]:
    found = []
    if ("model" in before.sites) != ("model" in after.sites):
        with_one, without = (ours, theirs) if "model" in before.sites else (theirs, ours)
        found.append(f"site model: {with_one} has it, {without} calls the model in every step")
    for site in [name for name in before.sites if name in after.sites]:
        old, new = before.sites[site], after.sites[site]
        if old.window != new.window:
            found.append(f"{site} window: {ours} has {old.window}, {theirs} {new.window}")
        name = "" if site == "attn" else f"{site} "
        if (len(old.methods), len(old.methods[0])) != (len(new.methods), len(new.methods[0])):
            found.append(f"{name}cells: the grids have different shapes, so they are not compared")
            continue
        for part, old_rows, new_rows in (
            (f"{name}cells", old.methods, new.methods),
            (f"{name}losses", old.losses, new.losses),
        ):
            cells = [cell for rows in zip(old_rows, new_rows, strict=True) for cell in zip(*rows, strict=True)]
            changed = sum(a != b for a, b in cells)
            if changed:
                found.append(f"{part}: {changed} of {len(cells)} differ")
    return found


def _value(value: object) -> str:
    return repr(list(value)) if isinstance(value, tuple) else repr(value)


def _short(value: object) -> str:
    """On one line and of bearable length, whatever was written into a note or a prompt."""
    if isinstance(value, tuple):
        value = [str(item) for item in value]
    text = str(value)
    text = text if text.isprintable() and text else repr(text)
    return text if len(text) <= 80 else text[:77] + "..."
