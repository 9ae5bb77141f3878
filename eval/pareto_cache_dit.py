"""DBCache of the package cache-dit, which decides at run time whether the rest of a model call is worth computing.

The first blocks of every call are run; if what they add has changed by less than a threshold since the last full call,
the other blocks are not run, and what they added then is added again, or forecast by TaylorSeer. What that costs is
counted from the blocks that ran.
"""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

PACKAGE = "cache_dit"
HOW = "pip install cache-dit"
WARMUP = 0.08  # of the steps, at the beginning, that are computed in full: 4 of 50
SETTINGS = (  # blocks always run, threshold, calls in a row without the others, order
    (1, 0.03, 3, 0), (1, 0.05, 3, 0), (1, 0.2, 1, 0), (1, 0.2, 2, 0), (1, 0.2, 3, 0), (4, 0.05, 3, 0), (4, 0.2, 1, 0),
    (1, 0.03, 3, 1), (1, 0.2, 1, 1), (1, 0.2, 2, 1), (1, 0.2, 3, 1), (4, 0.05, 3, 1), (4, 0.2, 1, 1), (1, 0.2, 1, 2),
    (1, 0.2, 2, 2), (4, 0.2, 1, 2),
)  # fmt: skip


def missing() -> str | None:
    """Why the package cannot be used here; None if it can."""
    if importlib.util.find_spec(PACKAGE) is None:
        return HOW
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "ERROR")  # else ten lines a setting; read at the import
    try:
        importlib.import_module(PACKAGE)
    except Exception as error:  # it imports much of what is installed beside it
        return f"its import failed: {' '.join(str(error).split())[:200]}"
    return None


class Running:
    """A transformer that caches, and what it has computed."""

    def __init__(self, transformer: nn.Module, blocks: list[nn.Module], refresh: Callable[[], None]) -> None:
        self.transformer = transformer
        self.blocks = blocks
        self._refresh = refresh
        self._runs = 0
        self._blocks_run = 0

    @contextmanager
    def one_run(self) -> Iterator[None]:
        """Around every run: what the last one left is forgotten, and blocks are counted."""
        self._refresh()
        hooks = [block.register_forward_hook(lambda *_: self._count()) for block in self.blocks]
        try:
            yield
            self._runs += 1
        finally:
            for hook in hooks:
                hook.remove()

    def _count(self) -> None:
        self._blocks_run += 1

    def begin(self) -> None:
        """Before a run that is not counted."""
        self._refresh()

    def share(self, steps: int) -> float:
        """Of the blocks of counted runs of so many steps, those that ran; all cost the same."""
        return self._blocks_run / (self._runs * steps * len(self.blocks))


@dataclass(frozen=True)
class DualBlockCache:
    """One setting.

    Attributes:
        first: blocks that are always run.
        threshold: of the relative L1 change of what they add.
        continuous: calls in a row that may do without the other blocks.
        order: of TaylorSeer's forecast; 0 reuses.
    """

    first: int
    threshold: float
    continuous: int
    order: int

    @property
    def method(self) -> str:
        return "cache-dit DBCache" + (" + TaylorSeer" if self.order else "")

    @property
    def setting(self) -> str:
        order = f", order {self.order}" if self.order else ""
        return f"F{self.first}B0, threshold {self.threshold:g}, {self.continuous} in a row{order}"

    def on(self, transformer: nn.Module, steps: int) -> Running:
        """On a copy of a diffusers DiT: cache-dit does not undo all that it changes.

        Args:
            steps: model calls of a run.

        Raises:
            ImportError: the package is `missing`.
        """
        import cache_dit

        copied = copy.deepcopy(transformer)
        blocks = list(copied.transformer_blocks)  # type: ignore[arg-type]
        forecast = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=self.order) if self.order else None
        config = cache_dit.DBCacheConfig(
            Fn_compute_blocks=self.first,
            Bn_compute_blocks=0,
            max_warmup_steps=max(1, round(WARMUP * steps)),
            residual_diff_threshold=self.threshold,
            max_continuous_cached_steps=self.continuous,
            enable_separate_cfg=False,  # both branches are one call
            num_inference_steps=steps,
        )
        configs = {"cache_config": config} | ({"calibrator_config": forecast} if forecast else {})
        cache_dit.enable_cache(copied, **configs)
        return Running(copied, blocks, lambda: cache_dit.refresh_context(copied, **configs))
