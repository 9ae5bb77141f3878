"""Algorithm 1: plain and replayed, resumed, and against its definition."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import label_denoiser, small_pipeline, small_transformer

import ditfastattn
from calibration.algorithm import all_full
from calibration.calibrate import Result, calibrate
from calibration.errors import CalibrationError
from calibration.journal import Journal, read_trace
from calibration.loss import LOSSES, mrae
from calibration.settings import Settings, parse_threshold
from ditfastattn.pieces import Pieces
from ditfastattn.sampling import sample_latents
from plans import Method, TokenOrder, Window
from plans.method import PAPER

STEPS, LABELS = 6, (1, 2)


def run(
    pipe: Any, search: str = "replay", threshold: float = 0.3, journal: Journal | None = None, **kwargs: Any
) -> Result:
    settings = Settings(threshold=threshold, labels=LABELS, steps=STEPS, search=search, **kwargs)
    return calibrate(pipe, settings, journal)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [0.1, 0.4])
def test_replay_is_plain_cell_by_cell(seed: int, threshold: float) -> None:
    pipe = small_pipeline(seed=seed)
    replay, plain = (run(pipe, search, threshold, seed=seed) for search in ("replay", "plain"))
    assert replay.decisions == plain.decisions  # methods, every loss of every trial, to the last bit
    assert torch.equal(replay.latents, plain.latents)
    assert plain.block_runs == plain.plain_block_runs == replay.plain_block_runs
    used = {method for decision in replay.decisions for method in decision.methods}
    assert len(used) > 2  # or the comparison says little


@pytest.mark.parametrize("order", ["tile", "hilbert"])
def test_replay_is_plain_in_every_token_order(order: TokenOrder) -> None:
    pipe = small_pipeline()
    replay, plain = (run(pipe, search, token_order=order) for search in ("replay", "plain"))
    assert replay.decisions == plain.decisions and torch.equal(replay.latents, plain.latents)
    assert replay.plan.token_order == order


@pytest.mark.parametrize("order", ["tile", "hilbert"])
def test_an_order_changes_the_loss_of_windowed_trials_alone(order: TokenOrder) -> None:
    """Nothing is accepted, so that all trials are on the trajectory of the uncompressed model."""
    raster, ours = (run(small_pipeline(), threshold=1e-9, token_order=name) for name in ("raster", order))
    for before, after in zip(raster.decisions, ours.decisions, strict=True):
        assert len(before.trials) == len(after.trials)
        for old, new in zip(before.trials, after.trials, strict=True):
            assert (new.loss == pytest.approx(old.loss, rel=1e-3)) != new.method.windowed


def test_replay_makes_at_most_55_percent_of_the_block_runs() -> None:
    """Where the trials spread evenly over the layers, (L + 1) / 2L; here all four are tried in each of 28 layers."""
    result = calibrate(small_pipeline(layers=28), Settings(threshold=1e-9, labels=(1,), steps=3))
    at_step_0 = 28  # by rule, the same for both
    assert result.block_runs - at_step_0 == 2 * (28 + 4 * 28 * 29 // 2)
    assert result.block_runs - at_step_0 <= 0.55 * (result.plain_block_runs - at_step_0)


@pytest.mark.parametrize(("guidance_scale", "order"), [(4.0, "raster"), (1.0, "raster"), (4.0, "hilbert")])
def test_the_plan_followed_by_a_session_ends_where_calibration_ended(guidance_scale: float, order: TokenOrder) -> None:
    pipe = small_pipeline()
    result = run(pipe, guidance_scale=guidance_scale, token_order=order)
    assert any(method.windowed for row in result.plan.methods for method in row)
    with ditfastattn.apply(pipe.transformer, result.plan):
        latents = sample_latents(
            label_denoiser(pipe, LABELS, guidance_scale), pipe.scheduler, STEPS, 0, range(len(LABELS))
        )
    torch.testing.assert_close(latents, result.latents, rtol=1e-5, atol=1e-5)
    if guidance_scale == 1:
        assert not any(m.shares_guidance for row in result.plan.methods for m in row)


def test_decisions_follow_the_definition() -> None:
    result = run(small_pipeline())
    assert set(result.decisions[0].methods) == {Method.FULL}
    for decision in result.decisions[1:]:
        for layer, method in enumerate(decision.methods):
            trials = [t for t in decision.trials if t.layer == layer]
            assert all(t.limit == pytest.approx(0.3 * (layer + 1) / 4) for t in trials)
            assert [t.method for t in trials] == list(PAPER)[: len(trials)]  # cost order, up to the accepted one
            assert [t.accepted for t in trials[:-1]] == [False] * (len(trials) - 1)
            assert trials[-1].accepted == (method is not Method.FULL)
            if method is not Method.FULL:
                assert trials[-1].method is method and decision.losses[layer] == trials[-1].loss


def test_the_loss_of_a_trial_is_that_of_two_whole_model_runs() -> None:
    """Step 1, layer 0, AST: recomputed with nothing but hooks on diffusers' own model."""
    pipe = small_pipeline()
    result = run(pipe)
    trial = result.decisions[1].trials[0]
    assert (trial.layer, trial.method) == (0, Method.AST)

    outputs: list[torch.Tensor] = []
    stored: list[torch.Tensor] = []
    pipe.transformer.register_forward_hook(lambda m, a, out: outputs.append(out[0].clone()))
    handle = pipe.transformer.transformer_blocks[0].attn1.register_forward_hook(
        lambda m, a, out: stored.append(out.clone())
    )
    denoiser = label_denoiser(pipe, LABELS, 4.0)
    sample_latents(denoiser, pipe.scheduler, STEPS, 0, range(2))
    handle.remove()
    reference = outputs[1]
    outputs.clear()
    calls = iter(range(STEPS))
    pipe.transformer.transformer_blocks[0].attn1.register_forward_hook(
        lambda m, a, out: stored[0] if next(calls) == 1 else out
    )
    sample_latents(denoiser, pipe.scheduler, STEPS, 0, range(2))
    assert trial.loss == pytest.approx(float(mrae(reference, outputs[1])), rel=1e-6)


