"""The ways in which ``python -m eval xformers`` computes self-attention, and how far each is from exact."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from ditfastattn import use_kernel
from ditfastattn.errors import DitFastAttnError
from ditfastattn.kernels import KERNELS
from ditfastattn.kernels.base import Kernel
from ditfastattn.sampling import Denoiser, label_condition
from plans import Window

VARIANTS = MATERIALISED, SDPA, XFORMERS, AS_WRITTEN = "materialised", "sdpa", "xformers", "as written"
GUIDANCE = 4.0
CHECKED_IMAGES = 2  # of the equivalence check, which runs a float32 copy of the model


class AsWritten:
    """The document's attention: heads and tokens exchanged, so that each token attends over its own heads."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __call__(self, attn: Attention, hidden_states: Tensor, **_: Any) -> Tensor:
        batch, tokens = hidden_states.shape[:2]
        shape = (batch, tokens, attn.heads, -1)
        q, k, v = (  # (B, H, N, D), where the operator reads (B, N, H, D)
            linear(hidden_states).view(shape).transpose(1, 2).contiguous()
            for linear in (attn.to_q, attn.to_k, attn.to_v)
        )
        out = self.kernel.full(q * attn.scale, k, v).transpose(1, 2)
        projection, dropout = attn.to_out
        return dropout(projection(out.reshape(batch, tokens, -1)))


@contextmanager
def variant(model: Any, name: str) -> Iterator[None]:
    """The model's self-attention computed in one of four ways."""
    if name == XFORMERS:
        with use_kernel(model, XFORMERS):
            yield
        return
    operator = KERNELS["sdpa" if why_no_xformers(model) else XFORMERS]
    processors: dict[str, Any] = {
        MATERIALISED: AttnProcessor(),
        SDPA: AttnProcessor2_0(),
        AS_WRITTEN: AsWritten(operator()),
    }
    attentions = [block.attn1 for block in model.transformer_blocks]
    before = [attention.processor for attention in attentions]
    for attention in attentions:
        attention.set_processor(processors[name])
    try:
        yield
    finally:
        for attention, processor in zip(attentions, before, strict=True):
            attention.set_processor(processor)


def why_no_xformers(model: Any) -> str | None:
    """Why xFormers cannot serve this model here, or None."""
    attention = model.transformer_blocks[0].attn1
    sample = attention.to_q.weight.new_empty((2, 256, attention.heads, model.config.attention_head_dim))
    reasons = KERNELS[XFORMERS]().not_supported_reasons(sample, Window.default(256))
    return "; ".join(reasons) or None


def call_of(model: Any, images: int) -> Callable[[], Tensor]:
    """One guided transformer call of that many images on random latents: (2 images, out_channels, h, w)."""
    config, parameter = model.config, next(model.parameters())
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(images, config.in_channels, config.sample_size, config.sample_size, generator=generator)
    denoiser = denoiser_of(model, images)
    latents, timestep = noise.to(parameter), torch.tensor(500, device=parameter.device)
    return lambda: denoiser.predict(latents, timestep)


def denoiser_of(model: Any, images: int) -> Denoiser:
    """Guided, with random labels that are the same for every variant."""
    labels = np.random.default_rng(0).integers(model.config.num_embeds_ada_norm, size=images)
    return Denoiser(model, label_condition(model, labels.tolist()), GUIDANCE)


def equivalence(model: Any, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Outputs of each variant against materialised softmax in float32 with the same weights.

    Returns:
        variant -> {"max": largest absolute difference, "relative": norm of the difference over norm of the output}.
    """
    exact = nn.Module.float(copy.deepcopy(model))
    with variant(exact, MATERIALISED):
        expected = call_of(exact, CHECKED_IMAGES)().double()
    errors = {}
    for name in names:
        with variant(model, name):
            difference = call_of(model, CHECKED_IMAGES)().double() - expected
        errors[name] = {
            "max": difference.abs().max().item(),
            "relative": (difference.norm() / expected.norm()).item(),
        }
    return errors


def check(errors: dict[str, dict[str, float]]) -> None:
    """Raises DitFastAttnError where a variant is further from exact than twice what rounding does to softmax."""
    limit = max(2 * errors[MATERIALISED]["relative"], 1e-5)
    for name in (SDPA, XFORMERS):
        error = errors[name]["relative"] if name in errors else 0.0
        if not error <= limit:
            raise DitFastAttnError(
                f"{name} is not equivalent (relative error {error:.2e}, rounding allows {limit:.2e}), so no time is "
                "taken; check its installation"
            )
