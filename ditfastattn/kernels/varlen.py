"""FlashAttention-2 as torch brings it, with a window: torch.nn.attention.varlen (torch 2.11 or later)."""

import torch
from torch import Tensor

from ditfastattn.kernels.flash import FlashKernel


class Varlen(FlashKernel):
    """The batch is passed as one packed row of sequences, which all have N tokens."""

    name = "varlen"
    library = "torch.nn.attention.varlen"
    how = "pip install 'torch>=2.11'"
    module = "torch.nn.attention.varlen"
    function = "varlen_attn"
    majors = range(8, 13)

    def __init__(self) -> None:
        super().__init__()
        self._starts: dict[tuple[int, int, torch.device], Tensor] = {}

    def attend(self, q: Tensor, k: Tensor, v: Tensor, sides: tuple[int | None, int | None]) -> Tensor:
        batch, tokens = q.shape[:2]
        key = (batch, tokens, q.device)
        if key not in self._starts:
            self._starts[key] = torch.arange(0, (batch + 1) * tokens, tokens, dtype=torch.int32, device=q.device)
        starts = self._starts[key]
        packed = [t.flatten(0, 1) for t in (q, k, v)]  # (B * N, H, D)
        out: Tensor = self.load()(*packed, starts, starts, tokens, tokens, window_size=sides)
        return out.unflatten(0, (batch, tokens))
