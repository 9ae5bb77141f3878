"""Prepared steps and a model that changes: seen at the next run, or refused, never sampled as it was."""

from typing import Any

import pytest
import torch
from diffusers import DiTPipeline
from prepared_runs import close, run_eagerly
from small_models import random_plan, sample, small_pipeline
from torch import Tensor, nn

from ditfastattn import apply
from ditfastattn.errors import ApplyError, StepError
from ditfastattn.identity import identity_of
from ditfastattn.watch import Watch
from plans import PlanMismatch

pytestmark = pytest.mark.filterwarnings("ignore:no CUDA graphs")


class LoRA(nn.Module):
    """As adapter tools wrap a layer: the layer, two low-rank weights, a scale and a switch."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer
        generator = torch.Generator().manual_seed(1)
        self.down = nn.Parameter(torch.randn(4, layer.in_features, generator=generator) * 0.3)
        self.up = nn.Parameter(torch.randn(layer.out_features, 4, generator=generator) * 0.3)
        self.scaling = {"default": 1.0}
        self.disabled = False

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.base_layer(x)
        if not self.disabled:
            added = added + self.scaling["default"] * (x @ self.down.T @ self.up.T)
        return added


@pytest.mark.parametrize("place", ["to_q", "to_out.0", "norm1.linear", "ff.net.2"])
def test_adapters_come_and_change(pipe: DiTPipeline, place: str) -> None:
    plan, block = random_plan(pipe), pipe.transformer.transformer_blocks[1]
    part = block if place.startswith(("norm1", "ff")) else block.attn1
    with apply(pipe, plan, graphs=True) as session:
        images = [sample(pipe)]
        parent, _, name = place.rpartition(".")
        owner = part.get_submodule(parent) if parent else part
        adapter = LoRA(getattr(owner, name))
        setattr(owner, name, adapter)
        images.append(sample(pipe))
        adapter.scaling["default"] = 0.25
        images.append(sample(pipe))
        adapter.disabled = True
        images.append(sample(pipe))
        assert len([line for line in session.summary().runtime if line.startswith("prepared")]) == 1
    assert close(images[3], images[0])
    assert close(images[3], run_eagerly(pipe, plan))
    adapter.disabled = False
    assert close(images[2], run_eagerly(pipe, plan))
    adapter.scaling["default"] = 1.0
    assert close(images[1], run_eagerly(pipe, plan))
    assert not close(images[1], images[2]) and not close(images[2], images[3])


def test_a_layer_patched_in_place_is_seen(pipe: DiTPipeline) -> None:
    plan, layer = random_plan(pipe), pipe.transformer.transformer_blocks[1].attn1.to_q
    with apply(pipe, plan, graphs=True):
        before = sample(pipe)
        original = layer.forward
        layer.forward = lambda x: 1.5 * original(x)
        patched = sample(pipe)
    assert close(patched, run_eagerly(pipe, plan)) and not close(patched, before)


def test_a_block_replaced_later_is_refused(pipe: DiTPipeline) -> None:
    with apply(pipe, random_plan(pipe), graphs=True):
        sample(pipe)
        block = pipe.transformer.transformer_blocks[2]
        original = block.forward
        block.forward = lambda *args, **kwargs: 2 * original(*args, **kwargs)
        with pytest.raises(StepError, match="the forward of its blocks was replaced"):
            sample(pipe)


def test_weights_that_move_in_mid_run_end_it(pipe: DiTPipeline) -> None:
    def move() -> None:
        for parameter in pipe.transformer.parameters():
            parameter.data = parameter.data.clone()

    step = pipe.scheduler.step
    with apply(pipe, random_plan(pipe), graphs=True):
        sample(pipe)
        applied, calls = pipe.scheduler.step, []

        def moving(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) == 3:
                move()
            return applied(*args, **kwargs)

        pipe.scheduler.step = moving
        with pytest.raises(StepError, match="moved in the middle of a run"):
            sample(pipe)
        pipe.scheduler.__dict__["step"] = applied
        sample(pipe)  # a new run is prepared where they are now
    assert pipe.scheduler.step == step


def test_layerwise_casting_is_refused() -> None:
    pipe = small_pipeline()
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
    with pytest.raises(ApplyError, match=r"hooks"):
        apply(pipe, random_plan(pipe), graphs=True)


def test_hooks_between_two_runs_are_seen(pipe: DiTPipeline) -> None:
    plan = random_plan(pipe)
    with apply(pipe, plan, graphs=True):
        expected = sample(pipe)
        handle = pipe.transformer.transformer_blocks[1].register_forward_hook(lambda *_: None)
        with pytest.raises(StepError, match="changed after the plan was applied"):
            sample(pipe)
        handle.remove()
        assert torch.equal(sample(pipe), expected)


def test_values_in_place_are_no_change_of_identity(pipe: DiTPipeline) -> None:
    model = pipe.transformer
    before = identity_of(model)
    next(model.parameters()).data.mul_(2)
    assert identity_of(model) == before
    model.transformer_blocks[0].attn1.scale = 0.5
    assert identity_of(model) != before


def test_each_shape_keeps_its_kernel_and_its_program(pipe: DiTPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel chosen for one shape only must not make every change of shape prepare anew."""
    from ditfastattn.kernels.sdpa import SDPA

    class Particular(SDPA):
        def __init__(self, shape: torch.Size) -> None:
            super().__init__()
            self.shape = shape

        def not_supported_reasons(self, q: Tensor, window: Any) -> list[str]:
            return [] if q.shape == self.shape else ["another shape"]

    monkeypatch.setattr("ditfastattn.session.make_kernel", lambda name, q, window: Particular(q.shape))
    with apply(pipe, random_plan(pipe), graphs=True) as session:
        for labels in ((1, 2), (1,), (1, 2), (1,)):
            sample(pipe, labels=labels)
        assert len([line for line in session.summary().runtime if line.startswith("prepared")]) == 2
        summary = session.summary()
    assert summary.cache_bytes == summary.peak_cache_bytes == summary.predicted_peak_cache_bytes


