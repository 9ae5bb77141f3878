"""Latte: each method at each site against the block's formula in float64, and whole runs."""

from typing import Any

import pytest
import torch
from block_formula import band, layer_norm, linear
from small_latte import FRAMES, TOKENS, WORDS, sample_latte, small_latte, small_latte_pipeline, video_plan
from small_models import everything, full_plan, same
from small_pixart import prompts
from test_methods import SEQUENCES
from torch import Tensor

import ditfastattn
from ditfastattn import use_kernel
from ditfastattn.cache import Cell, LayerCache, Rows
from ditfastattn.execute import Context, run_block
from ditfastattn.kernels.sdpa import SDPA
from ditfastattn.layout import Layout
from ditfastattn.models import adapt
from ditfastattn.order import permutation
from plans import Method, Plan, SiteName, Window

STEPS = 6
SITES: tuple[SiteName, ...] = ("attn", "temporal")
WINDOWS: dict[SiteName, Window] = {"attn": Window(left=3, right=1), "temporal": Window(left=0, right=1)}


# ------------------------------------------------------------------------------------------------------- one block


class Formula:
    """A block of Latte (arXiv 2401.03048, Sec. 3.1) with the five methods, on (B, R, N, C): R rows a video.

    R is the frames of a spatial block, which looks at the text, and the places of a temporal one, which does not.
    Videos 0 .. B/2 - 1 are the unconditional branch.
    """

    def __init__(self, block: Any, visible: Tensor) -> None:
        self.block, self.visible = block, visible
        self.output: Tensor | None = None
        self.residual: Tensor | None = None  # of all videos

    def __call__(self, x: Tensor, method: Method, t: Tensor, text: Tensor | None) -> Tensor:
        """t (B, 6 C), text (B, W, C)."""
        block = self.block
        six = [(block.scale_shift_table[i] + t[:, i * 48 : (i + 1) * 48])[:, None, None] for i in range(6)]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = six
        if method is not Method.AST:
            self.output = self.attend(layer_norm(x, 1e-6) * (1 + scale_a) + shift_a, method)
        assert self.output is not None
        x = x + gate_a * self.output
        if text is not None:
            words = text[:, None].expand(-1, x.shape[1], -1, -1)  # the same for every frame
            x = x + linear(self.heads(block.attn2, x, words, None), block.attn2.to_out[0])
        hidden = layer_norm(x, 1e-6) * (1 + scale_m) + shift_m
        hidden = torch.nn.functional.gelu(linear(hidden, block.ff.net[0].proj), approximate="tanh")
        return x + gate_m * linear(hidden, block.ff.net[2])

    def attend(self, x: Tensor, method: Method) -> Tensor:
        attention = self.block.attn1
        full, window = (self.heads(attention, x, x, visible) for visible in (None, self.visible))
        conditional = range(len(x) // 2, len(x))
        if method in (Method.FULL, Method.ASC):
            core, self.residual = full, full - window
        else:
            assert self.residual is not None
            core = window + self.residual
        if method in (Method.ASC, Method.WA_RS_ASC):
            core = torch.stack([core[i] for i in conditional] * 2)
        if method is Method.ASC:
            self.residual = torch.stack([self.residual[i] for i in conditional] * 2)
        return linear(core, attention.to_out[0])

    def heads(self, attention: Any, x: Tensor, keys: Tensor, visible: Tensor | None) -> Tensor:
        """Softmax attention by 2 heads of 24 before the out-projection."""
        q = linear(x, attention.to_q).unflatten(-1, (2, 24))
        k, v = (linear(keys, projection).unflatten(-1, (2, 24)) for projection in (attention.to_k, attention.to_v))
        scores = torch.einsum("brihd,brjhd->brhij", q, k) / 24**0.5
        if visible is not None:
            scores = scores.masked_fill(~visible, -torch.inf)
        return torch.einsum("brhij,brjhd->brihd", scores.softmax(-1), v).flatten(-2)


def block_of(site: SiteName, model: Any) -> Any:
    return next(block for block in adapt(model).blocks if block.site == site)


def block_inputs(site: SiteName, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor | None]:
    """x (4, R, N, C), t (4, 6 C) and text."""
    generator = torch.Generator().manual_seed(seed)
    size = (FRAMES, TOKENS) if site == "attn" else (TOKENS, FRAMES)
    x, t, text = (
        torch.randn(4, *shape, generator=generator).to(dtype) for shape in ((*size, 48), (6 * 48,), (WORDS, 48))
    )
    return x, t, text if site == "attn" else None


def as_called(x: Tensor, t: Tensor, text: Tensor | None) -> tuple[Any, ...]:
    """The block's arguments as Latte passes them: one row for each of a video's rows."""
    rows = x.shape[1]
    words = None if text is None else text.repeat_interleave(rows, 0)
    return (x.flatten(0, 1), None, words, None, t.repeat_interleave(rows, 0), None, None)


def run(site: SiteName, block: Any, cell: Cell, cache: LayerCache, *inputs: Any) -> Tensor:
    context = Context(SDPA(), WINDOWS[site], Layout.UNCOND_FIRST)
    return run_block(block, cell, cache, context, *as_called(*inputs)).view(inputs[0].shape)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda s: "-".join(name for name, _ in s))
