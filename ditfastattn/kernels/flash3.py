"""FlashAttention-3 (Shah et al., 2024), for Hopper GPUs: the module ``flash_attn_interface``."""

# mypy: disable-error-code="import-not-found,import-untyped"

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ditfastattn.kernels.base import Kernel
from plans import Window

HOW = "pip install tokenspeed-fa3 (CUDA 13), or build it from flash-attention's hopper folder"


@cache
def load() -> Any:
    """``flash_attn_func``. Raises ImportError that says what is missing."""
    if find_spec("flash_attn_interface") is None:
        raise ImportError(f"FlashAttention-3 is not installed: {HOW}")
    try:
        from flash_attn_interface import flash_attn_func
    except Exception as error:  # the compiled part fails with the loader's own exceptions
        raise ImportError(f"FlashAttention-3 cannot be loaded ({type(error).__name__}: {error}): {HOW}") from error
    return flash_attn_func


class Flash3(Kernel):
    """``flash_attn_func`` on (B, N, H, D), scaled by 1/sqrt(D)."""

    name = "flash3"

    def not_supported_reasons(self, q: Tensor, window: Window) -> list[str]:
        reasons = []
        try:
            load()
        except ImportError as error:
            reasons.append(str(error))
        if q.device.type != "cuda" or torch.cuda.get_device_capability(q.device)[0] != 9:
            reasons.append("a Hopper GPU (compute capability 9.0) is needed")
        if q.dtype not in (torch.float16, torch.bfloat16):
            reasons.append(f"float16 or bfloat16 is needed, not {q.dtype}")
        if q.shape[3] % 8 or q.shape[3] > 256:
            reasons.append(f"head_dim {q.shape[3]} is no multiple of 8 up to 256")
        return reasons

    def window(self, q: Tensor, k: Tensor, v: Tensor, window: Window, add: Tensor | None = None) -> Tensor:
        out = self._attend(q, k, v, (window.left, window.right))
        return out if add is None else out + add

    def full(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self._attend(q, k, v, (-1, -1))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, sides: tuple[int, int]) -> Tensor:
        out = load()(q, k, v, window_size=sides)
        attended: Tensor = out[0] if isinstance(out, tuple) else out  # some versions add the log-sum-exp
        return attended
