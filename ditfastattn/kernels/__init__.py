"""Window-attention kernels behind one interface. ``make_kernel("auto")`` takes the first that fits."""

from torch import Tensor

from ditfastattn.errors import KernelError
from ditfastattn.kernels.base import Kernel
from ditfastattn.kernels.flex import Flex
from ditfastattn.kernels.sdpa import SDPA
from plans import Window

KERNELS: dict[str, type[Kernel]] = {kernel.name: kernel for kernel in (SDPA, Flex)}
NAMES = ("auto", *KERNELS)


def check_name(name: str) -> None:
    """Raises KernelError if there is no kernel of that name."""
    if name not in NAMES:
        raise KernelError(f"there is no kernel {name!r}; choose one of {', '.join(NAMES)}")


def make_kernel(name: str, q: Tensor, window: Window) -> Kernel:
    """A new kernel for inputs like ``q`` (B, N, H, D).

    Args:
        name: a key of ``KERNELS``, or "auto": the reference kernel, until measured choices replace it.

    Raises:
        KernelError: no such kernel, or it does not fit; the message lists every reason.
    """
    check_name(name)
    kernel = KERNELS["sdpa" if name == "auto" else name]()
    reasons = kernel.not_supported_reasons(q, window)
    if reasons:
        shape = "x".join(str(size) for size in q.shape)
        raise KernelError(f"kernel {name!r} cannot take ({shape}, {q.dtype}, {q.device}): {'; '.join(reasons)}")
    return kernel
