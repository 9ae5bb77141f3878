"""Quality against cost, on a model that takes seconds: the rows, their file, their pictures, and what is not ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_models import full_plan as small_plan
from small_models import random_plan, small_pipeline

from ditfastattn.errors import DitFastAttnError, MetricError
from ditfastattn.sampling import label_condition
from eval import (
    pareto,
    pareto_cache_dit,
    pareto_fd,
    pareto_file,
    pareto_rivals,
    pareto_time,
)
from eval.cli import main
from eval.drift import UNSEEN
from eval.drift_runs import final_latents, latents_by
from eval.frechet import Moments, frechet_distance
from eval.networks import Network
from eval.pareto_bench import Bench
from eval.pareto_cache_dit import DualBlockCache
from eval.pareto_rivals import rivals, smoothcache
from plans import Plan, make
from plans.macs import plan_macs, total_macs

STEPS = 6


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small"
    small_pipeline(layers=2).save_pretrained(folder)
    return folder


def options(small: Path, *more: str) -> list[str]:
    return ["--model", str(small), "--base-steps", str(STEPS), "--n", "3", "--batch", "2", "--labels", "2",
            "--device", "cpu", *more]  # fmt: skip


def few(bench: Bench, base: int) -> Iterator[Any]:
    yield "fewer steps", "3", None, 3
    yield "TaylorSeer-like", "interval 2, order 1", random_plan(bench.pipe, steps=base), base


def test_from_the_command_line(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pareto, "SOURCES", {"few": few})
    distance = MagicMock(side_effect=lambda pixels: float(len(pixels)), reference="x.npz (7 images, abc)")
    monkeypatch.setattr(pareto, "Distance", lambda *_: distance)
    distances = ["--fd", "4", "--fd-reference", "x.npz", "--fd-shares", "0.5", "--fd-dtype", "bfloat16"]
    pareto.main(options(small, "--out", str(tmp_path), *distances))
    found = json.loads((tmp_path / "pareto.json").read_text())
    (run,) = found["runs"]
    assert run["model"] == "small" and run["base_steps"] == STEPS and "timed" not in run
    assert run["fd"].startswith("4 images in bfloat16") and run["fd"].endswith("to x.npz (7 images, abc)")
    assert "--n 3" in run["command"] and "--out" not in run["command"]
    full, fewer, plan = found["rows"]
    assert tuple(full) == pareto_file.KEYS and all(row["run"] == run["run"] for row in found["rows"])
    assert full["plan"] is fewer["plan"] is None and plan["plan"] is not None
    assert full["psnr"] is None and full["ssim"] == 1 and full["latent_rel_l2"] == 0 and full["speedup"] is None
    assert (fewer["steps"], fewer["total_macs"], fewer["attention_macs"]) == (3, 50, 50)
    assert 5 < plan["psnr"] < 80 and 0 < plan["ssim"] < 1 and plan["steps"] == STEPS
    assert full["fd"] == fewer["fd"] == 4.0
    distance.check.assert_called_once_with(16)
    for picture in ("pareto.png", f"pareto-images-small-{STEPS}.png"):
        with Image.open(tmp_path / picture) as image:
            assert image.width > 300


def test_rows_are_what_the_images_say(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pareto, "SOURCES", {"few": few})
    args = pareto.parser().parse_args(options(small, "--out", str(tmp_path)))
    bench = Bench(args)
    compared = pareto.Comparison(bench, STEPS, {"model": "small", "run": "now"})
    plan = make.fora(small_plan(bench.pipe, STEPS), 2, shape=bench.mlp)
    compared.add("a plan", "", plan, STEPS)
    (told,) = compared.table.rows
    a = compared.reference.pixels.double()
    b = final_latents(bench.pipe, plan, bench.unseen, args.seed + UNSEEN, 4.0, STEPS, 2).pixels.double()
    each = [10 * np.log10(255**2 / float((one - other).square().mean())) for one, other in zip(a, b, strict=True)]
    assert told["psnr"] == pytest.approx(np.mean(each), abs=0.01)
    assert told["total_macs"] == round(total_macs(plan).percent, 2)
    assert told["plan"] == pareto_file.digest(plan)


def test_macs_are_of_the_bases_run_and_residuals_are_stored(small: Path, tmp_path: Path) -> None:
    bench = Bench(pareto.parser().parse_args(options(small, "--out", str(tmp_path))))
    compared = pareto.Comparison(bench, STEPS, {"model": "small", "run": "now"})
    plans = [random_plan(bench.pipe, steps=steps) for steps in (STEPS, STEPS // 2)]
    for plan in plans:
        compared.add("a plan", "", plan, plan.steps)
    for told, plan in zip(compared.table.rows, plans, strict=True):
        for name, macs in (("total_macs", total_macs(plan)), ("attention_macs", plan_macs(plan))):
            assert macs.residual_store > 0
            assert told[name] == round(100 * (macs.total + macs.residual_store) / (macs.full_step * STEPS), 2)


def test_smoothcache_reaches_its_shares(small: Path) -> None:
    bench = Bench(pareto.parser().parse_args(options(small)))
    found = list(smoothcache(bench, STEPS))
    macs = [total_macs(plan).percent for _, _, plan, _ in found if isinstance(plan, Plan)]
    assert len(macs) >= 3 and macs == sorted(macs, reverse=True)
    assert all(one <= 100 * share for one, share in zip(macs, (0.9, 0.8, 0.6, 0.5), strict=False))


def test_distance_is_that_of_the_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def means(images: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return images.float().mean((1, 2)), None, None

    monkeypatch.setattr(pareto_fd, "load_network", lambda name, device: Network(name, name, "", means))
    rng = np.random.default_rng(0)
    real, drawn = (rng.integers(0, 255, (n, 8, 8, 3), dtype=np.uint8) for n in (20, 70))
    np.savez(tmp_path / "real.npz", arr_0=real)
    distance = pareto_fd.Distance(tmp_path / "real.npz", "cpu")
    assert distance.reference.startswith("real.npz (20 images, ")
    found = distance(torch.from_numpy(drawn))
    expected = frechet_distance(*(Moments.of([images.mean((1, 2))], 3) for images in (drawn, real)))
    assert found == pytest.approx(expected, abs=1e-3)
    with pytest.raises(MetricError, match="does not exist"):
        pareto_fd.Distance(tmp_path / "none", "cpu")
    np.savez(tmp_path / "adm.npz", mu=np.zeros(3), sigma=np.eye(3))  # as ADM's tools write Inception's
    with pytest.raises(MetricError, match="features"):
        pareto_fd.Distance(tmp_path / "adm.npz", "cpu")


@pytest.mark.parametrize("more", [["--fd", "5"], ["--fd-reference", "x"], ["--fd", "1", "--fd-reference", "x"]])
def test_options_that_cannot_be(small: Path, more: list[str]) -> None:
    with pytest.raises(DitFastAttnError, match="--fd"):
        pareto.main(options(small, *more))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--n", "0"], "--n must be at least 1, got 0"),
        (["--batch", "0"], "--batch must be at least 1, got 0"),
        (["--time-batch", "0"], "--time-batch must be at least 1, got 0"),
        (["--labels", "0"], "--labels must be at least 1, got 0"),
        (["--base-steps", "6", "1"], "--base-steps must be at least 2, got 1"),
        (["--evaluations", "-1"], "--evaluations must be at least 0, got -1"),
        (["--speedups", "1.5", "0.5"], "--speedups must be above 1, got 0.5"),
        (["--speedups", "nan"], "--speedups must be above 1, got nan"),
        (["--guidance", "0.5"], "--guidance must be 1 (none) or more, got 0.5"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--seed", str(2**63)], "--seed must be below 2**63"),
        (["--device", "abacus"], "there is no device 'abacus'"),
        pytest.param(
            ["--device", "cuda"],
            "device 'cuda' cannot be used here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_options_that_cannot_be_are_told_before_a_model_is_loaded(
    more: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pareto, "Bench", lambda *_: pytest.fail("a model was loaded"))
    assert main(["pareto", "--device", "cpu", "--out", str(tmp_path), *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_more_steps_than_the_model_was_trained_on(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pareto", *options(small, "--out", str(tmp_path), "--base-steps", "6", "2000")]) == 2
    assert "2000 steps are more than the 1000 timesteps" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("base", "expected"), [(2, [1]), (3, [2, 1]), (50, [40, 30, 25, 20, 15])])
def test_fewer_steps_are_some_and_fewer_and_stand_once(
    base: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pareto_rivals, "full_plan", lambda *_: small_plan(small_pipeline(layers=1), base))
    found = [(setting, steps) for method, setting, _, steps in rivals(None, base) if method == "fewer steps"]  # type: ignore[arg-type]
    assert found == [(str(steps), steps) for steps in expected]


def test_stopwatch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the steps take twice the time, by a clock that counts model calls; nothing is left on the model."""
    pipe = small_pipeline(layers=1)
    calls = [0]

    def counted(transformer: Any) -> Any:
        transformer.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
        return transformer

    monkeypatch.setattr(pareto_time, "captured", counted)
    monkeypatch.setattr(pareto_time, "seconds", lambda work, _: (before := calls[0], work(), calls[0] - before)[-1])
    condition = label_condition(pipe.transformer, [1, 2])
    watch = pareto_time.Stopwatch(pipe, torch.float32, condition, 4.0, base=6, repeats=2)
    assert watch.speedup(None, 3) == (2.0, 2.0, 2.0)
    assert watch.at(12).speedup(None, 3).speedup == 4.0 and watch.speedup(None, 6).speedup == 1.0
    applied: dict[str, Any] = {}

    def apply(given: Any, plan: Plan, **how: Any) -> Any:
        assert given is not pipe and given.transformer is not pipe.transformer
        applied.update(how, plan=plan)
        counted(given.transformer)
        return nullcontext()

    monkeypatch.setattr(pareto_time, "ditfastattn", SimpleNamespace(apply=apply))
    plan = random_plan(pipe, steps=2)
    assert watch.speedup(plan, 2).speedup == 3.0 and applied == {"compile": True, "graphs": True, "plan": plan}


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=12))
def test_a_speedup_lies_between_its_quartiles(ratios: list[float]) -> None:
    found = pareto_time.Faster.of(ratios)
    lower, upper = np.quantile(ratios, [0.25, 0.75])
    assert found == pytest.approx((np.median(ratios), lower, upper), abs=1e-3)
    assert found.low <= found.speedup <= found.high and "a single round" in pareto_time.what(1)


