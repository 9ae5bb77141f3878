"""FlashAttention-4 (``flash_attn.cute``), written in CuTe's Python and compiled at the first call of a kind.

Read from flash-attn-4 4.0.0b36: ``window_size`` is (left, right) with None for no limit, where the older ones have -1,
and ``(out, log-sum-exp or None)`` is returned. An older flash-attn brings the folder ``flash_attn/cute`` without what
it imports; it is then reported as not loadable.
"""

from ditfastattn.kernels.flash import FlashKernel


class Flash4(FlashKernel):
    """Hopper and data-centre Blackwell (compute capability 9.0 to 11.x)."""

    name = "flash4"
    library = "FlashAttention-4"
    how = "pip install 'flash-attn-4[cu13]' --pre (without [cu13] on CUDA 12)"
    module = "flash_attn.cute"
    majors = range(9, 12)
    unlimited = (None, None)

    def largest_head_dim(self, major: int) -> int:
        return 256 if major == 9 else 128  # Blackwell's 256 has a kernel of its own, which we have not tried
