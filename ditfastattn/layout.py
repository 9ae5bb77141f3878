"""Where the two classifier-free guidance branches lie in a batch.

One transformer call holds both branches: DiT and Open-Sora put the conditional half first, PixArt-Sigma and Latte
the unconditional half. The conditional half is always the one that guidance sharing (ASC) computes.
"""

from enum import Enum

import torch
from torch import Tensor


class Layout(str, Enum):
    """Order of the guidance halves in a batch of 2B rows; the values are those a plan file uses."""

    NONE = "none"
    COND_FIRST = "cond_first"
    UNCOND_FIRST = "uncond_first"

    def conditional_rows(self, batch: int) -> slice:
        """Rows of the conditional half of a batch of ``batch`` rows.

        Raises:
            ValueError: the batch has no guidance halves, or is odd.
        """
        if self is Layout.NONE:
            raise ValueError("a batch without guidance has no conditional half; only FULL, WA_RS and AST apply to it")
        if batch % 2:
            raise ValueError(f"guidance sharing needs an even batch (both branches), got {batch} rows")
        half = batch // 2
        return slice(0, half) if self is Layout.COND_FIRST else slice(half, batch)


def both_halves(half: Tensor) -> Tensor:
    """``half`` (B, ...) for both guidance branches: (2B, ...). The order does not matter, the halves are equal."""
    return torch.cat([half, half])
