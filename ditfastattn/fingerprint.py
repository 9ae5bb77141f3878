"""Telling weights apart that lie under one name."""

import hashlib

from torch import nn

PROBES = 64  # values of each tensor that go into a fingerprint


def fingerprint(*modules: nn.Module) -> str:
    """From the shape and some values of every tensor, dtype included."""
    found = hashlib.sha256()
    for module in modules:
        for key, tensor in module.state_dict().items():
            some = tensor.flatten()[:: max(1, tensor.numel() // PROBES)][:PROBES]
            found.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
            found.update(some.double().cpu().numpy().tobytes())
    return "sha256:" + found.hexdigest()
