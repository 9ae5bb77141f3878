"""A plan and everything it depends on, checked by pydantic.

Every class is frozen and refuses unknown keys. Building one from Python raises `pydantic.ValidationError` (a
`ValueError`) for a broken rule; reading one from a file raises `plans.PlanError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from pydantic import field_validator, model_validator

from plans.calibration import Calibration
from plans.compare import guidance_differences, model_differences, sampler_differences
from plans.fields import Frozen
from plans.method import Method, TokenOrder, Window
from plans.model import ATTENTION_SITES, SITES, CrossShape, MlpShape, ModelSpec, SiteName
from plans.run import GuidanceSpec, SamplerSpec
from plans.site import (
    Grid,
    Losses,
    Site,
    check_cells,
    check_shape,
    check_skips,
    check_window,
    new_site,
    without_steps,
)


class Plan(Frozen):
    """Which method each layer uses at each sampler step, with everything that decision depends on.

    window: of the site ``attn``. token_order: how the tokens of an image or frame stand while the blocks run, and so
    what that window covers; `raster` is the paper's. sites: one for each of ``model.sites``, and ``model`` where steps
    are skipped; without ``cross`` or ``mlp`` all cross-attentions or MLPs are computed in every step that is not
    skipped. calibration is None for a plan made by hand or for a test.
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

    @property
    def attention_sites(self) -> tuple[SiteName, ...]:
        """The sites whose modules are attentions."""
        return tuple(site for site in self.sites if site in ATTENTION_SITES)

    @property
    def skipped(self) -> frozenset[int]:
        """The steps in which the model is not called."""
        rows = self.sites["model"].methods if "model" in self.sites else ()
        return frozenset(step for step, (method,) in enumerate(rows) if method is not Method.FULL)

    @property
    def calls(self) -> int:
        """Of the model, in a run."""
        return self.steps - len(self.skipped)

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
            own = temporal_window or Window.default(shape.tokens) if site == "temporal" else None
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
        window = self.sites[site].window if site in self.sites else None
        sites = self.sites | {site: new_site(grid, losses, window)}
        return self._with(sites=sites, calibration=None if losses is None else self.calibration)

    def with_mlp(self, shape: MlpShape | None = None) -> Plan:
        """The same plan with the site ``mlp``, everything FULL in it but in skipped steps.

        Args:
            shape: how many MLPs and how wide; None is one a layer, four times as wide as the model. `apply` compares
                it with the model's.

        Raises:
            ValueError: the plan has the site, or, without a shape, it is of video, whose models differ in it.
        """
        return self._with_site("mlp", shape)

    def with_cross(self, shape: CrossShape | None = None) -> Plan:
        """The same plan with the site ``cross``, everything FULL in it but in skipped steps.

        Args:
            shape: None is one cross-attention a layer, over as many words as the model's own pipeline gives it
                (PixArt-Sigma's, for PixArt). `apply` compares how many there are; words only count MACs.

        Raises:
            ValueError: the plan has the site, or, without a shape, nothing is known of the model's cross-attention.
        """
        return self._with_site("cross", shape)

    def _with_site(self, site: SiteName, shape: CrossShape | MlpShape | None) -> Plan:
        """The same plan with a site that it may leave out, its shape as usual if none is given."""
        if site in self.sites:
            raise ValueError(f"the plan has the site {site} already; change its cells with with_methods(site='{site}')")
        shape = shape or self.model.usual(site)
        everywhere = new_site([[Method.FULL] * shape.layers for _ in range(self.steps)], None, None)
        return self._with(
            model=self.model.model_copy(update={site: shape}),
            sites=self.sites | {site: without_steps(everywhere, self.skipped)},
        )

    def skipping(self, methods: Sequence[Method]) -> Plan:
        """The same plan with the site ``model``: its output is reused or forecast in every step that is not FULL.

        The other sites' cells of those steps become AST: nothing of the model is computed. What decided them is gone,
        and with it the plan's calibration.

        Args:
            methods: one a step, of FULL, AST and its forecasts.

        Raises:
            ValueError: the methods, or cells that now lack what they reuse, break a rule.
        """
        skipped = [step for step, method in enumerate(methods) if method is not Method.FULL]
        sites = {name: without_steps(site, skipped) for name, site in self.sites.items() if name != "model"}
        output = new_site([[method] for method in methods], None, None)
        return self._with(sites=sites | {"model": output}, calibration=None)

    def with_timesteps(self, timesteps: Sequence[float]) -> Plan:
        """The same cells at timesteps of the plan's own, which `ditfastattn.apply` gives to the sampler.

        Nothing was calibrated there, so the plan's calibration is dropped.

        Raises:
            ValueError: not one for every step, or not decreasing.
        """
        times = tuple(float(timestep) for timestep in timesteps)
        sampler = SamplerSpec(
            class_name=self.sampler.class_name, settings=self.sampler.settings, timesteps=times, own_timesteps=True
        )
        sites = {name: new_site(site.methods, None, site.window) for name, site in self.sites.items()}
        return self._with(sampler=sampler, sites=sites, calibration=None)

    def _with(self, **changes: Any) -> Plan:
        return Plan(**{name: getattr(self, name) for name in type(self).model_fields} | changes)

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
        if tuple(name for name in self.sites if name != "model") != self.model.sites:
            raise ValueError(
                f"sites are {', '.join(self.sites)}, but those of the model are {', '.join(self.model.sites)}; a plan "
                "has the site temporal exactly if model.temporal says how many layers and frames it has, cross and mlp "
                "exactly if model.cross and model.mlp say how many and how large they are"
            )
        for name, site in self.sites.items():
            if (site.window is None) != (name != "temporal"):
                raise ValueError(
                    f"sites.{name}.window {'is missing' if site.window is None else 'is one too many'}; the site "
                    "temporal has a window of its own, that of attn is the plan's"
                )
            shape = self.model.shape(name)
            if name in ATTENTION_SITES:
                place, of = ("window", "tokens") if name == "attn" else (f"sites.{name}.window", "frames")
                check_window(place, self.window_of(name), shape.tokens, of)
            check_shape(name, site, shape, self.steps)
            check_cells(name, site, self.guidance.layout != "none", self.sampler.timesteps)
        check_skips(self.sites)
        weights = self.calibration.sensitivity if self.calibration else ()
        if weights and len(weights) != self.steps:
            raise ValueError(
                f"calibration.sensitivity has {len(weights)} numbers, but the sampler has {self.steps} timesteps; "
                "write one per step, or none"
            )
        return self
