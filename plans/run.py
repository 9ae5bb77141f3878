"""The sampling run that a plan was made for: sampler and guidance."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from plans.fields import Frozen, Name, Number, Setting


class SamplerSpec(Frozen):
    """The sampler: its class, the settings that change its path, and the timestep of every model call.

    timesteps never increase; two equal ones in a row are two calls at one time, as in Heun's method. own_timesteps: the
    sampler would make others of as many steps, so they are given to it; they lie among those of training, beyond which
    samplers have no other noise.
    """

    class_name: Name
    settings: dict[Name, Setting]
    timesteps: Annotated[tuple[Number, ...], Field(min_length=1)]
    own_timesteps: Annotated[bool, Field(strict=True)] = False

    @model_validator(mode="after")
    def _never_increase(self) -> Self:
        for index, (before, after) in enumerate(pairwise(self.timesteps), start=1):
            if after > before:
                raise ValueError(
                    f"timesteps must not increase, but step {index} is at {after:g} after {before:g}; "
                    "list them in the order in which the sampler calls the model"
                )
            if after == before and self.own_timesteps:
                raise ValueError(
                    f"timesteps of a plan's own must decrease, but steps {index - 1} and {index} are both at "
                    f"{after:g}; leave one of them out"
                )
        return self

    @model_validator(mode="after")
    def _own_are_of_training(self) -> Self:
        trained = self.settings.get("num_train_timesteps")
        last = math.inf
        if isinstance(trained, int):
            last = trained - 1 if "beta_schedule" in self.settings else trained  # flow matching counts from 1
        for index, timestep in enumerate(self.timesteps if self.own_timesteps else ()):
            if not 0 <= timestep <= last:
                raise ValueError(
                    f"timesteps of a plan's own are those of training, from {last:g} to 0, but step {index} is at "
                    f"{timestep:g}; choose one of that range"
                )
        return self

    @model_serializer(mode="wrap")
    def _absent_is_not_written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        if not self.own_timesteps:
            written.pop("own_timesteps")
        return written


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
