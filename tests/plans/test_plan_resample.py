"""Plans for other steps, sizes and guidance: which cells they take, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_examples import (
    COND_FIRST,
    DIT_12,
    DIT_28,
    LATTE_28,
    NO_GUIDANCE,
    UNCOND_FIRST,
    dpm_solver,
    golden,
    heun,
    synthetic,
)
from plan_strategies import finite, plans

import plans as files
from plans import GuidanceSpec, Method, MlpShape, Plan, SamplerSpec, TemporalShape, Window
from plans.macs import plan_macs, total_macs
from plans.make import fora, taylorseer
from plans.resample import nearest_steps, resampled, rescaled


def at(*timesteps: float, **settings: object) -> SamplerSpec:
    return SamplerSpec(class_name="ByHand", settings=settings, timesteps=timesteps)  # type: ignore[arg-type]


def by_hand(columns: str, *timesteps: float, **changes: object) -> Plan:
    """One step a word, one layer a letter."""
    letters = {method.letter: method for method in Method}
    grid = [[letters[letter] for letter in row] for row in columns.split()]
    model = DIT_12.model_copy(update={"layers": len(grid[0])})
    fields = {"model": model, "sampler": at(*timesteps), "guidance": COND_FIRST} | changes
    return Plan.full(**fields).with_methods(grid)  # type: ignore[arg-type]


def words(plan: Plan, site: str = "attn") -> str:
    return " ".join("".join(method.letter for method in row) for row in plan.sites[site].methods)  # type: ignore[index]


def test_the_nearest_in_timestep_is_not_that_of_the_same_index() -> None:
    plan = by_hand("FF W. CB .W B.", 1000, 900, 800, 700, 100)
    assert words(resampled(plan, at(1000, 420, 90))) == "FF .W B."  # by index the second would be CB
    assert words(resampled(plan, at(999, 850, 849, 400, 399, 0))) == "FF W. CB .W B. B."  # a tie is the noisier one's
    assert words(resampled(plan, at(120, 110))) == "FF B."  # step 0 is computed wherever it is
    assert nearest_steps((5, 3, 3, 1), (9, 4, 3, 3, 3, 2, 1)) == (0, 0, 1, 2, 2, 1, 3)


@pytest.mark.parametrize("name", golden())
def test_the_same_timesteps_have_the_very_same_cells(name: str) -> None:
    plan = golden()[name]
    same = resampled(plan, plan.sampler)
    assert {site: part.methods for site, part in same.sites.items()} == {
        site: part.methods for site, part in plan.sites.items()
    }
    assert (same.model, same.sampler, same.guidance) == (plan.model, plan.sampler, plan.guidance)
    assert all(same.window_of(site) == plan.window_of(site) for site in plan.attention_sites)
    assert same.calibration is None and {loss for row in same.losses for loss in row} == {None}


@st.composite
def other_samplers(draw: st.DrawFn, plan: Plan) -> SamplerSpec:
    """Timesteps of which some are the plan's, some between and some beyond."""
    between = st.floats(min(plan.sampler.timesteps), max(plan.sampler.timesteps))
    times = draw(st.lists(between | st.sampled_from(plan.sampler.timesteps), min_size=1, max_size=9))
    times = [draw(finite), *times] if draw(st.booleans()) else times
    return plan.sampler.model_copy(update={"timesteps": tuple(sorted(times, reverse=True))})


@given(st.data())
def test_every_resampled_plan_is_valid(data: st.DataObject) -> None:
    plan = data.draw(plans())
    sampler = data.draw(other_samplers(plan))
    try:
        found = resampled(plan, sampler)
    except ValueError as error:
        assert "none of them is near" in str(error)
        return
    assert files.loads(files.dumps(found)) == found and found.steps == len(sampler.timesteps)
    assert {method for site in found.sites.values() for method in site.methods[0]} == {Method.FULL}
    before = plan_macs(plan).step_percents
    assert min(before) - 1e-9 <= plan_macs(found).percent <= max(before) + 1e-9
    same = resampled(plan, plan.sampler)
    assert [part.methods for part in same.sites.values()] == [part.methods for part in plan.sites.values()]


def test_every_site_and_the_skipped_steps_come_along() -> None:
    source = Plan.full(model=DIT_12, sampler=dpm_solver(20), guidance=COND_FIRST)
    plan = taylorseer(source, 4, 2).skipping([Method.FULL] * 12 + [Method.AST_1, Method.AST_2] + [Method.FULL] * 6)
    found = resampled(plan, dpm_solver(10))
    assert found.skipped == {6} and total_macs(found).steps[6] == 0
    old = nearest_steps(plan.sampler.timesteps, found.sampler.timesteps)
    for site in ("attn", "mlp"):
        for new, step in enumerate(old):
            was = plan.sites[site].methods[step][0]  # type: ignore[index]
            assert found.sites[site].methods[new][0].reuses_output == was.reuses_output  # type: ignore[index]
    assert found.model.mlp == plan.model.mlp


