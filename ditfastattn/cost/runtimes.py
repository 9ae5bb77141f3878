"""Tables of the ways in which ``ditfastattn.apply`` runs a model, by name."""

from functools import partial

import torch

from ditfastattn.cost.key import EAGER
from ditfastattn.cost.prepared import PreparedParts
from ditfastattn.cost.table import CostTable
from ditfastattn.errors import CostError
from ditfastattn.kernels.base import Kernel
from ditfastattn.models.base import PreparedModel
from plans import Window

COMPILED, CAPTURED = "compiled", "compiled, CUDA graphs"


def runtimes_on(device: torch.device) -> tuple[str, ...]:
    """Those that a device has, the fastest last."""
    return (EAGER, COMPILED, CAPTURED) if device.type == "cuda" else (EAGER, COMPILED)


def measured(
    adapter: PreparedModel,
    batch: int,
    runtime: str,
    kernel: Kernel | str = "auto",
    *,
    window: Window | None = None,
    guided: bool = True,
    refresh: bool = False,
) -> CostTable:
    """The table of a runtime, at the model's own size: from disk, or measured now and kept (seconds, with compiling).

    Args:
        batch, kernel, window, guided, refresh: as of :meth:`CostTable.of`.
        runtime: EAGER (``apply(pipe, plan)``), COMPILED (``compile=True``) or CAPTURED (``graphs=True`` too).

    Raises:
        CostError: a runtime that the device does not have, or as :meth:`CostTable.of`.
    """
    if runtime not in (names := runtimes_on(adapter.device)):
        raise CostError(f"there is no runtime {runtime!r} on {adapter.device.type}; choose one of {', '.join(names)}")
    tokens, graphs = adapter.spec().tokens, runtime == CAPTURED
    way = None
    if runtime != EAGER:
        way = partial(PreparedParts, adapter, batch, tokens, compile=True, graphs=graphs)
    return CostTable.of(
        adapter,
        batch,
        tokens,
        kernel,
        way,
        runtime=runtime,
        window=window,
        guided=guided,
        graphs=graphs,
        refresh=refresh,
    )
