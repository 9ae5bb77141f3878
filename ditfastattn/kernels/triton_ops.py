"""The Triton kernel as operators that torch.compile sees as one node each: ``torch.ops.ditfastattn.window*``.

All take (B, N, H, D) tensors whose last dimension is contiguous and return a contiguous one; query i sees the keys
[i - left, i + right], both ends included.
"""

import torch
from torch import Tensor

from ditfastattn.kernels.triton_tuning import choose
from ditfastattn.kernels.triton_window import Epilogue, launch


def _run(q: Tensor, k: Tensor, v: Tensor, other: Tensor | None, left: int, right: int, epilogue: Epilogue) -> Tensor:
    tensors = [q, k, v] if other is None else [q, k, v, other]
    for tensor in tensors:
        if tensor.shape != q.shape or tensor.stride(-1) != 1 or tensor.device != q.device:
            raise ValueError(
                f"q, k, v and what is added must have one shape (B, N, H, D) on one device and a contiguous last "
                f"dimension; got {[(tuple(t.shape), t.stride(), str(t.device)) for t in tensors]}"
            )
    left, right = min(left, q.shape[1]), min(right, q.shape[1])
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if out.numel():
        config = choose(q, left, right, lambda config: launch(q, k, v, other, out, left, right, epilogue, config))
        launch(q, k, v, other, out, left, right, epilogue, config)
    return out


@torch.library.custom_op("ditfastattn::window", mutates_args=())
def window(q: Tensor, k: Tensor, v: Tensor, left: int, right: int) -> Tensor:
    """Window attention."""
    return _run(q, k, v, None, left, right, Epilogue.WINDOW)


@torch.library.custom_op("ditfastattn::window_add", mutates_args=())
def window_add(q: Tensor, k: Tensor, v: Tensor, add: Tensor, left: int, right: int) -> Tensor:
    """Window attention plus ``add``: a WA_RS step."""
    return _run(q, k, v, add, left, right, Epilogue.ADD)


@torch.library.custom_op("ditfastattn::window_residual", mutates_args=())
def window_residual(q: Tensor, k: Tensor, v: Tensor, full: Tensor, left: int, right: int) -> Tensor:
    """``full`` minus window attention: what a WA_RS step adds back."""
    return _run(q, k, v, full, left, right, Epilogue.SUBTRACT)


@window.register_fake
def _window_fake(q: Tensor, k: Tensor, v: Tensor, left: int, right: int) -> Tensor:
    return q.new_empty(q.shape)


@window_add.register_fake
@window_residual.register_fake
def _window_other_fake(q: Tensor, k: Tensor, v: Tensor, other: Tensor, left: int, right: int) -> Tensor:
    return q.new_empty(q.shape)