def test_every_round_has_its_own_uncompressed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a device that grows slower, ratios of neighbouring runs say nothing of it."""
    taken = iter([2.0, 1.0, 4.0, 2.0, 9.0, 3.0])
    watch = object.__new__(pareto_time.Stopwatch)
    watch._repeats, watch._device = 3, torch.device("cpu")
    monkeypatch.setattr(watch, "_full_run", lambda: next(taken), raising=False)
    monkeypatch.setattr(pareto_time, "seconds", lambda *_: next(taken))
    assert watch._compared(lambda: None) == (2.0, 2.0, 2.5)


def test_cache_dit_is_left_out_if_it_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    from eval.pareto_rivals import cache_dit

    monkeypatch.setattr(pareto_cache_dit, "PACKAGE", "no_such_package")
    assert not list(cache_dit(None, 50))  # type: ignore[arg-type]
    assert capsys.readouterr().out == "cache-dit is left out: pip install cache-dit\n"
    (tmp_path / "broken_package.py").write_text("raise RuntimeError('two\\nlines')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(pareto_cache_dit, "PACKAGE", "broken_package")
    assert pareto_cache_dit.missing() == "its import failed: two lines"


@pytest.mark.skipif(pareto_cache_dit.missing() is not None, reason="pip install cache-dit")
@torch.no_grad()
def test_cache_dit_is_counted_by_what_ran() -> None:
    pipe = small_pipeline(layers=3)
    full = final_latents(pipe, None, [1, 2, 3], 0, 4.0, 5, batch=2)
    before = set(pipe.transformer.__dict__)
    for threshold, order, share in ((0.0, 0, 1.0), (1e9, 0, (3 + 4) / 15), (1e9, 1, (3 + 4) / 15)):
        running = DualBlockCache(1, threshold, 9, order).on(pipe.transformer, 5)
        found = latents_by(running.transformer, pipe, running.one_run, [1, 2, 3], 0, 4.0, 5, batch=2)
        assert running.share(5) == pytest.approx(share)  # the first step in full, then one block of three
        assert (full.distance(found) == 0) is (share == 1)
        again = latents_by(running.transformer, pipe, running.one_run, [1, 2, 3], 0, 4.0, 5, batch=2)
        assert torch.equal(again.latents, found.latents)  # nothing is left of the last run
    assert set(pipe.transformer.__dict__) == before
    assert torch.equal(final_latents(pipe, None, [1, 2, 3], 0, 4.0, 5, 2).latents, full.latents)


def test_what_cache_dit_cannot_run_loses_no_other_row(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    compared = pareto.Comparison(
        Bench(pareto.parser().parse_args(options(small, "--out", str(tmp_path)))),
        STEPS,
        {"model": "small", "run": "now"},
    )

    def fails(*_: Any) -> Any:
        raise RuntimeError("no such\nblock")

    monkeypatch.setattr(DualBlockCache, "on", fails)
    way = DualBlockCache(1, 0.1, 1, 0)
    compared.add(way.method, way.setting, way, STEPS)
    assert not compared.table.rows and "left out: cache-dit DBCache" in capsys.readouterr().out
    monkeypatch.setattr(compared.bench, "sampled", fails)
    with pytest.raises(RuntimeError, match="no such"):
        compared.add("full", "", None, STEPS)
