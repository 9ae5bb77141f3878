"""xFormers' memory-efficient attention. Its windows are served by its flash operators: GPU, half precision."""

# mypy: disable-error-code="import-not-found,import-untyped"

import ctypes
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ditfastattn.kernels.base import Kernel
from plans import Window

HOW = "pip install xformers==0.0.35"
OTHER_CUDA = (
    "xFormers' compiled part cannot be loaded beside this torch: its wheel is built for CUDA 12, so install that "
    "runtime too (pip install nvidia-cuda-runtime-cu12==12.8.90)"
)


@cache
def load() -> Any:
    """``xformers.ops``, with its compiled part. Raises ImportError that says what is missing."""
    if find_spec("xformers") is None:
        raise ImportError(f"xFormers is not installed: {HOW}")
    _load_cuda_12()
    try:
        import xformers.ops
        from xformers import _cpp_lib
    except Exception as error:  # a broken install fails in as many ways as it has dependencies
        raise ImportError(f"xFormers cannot be imported ({type(error).__name__}: {error}): {HOW}") from error
    if getattr(_cpp_lib, "_cpp_library_load_exception", None) is not None:
        raise ImportError(OTHER_CUDA)
    return xformers.ops


def _load_cuda_12() -> None:
    """Make libcudart.so.12 known to the process: a CUDA 13 torch brings only libcudart.so.13."""
    spec = find_spec("nvidia.cuda_runtime") if find_spec("nvidia") else None
    folders = spec.submodule_search_locations if spec else None
    for library in ["libcudart.so.12", *(f"{folder}/lib/libcudart.so.12" for folder in folders or [])]:
        try:
            ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
            return
        except OSError:
            continue


class XFormers(Kernel):
    """``memory_efficient_attention``; on (B, N, H, D), with its own scale 1/sqrt(D)."""

    name = "xformers"

    def not_supported_reasons(self, q: Tensor, window: Window) -> list[str]:
        try:
            load()
        except ImportError as error:
            return [str(error)]
        reasons = []
        if q.device.type != "cuda":
            reasons.append(f"its windows need a CUDA GPU, the tensors are on {q.device.type}")
        if q.dtype not in (torch.float16, torch.bfloat16):
            reasons.append(f"its windows need float16 or bfloat16, not {q.dtype}")
        if q.shape[3] % 8 or q.shape[3] > 256:
            reasons.append(f"head_dim {q.shape[3]} is no multiple of 8 up to 256")
        return reasons

    def window(self, q: Tensor, k: Tensor, v: Tensor, window: Window, add: Tensor | None = None) -> Tensor:
        ops = load()
        band = ops.fmha.attn_bias.LocalAttentionFromBottomRightMask(window_left=window.left, window_right=window.right)
        out: Tensor = ops.memory_efficient_attention(q, k, v, attn_bias=band)
        return out if add is None else out + add

    def full(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = load().memory_efficient_attention(q, k, v)
        return out
