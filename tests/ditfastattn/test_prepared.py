"""Prepared steps: what eager steps give, for the shape and the weights of the very run."""

from typing import Any

import pytest
import torch
from diffusers import DiTPipeline
from prepared_runs import close, run_eagerly, steps_without_waiting
from small_models import everything, full_plan, random_plan, same, sample, small_pipeline
from torch._dynamo.utils import counters

from ditfastattn import apply
from ditfastattn.errors import ApplyError, StepError
from ditfastattn.models import adapt
from plans import PlanMismatch
from plans.method import PAPER

pytestmark = pytest.mark.filterwarnings("ignore:no CUDA graphs")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("guidance_scale", [4.0, 1.0])
def test_they_give_what_eager_steps_give(pipe: DiTPipeline, seed: int, guidance_scale: float) -> None:
    plan = random_plan(pipe, seed=seed, guidance_scale=guidance_scale)
    runs: list[dict[str, Any]] = [{"labels": (1, 2)}, {"labels": (3, 4)}, {"labels": (5, 6, 7)}, {"labels": (3, 4)}]
    for run in runs:
        run["guidance_scale"] = guidance_scale
    with apply(pipe, plan):
        eager = [sample(pipe, **run) for run in runs]
    with apply(pipe, plan, graphs=True) as session:
        prepared = [sample(pipe, **run) for run in runs]
        summary = session.summary()
    assert all(close(a, b) for a, b in zip(prepared, eager, strict=True))
    assert torch.equal(prepared[1], prepared[3])
    assert summary.runs_finished == 4
    assert summary.peak_cache_bytes == summary.predicted_peak_cache_bytes > 0


def test_a_token_order_is_followed(pipe: DiTPipeline) -> None:
    plan = random_plan(pipe).model_copy(update={"token_order": "hilbert"})
    with apply(pipe, plan):
        eager = sample(pipe)
    with apply(pipe, plan, graphs=True):
        assert close(sample(pipe), eager)
    assert not close(eager, run_eagerly(pipe, random_plan(pipe)))


def test_all_full_is_the_model(pipe: DiTPipeline) -> None:
    expected = sample(pipe)
    with apply(pipe, full_plan(pipe), graphs=True) as session:
        assert close(sample(pipe), expected)
    assert session.summary().peak_cache_bytes == 0


def test_everything_is_put_back(pipe: DiTPipeline) -> None:
    before = everything(pipe)
    with apply(pipe, random_plan(pipe), graphs=True):
        sample(pipe)
    assert same(before, everything(pipe))


def test_a_run_may_begin_in_the_middle(pipe: DiTPipeline) -> None:
    plan = random_plan(pipe)
    latents = torch.randn(2, 4, 8, 8).repeat(2, 1, 1, 1)
    labels = torch.tensor([1, 2, 1000, 1000])

    def run(session: Any) -> torch.Tensor:
        session.expect_new_run()
        with torch.no_grad():
            for step in range(3, plan.steps):
                timestep = torch.full((4,), plan.sampler.timesteps[step])
                output = pipe.transformer(latents, timestep=timestep, class_labels=labels).sample
        return output

    with apply(pipe.transformer, plan) as session:
        eager = run(session)
    with apply(pipe.transformer, plan, graphs=True) as session:
        assert close(run(session), eager)


def test_weights_changed_in_place_are_seen(pipe: DiTPipeline) -> None:
    plan = random_plan(pipe)
    with apply(pipe, plan, graphs=True) as session:
        sample(pipe)
        block = pipe.transformer.transformer_blocks[1]
        for weight in (block.attn1.to_k.weight, block.attn1.to_k.bias, block.ff.net[2].weight):
            weight.data.mul_(1.5)  # what merging an adapter does: no version counter sees it
        changed = sample(pipe)
        assert len(session.summary().runtime) == 3  # prepared once
    assert close(changed, run_eagerly(pipe, plan))