def test_larger_thresholds_compress_more_and_none_compresses_nothing() -> None:
    pipe = small_pipeline()
    from plans.macs import plan_macs

    percents = [plan_macs(run(pipe, threshold=t).plan).percent for t in (1e-9, 0.05, 0.2, 0.8)]
    assert percents[0] == 100 and percents == sorted(percents, reverse=True) and percents[-1] < 60


def test_fewer_methods_a_window_and_every_loss() -> None:
    pipe = small_pipeline()
    result = run(pipe, methods=(Method.WA_RS,), window=Window(left=2, right=0))
    assert {m for row in result.plan.methods for m in row} <= {Method.FULL, Method.WA_RS}
    assert result.plan.window == Window(left=2, right=0)
    for name in set(LOSSES) - {"ssim"}:
        assert run(pipe, loss=name).plan.calibration.loss == name  # type: ignore[union-attr]


def test_ssim_needs_outputs_as_large_as_its_window() -> None:
    with pytest.raises(CalibrationError, match="11 x 11"):
        run(small_pipeline(), loss="ssim")


def test_the_model_is_left_as_it_was() -> None:
    pipe = small_pipeline()
    before = [dict(module.__dict__) for module in pipe.transformer.modules()]
    scheduler = dict(pipe.scheduler.__dict__)
    run(pipe)
    assert before == [dict(module.__dict__) for module in pipe.transformer.modules()]
    assert scheduler.keys() == pipe.scheduler.__dict__.keys()


# --------------------------------------------------------------------------------------------- interruption, trace


@pytest.mark.parametrize("stop_after", [0, 1, 3, STEPS - 1])
def test_an_interrupted_run_resumes_to_the_same_plan(tmp_path: Path, stop_after: int) -> None:
    pipe = small_pipeline()
    expected = run(pipe)
    path, header = tmp_path / "plan.trace.jsonl", {"loss": "mrae"}

    class Stop(Exception):
        pass

    def stop(total: int, share: float) -> None:
        nonlocal done
        done += 1
        if done > stop_after:
            raise Stop

    done = 0
    with pytest.raises(Stop):
        calibrate(pipe, Settings(threshold=0.3, labels=LABELS, steps=STEPS), Journal(path, header, False), stop)
    with open(path.with_name(path.name + ".partial"), "a") as file:
        file.write('{"step": 99, "meth')  # a line torn by a kill
    resumed = run(pipe, journal=Journal(path, header, resume=True))
    assert resumed.decisions == expected.decisions and torch.equal(resumed.latents, expected.latents)
    assert resumed.plan.methods == expected.plan.methods and resumed.plan.losses == expected.plan.losses
    assert not path.exists()  # only finish() makes it final
    assert len(Journal(path, header, resume=True).decisions) == STEPS


