"""FlexAttention: torch's own block-sparse attention. Compiled on a GPU, plain (and slow) on a CPU."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from ditfastattn.kernels.base import Kernel
from plans import Window


class Flex(Kernel):
    """Blocks of 128 x 128 scores that lie outside the window are skipped."""

    name = "flex"

    def __init__(self) -> None:
        self._masks: dict[tuple[int, Window, torch.device], Any] = {}
        self._compiled = torch.compile(flex_attention, dynamic=False)

    def not_supported_reasons(self, q: Tensor, window: Window) -> list[str]:
        if q.device.type == "cuda" and q.shape[3] < 16:
            return [f"head_dim {q.shape[3]} is below 16, the least that the compiled kernel takes"]
        return []

    def window(self, q: Tensor, k: Tensor, v: Tensor, window: Window, add: Tensor | None = None) -> Tensor:
        mask = self._mask(q.shape[1], window, q.device)
        attend = self._compiled if q.device.type == "cuda" else flex_attention
        out = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), block_mask=mask)
        out = out.transpose(1, 2)
        return out if add is None else out + add

    def _mask(self, tokens: int, window: Window, device: torch.device) -> Any:
        key = (tokens, window, device)
        if key not in self._masks:

            def visible(batch: Tensor, head: Tensor, query: Tensor, key_: Tensor) -> Tensor:
                offset = key_ - query
                return (offset >= -window.left) & (offset <= window.right)

            self._masks[key] = create_block_mask(visible, B=None, H=None, Q_LEN=tokens, KV_LEN=tokens, device=device)
        return self._masks[key]
