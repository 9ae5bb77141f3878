"""The centre crop by which ADM prepared ImageNet, and so the one that its reference batches were made with."""

from __future__ import annotations

import numpy as np
from PIL import Image


def centre_crop(image: Image.Image, size: int) -> np.ndarray:
    """The central square of an RGB image, (size, size, 3) uint8.

    Halved by box filter while the shorter side is at least twice `size`, then scaled bicubically so that it is
    `size`, then cropped, the odd pixel cut off below and to the right. A smaller image is enlarged. This is
    what `center_crop_arr` of openai/guided-diffusion (image_datasets.py; Dhariwal and Nichol 2021) does, and DiT
    after it; another crop or filter moves the FID by tenths.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    top, left = (image.height - size) // 2, (image.width - size) // 2
    return np.asarray(image)[top : top + size, left : left + size]
