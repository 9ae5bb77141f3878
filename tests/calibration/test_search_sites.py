"""Algorithm 1 over the attention of frames and between frames: Latte, and blocks that hold both."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_latte import FRAMES, small_latte_pipeline
from small_models import TRAINING, full_plan
from small_pixart import prompts
from small_two_sites import TwoSites, TwoSitesAdapter, pipeline_of, small_two_sites
from torch import Tensor

import ditfastattn
from calibration.search import Found, filled_in, search
from calibration.settings import Settings
from ditfastattn.models import REGISTRY, adapt
from ditfastattn.models.base import Call
from ditfastattn.samplers import make_sampler
from plans import Method, Plan, TokenOrder

STEPS, SCALE = 5, 4.0


class Run:
    """A guided sampling run on given prompts: what ``ditfastattn.sampling.Trajectory`` is for labels."""

    def __init__(
        self, pipe: Any, plan: Plan, latents: Tensor, text: Tensor, predict: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> None:
        self.latents, self.text, self._predict = latents, text, predict
        self.uncond_first = plan.guidance.layout == "uncond_first"
        self.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        self.scheduler.set_timesteps(plan.steps)

    @torch.no_grad()
    def predict(self, step: int) -> Tensor:
        rows = torch.cat([self.latents, self.latents])
        return self._predict(rows, self.scheduler.timesteps[step].expand(len(rows)), self.text)

    def advance(self, step: int, output: Tensor) -> None:
        first, second = output[:, : self.latents.shape[1]].chunk(2)
        uncond, cond = (first, second) if self.uncond_first else (second, first)
        guided = uncond + SCALE * (cond - uncond)
        self.latents = self.scheduler.step(guided, self.scheduler.timesteps[step], self.latents).prev_sample

    @property
    def call(self) -> Call:
        return Call(torch.cat([self.latents, self.latents]), None, self.text)


def latte() -> tuple[Any, Callable[[Plan], Run]]:
    """A pipeline, and what begins a run of it."""
    pipe = small_latte_pipeline("ddim")
    given = prompts(1)
    text = torch.cat([given["negative_prompt_embeds"], given["prompt_embeds"]])
    latents = torch.randn(1, 4, FRAMES, 8, 8, generator=torch.Generator().manual_seed(0))
    return pipe, lambda plan: Run(pipe, plan, latents, text, lambda x, t, c: pipe.transformer(x, t, c).sample)


def two_sites() -> tuple[Any, Callable[[Plan], Run]]:
    generator = torch.Generator().manual_seed(0)
    pipe = pipeline_of(small_two_sites(), make_sampler("ddim", TRAINING))
    latents, text = torch.randn(1, 4, 3, 2, 3, generator=generator), torch.randn(2, 16, generator=generator)
    return pipe, lambda plan: Run(pipe, plan, latents, text, pipe.transformer)


@pytest.fixture(autouse=True)
def known(registry: None) -> None:
    REGISTRY.add(TwoSites, TwoSitesAdapter)


@torch.no_grad()
def found(
    make: Any, how: str = "replay", threshold: float = 0.5, order: TokenOrder = "raster"
) -> tuple[Found, Run, Any, Callable[[Plan], Run]]:
    pipe, begin = make()
    plan = full_plan(pipe, STEPS, SCALE).model_copy(update={"token_order": order})
    run = begin(plan)
    settings = Settings(threshold=threshold, labels=(0,), steps=STEPS, guidance_scale=SCALE, search=how)
    return search(adapt(pipe.transformer), plan, run, run.call, settings), run, pipe, begin


@pytest.mark.parametrize(
    ("make", "threshold", "order"),
    [(latte, 0.15, "raster"), (latte, 0.5, "raster"), (latte, 0.15, "hilbert"), (two_sites, 1.2, "raster")],
)
def test_replay_is_plain_and_a_session_ends_where_the_search_ended(make: Any, threshold: float, order: Any) -> None:
    replay, ours, pipe, begin = found(make, "replay", threshold, order)
    plain, theirs, _, _ = found(make, "plain", threshold, order)
    assert replay.decisions == plain.decisions and torch.equal(ours.latents, theirs.latents)
    assert replay.block_runs < 0.8 * plain.block_runs == 0.8 * replay.plain_block_runs
    methods = {site: {m for row in cells.methods for m in row} for site, cells in replay.plan.sites.items()}
    assert len(methods["attn"] | methods["temporal"]) > 2 and all(len(used) > 1 for used in methods.values())

    with ditfastattn.apply(pipe.transformer, replay.plan) as session:
        run = begin(replay.plan)
        for step in range(STEPS):
            run.advance(step, run.predict(step))
    torch.testing.assert_close(run.latents, ours.latents, rtol=1e-4, atol=1e-5)
    assert session.summary().methods == {
        m: count for m in Method if (count := sum(d.methods.count(m) for d in replay.decisions))
    }


def test_limits_grow_over_all_attention_in_the_order_in_which_it_runs() -> None:
    """4 attentions, spatial and temporal in turn: the limits of one step are delta times 1/4, 2/4, 3/4 and 1."""
    replay, _, pipe, _ = found(latte, threshold=0.1)
    places = adapt(pipe.transformer).places
    assert [place.site for place in places] == ["attn", "temporal"] * 2
    for decision in replay.decisions[1:]:
        limits = {trial.layer: trial.limit for trial in decision.trials}
        assert limits == pytest.approx({layer: 0.1 * (layer + 1) / 4 for layer in range(4)})
    for step, decision in enumerate(replay.decisions):
        for (site, layer), method, loss in zip(places, decision.methods, decision.losses, strict=True):
            assert replay.plan.sites[site].methods[step][layer] is method
            assert replay.plan.sites[site].losses[step][layer] == loss
    assert filled_in(replay.plan, [site for site, _ in places], replay.decisions) == replay.plan