@torch.no_grad()
def test_methods_equal_the_formula(sequence: list[tuple[str, dict[str, Rows]]], site: SiteName) -> None:
    block = block_of(site, small_latte(layers=1).double())
    visible = band(WINDOWS[site], range(TOKENS if site == "attn" else FRAMES))
    formula, cache = Formula(block.module, visible), LayerCache()
    for step, (name, stores) in enumerate(sequence):
        inputs = block_inputs(site, step)
        ours = run(site, block, Cell(Method[name], **stores), cache, *inputs)
        expected = formula(inputs[0], Method[name], *inputs[1:])
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("method", [Method.ASC, Method.WA_RS_ASC])
@torch.no_grad()
def test_the_second_half_is_the_one_that_is_computed(method: Method, site: SiteName) -> None:
    block, cache = block_of(site, small_latte(layers=1).double()), LayerCache()
    inputs = block_inputs(site, 0)
    full = run(site, block, Cell(Method.FULL, store_residual=Rows.CONDITIONAL_HALF), cache, *inputs)
    shared = run(site, block, Cell(method), cache, *inputs)
    # The residual of these very inputs makes window + residual full attention again, to float64's rounding.
    torch.testing.assert_close(shared[2:], full[2:], rtol=1e-12, atol=1e-12)
    assert method is not Method.ASC or torch.equal(shared[2:], full[2:])
    assert (shared[:2] - full[:2]).abs().max() > 0.01


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_uncompressed_block_is_bit_identical_to_diffusers(dtype: torch.dtype, site: SiteName) -> None:
    block = block_of(site, small_latte(layers=1).to(dtype))
    inputs = block_inputs(site, 0, dtype)
    cell = Cell(Method.FULL, store_output=Rows.WHOLE_BATCH, store_residual=Rows.WHOLE_BATCH)
    theirs = block.module(*as_called(*inputs)).view(inputs[0].shape)
    assert torch.equal(run(site, block, cell, LayerCache(), *inputs), theirs)


# ----------------------------------------------------------------------------------------------- the whole transformer


def calls(plan: Plan, videos: int = 2, dtype: torch.dtype = torch.float32) -> list[dict[str, Any]]:
    """Arguments of the model at every step: both branches of some videos, another noise at each step."""
    generator = torch.Generator().manual_seed(1)
    given = prompts(videos)
    text = torch.cat([given["negative_prompt_embeds"], given["prompt_embeds"]]).to(dtype)
    found = []
    for t in plan.sampler.timesteps:
        latents = torch.randn(videos, 4, FRAMES, 8, 8, generator=generator).to(dtype).repeat(2, 1, 1, 1, 1)
        timestep = torch.full((2 * videos,), t)
        found.append({"hidden_states": latents, "timestep": timestep, "encoder_hidden_states": text})
    return found


