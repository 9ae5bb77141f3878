"""What a plan of reused, shared and forecast outputs means, without any of its code: the model's own modules wrapped.

Attentions and MLPs are modules whose outputs are remembered in plain lists, and extrapolated by Newton's formula.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from small_latte import FRAMES, small_latte
from small_models import small_transformer
from small_native_dit import small_native_dit
from small_opensora import sizes, small_stdit2
from small_pixart import WIDTH, WORDS, small_pixart
from torch import Tensor, nn

from ditfastattn.models import adapt
from ditfastattn.models.opensora import OpenSora
from plans import CrossShape, GuidanceSpec, Method, Plan, SamplerSpec, SiteName
from plans.forecast import feasible

TIMES = (999.0, 930.0, 780.0, 745.0, 500.0, 410.0, 260.0, 255.0, 90.0)  # not evenly spaced
COMPUTED = (Method.FULL, Method.ASC)
ORDERS = {Method.AST: 0, Method.AST_1: 1, Method.AST_2: 2}


@dataclass
class Subject:
    """A small model in float64, its parts by site, and how it is called at a step."""

    model: Any
    parts: dict[SiteName, list[nn.Module]]
    call: Callable[[float], Tensor]


def subject(name: str, dtype: torch.dtype = torch.float64) -> Subject:
    """One of "dit", "native", "pixart", "latte" and "opensora", on two images (videos) in both branches of guidance."""
    if name == "opensora":
        return _opensora(dtype)
    generator = torch.Generator().manual_seed(7)
    frames = (FRAMES,) if name == "latte" else ()
    latents = torch.randn(2, 4, *frames, 8, 8, generator=generator).to(dtype).repeat(2, *[1] * (3 + len(frames)))
    labels, text = torch.tensor([1, 2, 10, 10]), torch.randn(4, WORDS, WIDTH, generator=generator).to(dtype)
    if name in ("dit", "native"):
        model: Any = small_transformer() if name == "dit" else small_native_dit()
        labels[2:] = adapt(model).null_label  # type: ignore[attr-defined]
    else:
        model = small_pixart() if name == "pixart" else small_latte(layers=2)
    model.to(dtype)

    def call(timestep: float) -> Tensor:
        t = torch.full((4,), timestep)
        x = latents * (1 + timestep / 1000)  # the sampler moves on
        if name == "dit":
            return model(x, timestep=t, class_labels=labels).sample
        if name == "native":
            return model(x, t, labels)
        sizes = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}} if name == "pixart" else {}
        return model(x, encoder_hidden_states=text, timestep=t, **sizes).sample

    blocks = model.blocks if name == "native" else model.transformer_blocks
    if name == "native":
        return Subject(model, {"attn": [b.attn for b in blocks], "mlp": [b.mlp for b in blocks]}, call)
    parts: dict[SiteName, list[nn.Module]] = {"attn": [block.attn1 for block in blocks]}
    if name in ("pixart", "latte"):
        parts["cross"] = [block.attn2 for block in blocks]
    if name == "latte":
        temporal = model.temporal_transformer_blocks
        parts["temporal"] = [block.attn1 for block in temporal]
        blocks = [block for pair in zip(blocks, temporal, strict=True) for block in pair]
    return Subject(model, parts | {"mlp": [block.ff for block in blocks]}, call)


def _opensora(dtype: torch.dtype) -> Subject:
    """Its output is float32 whatever its weights are."""
    generator = torch.Generator().manual_seed(7)
    model = small_stdit2().to(dtype)
    latents = torch.randn(2, 4, 4, 6, 8, generator=generator).to(dtype).repeat(2, 1, 1, 1, 1)
    text = torch.randn(4, 1, WORDS, WIDTH, generator=generator).to(dtype)
    told = {name: value.to(dtype) for name, value in sizes().items()}

    def call(timestep: float) -> Tensor:
        x = latents * (1 + timestep / 1000)
        return model(x, torch.full((4,), timestep), text, torch.ones(2, WORDS, dtype=torch.long), **told)

    blocks = model.blocks
    parts: dict[SiteName, list[nn.Module]] = {
        "attn": [block.attn for block in blocks],
        "temporal": [block.attn_temp for block in blocks],
        "cross": [block.cross_attn for block in blocks],
        "mlp": [block.mlp for block in blocks],
    }
    return Subject(model, parts, call)


def mixed_plan(
    model: Any,
    seed: int,
    *,
    skips: bool = True,
    guided: bool = True,
    paper: bool = False,
    without: Sequence[SiteName] = (),
) -> Plan:
    """A plan that mixes sharing, reuse and forecasts at every site.

    Args:
        without: sites that are left out.
        skips: some steps are skipped.
        paper: attention may also be windowed, which the modules know nothing of.
    """
    adapter, choose = adapt(model), random.Random(seed)
    spec = adapter.spec_of(4, 6, 8) if isinstance(adapter, OpenSora) else adapter.spec()
    cross = CrossShape(layers=adapter.cross_layers, words=WORDS) if adapter.cross_layers else None
    spec = spec.model_copy(update={"cross": cross, "mlp": adapter.mlp} | dict.fromkeys(without))
    layout = adapter.guided_layout.value if guided else "none"
    plan = Plan.full(
        model=spec,
        sampler=SamplerSpec(class_name="ByHand", settings={}, timesteps=TIMES),
        guidance=GuidanceSpec(scale=4.0 if guided else 1.0, layout=layout),
    )
    output = [Method.FULL] * plan.steps
    if skips:
        some = [choose.choice([Method.FULL, Method.FULL, *ORDERS]) for _ in range(plan.steps - 1)]
        output = list(feasible([Method.FULL, *some], TIMES))
        plan = plan.skipping(output)
    for site in spec.sites:
        allowed = [*COMPUTED, *ORDERS] + (
            [Method.WA_RS, Method.WA_RS_ASC] if paper and site in ("attn", "temporal") else []
        )
        allowed = [method for method in allowed if guided or not method.shares_guidance]
        columns = [
            feasible(
                [Method.FULL]
                + [choose.choice(allowed) if method is Method.FULL else Method.AST for method in output[1:]],
                TIMES,
            )
            for _ in range(spec.shape(site).layers)
        ]
        plan = plan.with_methods(list(zip(*columns, strict=True)), site=site)
    return plan


def newton(values: Sequence[Tensor], times: Sequence[float], timestep: float) -> Tensor:
    """The polynomial through ``values`` at ``times`` by divided differences."""
    table, factor = list(values), 1.0
    total = torch.zeros_like(values[0])
    for order, time in enumerate(times):
        total = total + table[0] * factor
        factor *= timestep - time
        table = [(table[i + 1] - table[i]) / (times[i + order + 1] - times[i]) for i in range(len(table) - 1)]
    return total


class Remembering:
    """A function that follows one column of a plan."""

    def __init__(self, function: Callable[..., Tensor], column: Sequence[Method], conditional_first: bool) -> None:
        self.function, self.column, self.conditional_first = function, column, conditional_first
        self.outputs: list[tuple[float, Tensor]] = []

    def __call__(self, step: int, *args: Any, **kwargs: Any) -> Tensor:
        method = self.column[step]
        if method in ORDERS:
            times, values = zip(*self.outputs[-1 - ORDERS[method] :], strict=True)
            return newton(values, times, TIMES[step])
        output = self.function(*args, **kwargs)
        if method is Method.ASC:
            first, second = output.chunk(2)
            half = first if self.conditional_first else second
            output = torch.cat([half, half])
        self.outputs.append((TIMES[step], output))
        return output


@torch.no_grad()
def expected_outputs(subject: Subject, plan: Plan) -> list[Tensor]:
    """The model's output at every step."""
    now = [0]
    first = plan.guidance.layout == "cond_first"
    for site, modules in subject.parts.items():
        for layer, module in enumerate(modules if site in plan.sites else ()):
            remembering = Remembering(module.forward, plan.column(layer, site), first)
            module.forward = lambda *args, _r=remembering, **kwargs: _r(now[0], *args, **kwargs)
    whole = plan.column(0, "model") if "model" in plan.sites else (Method.FULL,) * plan.steps
    model, found = Remembering(subject.call, whole, first), []
    for now[0], timestep in enumerate(TIMES):
        found.append(model(now[0], timestep))
    for modules in subject.parts.values():
        for module in modules:
            module.__dict__.pop("forward", None)
    return found