def test_forecasts_are_lowered_where_outputs_are_missing() -> None:
    plan = by_hand("FF FF FF 21 1W", 1000, 900, 800, 700, 600)
    assert words(resampled(plan, at(1000, 700, 690, 600))) == "FF .. .. .W"
    assert words(resampled(plan, at(1000, 900, 700, 600))) == "FF FF 11 1W"
    assert words(resampled(plan, at(1000, 1000, 700, 600))) == "FF FF .. .W"  # two outputs of one timestep


def test_two_calls_at_one_time() -> None:
    plan = by_hand("FF W. CB .W B.", 1000, 500, 500, 100, 100)
    assert words(resampled(plan, at(1000, 480, 120))) == "FF W. .W"
    assert words(resampled(plan, at(1000, 480, 480, 480, 90, 90))) == "FF W. CB CB .W B."
    thirds = synthetic(DIT_12, heun(10), UNCOND_FIRST)
    assert resampled(thirds, heun(4)).methods[1:3] == thirds.methods[5:7]  # 666 after 999: the fourth time of ten


def test_windows_keep_their_share() -> None:
    assert rescaled(Window(left=32, right=5), 256, 1024) == Window(left=128, right=20)
    assert rescaled(Window(left=3, right=1), 8, 4) == Window(left=2, right=1)  # halves up
    assert rescaled(Window(left=0, right=7), 7, 3) == Window(left=0, right=3)
    plan = synthetic(DIT_12, dpm_solver(10), COND_FIRST)
    large = resampled(plan, plan.sampler, DIT_12.model_copy(update={"tokens": 1024}))
    assert large.window == Window(left=128, right=128) and large.methods == plan.methods
    assert large.model.tokens == 1024 and "1024 tokens instead of 256" in large.note


def test_a_video_of_other_frames() -> None:
    plan = synthetic(LATTE_28, dpm_solver(10), UNCOND_FIRST)
    longer = LATTE_28.model_copy(update={"temporal": TemporalShape(layers=28, frames=32), "tokens": 256})
    found = resampled(plan, plan.sampler, longer)
    assert found.sites["temporal"].methods == plan.sites["temporal"].methods
    assert found.window_of("temporal") == Window(left=4, right=4) and found.window == Window(left=32, right=32)
    assert "256 tokens instead of 1024, 32 frames instead of 16" in found.note
    for other in (None, TemporalShape(layers=14, frames=16)):
        with pytest.raises(ValueError, match=r"another size of its own model only; .*temporal"):
            resampled(plan, plan.sampler, LATTE_28.model_copy(update={"temporal": other}))


def test_without_guidance_nothing_is_shared() -> None:
    plan = by_hand("FFF CBW .CB", 3, 2, 1)
    assert words(resampled(plan, plan.sampler, guidance=NO_GUIDANCE)) == "FFF FWW .FW"
    other = resampled(plan, plan.sampler, guidance=GuidanceSpec(scale=7.5, layout="cond_first"))
    assert other.methods == plan.methods and "guidance 7.5 instead of 4" in other.note


def test_the_note_says_from_what() -> None:
    plan = synthetic(DIT_12, dpm_solver(50), COND_FIRST, note="mine")
    assert resampled(plan, dpm_solver(20)).note == (
        "resampled by timestep from a plan of 50 steps (DPMSolverMultistepScheduler) calibrated with mrae 0.05 to 20 "
        "steps (DPMSolverMultistepScheduler); not calibrated there. That plan's note: mine"
    )
    assert "to the same run; not" in resampled(plan, plan.sampler).note


def test_another_model_is_refused() -> None:
    plan = synthetic(DIT_12, dpm_solver(10), COND_FIRST)
    with pytest.raises(ValueError, match=r"layers: the plan has 12, the other model 28; heads: the plan has 6, .* 16"):
        resampled(plan, plan.sampler, DIT_28)
    with pytest.raises(ValueError, match=r"class_name: the plan has DiT.*, the other model Other"):
        resampled(plan, plan.sampler, DIT_12.model_copy(update={"class_name": "Other"}))
    with pytest.raises(ValueError, match="temporal attention: the plan has none"):
        resampled(plan, plan.sampler, DIT_12.model_copy(update={"temporal": TemporalShape(layers=12, frames=16)}))
    shaped = DIT_12.model_copy(update={"mlp": MlpShape(layers=12, hidden=77)})
    assert resampled(plan, plan.sampler, shaped).model == DIT_12  # a plan that leaves MLPs alone still does
    with pytest.raises(ValueError, match="MLPs' hidden width: the plan has 1536, the other model 77"):
        resampled(fora(plan, 2), plan.sampler, shaped)


def test_timesteps_of_another_noise_are_refused() -> None:
    plan = by_hand("F W C", 1000, 500, 100, sampler=at(1000, 500, 100, beta_end=0.02, solver_order=2))
    assert words(resampled(plan, at(1000, 510, beta_end=0.02, solver_order=3))) == "F W"
    with pytest.raises(ValueError, match=r"has beta_end .*, so the same timestep is another noise"):
        resampled(plan, at(1000, 510, beta_end=0.012))
    for times in ((1.09, 0.5, -1.5), (3000, 2000, 1001)):
        with pytest.raises(ValueError, match="none of them is near one of the plan's; use a sampler that counts time"):
            resampled(plan, at(*times))