@pytest.mark.parametrize(("seed", "order"), [(0, "raster"), (1, "raster"), (2, "hilbert"), (3, "tile")])
@torch.no_grad()
def test_a_run_by_a_plan_equals_the_formula(seed: int, order: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each site by its own grid and window; an order of the tokens changes what the spatial window alone covers."""
    pipe = small_latte_pipeline()
    model = pipe.transformer.double()
    plan = video_plan(pipe, STEPS, seed=seed).model_copy(update={"token_order": order})
    assert any(method.windowed for row in plan.methods for method in row)
    given = calls(plan, dtype=torch.float64)
    with ditfastattn.apply(model, plan):
        ours = [model(**call).sample for call in given]

    places = torch.empty(TOKENS, dtype=torch.int64)
    places[permutation(order, (4, 4), plan.window)] = torch.arange(TOKENS)
    step = 0
    for site, blocks in (("attn", model.transformer_blocks), ("temporal", model.temporal_transformer_blocks)):
        for layer, block in enumerate(blocks):
            spatial = site == "attn"
            visible = band(plan.window_of(site), places.tolist() if spatial else range(FRAMES))  # type: ignore[arg-type]
            formula, rows = Formula(block, visible), FRAMES if spatial else TOKENS
            column = plan.column(layer, site)  # type: ignore[arg-type]

            def by_formula(
                x: Tensor,
                _: None,
                text: Tensor | None,
                mask: None,
                t: Tensor,
                *others: None,
                formula: Formula = formula,
                column: tuple[Method, ...] = column,
                rows: int = rows,
            ) -> Tensor:
                words = None if text is None else text[::rows]
                return formula(x.unflatten(0, (4, rows)), column[step], t[::rows], words).flatten(0, 1)

            monkeypatch.setattr(block, "forward", by_formula)
    for step, (call, output) in enumerate(zip(given, ours, strict=True)):  # noqa: B007
        torch.testing.assert_close(output, model(**call).sample, rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_a_step_of_asc_keeps_the_conditional_half_of_the_model_output(latte: Any) -> None:
    plan = full_plan(latte, STEPS)
    for site in SITES:
        plan = plan.with_methods([[Method.FULL] * 2, *[[Method.ASC] * 2] * (STEPS - 1)], site=site)
    _, second, *_ = given = calls(plan)
    full = latte.transformer(**second).sample
    with ditfastattn.apply(latte.transformer, plan):
        _, shared = (latte.transformer(**call).sample for call in given[:2])
    torch.testing.assert_close(shared[2:], full[2:], rtol=1e-5, atol=1e-5)
    assert (shared[:2] - full[:2]).abs().max() > 0.01


@pytest.mark.parametrize("scale", [4.0, 1.0])
def test_an_all_full_plan_changes_no_bit(latte: Any, scale: float) -> None:
    plain = sample_latte(latte, STEPS, scale)
    with ditfastattn.apply(latte, full_plan(latte, STEPS, scale)) as session:
        assert torch.equal(sample_latte(latte, STEPS, scale), plain)
    assert {site: found.methods for site, found in session.summary().sites.items()} == {
        "attn": {Method.FULL: 2 * STEPS},
        "temporal": {Method.FULL: 2 * STEPS},
    }


@pytest.mark.parametrize(("scale", "videos"), [(4.0, 2), (4.0, 1), (1.0, 3)])
def test_a_compressed_run_is_finite_predictable_and_restored(latte: Any, scale: float, videos: int) -> None:
    plain = sample_latte(latte, STEPS, scale, videos)
    before = everything(latte)  # after a run: diffusers' pipeline leaves an empty hook registry on its transformer
    with ditfastattn.apply(latte, video_plan(latte, STEPS, scale)) as session:
        compressed = sample_latte(latte, STEPS, scale, videos)
        assert torch.equal(sample_latte(latte, STEPS, scale, videos), compressed)
        summary = session.summary()
    assert compressed.isfinite().all() and not torch.equal(compressed, plain)
    assert summary.peak_cache_bytes == summary.predicted_peak_cache_bytes > 0
    for found in summary.sites.values():
        assert found.peak_cache_bytes == found.predicted_peak_cache_bytes > 0
    assert summary.cache_bytes == 0 and "attn: sdpa; temporal: sdpa" in str(summary)
    assert same(before, everything(latte))
    assert torch.equal(sample_latte(latte, STEPS, scale, videos), plain)


def test_the_vae_decodes_a_compressed_video(latte: Any) -> None:
    with ditfastattn.apply(latte, video_plan(latte, STEPS)):
        frames = sample_latte(latte, STEPS, output_type="pt")
    assert frames.shape == (2, FRAMES, 3, 16, 16)


def test_a_kernel_without_a_plan_serves_both_sites(latte: Any) -> None:
    plain = sample_latte(latte, 2)
    with use_kernel(latte, "sdpa"):
        swapped = [block.module.attn1.processor for block in adapt(latte.transformer).blocks]
        torch.testing.assert_close(sample_latte(latte, 2), plain, rtol=1e-5, atol=1e-5)
    assert len(set(map(id, swapped))) == 1 and torch.equal(sample_latte(latte, 2), plain)