def test_many_shapes_can_be_compiled(pipe: DiTPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: original(function, backend="eager", **options))
    torch._dynamo.reset()
    plan = random_plan(pipe, steps=2)
    with apply(pipe, plan, compile=True):
        for images in range(1, 11):  # torch's own limit is 8 compilations of a function
            sample(pipe, steps=2, labels=(1,) * images)
    torch._dynamo.reset()


class Late(Watch):
    """A GPU whose numbers arrive at the end only."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Any] = []

    def post(self, values: Tensor, judge: Any) -> None:
        self.held.append((values, judge))

    def drain(self) -> None:
        while self.held:
            values, judge = self.held.pop(0)
            judge(values.tolist())

    def forget(self) -> None:
        self.held.clear()


@pytest.mark.parametrize("graphs", [False, True])
def test_late_faults_of_a_run_that_stops_early_are_raised(
    pipe: DiTPipeline, graphs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ditfastattn.session.Watch", Late)
    plan = random_plan(pipe)

    def two_steps() -> None:
        pipe.scheduler.set_timesteps(plan.steps)
        latents, labels = torch.randn(1, 4, 8, 8), torch.tensor([1, 1000])
        with torch.no_grad():
            for t in pipe.scheduler.timesteps[:2]:
                both = latents.repeat(2, 1, 1, 1)
                cond, uncond = pipe.transformer(both, timestep=t.expand(2), class_labels=labels).sample[:, :4].chunk(2)
                latents = pipe.scheduler.step(uncond + 2.0 * (cond - uncond), t, latents).prev_sample

    with apply(pipe, plan, graphs=graphs):
        two_steps()
        with pytest.raises(StepError, match=r"(?s)before this one, which ended early, .*guidance scale"):
            pipe.scheduler.set_timesteps(plan.steps)
    session = apply(pipe, plan, graphs=graphs)
    two_steps()
    with pytest.raises(PlanMismatch, match="guidance scale"):
        session.remove()
    assert "forward" not in pipe.transformer.__dict__  # off nevertheless
    with pytest.raises(ValueError, match="of the user's own"), apply(pipe, plan, graphs=graphs):
        two_steps()
        raise ValueError("an error of the user's own")


def test_missing_labels_and_odd_grids_are_said(pipe: DiTPipeline) -> None:
    plan = random_plan(pipe, guidance_scale=1.0)
    timestep = torch.full((2,), plan.sampler.timesteps[0])
    with apply(pipe.transformer, plan, graphs=True), torch.no_grad():
        with pytest.raises(StepError, match="conditioned on class labels"):
            pipe.transformer(torch.randn(2, 4, 8, 8), timestep=timestep)
        with pytest.raises(StepError, match="square latents only, got 4 x 16"):
            pipe.transformer(torch.randn(2, 4, 4, 16), timestep=timestep, class_labels=torch.tensor([1, 2]))
