"""What a window-attention kernel offers and how it says that it does not fit."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from plans import Window


class Kernel(ABC):
    """Attention on (B, N, H, D) tensors, scaled by 1/sqrt(D).

    A kernel states what it cannot do in :meth:`not_supported_reasons` and must be right for everything else: it is
    tested against :class:`~ditfastattn.kernels.sdpa.SDPA` on random inputs. Instances may keep masks or compiled
    functions; they belong to one session.
    """

    name: str

    def report(self) -> str:
        """For people: the name, and what is known of why it was chosen."""
        return self.name

    @abstractmethod
    def not_supported_reasons(self, q: Tensor, window: Window) -> list[str]:
        """Why inputs like ``q`` (B, N, H, D) cannot be computed; empty if they can."""

    @abstractmethod
    def window(self, q: Tensor, k: Tensor, v: Tensor, window: Window, add: Tensor | None = None) -> Tensor:
        """Query i attends to keys [i - left, i + right]; ``add`` (B, N, H, D) is added to the output."""

    def full(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention over all keys. (B, N, H, D) -> (B, N, H, D)."""
        return full_attention(q, k, v)

    def residual(
        self, q: Tensor, k: Tensor, v: Tensor, full: Tensor, window: Window, out: Tensor | None = None
    ) -> Tensor:
        """``full`` minus the window attention of the same inputs, what a later WA_RS step adds back.

        Written to ``out`` (B, N, H, D), contiguous, if one is given.
        """
        return torch.sub(full, self.window(q, k, v, window), out=out)


def full_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Full attention by torch's fastest backend, on the same memory layout that diffusers passes it.

    The same call on the same strides is what makes an all-FULL plan bit-identical to no plan.
    """
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))  # (B, H, N, D)
    return out.transpose(1, 2)


def window_mask(tokens: int, window: Window, device: torch.device) -> Tensor:
    """(N, N) bool, True where query i (row) sees key j (column): i - left <= j <= i + right."""
    position = torch.arange(tokens, device=device)
    offset = position[None, :] - position[:, None]  # key minus query
    return (offset >= -window.left) & (offset <= window.right)