def test_a_trace_of_other_settings_is_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "plan.trace.jsonl"
    assert not Journal(path, {"loss": "mrae", "seed": 0}, resume=False).partial.exists()
    Journal(path, {"loss": "mrae", "seed": 0}, resume=False).append(all_full(4))
    with pytest.raises(CalibrationError, match=r"other settings \(seed\)"):
        Journal(path, {"loss": "mrae", "seed": 1}, resume=True)


def test_a_trace_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "plan.trace.jsonl"
    journal = Journal(path, {"loss": "mrae"}, resume=False)
    result = run(small_pipeline(), journal=journal)
    journal.finish()
    assert tuple(read_trace(path)[1]) == result.decisions
    path.write_text("{}\n")
    with pytest.raises(CalibrationError, match="not a calibration trace"):
        read_trace(path)


# ------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"threshold": 0.0}, "positive"),
        ({"threshold": float("nan")}, "positive"),
        ({"labels": ()}, "at least one label"),
        ({"steps": 0}, "at least one step"),
        ({"guidance_scale": 0.5}, "guidance scale"),
        ({"loss": "l7"}, "no loss 'l7'"),
        ({"search": "random"}, "no search 'random'"),
        ({"token_order": "spiral"}, "no token order 'spiral'"),
        ({"labels": (5000,)}, r"labels \[5000\]"),
        ({"window": Window(left=17, right=0)}, "wider than"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, Any], words: str) -> None:
    with pytest.raises(CalibrationError, match=words):
        calibrate(small_pipeline(), Settings(**{"threshold": 0.1, "labels": LABELS, "steps": 3} | change))


def test_a_model_that_gives_nan_is_refused() -> None:
    pipe = small_pipeline()
    pipe.transformer.proj_out_2.bias.data[0] = torch.nan
    with pytest.raises(CalibrationError, match="NaN"):
        run(pipe)


def test_threshold_names() -> None:
    assert [parse_threshold(t) for t in ("D1", "d2", "0.05", "D6")] == [0.025, 0.05, 0.05, 0.15]
    with pytest.raises(CalibrationError, match=r"D1\.\.D6"):
        parse_threshold("D9")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replay_is_plain_on_the_gpu(dtype: torch.dtype) -> None:
    pipe = small_pipeline().to("cuda", dtype)
    replay, plain = (run(pipe, search, 0.4) for search in ("replay", "plain"))
    assert replay.decisions == plain.decisions


def test_small_transformer_weights_are_alive() -> None:
    assert all(p.abs().sum() > 0 for p in small_transformer().parameters())


@pytest.mark.parametrize("threshold", [0.1, 0.4])
def test_in_pieces_it_finds_the_same_plan(threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything of the compiled calibration but the compiler, which only rounds otherwise."""
    monkeypatch.setattr("calibration.bench.compiled_pieces", Pieces)
    eager = run(small_pipeline(), threshold=threshold)
    pieces = run(small_pipeline(), threshold=threshold, compile=True)
    assert pieces.plan.methods == eager.plan.methods
    assert {m for row in eager.plan.methods for m in row} > {Method.FULL}
    assert pieces.block_runs == eager.block_runs
    assert pieces.plan.calibration is not None and pieces.plan.calibration.compiled
    for ours, theirs in zip(pieces.decisions, eager.decisions, strict=True):
        for trial, expected in zip(ours.trials, theirs.trials, strict=True):
            assert trial.loss == pytest.approx(expected.loss, rel=1e-3, abs=1e-6)
    torch.testing.assert_close(pieces.latents, eager.latents, rtol=1e-3, atol=1e-4)
