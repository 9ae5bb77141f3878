"""A plan and everything it depends on, checked by pydantic.

Every class is frozen and refuses unknown keys. Building one from Python raises `pydantic.ValidationError` (a
`ValueError`) for a broken rule; reading one from a file raises `plans.PlanError`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from plans.compare import guidance_differences, model_differences, sampler_differences
from plans.method import Method, TokenOrder, Window

Scalar = str | int | float | bool | None
Grid = tuple[tuple[Method, ...], ...]
Losses = tuple[tuple[float | None, ...], ...]


def _setting(value: Any) -> Scalar | tuple[Scalar, ...]:
    if isinstance(value, list | tuple):
        return tuple(_scalar(item) for item in value)
    return _scalar(value)


def _scalar(value: Any) -> Scalar:
    if value is not None and not isinstance(value, str | int | float | bool):
        raise ValueError(
            f"a {type(value).__name__} is not a setting; use text, a number, true, false, null or a list of these"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    return value


def _printable(text: str) -> str:
    if not text.isprintable():  # names go to terminals, which obey control characters
        raise ValueError(f"{text!r} has characters that cannot be printed; use plain text")
    return text


def _iso8601(text: str) -> str:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an ISO 8601 time like 2024-11-05T09:30:00+00:00") from None
    return text


Name = Annotated[str, Field(min_length=1), AfterValidator(_printable)]
Count = Annotated[int, Field(strict=True, ge=1)]
Integer = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Loss = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0)]
Setting = Annotated[Scalar | tuple[Scalar, ...], PlainValidator(_setting)]


class _Frozen(BaseModel):
    # class_name and model are our words, not pydantic's: give up its protected prefix instead of renaming them.
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelSpec(_Frozen):
    """The transformer a plan was made for. tokens: per image (or frame) in one self-attention call."""

    class_name: Name
    layers: Count
    heads: Count
    head_dim: Count
    tokens: Count
    in_channels: Count
    out_channels: Count

    @property
    def width(self) -> int:
        """Channels of the attention module: heads * head_dim."""
        return self.heads * self.head_dim


class SamplerSpec(_Frozen):
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


class GuidanceSpec(_Frozen):
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


class Calibration(_Frozen):
    """How a plan was found (DiTFastAttn, Algorithm 1), in enough detail to find it again.

    labels or prompts: of the images it was calibrated on, one of them empty. negative_prompt: None where there are no
    prompts. methods: the candidates that were tried. compiled: whether blocks ran in compiled pieces. versions:
    package -> version. created: ISO 8601.
    """

    loss: Name
    threshold: Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0)]
    methods: tuple[Method, ...]
    search: Name
    labels: tuple[Integer, ...]
    prompts: tuple[str, ...] = ()
    negative_prompt: str | None = None
    seed: Integer
    dtype: Name
    device: Name
    kernel: Name
    compiled: Annotated[bool, Field(strict=True)] = False
    versions: dict[str, str]
    created: Annotated[str, AfterValidator(_iso8601)]

    @property
    def images(self) -> int:
        """How many it was calibrated on."""
        return len(self.labels or self.prompts)

    @model_serializer(mode="wrap")
    def _without_what_labels_lack(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Plans on labels are written as they were before there were prompts."""
        written: dict[str, Any] = handler(self)
        return {key: value for key, value in written.items() if key != "negative_prompt" or value is not None}


class Site(_Frozen):
    """What one kind of module does: methods[step][layer], and beside each the loss that decided it.

    A loss is None where there was none to compare: FULL by rule or because every candidate was rejected.
    """

    methods: Grid
    losses: tuple[tuple[Loss | None, ...], ...]


