"""How a plan was found."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from plans.budget import Budget
from plans.fields import Count, Frozen, Integer, Loss, Name, Time
from plans.method import Method


class Calibration(Frozen):
    """How a plan was found (DiTFastAttn, Algorithm 1), in enough detail to find it again.

    labels or prompts: of the images it was calibrated on, one of them empty. conditions: how many images, where neither
    names them (a transformer of one's own, calibrated on a condition that its user made). negative_prompt: None where
    there are no prompts, or the model has a caption of its own. video: frames, height and width in pixels of the
    videos, where the model makes them of any size. methods: the candidates that were tried. compiled: whether blocks
    ran in compiled pieces. versions: package -> version. created: ISO 8601. sensitivity: of every step, how far the
    final latents move (relative L2) for an error of the guided prediction there (relative L2), where the loss is
    weighted by it. budget: what was asked for instead of a threshold; ``threshold`` is then the price that was found
    for it, the drift that a step may add for saving all of its attention MACs.
    """

    loss: Name
    threshold: Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0)]
    methods: tuple[Method, ...]
    search: Name
    labels: tuple[Integer, ...]
    prompts: tuple[str, ...] = ()
    conditions: Annotated[int, Field(strict=True, ge=0)] = 0
    negative_prompt: str | None = None
    video: tuple[Count, Count, Count] | None = None
    seed: Integer
    dtype: Name
    device: Name
    kernel: Name
    compiled: Annotated[bool, Field(strict=True)] = False
    versions: dict[str, str]
    created: Time
    sensitivity: tuple[Loss, ...] = ()
    budget: Budget | None = None

    @property
    def images(self) -> int:
        """How many it was calibrated on."""
        return len(self.labels or self.prompts) or self.conditions

    @model_serializer(mode="wrap")
    def _absent_is_not_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What only prompts, only videos of any size, only models of one's own, or only some losses have."""
        written: dict[str, Any] = handler(self)
        absent = {"conditions": 0, "negative_prompt": None, "video": None, "sensitivity": (), "budget": None}
        return {key: value for key, value in written.items() if key not in absent or getattr(self, key) != absent[key]}
