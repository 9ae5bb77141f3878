"""facebookresearch/DiT as it is: against diffusers' class on the same weights, the formula, and itself."""

from typing import Any

import pytest
import torch
from block_formula import band, layer_norm, linear, softmax_attention
from small_models import TRAINING, random_plan, same
from small_native_dit import (
    CLASSES,
    DiT,
    a_plan,
    attributes,
    close,
    diffusers_pipeline,
    sample_native,
    small_native_dit,
)
from small_pixart import small_pixart_pipeline
from test_methods import SEQUENCES, WINDOW
from torch import Tensor, nn

import ditfastattn
from calibration.errors import CalibrationError
from calibration.subjects import sampled_by
from ditfastattn.cache import Cell, LayerCache, Rows
from ditfastattn.errors import ApplyError, StepError
from ditfastattn.execute import Context, run_block
from ditfastattn.kernels.sdpa import SDPA
from ditfastattn.layout import Layout
from ditfastattn.models import adapt
from ditfastattn.samplers import make_sampler, sampler_spec
from plans import Method, PlanMismatch

STEPS = 8


@pytest.fixture
def native() -> Any:
    return small_native_dit()


# ------------------------------------------------------------------------------------------------------- one block


class Formula:
    """DiTBlock (arXiv 2212.09748, Fig. 3) with the five methods; the first half of the batch is the conditional one."""

    def __init__(self, block: Any) -> None:
        self.block = block
        self.output: Tensor | None = None
        self.residual: Tensor | None = None  # of the whole batch

    def __call__(self, x: Tensor, method: Method, c: Tensor) -> Tensor:
        block = self.block
        parts = linear(c * c.sigmoid(), block.adaLN_modulation[1])[:, None].chunk(6, dim=2)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
        if method is not Method.AST:
            self.output = self.attend(layer_norm(x, 1e-6) * (1 + scale_a) + shift_a, method)
        assert self.output is not None
        x = x + gate_a * self.output
        hidden = layer_norm(x, 1e-6) * (1 + scale_m) + shift_m
        hidden = nn.functional.gelu(linear(hidden, block.mlp.fc1), approximate="tanh")
        return x + gate_m * linear(hidden, block.mlp.fc2)

    def attend(self, x: Tensor, method: Method) -> Tensor:
        q, k, v = linear(x, self.block.attn.qkv).split(48, dim=2)
        full, window = softmax_attention(q, k, v, None), softmax_attention(q, k, v, band(WINDOW, range(16)))
        if method in (Method.FULL, Method.ASC):
            core, self.residual = full, full - window
        else:
            assert self.residual is not None
            core = window + self.residual
        if method in (Method.ASC, Method.WA_RS_ASC):
            core = core[:2].repeat(2, 1, 1)
            if method is Method.ASC:
                self.residual = self.residual[:2].repeat(2, 1, 1)
        return linear(core, self.block.attn.proj)


