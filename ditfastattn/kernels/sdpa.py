"""The reference kernel: torch's scaled_dot_product_attention with a boolean mask. Runs on every device."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ditfastattn.kernels.base import Kernel, window_mask
from plans import Window


class SDPA(Kernel):
    """Every other kernel is tested against this one. It saves no time: the masked scores are computed all the same."""

    name = "sdpa"

    def __init__(self) -> None:
        self._masks: dict[tuple[int, Window, torch.device], Tensor] = {}

    def not_supported_reasons(self, q: Tensor, window: Window) -> list[str]:
        return []

    def window(self, q: Tensor, k: Tensor, v: Tensor, window: Window, add: Tensor | None = None) -> Tensor:
        key = (q.shape[1], window, q.device)
        if key not in self._masks:
            self._masks = {key: window_mask(*key)}  # one shape at a time: a mask is N * N bytes
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=self._masks[key]
        ).transpose(1, 2)
        return out if add is None else out + add