class Plan(_Frozen):
    """Which method each layer uses at each sampler step, with everything that decision depends on.

    token_order: how the tokens stand while the blocks run, and so what the window covers; `raster` is the paper's.
    calibration is None for a plan made by hand or for a test.
    """

    model: ModelSpec
    sampler: SamplerSpec
    guidance: GuidanceSpec
    window: Window
    token_order: TokenOrder = "raster"
    sites: dict[Literal["attn"], Site]
    calibration: Calibration | None
    note: str = ""

    @property
    def steps(self) -> int:
        """Model calls of one run: one per entry of the sampler's timesteps."""
        return len(self.sampler.timesteps)

    @property
    def layers(self) -> int:
        return self.model.layers

    @property
    def methods(self) -> Grid:
        """methods[step][layer] of self-attention."""
        return self.sites["attn"].methods

    @property
    def losses(self) -> Losses:
        """losses[step][layer] of self-attention."""
        return self.sites["attn"].losses

    def column(self, layer: int) -> tuple[Method, ...]:
        """What one layer does, step by step."""
        return tuple(row[layer] for row in self.methods)

    @classmethod
    def full(
        cls,
        *,
        model: ModelSpec,
        sampler: SamplerSpec,
        guidance: GuidanceSpec,
        window: Window | None = None,
        token_order: TokenOrder = "raster",
        note: str = "",
    ) -> Plan:
        """The plan that compresses nothing. Without a window it carries `Window.default`."""
        grid = tuple((Method.FULL,) * model.layers for _ in sampler.timesteps)
        return cls(
            model=model,
            sampler=sampler,
            guidance=guidance,
            window=window or Window.default(model.tokens),
            token_order=token_order,
            sites={"attn": _site(grid, None)},
            calibration=None,
            note=note,
        )

    def with_methods(
        self, grid: Sequence[Sequence[Method]], losses: Sequence[Sequence[float | None]] | None = None
    ) -> Plan:
        """The same plan with another grid.

        Without losses the new cells were not decided by this plan's calibration, so it is dropped; with losses
        it is kept.
        """
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        calibration = None if losses is None else self.calibration
        return Plan(**fields | {"sites": {"attn": _site(grid, losses)}, "calibration": calibration})

    def differences(
        self,
        *,
        model: ModelSpec | None = None,
        sampler: SamplerSpec | None = None,
        guidance: GuidanceSpec | None = None,
    ) -> list[str]:
        """Every difference between what the plan was made for and the actual settings, one sentence each.

        A setting that is not given is not compared.
        """
        found: list[str] = []
        if model is not None:
            found += model_differences(self.model, model)
        if sampler is not None:
            found += sampler_differences(self.sampler, sampler)
        if guidance is not None:
            found += guidance_differences(self.guidance, guidance)
        return found

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if "attn" not in self.sites:
            raise ValueError("sites has no 'attn'; a plan needs the grid of self-attention")
        tokens = self.model.tokens
        for side, size in (("left", self.window.left), ("right", self.window.right)):
            if size > tokens:
                raise ValueError(f"window.{side} is {size}, more than the model's {tokens} tokens; use 0 to {tokens}")
        self._check_shape("methods", self.methods)
        self._check_shape("losses", self.losses)
        self._check_cells()
        return self

    def _check_shape(self, name: str, rows: Sequence[Sequence[object]]) -> None:
        if len(rows) != self.steps:
            raise ValueError(
                f"sites.attn.{name} has {len(rows)} rows, but the sampler has {self.steps} timesteps; "
                "write one row per step"
            )
        for step, row in enumerate(rows):
            if len(row) != self.layers:
                raise ValueError(
                    f"sites.attn.{name}[{step}] has {len(row)} cells, but the model has {self.layers} layers; "
                    "write one cell per layer"
                )

    def _check_cells(self) -> None:
        for layer, method in enumerate(self.methods[0]):
            if method is not Method.FULL:
                raise ValueError(
                    f"step 0 has {method} in layer {layer}, but there is nothing to reuse yet; "
                    "step 0 is FULL in every layer"
                )
        if self.guidance.layout != "none":
            return
        for step, row in enumerate(self.methods):
            for layer, method in enumerate(row):
                if method.shares_guidance:
                    raise ValueError(
                        f"step {step} has {method} in layer {layer}, but the guidance layout is 'none'; "
                        "without a conditional half only AST, WA_RS and FULL are possible"
                    )


def _site(grid: Sequence[Sequence[Method]], losses: Sequence[Sequence[float | None]] | None) -> Site:
    methods = tuple(tuple(row) for row in grid)
    if losses is None:
        losses = [[None] * len(row) for row in methods]
    return Site(methods=methods, losses=tuple(tuple(row) for row in losses))
