"""The networks that turn images into features, each with the name that its numbers must carry."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ditfastattn.errors import MetricError
from eval import features as lite0
from eval.arguments.common import INCEPTION, LITE0
from eval.inception_weights import load_inception


class Features(NamedTuple):
    """Of one batch: pooled (B, D), logits (B, C) and spatial (B, S), float32, the last two if the network has them."""

    pool: np.ndarray
    logits: np.ndarray | None
    spatial: np.ndarray | None


@dataclass
class Network:
    """A feature network.

    Attributes:
        name: what was asked for, and what statistics are made and compared under.
        title: for people, as in "Frechet distance (TITLE features, not FID)".
        digest: of its weights; empty if they cannot be seen.
        run: images (B, H, W, 3) uint8 on `device` to pooled features, logits or None, spatial or None.
    """

    name: str
    title: str
    digest: str
    run: Callable[[Tensor], tuple[Tensor, Tensor | None, Tensor | None]]
    device: str = "cpu"
    warnings: list[str] = field(default_factory=list)

    @property
    def is_inception(self) -> bool:
        return self.name == INCEPTION

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> Features:
        """Features of (B, H, W, 3) uint8.

        Raises:
            MetricError: they are not finite, which would spoil every sum without a word.
        """
        batch = torch.from_numpy(np.array(images)).to(self.device)
        # TF32 and algorithms chosen by timing would move the features, and so the number, by parts in 1e-3.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            parts = self.run(batch)
        pool, logits, spatial = (None if p is None else p.float().cpu().numpy() for p in parts)
        assert pool is not None
        for part in (pool, logits, spatial):
            if part is not None and not np.isfinite(part).all():
                raise MetricError(f"{self.title} gave features that are not finite; check its weights")
        return Features(pool, logits, spatial)


def load_network(name: str, device: str = "cpu", weights: Path | None = None) -> Network:
    """`inception`, `efficientnet-lite0` or `module:callable`.

    The callable is given images (B, H, W, 3) uint8 on `device` and returns features (B, D), or a mapping with
    "pool" and, for IS and sFID, "logits" and "spatial".

    Raises:
        MetricError: no such network, no weights, or a callable that returns something else.
    """
    if weights is not None and name != INCEPTION:
        raise MetricError(f"--weights is for --network {INCEPTION}; {name} brings its own")
    if name == INCEPTION:
        inception, digest, published = load_inception(weights)
        inception.to(device)
        said = [] if published else [f"these Inception weights ({digest[:8]}) are not the published file's: check them"]
        return Network(name, "Inception 2015-12-05", digest, inception, device, said)
    if name == LITE0:
        return _lite0(device)
    if ":" in name:
        return _custom(name, device)
    raise MetricError(f"there is no network {name!r}; choose {INCEPTION}, {LITE0}, or module:callable")


def _lite0(device: str) -> Network:
    with contextlib.redirect_stdout(io.StringIO()):  # the package prints
        network = lite0.load_network(device)
    total = hashlib.sha256()
    for tensor in network.state_dict().values():
        total.update(tensor.cpu().numpy().tobytes())

    def run(images: Tensor) -> tuple[Tensor, Tensor, None]:
        pool = network.extract_features(lite0.preprocess(images)).mean((2, 3))
        return pool, network._fc(pool), None  # its own forward, less the dropout that evaluation skips

    return Network(LITE0, "EfficientNet-Lite0", total.hexdigest(), run, device)


def _custom(name: str, device: str) -> Network:
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # as `python -m` has it, for the installed command too
        sys.path.insert(0, os.getcwd())
    try:
        function: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise MetricError(f"the network {name} cannot be imported ({error}); expected module:callable") from None
    if not callable(function):
        raise MetricError(f"{name} is a {type(function).__name__}, which cannot be called; expected module:callable")
    if isinstance(function, torch.nn.Module):
        function = function.to(device).eval()

    def run(images: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        result = function(images)
        parts = result if isinstance(result, Mapping) else {"pool": result}
        pool, *others = (parts.get(k) for k in ("pool", "logits", "spatial"))
        for key, part in (("pool", pool), ("logits", others[0]), ("spatial", others[1])):
            if (part is None and key == "pool") or (
                part is not None and (not isinstance(part, Tensor) or part.ndim != 2 or len(part) != len(images))
            ):
                got = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
                raise MetricError(f"{name} returned {got} as {key}; expected a tensor ({len(images)}, width)")
        assert isinstance(pool, Tensor)
        return pool, others[0], others[1]

    return Network(name, name, "", run, device)
