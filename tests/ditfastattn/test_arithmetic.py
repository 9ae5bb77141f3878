"""Which feed-forwards the fused arithmetic recognises: diffusers' and timm's, with a tanh GELU and nothing else."""

from typing import Any

import pytest
import torch
from small_models import small_transformer
from small_native_dit import Mlp
from torch import Tensor, nn

from ditfastattn.models import arithmetic


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each product whose activation was fused with it."""
    found: list[int] = []
    real = arithmetic.linear_gelu

    def counted(*args: Tensor) -> Tensor:
        found.append(1)
        return real(*args)

    monkeypatch.setattr(arithmetic, "linear_gelu", counted)
    return found


def changed(**parts: nn.Module) -> Mlp:
    mlp = Mlp()
    for name, part in parts.items():
        setattr(mlp, name, part)
    return mlp


class Normed(Mlp):
    """timm's may have a norm after the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(192)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(self.act(self.fc1(x))))


@pytest.mark.parametrize(
    ("module", "fused"),
    [
        (small_transformer(layers=1).transformer_blocks[0].ff, True),
        (Mlp(), True),
        (Normed(), True),
        (changed(act=nn.GELU()), False),
        (changed(act=nn.SiLU()), False),
        (changed(fc1=nn.Linear(48, 192, bias=False)), False),
    ],
    ids=["diffusers", "timm", "timm with a norm", "exact GELU", "SiLU", "no bias"],
)
@torch.no_grad()
def test_a_feed_forward_is_what_it_was(module: Any, fused: bool, calls: list[int]) -> None:
    x = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(arithmetic.FUSED.feed_forward(module, x), module(x))
    assert bool(calls) == fused
