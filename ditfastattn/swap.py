"""Another kernel for the full self-attention of a model, without a plan: ``use_kernel(pipe, "xformers")``."""

import warnings
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from ditfastattn.api import follows_a_plan
from ditfastattn.errors import ApplyError, KernelError
from ditfastattn.install import Overrides
from ditfastattn.kernels import make_kernel
from ditfastattn.models import adapt
from ditfastattn.models.basic_block import BasicBlockModel
from plans import Window


def use_kernel(target: Any, kernel: str) -> "KernelSwap":
    """Computes every self-attention by one kernel's ``full``, with the model's own weights, until it is removed.

    The result is the same to the rounding of the dtype; only the time and the memory differ. Kernels without a full
    attention of their own ("flex", "triton") take torch's, as "sdpa" does. To sample by a plan use
    ``apply(pipe, plan, kernel=...)`` instead.

    Args:
        target: a diffusers pipeline (its ``transformer`` is used) or a bare transformer.
        kernel: the name of a kernel in ``ditfastattn.kernels.KERNELS``, or "auto".

    Returns:
        ``with use_kernel(pipe, "xformers"): ...`` or ``swap = use_kernel(...); ...; swap.remove()``.

    Raises:
        ApplyError: the model is not supported, follows a plan, or has attention of another tool.
        KernelError: no such kernel, or it does not fit the model as it is now (device, dtype, head dim).
    """
    transformer = target if isinstance(target, nn.Module) else getattr(target, "transformer", None)
    if transformer is None:
        raise ApplyError(f"{type(target).__name__} has no transformer; give use_kernel() a pipeline or a transformer")
    adapter = adapt(transformer)
    if not isinstance(adapter, BasicBlockModel):
        raise ApplyError(
            f"use_kernel() sets the attention processors of diffusers' models, and {type(transformer).__name__} has "
            "none: choose the kernel of a plan instead, apply(model, plan, kernel=...); Plan.full compresses nothing"
        )
    if follows_a_plan(transformer):
        raise ApplyError("this transformer follows a plan: remove it, and choose the kernel in apply(..., kernel=...)")
    attentions: list[Any] = [block.module.attn1 for block in adapter.blocks]
    for place, attention in zip(adapter.places, attentions, strict=True):
        fault = _fault(attention)
        if fault:
            raise ApplyError(f"{place}: {fault}")
    spec, parameter = adapter.spec(), attentions[0].to_q.weight
    processor = KernelProcessor(kernel)
    for site in spec.sites:
        processor.check(parameter.new_empty((2, spec.shape(site).tokens, spec.heads, spec.head_dim)))
    return KernelSwap(attentions, processor)


class KernelProcessor:
    """A diffusers attention processor for self-attention: projections as ever, the core by one of our kernels."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._kernel: Any = None
        self._fits: set[tuple[torch.dtype, torch.device, torch.Size]] = set()

    def check(self, q: Tensor) -> None:
        """Raises KernelError if the kernel cannot take queries like ``q`` (B, N, H, D)."""
        like = (q.dtype, q.device, q.shape[1:])
        if like not in self._fits:
            kernel = make_kernel(self.name, q, Window.default(q.shape[1]))
            self._kernel = self._kernel or kernel
            self._fits.add(like)

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        if encoder_hidden_states is not None or attention_mask is not None:
            raise KernelError("use_kernel() serves self-attention without a mask; remove it for this call")
        heads = (*hidden_states.shape[:2], attn.heads, -1)
        q, k, v = (linear(hidden_states).view(heads) for linear in (attn.to_q, attn.to_k, attn.to_v))  # (B, N, H, D)
        self.check(q)
        projection, dropout = attn.to_out
        return dropout(projection(self._kernel.full(q, k, v).flatten(2)))


class KernelSwap:
    """What :func:`use_kernel` returns. Only the ``processor`` of each self-attention instance is set, and put back."""

    def __init__(self, attentions: list[Attention], processor: KernelProcessor) -> None:
        self._overrides = Overrides()
        for attention in attentions:
            self._overrides.set(attention, "processor", processor)

    def __enter__(self) -> "KernelSwap":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Gives every attention its processor back. Harmless when called twice; what another tool set since stays."""
        if self._overrides.restore():
            warnings.warn(
                "another tool has set attention processors after use_kernel(); they stay. Undo that tool and call "
                "remove() again to have the attributes back as they were",
                stacklevel=2,
            )


def _fault(attention: Attention) -> str | None:
    """Why its core cannot be swapped without another result."""
    if type(attention.processor) not in (AttnProcessor, AttnProcessor2_0):
        return (
            f"its attention processor {type(attention.processor).__name__} would be replaced; call "
            "attn1.set_processor(AttnProcessor2_0()), or remove() of an earlier use_kernel(), first"
        )
    if getattr(attention, "fused_projections", False):
        return "its QKV projections are fused; call unfuse_qkv_projections() first"
    if attention.norm_q is not None or attention.norm_k is not None or attention.residual_connection:
        return "attention with q/k-norm or an inner residual is not supported"
    if attention.rescale_output_factor != 1:
        return "attention with output rescaling is not supported"
    return None
