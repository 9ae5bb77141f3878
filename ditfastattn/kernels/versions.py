"""Versions of what a kernel's time depends on."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch

PACKAGES = ("triton", "xformers", "flash-attn", "tokenspeed-fa3", "flash-attn-3", "flash-attn-4")


@cache
def versions() -> dict[str, str]:
    """torch's, and those of the packages with kernels that are installed."""
    found = {"torch": str(torch.__version__)}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