def test_weights_that_moved_are_prepared_anew(pipe: DiTPipeline) -> None:
    plan = random_plan(pipe)
    with apply(pipe, plan, graphs=True):
        sample(pipe)
        for parameter in pipe.transformer.parameters():
            parameter.data = parameter.data * 1.25
        changed = sample(pipe)
    assert close(changed, run_eagerly(pipe, plan))


def test_runs_in_inference_mode_and_out_of_it(pipe: DiTPipeline) -> None:
    with apply(pipe, random_plan(pipe), graphs=True):
        with torch.inference_mode():
            first = sample(pipe)
        assert torch.equal(sample(pipe), first)


def test_what_cannot_be_prepared_is_refused(pipe: DiTPipeline) -> None:
    plan = random_plan(pipe)
    with apply(pipe, plan, graphs=True):
        with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(StepError, match="autocast"):
            sample(pipe)
        latents = torch.randn(4, 4, 8, 8, requires_grad=True)
        with pytest.raises((StepError, PlanMismatch)):
            pipe.transformer(latents, timestep=torch.full((4,), 999), class_labels=torch.tensor([1, 2, 1000, 1000]))
        sample(pipe)
    hook = pipe.transformer.transformer_blocks[0].ff.register_forward_hook(lambda *_: None)
    with pytest.raises(ApplyError, match=r"transformer_blocks\.0\.ff carry forward hooks"):
        apply(pipe, plan, graphs=True)
    hook.remove()
    with apply(pipe, plan, graphs=True):
        pipe.transformer.transformer_blocks[0].ff.register_forward_hook(lambda *_: None)
        with pytest.raises(StepError, match="carry forward hooks"):
            sample(pipe)


def test_another_condition_in_mid_run_is_refused(pipe: DiTPipeline) -> None:
    plan = random_plan(pipe)
    latents = torch.randn(2, 4, 8, 8).repeat(2, 1, 1, 1)
    with apply(pipe.transformer, plan, graphs=True), torch.no_grad():
        first, second = (torch.tensor([a, b, 1000, 1000]) for a, b in ((1, 2), (1, 3)))
        pipe.transformer(latents, timestep=torch.full((4,), plan.sampler.timesteps[0]), class_labels=first)
        with pytest.raises(StepError, match="another condition"):
            pipe.transformer(latents, timestep=torch.full((4,), plan.sampler.timesteps[1]), class_labels=second)


def test_a_label_buffer_changed_in_place_is_another_condition(pipe: DiTPipeline) -> None:
    plan = random_plan(pipe)
    latents, labels = torch.randn(2, 4, 8, 8).repeat(2, 1, 1, 1), torch.tensor([1, 2, 1000, 1000])
    with apply(pipe.transformer, plan, graphs=True), torch.no_grad():
        pipe.transformer(latents, timestep=torch.full((4,), plan.sampler.timesteps[0]), class_labels=labels)
        labels[0] = 5
        with pytest.raises(StepError, match="another condition"):
            pipe.transformer(latents, timestep=torch.full((4,), plan.sampler.timesteps[1]), class_labels=labels)


def test_five_compilations_a_block_class_and_none_while_sampling(graph_breaks_only: None) -> None:
    pipe = small_pipeline(layers=6)
    plan = random_plan(pipe, steps=12)
    assert {method for row in plan.methods for method in row} == set(PAPER)
    eager = run_eagerly(pipe, plan)
    with apply(pipe, plan, compile=True) as session:
        first = sample(pipe, steps=12)
        compiled = counters["stats"]["unique_graphs"]
        assert compiled <= 5 + 2  # of the block; the embedding and the head are no blocks
        assert torch.equal(sample(pipe, steps=12), first)
        assert torch.equal(sample(pipe, steps=12, labels=(3, 4)), sample(pipe, steps=12, labels=(3, 4)))
        assert counters["stats"]["unique_graphs"] == compiled
        assert "compiled" in str(session.summary())
    assert close(first, eager)


