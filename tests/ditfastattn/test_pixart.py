"""PixArt: each method against the block's formula in float64, and whole runs."""

from typing import Any

import pytest
import torch
from block_formula import band, layer_norm, linear, softmax_attention
from small_models import everything, full_plan, random_plan, same
from small_pixart import WIDTH, WORDS, prompts, sample_pixart, small_pixart, small_pixart_pipeline
from test_methods import SEQUENCES, WINDOW
from torch import Tensor

import ditfastattn
from ditfastattn.cache import Cell, LayerCache, Rows
from ditfastattn.execute import Context, run_block
from ditfastattn.kernels.sdpa import SDPA
from ditfastattn.layout import Layout
from ditfastattn.models import adapt
from plans import GuidanceSpec, Method, Plan, SamplerSpec

STEPS = 8


@pytest.fixture
def pixart() -> Any:
    return small_pixart_pipeline()


# ------------------------------------------------------------------------------------------------------- one block


class Formula:
    """The PixArt block (arXiv 2310.00426, Sec. 2.3) with the five methods; a guided batch is [uncond, cond]."""

    def __init__(self, block: Any) -> None:
        self.block = block
        self.output: Tensor | None = None
        self.residual: Tensor | None = None  # of the whole batch

    def __call__(self, x: Tensor, method: Method, t: Tensor, text: Tensor, visible: Tensor) -> Tensor:
        block = self.block
        six = [block.scale_shift_table[i] + t[:, i * 48 : (i + 1) * 48] for i in range(6)]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (part[:, None] for part in six)
        if method is not Method.AST:
            self.output = self.attend(layer_norm(x, 1e-6) * (1 + scale_a) + shift_a, method)
        assert self.output is not None
        x = x + gate_a * self.output
        x = x + self.look_at(text, visible, x)
        hidden = layer_norm(x, 1e-6) * (1 + scale_m) + shift_m
        hidden = torch.nn.functional.gelu(linear(hidden, block.ff.net[0].proj), approximate="tanh")
        return x + gate_m * linear(hidden, block.ff.net[2])

    def attend(self, x: Tensor, method: Method) -> Tensor:
        attention = self.block.attn1
        q, k, v = (linear(x, m) for m in (attention.to_q, attention.to_k, attention.to_v))
        full, window = softmax_attention(q, k, v, None), softmax_attention(q, k, v, band(WINDOW, range(q.shape[1])))
        if method in (Method.FULL, Method.ASC):
            core, self.residual = full, full - window
        else:
            assert self.residual is not None
            core = window + self.residual
        if method in (Method.ASC, Method.WA_RS_ASC):
            core = core[len(core) // 2 :].repeat(2, 1, 1)  # the second half is the conditional one
            if method is Method.ASC:
                self.residual = self.residual[len(core) // 2 :].repeat(2, 1, 1)
        return linear(core, attention.to_out[0])

    def look_at(self, text: Tensor, visible: Tensor, x: Tensor) -> Tensor:
        """Cross-attention, a row at a time, over the words that its mask shows."""
        attention = self.block.attn2
        rows = []
        for row, words, seen in zip(x, text, visible, strict=True):
            words = words[seen.bool()]
            q = linear(row, attention.to_q).reshape(-1, 2, 24).transpose(0, 1)
            k, v = (linear(words, m).reshape(-1, 2, 24).transpose(0, 1) for m in (attention.to_k, attention.to_v))
            weights = (q @ k.transpose(1, 2) / 24**0.5).softmax(-1)
            rows.append(linear((weights @ v).transpose(0, 1).reshape(-1, 48), attention.to_out[0]))
        return torch.stack(rows)


def block_inputs(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, t, text = (torch.randn(4, *size, generator=generator).to(dtype) for size in ((16, 48), (6 * 48,), (WORDS, 48)))
    visible = torch.arange(WORDS) < torch.tensor([5, 1, 3, 2])[:, None]
    return {"x": x, "t": t, "text": text, "visible": visible}


def run(block: Any, cell: Cell, cache: LayerCache, x: Tensor, t: Tensor, text: Tensor, visible: Tensor) -> Tensor:
    context = Context(SDPA(), WINDOW, Layout.UNCOND_FIRST)
    bias = ((~visible).to(x.dtype) * -10000.0)[:, None]
    return run_block(
        block, cell, cache, context, x, encoder_hidden_states=text, encoder_attention_mask=bias, timestep=t
    )


@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda s: "-".join(name for name, _ in s))
@torch.no_grad()
def test_methods_equal_the_formula(sequence: list[tuple[str, dict[str, Rows]]]) -> None:
    block = adapt(small_pixart(layers=1).double()).blocks[0]
    formula, cache = Formula(block.module), LayerCache()
    for step, (name, stores) in enumerate(sequence):
        inputs = block_inputs(step)
        ours = run(block, Cell(Method[name], **stores), cache, **inputs)
        expected = formula(inputs["x"], Method[name], inputs["t"], inputs["text"], inputs["visible"])
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stored", [Rows.WHOLE_BATCH, Rows.CONDITIONAL_HALF])
@pytest.mark.parametrize("method", [Method.ASC, Method.WA_RS_ASC])
@torch.no_grad()
def test_guidance_sharing_keeps_the_conditional_half_exactly(method: Method, stored: Rows) -> None:
    """The second half is what FULL makes of it; the first is not, since its attention is the second's."""
    block = adapt(small_pixart(layers=1).double()).blocks[0]
    cache, inputs = LayerCache(), block_inputs(0)
    full = run(block, Cell(Method.FULL, store_residual=stored), cache, **inputs)
    shared = run(block, Cell(method), cache, **inputs)
    # The residual of these very inputs makes window + residual full attention again, to float64's rounding.
    torch.testing.assert_close(shared[2:], full[2:], rtol=1e-12, atol=1e-12)
    assert method is not Method.ASC or torch.equal(shared[2:], full[2:])
    assert (shared[:2] - full[:2]).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_uncompressed_block_is_bit_identical_to_diffusers(dtype: torch.dtype) -> None:
    block = adapt(small_pixart(layers=1).to(dtype)).blocks[0]
    inputs = block_inputs(0, dtype)
    cell = Cell(Method.FULL, store_output=Rows.WHOLE_BATCH, store_residual=Rows.WHOLE_BATCH)
    bias = ((~inputs["visible"]).to(dtype) * -10000.0)[:, None]
    theirs = block.module(
        inputs["x"], encoder_hidden_states=inputs["text"], encoder_attention_mask=bias, timestep=inputs["t"]
    )
    assert torch.equal(run(block, cell, LayerCache(), **inputs), theirs)


@torch.no_grad()
def test_modulation_that_feeds_attention_only_is_not_computed() -> None:
    block = adapt(small_pixart(layers=1)).blocks[0]
    x, t = torch.randn(4, 16, 48), torch.randn(4, 6 * 48)
    skipped, whole = (block.begin(x, timestep=t, skip_attention=skip) for skip in (True, False))
    assert skipped.shift_attn is None and skipped.scale_attn is None and whole.scale_attn is not None
    for name in ("gate_attn", "shift_mlp", "scale_mlp", "gate_mlp"):
        assert torch.equal(getattr(skipped, name), getattr(whole, name))


# ------------------------------------------------------------------------------------------------------ whole runs


@pytest.mark.parametrize("sigma", [True, False])
@pytest.mark.parametrize("scale", [4.0, 1.0])
def test_an_all_full_plan_changes_no_bit(sigma: bool, scale: float) -> None:
    pipe = small_pixart_pipeline(sigma)
    plain = sample_pixart(pipe, guidance_scale=scale)
    with ditfastattn.apply(pipe, full_plan(pipe, STEPS, scale)) as session:
        assert torch.equal(sample_pixart(pipe, guidance_scale=scale), plain)
    assert session.summary().methods == {Method.FULL: 4 * STEPS}


def test_a_stochastic_sampler_keeps_its_generator() -> None:
    """PixArt's pipelines ask by the signature of ``scheduler.step`` whether to hand it over."""
    pipe = small_pixart_pipeline(sampler="ddpm")
    before = sample_pixart(pipe, STEPS)
    with ditfastattn.apply(pipe, full_plan(pipe, STEPS)):
        assert torch.equal(sample_pixart(pipe, STEPS), before)


def test_sizes_of_the_image_pass_through() -> None:
    """PixArt-alpha at 1024 px also embeds resolution and aspect ratio."""
    pipe = small_pixart_pipeline(use_additional_conditions=True, caption_channels=None, cross_attention_dim=WIDTH)
    sizes = {"resolution": torch.tensor([[16.0, 16.0]] * 4), "aspect_ratio": torch.ones(4, 1)}
    call = {"added_cond_kwargs": sizes, "encoder_hidden_states": torch.randn(4, WORDS, WIDTH)}
    plan = full_plan(pipe, STEPS)
    latents, t = torch.randn(2, 4, 8, 8).repeat(2, 1, 1, 1), torch.full((4,), plan.sampler.timesteps[0])
    with torch.no_grad():
        plain = pipe.transformer(latents, timestep=t, **call).sample
        with ditfastattn.apply(pipe.transformer, plan):
            assert torch.equal(pipe.transformer(latents, timestep=t, **call).sample, plain)


def test_a_compressed_run_is_finite_predictable_and_restored(pixart: Any) -> None:
    before = everything(pixart)
    plain = sample_pixart(pixart)
    with ditfastattn.apply(pixart, random_plan(pixart, STEPS)) as session:
        compressed = sample_pixart(pixart)
        assert torch.equal(sample_pixart(pixart), compressed)
        summary = session.summary()
    assert compressed.isfinite().all() and not torch.equal(compressed, plain)
    assert len(summary.methods) == 5 and summary.peak_cache_bytes == summary.predicted_peak_cache_bytes
    assert same(before, everything(pixart))
    assert torch.equal(sample_pixart(pixart), plain)


@pytest.mark.filterwarnings("ignore:no CUDA graphs")
@pytest.mark.parametrize("sigma", [True, False])
def test_prepared_steps_give_what_eager_steps_give(sigma: bool) -> None:
    """Everything but the compiler and the graphs: modulations ahead of time, prompts in buffers, the arena."""
    pipe = small_pixart_pipeline(sigma, cross_attention_dim=48, caption_channels=WIDTH)
    for plan in (full_plan(pipe, STEPS), random_plan(pipe, STEPS)):
        with ditfastattn.apply(pipe, plan):
            eager = [sample_pixart(pipe), sample_pixart(pipe, **prompts(seed=1))]
        with ditfastattn.apply(pipe, plan, graphs=True):
            prepared = [sample_pixart(pipe), sample_pixart(pipe, **prompts(seed=1))]
        for ours, expected in zip(prepared, eager, strict=True):
            assert (ours - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.filterwarnings("ignore:no CUDA graphs")
@torch.no_grad()
def test_prepared_steps_take_sizes_and_prompts_without_a_mask() -> None:
    pipe = small_pixart_pipeline(use_additional_conditions=True, caption_channels=None, cross_attention_dim=WIDTH)
    sizes = {"resolution": torch.tensor([[16.0, 16.0]] * 4), "aspect_ratio": torch.ones(4, 1)}
    plan = full_plan(pipe, STEPS)
    latents, text = torch.randn(2, 4, 8, 8).repeat(2, 1, 1, 1), torch.randn(4, WORDS, WIDTH)
    bias = torch.zeros(4, 1, WORDS)
    bias[1:, :, 3:] = -10000.0
    for mask in (None, bias):
        given = {"added_cond_kwargs": sizes, "encoder_attention_mask": mask, "return_dict": False}
        calls = [(latents, text, torch.full((4,), t)) for t in plan.sampler.timesteps[:2]]
        plain = [pipe.transformer(*call, **given)[0] for call in calls]
        with ditfastattn.apply(pipe.transformer, plan, graphs=True):
            for call, expected in zip(calls, plain, strict=True):
                torch.testing.assert_close(pipe.transformer(*call, **given)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:no CUDA graphs")
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("method", [Method.ASC, Method.WA_RS_ASC])
@torch.no_grad()
def test_the_conditional_half_of_the_model_output_is_kept(method: Method, graphs: bool) -> None:
    """Two calls at one time with the same latents: what the second shares, or adds to its windows, is the conditional
    half of the first, in every layer, so that its conditional output is that of full attention."""
    model = small_pixart().double()
    sampler = SamplerSpec(class_name="Twice", settings={}, timesteps=(500.0, 500.0))
    plan = Plan.full(
        model=adapt(model).spec(), sampler=sampler, guidance=GuidanceSpec(scale=4.5, layout="uncond_first")
    )
    plan = plan.with_methods([[Method.FULL] * 4, [method] * 4])
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)).double().repeat(2, 1, 1, 1)
    text = torch.cat([prompts()["negative_prompt_embeds"], prompts()["prompt_embeds"]]).double()
    with ditfastattn.apply(model, plan, graphs=graphs) as session:
        session.expect_new_run()
        full, shared = (model(latents, text, torch.full((4,), 500.0)).sample for _ in range(2))
    torch.testing.assert_close(shared[2:], full[2:], rtol=1e-10, atol=1e-10)
    assert (shared[:2] - full[:2]).abs().max() > 0.01
