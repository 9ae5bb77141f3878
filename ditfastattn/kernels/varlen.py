"""FlashAttention-2 as torch brings it, with a window: torch.nn.attention.varlen (torch 2.11 or later)."""

# mypy: disable-error-code="import-not-found,import-untyped"

from typing import Any

import torch
from torch import Tensor

from ditfastattn.kernels.base import Kernel
from plans import Window


def load() -> Any:
    """``varlen_attn``. Raises ImportError that says what is missing."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise ImportError(f"torch {torch.__version__} has no torch.nn.attention.varlen: 2.11 or later has") from error
    return varlen_attn


class Varlen(Kernel):
    """The batch is passed as one packed row of sequences, which all have N tokens."""

    name = "varlen"

    def __init__(self) -> None:
        self._starts: dict[tuple[int, int, torch.device], Tensor] = {}

    def not_supported_reasons(self, q: Tensor, window: Window) -> list[str]:
        reasons = []
        try:
            load()
        except ImportError as error:
            reasons.append(str(error))
        if q.device.type != "cuda":
            reasons.append(f"a CUDA GPU is needed, the tensors are on {q.device.type}")
        elif torch.cuda.get_device_capability(q.device) < (8, 0):
            reasons.append("a GPU of compute capability 8.0 (A100) or later is needed")
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
        batch, tokens = q.shape[:2]
        key = (batch, tokens, q.device)
        if key not in self._starts:
            self._starts[key] = torch.arange(0, (batch + 1) * tokens, tokens, dtype=torch.int32, device=q.device)
        starts = self._starts[key]
        packed = [t.flatten(0, 1) for t in (q, k, v)]  # (B * N, H, D)
        out: Tensor = load()(*packed, starts, starts, tokens, tokens, window_size=sides)
        return out.unflatten(0, (batch, tokens))
