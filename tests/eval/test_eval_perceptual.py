"""LPIPS against torchmetrics' own class, on one set of random weights."""

from pathlib import Path

import pytest
import torch
import torchmetrics.functional.image.lpips as reference
from runs_for_tests import noisy, pictures
from torch import nn

from ditfastattn.errors import DitFastAttnError
from eval import perceptual
from eval.perceptual import load_perceptual

BUILD = {"alex": perceptual._alexnet, "vgg": perceptual._vgg16}


def images(seed: int) -> torch.Tensor:
    return torch.from_numpy(pictures(2, seed=seed)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("net", "name"), [("alex", "LPIPS (AlexNet)"), ("vgg", "LPIPS (VGG16)")])
def test_it_is_torchmetrics_lpips(net: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    trunk = nn.Sequential(*BUILD[net]()[0], nn.MaxPool2d(2))
    torch.save(
        {f"features.{key}": value for key, value in trunk.state_dict().items()} | {"classifier.1.bias": torch.ones(1)},
        tmp_path / "trunk.pth",
    )
    monkeypatch.setattr(reference, "_get_tv_model_features", lambda *_: trunk)  # torchvision may not be here
    theirs = reference._LPIPS(net=net)
    ours = load_perceptual(str(tmp_path / "trunk.pth"))
    assert ours is not None and ours.name == name
    a, b = images(0), images(1)
    with torch.no_grad():
        expected = theirs(a / 127.5 - 1, b / 127.5 - 1).flatten()
    assert expected.min() > 1e-4
    torch.testing.assert_close(ours(a, b), expected, rtol=1e-4, atol=1e-7)
    assert ours(a, a).abs().max() == 0


def test_the_packages_weights_see_noise_grow_and_forgive_a_shift() -> None:
    pytest.importorskip("stlpips_pytorch", reason="weights")
    network = load_perceptual()
    assert network is not None and network.name == "ST-LPIPS (AlexNet)"
    clean = pictures(2)
    a = torch.from_numpy(clean).permute(0, 3, 1, 2)
    grown = [network(a, torch.from_numpy(noisy(clean, s)).permute(0, 3, 1, 2)).mean().item() for s in (4, 12, 36)]
    assert 0 < grown[0] < grown[1] < grown[2]
    assert network(a, a.roll(1, dims=3)).mean().item() < grown[1]
    # What the package's own class gives for this pair, whose imports (torchvision, IPython) are not to be had here.
    ramp = torch.arange(3 * 64 * 64).view(1, 3, 64, 64)
    assert network(ramp % 256, (ramp * 7) % 256).item() == pytest.approx(ST_LPIPS_OF_RAMPS, rel=1e-4)


ST_LPIPS_OF_RAMPS = 0.05779975


def test_lpips_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "PACKAGE", "no_such_package_of_weights")
    assert load_perceptual("auto") is None and load_perceptual("none") is None


def test_what_is_no_weight_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DitFastAttnError, match="do not exist; pip install"):
        load_perceptual(str(tmp_path / "none.pth"))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(DitFastAttnError, match="no weight file"):
        load_perceptual(str(tmp_path / "text.pth"))
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "resnet.pth")
    with pytest.raises(DitFastAttnError, match="no AlexNet or VGG16"):
        load_perceptual(str(tmp_path / "resnet.pth"))
    torch.save({"features.0.weight": torch.zeros(64, 3, 11, 11)}, tmp_path / "cut.pth")
    with pytest.raises(DitFastAttnError, match="not torchvision's AlexNet"):
        load_perceptual(str(tmp_path / "cut.pth"))
