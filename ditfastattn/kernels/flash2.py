"""FlashAttention-2 (Dao, 2023) as its own package: ``flash_attn``. torch's build of the same kernel is ``varlen``."""

from ditfastattn.kernels.flash import FlashKernel


class Flash2(FlashKernel):
    """Ampere and later. A head dim between its builds (72, say) is padded to the next one inside."""

    name = "flash2"
    library = "FlashAttention-2"
    how = "pip install flash-attn --no-build-isolation (compiles for long; it needs the CUDA toolkit of your torch)"
    # Not flash_attn itself: FlashAttention-4 alone makes that name importable too.
    module = "flash_attn.flash_attn_interface"
    majors = range(8, 13)
