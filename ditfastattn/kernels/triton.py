"""Our own window attention, in Triton: the residual is added or subtracted in the same pass."""

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from ditfastattn.kernels.base import Kernel
from plans import Window

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class Triton(Kernel):
    """For NVIDIA GPUs. The first call of a shape measures which cut is fastest: make it before capturing a graph."""

    name = "triton"

    def not_supported_reasons(self, q: Tensor, window: Window) -> list[str]:
        reasons = []
        if find_spec("triton") is None:
            reasons.append("Triton is not installed: pip install triton (torch's builds for CUDA bring it)")
        if q.device.type == "cuda":
            major, minor = torch.cuda.get_device_capability(q.device)
            if major < 8:
                reasons.append(f"the GPU has compute capability {major}.{minor}; 8.0 (A100) or later is needed")
        elif os.environ.get("TRITON_INTERPRET") != "1":
            reasons.append(f"a CUDA GPU is needed, the tensors are on {q.device.type}")
        if q.dtype not in DTYPES:
            reasons.append(f"dtype {q.dtype} is none of float16, bfloat16, float32")
        if q.shape[3] % 8 or not 8 <= q.shape[3] <= 256:
            reasons.append(f"head_dim {q.shape[3]} is no multiple of 8 from 8 to 256")
        if q.stride(3) != 1:
            reasons.append("the last dimension is not contiguous")
        return reasons

    def window(self, q: Tensor, k: Tensor, v: Tensor, window: Window, add: Tensor | None = None) -> Tensor:
        from ditfastattn.kernels import triton_ops

        if add is None:
            return triton_ops.window(q, k, v, window.left, window.right)
        return triton_ops.window_add(q, k, v, add, window.left, window.right)

    def residual(
        self, q: Tensor, k: Tensor, v: Tensor, full: Tensor, window: Window, out: Tensor | None = None
    ) -> Tensor:
        from ditfastattn.kernels import triton_ops

        residual: Tensor = triton_ops.window_residual(q, k, v, full, window.left, window.right)
        return residual if out is None else out.copy_(residual)
