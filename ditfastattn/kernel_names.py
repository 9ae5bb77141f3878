"""The names of the kernels (``ditfastattn.kernels``), for command lines that need not wait until those are loaded."""

KERNELS = ("sdpa", "flex", "triton", "xformers", "varlen", "flash2", "flash3", "flash4")
NAMES = ("auto", *KERNELS)
