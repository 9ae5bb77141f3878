"""What the FlashAttention libraries share: one function on (B, N, H, D) that takes the two sides of a window."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ditfastattn.kernels.base import Kernel
from plans import Window

DTYPES = (torch.float16, torch.bfloat16)


def load_function(module: str, function: str, library: str, how: str) -> Callable[..., Any]:
    """``function`` of ``module``, which is imported now.

    Args:
        library, how: what a person calls it, and how to get it.

    Raises:
        ImportError: it is not installed or cannot be loaded; one sentence says which, and how to get it.
    """
    try:
        found: Callable[..., Any] = getattr(import_module(module), function)
        return found
    except Exception as error:  # compiled parts fail with exceptions of the loader and of the driver
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise ImportError(f"{library} is not installed: {how}") from None
        reason = " ".join(str(error).split())[:200]
        raise ImportError(f"{library} cannot be loaded ({type(error).__name__}: {reason}): {how}") from error


class FlashKernel(Kernel):
    """A library's attention function, with its own scale 1/sqrt(D); loaded when it is first asked about.

    A subclass names the library, how to get it, and the GPUs and head dims that it is built for.
    """

    library: str
    how: str
    module: str
    function = "flash_attn_func"
    majors: range  # of the compute capability
    unlimited: tuple[int | None, int | None] = (-1, -1)  # the sides that mean full attention

    def __init__(self) -> None:
        self._loaded: Callable[..., Any] | None = None

    def largest_head_dim(self, major: int) -> int:
        """On a GPU of compute capability ``major``.x."""
        return 256

    def load(self) -> Callable[..., Any]:
        """The library's function. Raises ImportError that says how to get it."""
        if self._loaded is None:
            self._loaded = load_function(self.module, self.function, self.library, self.how)
        return self._loaded

    def not_supported_reasons(self, q: Tensor, window: Window) -> list[str]:
        reasons = []
        try:
            self.load()
        except ImportError as error:
            reasons.append(str(error))
        largest = 256
        if q.device.type != "cuda":
            reasons.append(f"a CUDA GPU is needed, the tensors are on {q.device.type}")
        else:
            major, minor = torch.cuda.get_device_capability(q.device)
            largest = self.largest_head_dim(major)
            if major not in self.majors:
                reasons.append(
                    f"the GPU has compute capability {major}.{minor}; {self.library} is for "
                    f"{self.majors.start}.0 to {self.majors.stop - 1}.x"
                )
        if q.dtype not in DTYPES:
            reasons.append(f"float16 or bfloat16 is needed, not {q.dtype}")
        if q.shape[3] % 8 or q.shape[3] > largest:
            reasons.append(f"head_dim {q.shape[3]} is no multiple of 8 up to {largest}")
        if q.stride(3) != 1:
            reasons.append("the last dimension is not contiguous")
        return reasons

    def window(self, q: Tensor, k: Tensor, v: Tensor, window: Window, add: Tensor | None = None) -> Tensor:
        out = self.attend(q, k, v, (window.left, window.right))
        return out if add is None else out + add

    def full(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attend(q, k, v, self.unlimited)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, sides: tuple[int | None, int | None]) -> Tensor:
        """The library's call. (B, N, H, D) -> (B, N, H, D)."""
        out = self.load()(q, k, v, window_size=sides)
        attended: Tensor = out[0] if isinstance(out, tuple) else out  # some versions return the log-sum-exp as well
        return attended