@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda s: "-".join(name for name, _ in s))
@torch.no_grad()
def test_methods_equal_the_formula(sequence: list[tuple[str, dict[str, Rows]]]) -> None:
    block = adapt(small_native_dit(layers=1).double()).blocks[0]
    formula, cache = Formula(block.module), LayerCache()
    context = Context(SDPA(), WINDOW, Layout.COND_FIRST)
    generator = torch.Generator().manual_seed(0)
    for name, stores in sequence:
        x, c = (torch.randn(4, *size, generator=generator, dtype=torch.float64) for size in ((16, 48), (48,)))
        ours = run_block(block, Cell(Method[name], **stores), cache, context, x, c)
        torch.testing.assert_close(ours, formula(x, Method[name], c), rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------------------ whole runs


def test_an_all_full_plan_changes_no_bit(native: Any) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        native.to(dtype)
        plan = a_plan(native, seed=None)
        latents, y = torch.randn(2, 4, 8, 8).repeat(2, 1, 1, 1).to(dtype), torch.tensor([1, 2, CLASSES, CLASSES])
        calls = [(latents, torch.full((4,), int(t)), y) for t in plan.sampler.timesteps[:3]]
        with torch.no_grad():
            plain = [native(*call) for call in calls]
            with ditfastattn.apply(native, plan) as session:
                assert all(torch.equal(native(*call), expected) for call, expected in zip(calls, plain, strict=True))
        assert session.summary().methods == {Method.FULL: 12}


def test_sample_py_follows_the_plan_as_diffusers_does(native: Any) -> None:
    """The same plan, one call at a time on the same latents, by both classes; guidance added up by the original."""
    plan = a_plan(native)
    pipe = diffusers_pipeline(native)
    latents, y = torch.randn(2, 4, 8, 8).repeat(2, 1, 1, 1), torch.tensor([1, 2, CLASSES, CLASSES])
    other = torch.cat([latents[:2], torch.randn(2, 4, 8, 8)])  # forward_with_cfg reads the first half alone
    for made in (a_plan(native, seed=None), plan):
        with ditfastattn.apply(native, made), ditfastattn.apply(pipe.transformer, made), torch.no_grad():
            for timestep in made.sampler.timesteps:
                t = torch.full((4,), int(timestep))
                expected = pipe.transformer(latents, t, y).sample
                ours = native.forward_with_cfg(other, t, y, cfg_scale=4.0)
                cond, uncond = expected[:, :3].chunk(2)
                guided = (uncond + 4.0 * (cond - uncond)).repeat(2, 1, 1, 1)
                assert close(ours, torch.cat([guided, expected[:, 3:]], 1))


def test_softmax_materialised_by_an_older_timm_agrees_to_rounding() -> None:
    model = small_native_dit(fused=False)
    plan = a_plan(model, seed=None)
    plain = sample_native(model, plan.sampler.timesteps)
    with ditfastattn.apply(model, plan):
        assert close(sample_native(model, plan.sampler.timesteps), plain)


def test_iddpms_timesteps_are_those_of_sample_py(native: Any) -> None:
    """n timesteps of 1000 stand 999 / (n - 1) apart, rounded (improved-diffusion's respacing)."""
    for steps in (8, 50, 250):
        spec = sampler_spec(make_sampler("iddpm", TRAINING), steps)
        assert spec.timesteps == tuple(float(round(k * 999 / (steps - 1))) for k in reversed(range(steps)))
    pipe = diffusers_pipeline(native)
    pipe.scheduler = make_sampler("iddpm", TRAINING)
    with ditfastattn.apply(native, random_plan(pipe, STEPS)) as session:
        sample_native(native, (999, 856, 714, 571, 428, 285, 143, 0))
        assert session.summary().runs_finished == 1


def test_forward_with_cfg_taken_before_the_plan_follows_it(native: Any) -> None:
    plan, entry = a_plan(native), native.forward_with_cfg
    latents, y = torch.randn(4, 4, 8, 8), torch.tensor([1, 2, CLASSES, CLASSES])
    with ditfastattn.apply(native, plan) as session, torch.no_grad():
        for timestep in plan.sampler.timesteps:
            entry(latents, torch.full((4,), int(timestep)), y, 4.0)
        assert session.summary().runs_finished == 1


def test_a_compressed_run_is_repeatable_predictable_and_restored(native: Any) -> None:
    before, plan = attributes(native), a_plan(native)
    plain = sample_native(native, plan.sampler.timesteps)
    with ditfastattn.apply(native, plan) as session:
        compressed = sample_native(native, plan.sampler.timesteps)
        assert torch.equal(sample_native(native, plan.sampler.timesteps), compressed)
        summary = session.summary()
    assert not close(compressed, plain, 1e-2)
    assert len(summary.methods) == 5 and summary.runs_finished == 2
    assert summary.peak_cache_bytes == summary.predicted_peak_cache_bytes > 0
    assert same(before, attributes(native))
    assert torch.equal(sample_native(native, plan.sampler.timesteps), plain)


@pytest.mark.filterwarnings("ignore:no CUDA graphs")
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_prepared_steps_give_what_eager_steps_give(native: Any, seed: int | None) -> None:
    plan, before = a_plan(native, seed), attributes(native)
    runs: list[dict[str, Any]] = [{}, {"labels": (3, 4)}, {"labels": (5, 6, 7)}]
    with ditfastattn.apply(native, plan):
        eager = [sample_native(native, plan.sampler.timesteps, **run) for run in runs]
    with ditfastattn.apply(native, plan, graphs=True) as session:
        prepared = [sample_native(native, plan.sampler.timesteps, **run) for run in runs]
    assert all(close(a, b) for a, b in zip(prepared, eager, strict=True))
    assert session.summary().peak_cache_bytes == session.summary().predicted_peak_cache_bytes
    assert same(before, attributes(native))


@pytest.mark.filterwarnings("ignore:no CUDA graphs")
def test_a_token_order_is_followed(native: Any) -> None:
    plan = a_plan(native, token_order="hilbert")
    pipe = diffusers_pipeline(native)
    latents, y = torch.randn(2, 4, 8, 8).repeat(2, 1, 1, 1), torch.tensor([1, 2, CLASSES, CLASSES])
    calls = [(latents, torch.full((4,), int(t)), y) for t in plan.sampler.timesteps]
    with torch.no_grad():
        with ditfastattn.apply(pipe.transformer, plan):
            expected = [pipe.transformer(*call).sample for call in calls]
        for graphs in (False, True):
            with ditfastattn.apply(native, plan, graphs=graphs):
                assert all(close(native(*call), out) for call, out in zip(calls, expected, strict=True))


def test_compiled_pieces_trace(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile without its code generation, which would take minutes: that every piece is one graph is real."""
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: original(function, backend="eager", **options))
    plan = a_plan(native)
    with ditfastattn.apply(native, plan):
        eager = sample_native(native, plan.sampler.timesteps)
    with ditfastattn.apply(native, plan, compile=True):
        assert close(sample_native(native, plan.sampler.timesteps), eager)
    torch._dynamo.reset()


# ---------------------------------------------------------------------------------------------------- what is refused


def test_runs_that_are_not_the_plans_are_refused(native: Any) -> None:
    plan = a_plan(native)
    latents, t = torch.randn(2, 4, 8, 8).repeat(2, 1, 1, 1), torch.full((4,), int(plan.sampler.timesteps[0]))
    y = torch.tensor([1, 2, CLASSES, CLASSES])
    with ditfastattn.apply(native, plan), torch.no_grad():
        with pytest.raises(PlanMismatch, match="guidance scale: the plan has 4, this run 3"):
            native.forward_with_cfg(latents, t, y, 3.0)
        with pytest.raises(PlanMismatch, match="conditional and an unconditional half in that order"):
            native.forward_with_cfg(latents, t, y.flip(0), cfg_scale=4.0)
        with pytest.raises(PlanMismatch, match="different latents"):
            native(torch.randn(4, 4, 8, 8), t, y)
        with pytest.raises(StepError, match="timestep 7 is not one of the plan's"):
            native(latents, torch.full((4,), 7), y)
        native.forward_with_cfg(latents, t, y, 4.0)


class Defaults(DiT):
    """As a user's own copy may have it."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, depth: int = 4) -> Tensor:
        return super().forward(x, t, torch.full((len(x),), CLASSES) if y is None else y)

    def forward_with_cfg(self, x: Tensor, t: Tensor, y: Tensor, cfg_scale: Any = 4.0) -> Tensor:
        return super().forward_with_cfg(x, t, y, float(cfg_scale) if isinstance(cfg_scale, float) else 4.0)


def test_arguments_with_defaults() -> None:
    native = small_native_dit(cls=Defaults)
    plan = a_plan(native, seed=None)
    x, y = torch.randn(1, 4, 8, 8).repeat(2, 1, 1, 1), torch.tensor([1, CLASSES])
    t = torch.full((2,), int(plan.sampler.timesteps[0]))
    with torch.no_grad():
        expected, guided = native(x, t, y), native.forward_with_cfg(x, t, y)
        for scales in ((), (4.0,), (torch.tensor(4.0),), (torch.full((2, 1, 1, 1), 4.0),)):
            with ditfastattn.apply(native, plan):
                assert torch.equal(native.forward_with_cfg(x, t, y, *scales), guided)
        with ditfastattn.apply(native, plan):
            assert torch.equal(native(x, t, y), expected)
        with ditfastattn.apply(native, plan):
            with pytest.raises(StepError, match=r"brings no labels \(y\)"):
                native(x, t)
            with pytest.raises(StepError, match="also brings depth: call it without"):
                native(x, t, y, depth=3)
            with pytest.raises(StepError, match="one guidance scale for all rows, but cfg_scale= holds 2"):
                native.forward_with_cfg(x, t, y, torch.tensor([4.0, 3.0]))
            with pytest.raises(PlanMismatch, match="the plan has 4, this run 3"):
                native.forward_with_cfg(x, t, y, torch.tensor(3.0))


def test_a_plan_of_another_family_is_refused(native: Any) -> None:
    with pytest.raises(PlanMismatch, match="PixArtTransformer2DModel"):
        ditfastattn.apply(native, random_plan(small_pixart_pipeline(), STEPS))


def test_what_a_plan_would_bypass_is_refused(native: Any) -> None:
    plan = a_plan(native)
    with pytest.raises(ApplyError, match=r"set up for training; call eval\(\)"):
        ditfastattn.apply(native.train(), plan)
    native.eval()
    hook = native.blocks[2].attn.register_forward_hook(lambda *_: None)
    with pytest.raises(ApplyError, match="block 2: attn carries hooks"):
        ditfastattn.apply(native, plan)
    hook.remove()
    with pytest.raises(ApplyError, match="sets the attention processors of diffusers' models, and DiT has none"):
        ditfastattn.use_kernel(native, "sdpa")
    with pytest.raises(CalibrationError, match=r"give --model its \.pt checkpoint"):
        sampled_by(native)


# ------------------------------------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
def test_compiled_and_captured_steps_give_what_eager_steps_give() -> None:
    plan = a_plan(small_native_dit(), seed=2)
    model = small_native_dit().to("cuda")
    latents, y = torch.randn(2, 4, 8, 8).repeat(2, 1, 1, 1).cuda(), torch.tensor([1, 2, CLASSES, CLASSES]).cuda()
    calls = [(latents, torch.full((4,), int(t)).cuda(), y) for t in plan.sampler.timesteps]
    with torch.no_grad():
        with ditfastattn.apply(model, plan):
            eager = [model(*call) for call in calls]
        with ditfastattn.apply(model, plan, compile=True, graphs=True) as session:
            prepared = [model(*call) for call in calls]
    assert all(close(a, b, 1e-3) for a, b in zip(prepared, eager, strict=True))
    assert "CUDA graphs" in str(session.summary())
