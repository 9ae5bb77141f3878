"""MACs of methods and plans by formula, in pure Python integers: of attention, and with the MLPs.

One *row* is N tokens of C channels that attend to each other: an image or a frame in one half of the guidance batch,
or, between frames, one place of a video. Two conventions:

- "module", the paper's: Q, K and V projections 3 N C^2, out-projection N C^2, and the core 2 P C, where P is the
  number of (query, key) pairs: N^2 in full attention, `Window.pairs` in a window. Its FLOPs columns
  (DiTFastAttn, Tables 1 and 2) follow it.
- "core": 2 P C alone, the part whose share grows with resolution.

ASC computes one of the two halves, so a row costs half on average; AST and its forecasts cost nothing. A plan without
guidance has one half and no ASC: its rows cost the same, so percentages compare between plans with and without
guidance. The softmax, the scaling, the residual's addition, forecasts and copies are not multiplications of matrices
and count as nothing.

A plan is counted by *items*: an image is one row, a video of T frames of N tokens T rows of N tokens in its spatial
attention and N rows of T tokens in its temporal attention.

`total_macs` adds the MLPs, 2 N C H for a row through H hidden channels, so that plans that reuse MLPs or skip steps
compare. Cross-attention over W words, as wide as the model, is counted in plans that have the site ``cross``: of an
item of N tokens in all, queries and out-projection 2 N C^2, keys and values 2 W C^2 (Latte makes them anew for every
frame, which is not counted), the core 2 N W C. Modulation, embeddings and the last projection are in no count: they
are small.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Literal

from plans.method import Method, Window
from plans.model import SITES, ModelSpec, SiteName
from plans.schema import Plan

Convention = Literal["module", "core"]
CONVENTIONS: tuple[Convention, ...] = ("module", "core")


def method_macs(method: Method, *, tokens: int, width: int, window: Window, convention: Convention = "module") -> int:
    """MACs of one layer at one step for one row, averaged over the two guidance halves where one is copied.

    Args:
        tokens: N, tokens in one self-attention call.
        width: C = heads * head_dim, channels.
        window: used by WA_RS and WA_RS_ASC only.
    """
    if method.reuses_output:
        return 0
    pairs = window.pairs(tokens) if method.windowed else tokens * tokens
    macs = 2 * pairs * width
    if convention == "module":
        macs += 4 * tokens * width * width
    return macs // 2 if method.shares_guidance else macs  # both terms are even


def store_macs(column: tuple[Method, ...], step: int, *, tokens: int, width: int, window: Window) -> int:
    """MACs per row of the window core that a refresh at `step` adds in order to store its residual.

    A residual is full minus window attention (DiTFastAttn, Eq. 1-2), so a FULL or ASC step whose residual is used
    before the next refresh computes the window as well: for both halves if it computed both and a WA_RS step
    follows, else for the conditional half only. The projections are already there, so both conventions agree.

    Args:
        column: what the layer does, step by step.
    """
    method = column[step]
    if not method.refreshes_residual:
        return 0
    users = set()
    for later in column[step + 1 :]:
        if later.refreshes_residual:
            break
        if later.windowed:
            users.add(later)
    if not users:
        return 0
    both_halves = method is Method.FULL and Method.WA_RS in users
    macs = 2 * window.pairs(tokens) * width
    return macs if both_halves else macs // 2


@dataclass(frozen=True)
class PlanMacs:
    """MACs of a plan, or of a part of it, per item, in one convention.

    Attributes:
        full_step: one step with every layer FULL.
        steps: what each step costs, without storing residuals.
        stores: what each step adds to store the residuals that later steps use.
    """

    convention: Convention
    full_step: int
    steps: tuple[int, ...]
    stores: tuple[int, ...]

    @property
    def total(self) -> int:
        """MACs of one item over all steps, without `residual_store`."""
        return sum(self.steps)

    @property
    def residual_store(self) -> int:
        """MACs of one item over all steps that go into storing residuals."""
        return sum(self.stores)

    @property
    def full(self) -> int:
        """MACs of one item over all steps with every layer FULL."""
        return self.full_step * len(self.steps)

    @property
    def percent(self) -> float:
        """Percent of all-FULL, as the paper counts: without `residual_store`."""
        return 100 * self.total / self.full

    @property
    def store_percent(self) -> float:
        """`residual_store` in percent of all-FULL; the honest total is `percent + store_percent`."""
        return 100 * self.residual_store / self.full

    @property
    def step_percents(self) -> tuple[float, ...]:
        """Percent of a FULL step, step by step."""
        return tuple(100 * macs / self.full_step for macs in self.steps)


def plan_macs(plan: Plan, convention: Convention = "module") -> PlanMacs:
    """Attention MACs of a plan, all attention sites together, against the same run with every layer FULL."""
    return _sum([site_macs(plan, site, convention) for site in plan.attention_sites], convention)


def site_macs(plan: Plan, site: SiteName, convention: Convention = "module") -> PlanMacs:
    """The part of :func:`plan_macs` that one attention site has."""
    shape, width, window = plan.model.shape(site), plan.model.width, plan.window_of(site)
    tokens, rows = shape.tokens, shape.rows
    cost = {
        method: method_macs(method, tokens=tokens, width=width, window=window, convention=convention)
        for method in Method
    }
    columns = [plan.column(layer, site) for layer in range(shape.layers)]
    return PlanMacs(
        convention=convention,
        full_step=rows * cost[Method.FULL] * shape.layers,
        steps=tuple(rows * sum(cost[method] for method in row) for row in plan.sites[site].methods),
        stores=tuple(
            rows * sum(store_macs(column, step, tokens=tokens, width=width, window=window) for column in columns)
            for step in range(plan.steps)
        ),
    )


def mlp_macs(plan: Plan) -> PlanMacs:
    """MACs of a plan's MLPs, per item; in a plan without the site ``mlp`` they run in every step that is not skipped.

    Raises:
        ValueError: a plan of video that does not say how many MLPs there are.
    """
    model = plan.model
    if not knows_mlps(plan):
        raise ValueError(f"the plan does not say how many MLPs {model.class_name} has; a plan with the site mlp does")
    mlp = model.mlp or model.usual("mlp")
    frames = 1 if model.temporal is None else model.temporal.frames
    return _module_macs(plan, "mlp", mlp.layers, 2 * frames * model.tokens * model.width * mlp.hidden)


def cross_macs(plan: Plan) -> PlanMacs:
    """MACs of a plan's cross-attentions, projections counted, per item.

    Raises:
        ValueError: a plan without the site ``cross``, which does not say how large they are.
    """
    model, cross = plan.model, plan.model.cross
    if cross is None:
        raise ValueError("the plan does not say how large cross-attention is; a plan with the site cross does")
    tokens, width = model.tokens * (1 if model.temporal is None else model.temporal.frames), model.width
    projections = 2 * (tokens + cross.words) * width**2
    return _module_macs(plan, "cross", cross.layers, projections + 2 * tokens * cross.words * width)


def part_macs(plan: Plan, site: SiteName) -> PlanMacs:
    """MACs of one site of a plan, projections counted; of the site ``model``, `shown_macs`.

    Raises:
        ValueError: the plan has no such site.
    """
    if site == "cross":
        return cross_macs(plan)
    if site == "mlp":
        return mlp_macs(plan)
    return shown_macs(plan) if site == "model" else site_macs(plan, site)


def _module_macs(plan: Plan, site: SiteName, layers: int, one: int) -> PlanMacs:
    """``layers`` modules of ``one`` MACs (even) by the site's cells; without the site, in every step that is not
    skipped."""

    def cost(method: Method) -> int:
        return 0 if method.reuses_output else one // 2 if method.shares_guidance else one

    if site in plan.sites:
        steps = [sum(map(cost, row)) for row in plan.sites[site].methods]
    else:
        steps = [0 if step in plan.skipped else layers * one for step in range(plan.steps)]
    return PlanMacs(convention="module", full_step=layers * one, steps=tuple(steps), stores=(0,) * plan.steps)


def _sum(parts: Sequence[PlanMacs], convention: Convention = "module") -> PlanMacs:
    return PlanMacs(
        convention=convention,
        full_step=sum(part.full_step for part in parts),
        steps=tuple(sum(macs) for macs in zip(*(part.steps for part in parts), strict=True)),
        stores=tuple(sum(macs) for macs in zip(*(part.stores for part in parts), strict=True)),
    )


def shown_macs(plan: Plan) -> PlanMacs:
    """The MACs that a picture of a plan shows: of attention, and of what `besides` says."""
    return total_macs(plan) if counts_mlps(plan) else _sum(_without_mlps(plan))


def besides(plan: Plan) -> str:
    """What `shown_macs` counts besides self-attention, in words; empty if nothing."""
    names = ["cross-attention"] * ("cross" in plan.sites) + ["MLPs"] * counts_mlps(plan)
    return " and ".join(names)


def counts_mlps(plan: Plan) -> bool:
    """Whether the plan has sites besides attention, and says enough for `total_macs`."""
    return knows_mlps(plan) and len(plan.sites) > len(plan.attention_sites)


def knows_mlps(plan: Plan) -> bool:
    """Whether the plan says enough for `total_macs`; of images it does, as far as their MLPs are of the usual width."""
    return plan.model.mlp is not None or plan.model.temporal is None


def total_macs(plan: Plan) -> PlanMacs:
    """MACs of self-attention, projections counted, and MLPs, per item: nothing in a step that is skipped.

    Those of cross-attention are among them in plans that have the site ``cross``.

    Raises:
        ValueError: as :func:`mlp_macs`.
    """
    return _sum([*_without_mlps(plan), mlp_macs(plan)])


def _without_mlps(plan: Plan) -> list[PlanMacs]:
    return [plan_macs(plan), *([cross_macs(plan)] if "cross" in plan.sites else [])]


def full_macs(model: ModelSpec, convention: Convention = "module") -> int:
    """MACs of one FULL layer of the site ``attn`` at one step for one row."""
    anything = Window(left=0, right=0)
    return method_macs(Method.FULL, tokens=model.tokens, width=model.width, window=anything, convention=convention)


def shares(plan: Plan, sites: Container[SiteName] = SITES) -> dict[Method, float]:
    """Percent of the plan's cells on each method, in the order of `Method`; of the sites that are named.

    Where a step does not call the model, what its output is made of counts for all layers; the site ``model`` counts
    only alone.
    """
    named = [name for name in plan.sites if name in sites]
    skipped = plan.skipped
    outputs = plan.column(0, "model") if skipped else ()
    cells = [
        outputs[step] if name != "model" and step in skipped else method
        for name in named
        if name != "model" or named == ["model"]
        for step, row in enumerate(plan.sites[name].methods)
        for method in row
    ]
    return {method: 100 * cells.count(method) / len(cells) for method in Method}
