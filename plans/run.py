"""The sampling run that a plan was made for: sampler and guidance."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from plans.fields import Frozen, Name, Number, Setting


class SamplerSpec(Frozen):
    """The sampler: its class, the settings that change its path, and the timestep of every model call.

    timesteps never increase; two equal ones in a row are two calls at one time, as in Heun's method.
    """

    class_name: Name
    settings: dict[Name, Setting]
    timesteps: Annotated[tuple[Number, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _never_increase(self) -> Self:
        for index, (before, after) in enumerate(pairwise(self.timesteps), start=1):
            if after > before:
                raise ValueError(
                    f"timesteps must not increase, but step {index} is at {after:g} after {before:g}; "
                    "list them in the order in which the sampler calls the model"
                )
        return self


class GuidanceSpec(Frozen):
    """Classifier-free guidance: its scale, and which half of the batch is the conditional one."""

    scale: Annotated[float, Field(strict=True, allow_inf_nan=False, ge=1)]
    layout: Literal["none", "cond_first", "uncond_first"]

    @model_validator(mode="after")
    def _scale_and_layout_agree(self) -> Self:
        if (self.scale == 1) != (self.layout == "none"):
            raise ValueError(
                f"scale {self.scale:g} does not go with layout {self.layout!r}; "
                "scale 1 means no guidance and layout 'none', a larger scale needs 'cond_first' or 'uncond_first'"
            )
        return self
