"""What a measured time depends on."""

import platform
from dataclasses import dataclass

import torch

from ditfastattn.layout import Layout
from ditfastattn.models.base import PreparedModel
from plans import Window

EAGER = "eager"


@dataclass(frozen=True)
class TableKey:
    """All that a measured time depends on. ``parameters``: of one block, which tells MLPs and cross-attention apart."""

    model: str
    layers: int
    parameters: int
    batch: int
    tokens: int
    heads: int
    head_dim: int
    dtype: str
    kernel: str
    window: str
    layout: str
    device: str
    torch: str
    runtime: str

    @classmethod
    def of(
        cls, adapter: PreparedModel, batch: int, tokens: int, kernel: str, window: Window, layout: Layout, runtime: str
    ) -> "TableKey":
        spec, module = adapter.spec(), adapter.blocks[0].module
        parameter = next(adapter.model.parameters())
        return cls(
            model=spec.class_name,
            layers=spec.layers,
            parameters=sum(p.numel() for p in module.parameters()),
            batch=batch,
            tokens=tokens,
            heads=spec.heads,
            head_dim=spec.head_dim,
            dtype=str(parameter.dtype).removeprefix("torch."),
            kernel=kernel,
            window=str(window),
            layout=layout.value,
            device=device_name(parameter.device),
            torch=str(torch.__version__),
            runtime=runtime,
        )


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's kind with the threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {device.type.upper()}, {torch.get_num_threads()} threads"
