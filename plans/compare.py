"""Plan against reality: every difference as one sentence, "layers: the plan has 12, this model 28"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plans.schema import GuidanceSpec, ModelSpec, SamplerSpec

TIMESTEP_TOLERANCE = 1e-3  # in the sampler's own units; float32 timesteps near 1000 are exact to 6e-5


def model_differences(plan: ModelSpec, actual: ModelSpec, who: str = "this model") -> list[str]:
    return [
        _differs(name, _value(plan, name), who, _value(actual, name))
        for name in type(plan).model_fields
        if getattr(plan, name) != getattr(actual, name)
    ]


def sampler_differences(plan: SamplerSpec, actual: SamplerSpec, who: str = "this sampler") -> list[str]:
    found = []
    if plan.class_name != actual.class_name:
        found.append(_differs("sampler", plan.class_name, who, actual.class_name))
    found += _setting_differences(plan.settings, actual.settings, who)
    found += _timestep_differences(plan.timesteps, actual.timesteps, who)
    return found


def guidance_differences(plan: GuidanceSpec, actual: GuidanceSpec, who: str = "this run") -> list[str]:
    found = []
    if not math.isclose(plan.scale, actual.scale, rel_tol=1e-6):
        found.append(_differs("guidance scale", f"{plan.scale:g}", who, f"{actual.scale:g}"))
    if plan.layout != actual.layout:
        found.append(_differs("guidance layout", plan.layout, who, actual.layout))
    return found


def _setting_differences(plan: Mapping[str, Any], actual: Mapping[str, Any], who: str) -> list[str]:
    found = []
    for key in [*plan, *(key for key in actual if key not in plan)]:
        name = f"sampler setting {key}"
        if key not in actual:
            found.append(f"{name}: the plan has {_shown(plan[key])}, {who} has no such setting")
        elif key not in plan:
            found.append(f"{name}: the plan has no such setting, {who} has {_shown(actual[key])}")
        elif plan[key] != actual[key]:
            found.append(_differs(name, _shown(plan[key]), who, _shown(actual[key])))
    return found


def _timestep_differences(plan: Sequence[float], actual: Sequence[float], who: str) -> list[str]:
    if len(plan) != len(actual):
        return [_differs("steps", str(len(plan)), who, str(len(actual)))]
    apart = [
        index
        for index, (ours, theirs) in enumerate(zip(plan, actual, strict=True))
        if abs(ours - theirs) > TIMESTEP_TOLERANCE
    ]
    if not apart:
        return []
    first = apart[0]
    times = f"{plan[first]:.9g} in the plan, at {actual[first]:.9g} in {who}"
    return [f"timesteps: step {first} is at {times} (the first of {len(apart)} that differ)"]


def _differs(name: str, plan: str, who: str, actual: str) -> str:
    return f"{name}: the plan has {plan}, {who} {actual}"


def _value(spec: ModelSpec, name: str) -> str:
    return str(getattr(spec, name))


def _shown(value: object) -> str:
    return repr(list(value)) if isinstance(value, tuple) else repr(value)
