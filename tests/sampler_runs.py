"""Runs of a sampler on a CPU, with a stand-in for the CUDA graphs of its steps."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ditfastattn.sampler_graphs import SamplerGraphs

SHAPE = (2, 4, 8, 8)


class Tape(TorchDispatchMode):
    """What a CUDA graph is, on a CPU: the operations that were run, on the tensors that they were run on."""

    def __init__(self, work: Callable[[], object], pool: Any = None) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Any]]] = []
        with self:
            work()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, tree_leaves(found)))
        return found

    def replay(self) -> None:
        for func, args, kwargs, found in self.operations:
            for place, value in zip(found, tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(place, Tensor) and place is not value:
                    place.copy_(value)

    def pool(self) -> None:
        return None


def model(latents: Tensor, timestep: Tensor) -> Tensor:
    return torch.sin(3 * latents + timestep / 300)


def run(
    scheduler: Any, step: Callable[..., Any], seed: int, steps: int = 7, generator: torch.Generator | None = None
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Latents after every step, and the scheduler's attributes then."""
    scheduler.set_timesteps(steps)
    latents = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
    found, states = [], []
    for index, timestep in enumerate(scheduler.timesteps):
        scaled = getattr(scheduler, "scale_model_input", lambda x, _: x)(latents, timestep)
        output = model(scaled, timestep)
        kwargs = {} if generator is None else {"generator": generator}
        latents = step(index, (output, timestep, latents), kwargs).prev_sample
        found.append(latents)
        states.append({n: list(v) if isinstance(v, list) else v for n, v in scheduler.__dict__.items() if n != "step"})
    return found, states


def plainly(scheduler: Any) -> Callable[..., Any]:
    return lambda place, args, kwargs: scheduler.step(*args, **kwargs)


def replayed(scheduler: Any, graphs: SamplerGraphs, entered_at: int = 0) -> Callable[..., Any]:
    return lambda place, args, kwargs: graphs.step(entered_at, place, scheduler.step, args, kwargs)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)
