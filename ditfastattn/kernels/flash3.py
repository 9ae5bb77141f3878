"""FlashAttention-3 (Shah et al., 2024), for Hopper GPUs: the module ``flash_attn_interface``."""

from ditfastattn.kernels.flash import FlashKernel


class Flash3(FlashKernel):
    """Hopper only."""

    name = "flash3"
    library = "FlashAttention-3"
    how = "pip install tokenspeed-fa3 (CUDA 13), or build it from flash-attention's hopper folder"
    module = "flash_attn_interface"
    majors = range(9, 10)
