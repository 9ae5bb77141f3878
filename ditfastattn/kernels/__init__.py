"""Window-attention kernels behind one interface. ``make_kernel`` says why one does not fit."""

import torch
from torch import Tensor

from ditfastattn.errors import KernelError
from ditfastattn.kernel_names import NAMES
from ditfastattn.kernels import auto
from ditfastattn.kernels.base import Kernel
from ditfastattn.kernels.flash2 import Flash2
from ditfastattn.kernels.flash3 import Flash3
from ditfastattn.kernels.flash4 import Flash4
from ditfastattn.kernels.flex import Flex
from ditfastattn.kernels.sdpa import SDPA
from ditfastattn.kernels.triton import Triton
from ditfastattn.kernels.varlen import Varlen
from ditfastattn.kernels.xformers import XFormers
from plans import Window

_ALL: tuple[type[Kernel], ...] = (SDPA, Flex, Triton, XFormers, Varlen, Flash2, Flash3, Flash4)
KERNELS: dict[str, type[Kernel]] = {kernel.name: kernel for kernel in _ALL}
CHOSEN = "auto:"  # and a name: what ``auto`` is once it has chosen, for other processes to do the same
HALF = (torch.float16, torch.bfloat16)


def check_name(name: str) -> None:
    """Raises KernelError if there is no kernel of that name."""
    if name.removeprefix(CHOSEN) not in (NAMES if name == "auto" else KERNELS):
        raise KernelError(f"there is no kernel {name!r}; choose one of {', '.join(NAMES)}")


def make_kernel(name: str, q: Tensor, window: Window) -> Kernel:
    """A new kernel for inputs like ``q`` (B, N, H, D).

    Args:
        name: a key of ``KERNELS``, or "auto": for half precision on a GPU the fastest that fits, measured at the
            first call for a shape (:mod:`ditfastattn.kernels.auto`); else the reference, which runs everywhere.
            "auto:NAME" is what "auto" would be had it chosen that kernel (:func:`settled`).

    Raises:
        KernelError: no such kernel, or it does not fit; the message lists every reason.
    """
    check_name(name)
    if name == "auto":
        return auto.choose(q, window) if q.device.type == "cuda" and q.dtype in HALF else SDPA()
    kernel = KERNELS[name.removeprefix(CHOSEN)]()
    reasons = kernel.not_supported_reasons(q, window)
    if reasons:
        shape = "x".join(str(size) for size in q.shape)
        raise KernelError(f"kernel {name!r} cannot take ({shape}, {q.dtype}, {q.device}): {'; '.join(reasons)}")
    return auto.given(kernel, q, window) if name.startswith(CHOSEN) else kernel


def settled(name: str, q: Tensor, window: Window) -> str:
    """The name under which another process gets the very kernel that ``make_kernel(name, q, window)`` gives here.

    ``auto`` measures, and where two kernels are nearly as fast two processes may choose differently. Raises KernelError
    as :func:`make_kernel` does.
    """
    kernel = make_kernel(name, q, window)
    return CHOSEN + kernel.name if isinstance(kernel, auto.Auto) else kernel.name
