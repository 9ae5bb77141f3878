"""The README's program on a module of one's own, and what is called and registered as it does."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ditfastattn
from plans import GuidanceSpec, Method, Plan, SamplerSpec, Window

README = Path(__file__).parents[1] / "README.md"
TIMES = (900.0, 600.0, 300.0)
WINDOW = Window(left=5, right=2)


def programs() -> list[str]:
    """The README's on a module of one's own: from its class to a session, and on to a plan that is found for it."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    first = next(index for index, block in enumerate(blocks) if "ditfastattn.register" in block)
    return blocks[first : first + 2]


def described(**changes: Any) -> dict[str, Any]:
    """What the README registers, changed."""
    return {
        "guided": "cond_first",
        "attentions": lambda model: model.layers,
        "qkv": lambda attention, x: attention.qkv(x).unflatten(2, (3, 4, 16)).unbind(2),
        "project": lambda attention, heads: attention.out(heads.flatten(2)),
        "call": lambda x, time, label: ditfastattn.Call(x, time, label),
        "shape": lambda model: {"tokens": 64, "heads": 4, "head_dim": 16, "in_channels": 3, "out_channels": 3},
    } | changes


def plan_for(model: Any, rows: list[list[Method]] | None = None, layout: str = "cond_first", **changes: Any) -> Plan:
    scale = 1.0 if layout == "none" else 4.0
    plan = Plan.full(
        model=ditfastattn.model_spec(model),
        guidance=GuidanceSpec(scale=scale, layout=layout),  # type: ignore[arg-type]
        sampler=SamplerSpec(class_name="Mine", settings={}, timesteps=TIMES),
        window=WINDOW,
    )
    plan = plan if rows is None else plan.with_methods([[Method.FULL] * 3, *rows])
    return plan.model_copy(update=changes)


def inputs(dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Calls of three steps, guided."""
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(2, 3, 8, 8, generator=generator, dtype=dtype).repeat(2, 1, 1, 1) for _ in TIMES]
    labels = torch.tensor([3, 7, 10, 10])
    return [(x, torch.full((4,), time, dtype=dtype), labels) for x, time in zip(noise, TIMES, strict=True)]


@torch.no_grad()
def outputs(model: Any, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [model(*call) for call in inputs(dtype)]
