"""A plan and everything it depends on, checked by pydantic.

Every class is frozen and refuses unknown keys. Building one from Python raises `pydantic.ValidationError` (a
`ValueError`) for a broken rule; reading one from a file raises `plans.PlanError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from plans.budget import Budget
from plans.compare import guidance_differences, model_differences, sampler_differences
from plans.fields import Frozen, Integer, Loss, Name, Number, Setting, Time
from plans.method import Method, TokenOrder, Window
from plans.model import SITES, ModelSpec, SiteName
from plans.site import Grid, Losses, Site, check_cells, check_shape, check_window, new_site


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


class Calibration(Frozen):
    """How a plan was found (DiTFastAttn, Algorithm 1), in enough detail to find it again.

    labels or prompts: of the images it was calibrated on, one of them empty. negative_prompt: None where there are no
    prompts. methods: the candidates that were tried. compiled: whether blocks ran in compiled pieces. versions:
    package -> version. created: ISO 8601. sensitivity: of every step, how far the final latents move (relative L2) for
    an error of the guided prediction there (relative L2), where the loss is weighted by it. budget: what was asked for
    instead of a threshold; ``threshold`` is then the price that was found for it, the drift that a step may add for
    saving all of its attention MACs.
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
    created: Time
    sensitivity: tuple[Loss, ...] = ()
    budget: Budget | None = None

    @property
    def images(self) -> int:
        """How many it was calibrated on."""
        return len(self.labels or self.prompts)

    @model_serializer(mode="wrap")
    def _absent_is_not_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What only prompts, or only some losses have."""
        written: dict[str, Any] = handler(self)
        absent = {"negative_prompt": None, "sensitivity": (), "budget": None}
        return {key: value for key, value in written.items() if key not in absent or getattr(self, key) != absent[key]}


class Plan(Frozen):
    """Which method each layer uses at each sampler step, with everything that decision depends on.

    window: of the site ``attn``. token_order: how the tokens of an image or frame stand while the blocks run, and so
    what that window covers; `raster` is the paper's. sites: one for each of ``model.sites``. calibration is None for a
    plan made by hand or for a test.
    """

    model: ModelSpec
    sampler: SamplerSpec
    guidance: GuidanceSpec
    window: Window
    token_order: TokenOrder = "raster"
    sites: dict[SiteName, Site]
    calibration: Calibration | None
    note: str = ""

    @property
    def steps(self) -> int:
        """Model calls of one run: one per entry of the sampler's timesteps."""
        return len(self.sampler.timesteps)

    @property
    def layers(self) -> int:
        """Of the site ``attn``."""
        return self.model.layers

    @property
    def methods(self) -> Grid:
        """methods[step][layer] of the site ``attn``."""
        return self.sites["attn"].methods

    @property
    def losses(self) -> Losses:
        """losses[step][layer] of the site ``attn``."""
        return self.sites["attn"].losses

    def column(self, layer: int, site: SiteName = "attn") -> tuple[Method, ...]:
        """What one layer of a site does, step by step."""
        return tuple(row[layer] for row in self.sites[site].methods)

    def window_of(self, site: SiteName) -> Window:
        """The window of a site, counted in its tokens: those of a frame, or the frames."""
        return self.sites[site].window or self.window

    @classmethod
    def full(
        cls,
        *,
        model: ModelSpec,
        sampler: SamplerSpec,
        guidance: GuidanceSpec,
        window: Window | None = None,
        temporal_window: Window | None = None,
        token_order: TokenOrder = "raster",
        note: str = "",
    ) -> Plan:
        """The plan that compresses nothing. A window that is not given is `Window.default` of its site's tokens.

        Raises:
            ValueError: a temporal window for a model that has no such site.
        """
        if temporal_window is not None and model.temporal is None:
            raise ValueError(f"{model.class_name} has no temporal attention; leave temporal_window out")
        sites: dict[SiteName, Site] = {}
        for site in model.sites:
            shape = model.shape(site)
            grid = [[Method.FULL] * shape.layers for _ in sampler.timesteps]
            own = None if site == "attn" else temporal_window or Window.default(shape.tokens)
            sites[site] = new_site(grid, None, own)
        return cls(
            model=model,
            sampler=sampler,
            guidance=guidance,
            window=window or Window.default(model.tokens),
            token_order=token_order,
            sites=sites,
            calibration=None,
            note=note,
        )

    def with_methods(
        self,
        grid: Sequence[Sequence[Method]],
        losses: Sequence[Sequence[float | None]] | None = None,
        *,
        site: SiteName = "attn",
    ) -> Plan:
        """The same plan with another grid for one site.

        Without losses the new cells were not decided by this plan's calibration, so it is dropped; with losses
        it is kept.

        Raises:
            ValueError: the model has no such site, or the grid breaks a rule.
        """
        self.model.shape(site)
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        sites = self.sites | {site: new_site(grid, losses, self.sites[site].window)}
        calibration = None if losses is None else self.calibration
        return Plan(**fields | {"sites": sites, "calibration": calibration})

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

    @field_validator("sites")
    @classmethod
    def _in_one_order(cls, sites: dict[SiteName, Site]) -> dict[SiteName, Site]:
        return {name: sites[name] for name in SITES if name in sites}  # equal plans are written equally

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if "attn" not in self.sites:
            raise ValueError("sites has no 'attn'; a plan needs the grid of self-attention")
        if tuple(self.sites) != self.model.sites:
            raise ValueError(
                f"sites are {', '.join(self.sites)}, but those of the model are {', '.join(self.model.sites)}; a plan "
                "has the site temporal exactly if model.temporal says how many layers and frames it has"
            )
        for name, site in self.sites.items():
            if (site.window is None) != (name == "attn"):
                raise ValueError(
                    f"sites.{name}.window {'is missing' if site.window is None else 'is one too many'}; the site "
                    "temporal has a window of its own, that of attn is the plan's"
                )
            shape = self.model.shape(name)
            place, of = ("window", "tokens") if name == "attn" else (f"sites.{name}.window", "frames")
            check_window(place, self.window_of(name), shape.tokens, of)
            check_shape(name, site, shape, self.steps)
            check_cells(name, site, guided=self.guidance.layout != "none")
        weights = self.calibration.sensitivity if self.calibration else ()
        if weights and len(weights) != self.steps:
            raise ValueError(
                f"calibration.sensitivity has {len(weights)} numbers, but the sampler has {self.steps} timesteps; "
                "write one per step, or none"
            )
        return self