# ------------------------------------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
def test_compiled_and_captured_steps_give_what_eager_steps_give(gpu_pipe: DiTPipeline) -> None:
    plan = random_plan(gpu_pipe, seed=2)
    eager = run_eagerly(gpu_pipe, plan)
    with apply(gpu_pipe, plan, compile=True, graphs=True) as session:
        first = sample(gpu_pipe)
        assert (first - eager).norm() < 1e-3 * eager.norm()
        other = sample(gpu_pipe, labels=(3, 4, 5))
        assert torch.equal(sample(gpu_pipe), first)
        assert torch.equal(sample(gpu_pipe, labels=(3, 4, 5)), other)
        summary = session.summary()
        assert "CUDA graphs" in str(summary)
        assert summary.peak_cache_bytes == summary.predicted_peak_cache_bytes
    with apply(gpu_pipe, plan):
        assert (sample(gpu_pipe, labels=(3, 4, 5)) - other).norm() < 1e-3 * other.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_captured_steps_in_half_precision(gpu_pipe: DiTPipeline, dtype: torch.dtype) -> None:
    gpu_pipe.to(dtype=dtype)
    plan = random_plan(gpu_pipe, seed=3)
    eager = run_eagerly(gpu_pipe, plan).float()
    with apply(gpu_pipe, plan, graphs=True):
        assert (sample(gpu_pipe).float() - eager).norm() < (0.02 if dtype is torch.float16 else 0.1) * eager.norm()


@pytest.mark.gpu
def test_a_step_in_mid_run_waits_for_nothing(gpu_pipe: DiTPipeline) -> None:
    plan = random_plan(gpu_pipe)
    assert steps_without_waiting(gpu_pipe, plan) == plan.steps


@pytest.mark.gpu
def test_captured_steps_see_weights_changed_in_place_and_moved(gpu_pipe: DiTPipeline) -> None:
    plan = random_plan(gpu_pipe)
    with apply(gpu_pipe, plan, graphs=True):
        sample(gpu_pipe)
        for change in ("in place", "moved"):
            for parameter in gpu_pipe.transformer.transformer_blocks.parameters():
                if change == "in place":
                    parameter.data.mul_(1.1)
                else:
                    parameter.data = parameter.data * 1.1
            changed = sample(gpu_pipe)
            reference = small_pipeline().to("cuda")
            reference.transformer.load_state_dict(gpu_pipe.transformer.state_dict())
            assert (changed - run_eagerly(reference, plan)).norm() < 1e-3 * changed.norm()


@pytest.mark.gpu
def test_wrong_guidance_is_refused_before_the_run_ends(gpu_pipe: DiTPipeline) -> None:
    with apply(gpu_pipe, random_plan(gpu_pipe), graphs=True), pytest.raises(PlanMismatch, match="guidance scale"):
        sample(gpu_pipe, guidance_scale=3.0)


@pytest.mark.gpu
@pytest.mark.filterwarnings("default:no CUDA graphs")
def test_what_cannot_be_captured_is_launched_and_said(gpu_pipe: DiTPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = random_plan(gpu_pipe)
    eager = run_eagerly(gpu_pipe, plan)
    head = type(_adapter(gpu_pipe)).head

    def waiting(self: Any, *args: Any) -> torch.Tensor:
        output = head(self, *args)
        output.sum().item()  # a captured stream cannot be waited for
        return output

    monkeypatch.setattr(type(_adapter(gpu_pipe)), "head", waiting)
    with apply(gpu_pipe, plan, graphs=True) as session:
        with pytest.warns(UserWarning, match="a step could not be captured"):
            assert (sample(gpu_pipe) - eager).norm() < 1e-3 * eager.norm()
        assert "no CUDA graphs" in str(session.summary())
    state = torch.cuda.get_rng_state()
    drawn = torch.randn(3, device="cuda")  # a generator that a failed capture had left behind would refuse
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.randn(3, device="cuda"), drawn)


def _adapter(pipe: DiTPipeline) -> Any:
    return adapt(pipe.transformer)
