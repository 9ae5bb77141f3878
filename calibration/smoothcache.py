"""What SmoothCache (arXiv 2411.10510) decides by: how far each kind of layer's outputs change over a few steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibration.calibrate import alone
from calibration.parts import Parts
from calibration.settings import Settings
from plans import CrossShape, Plan, SiteName

LONGEST = 3  # steps over which anything is reused at most, as in the authors' code


@torch.no_grad()
def smoothcache_errors(
    pipe: Any, settings: Settings, longest: int = LONGEST
) -> tuple[Plan, dict[SiteName, list[list[float]]]]:
    """The all-FULL plan of the settings, with every site that can be reached, and the errors that
    `plans.make.smoothcache` turns it into another with.

    One uncompressed run of the settings' images. Errors of every site, longest x steps: at [k - 1][t] the
    relative L1 error |O_t - O_t+k| / |O_t+k| of a layer's output over the whole batch, both guidance branches together,
    averaged over the site's layers; NaN where step t + k is not there.
    """
    work = alone(pipe, settings)
    plan, adapter = work.plan, work.adapter
    if adapter.cross_layers:
        assert work.call.condition is not None
        plan = plan.with_cross(CrossShape(layers=adapter.cross_layers, words=work.call.condition.shape[-2]))
    if adapter.mlp is not None:
        plan = plan.with_mlp(adapter.mlp)
    with work.bench() as probe:
        parts = Parts(probe, plan.model.sites)
        change = _Change(len(parts), plan.steps, longest)
        run = work.run.fork()
        for step in range(plan.steps):
            run.advance(step, parts.call(lambda step=step: run.predict(step), change))  # type: ignore[misc]
            change.step += 1
    sites = [part.site for part in parts.parts]
    means = {
        site: change.errors[[index for index, other in enumerate(sites) if other == site]].mean(0).tolist()
        for site in dict.fromkeys(sites)
    }
    return plan, means


class _Change:
    """Sees every output of a run, and compares it with those of the steps before."""

    def __init__(self, parts: int, steps: int, longest: int) -> None:
        self.errors = np.full((parts, longest, steps), np.nan)
        self.step = 0
        self._longest = longest
        self._past: list[list[Tensor]] = [[] for _ in range(parts)]  # the last step first

    def attention(self, part: int, output: Tensor, q: Tensor, k: Tensor, v: Tensor, core: Tensor) -> Tensor:
        return self.follower(part, output)

    def follower(self, part: int, output: Tensor) -> Tensor:
        now = output.float()
        for age, past in enumerate(self._past[part], start=1):
            self.errors[part, age - 1, self.step - age] = float((past - now).abs().sum() / now.abs().sum())
        self._past[part].insert(0, now)
        del self._past[part][self._longest :]
        return output
