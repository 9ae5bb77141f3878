"""How far a candidate's model output is from the uncompressed one. Adding a loss is adding a function to LOSSES.

Every loss takes the reference O and the candidate O' (B, C, h, w), both guidance branches and all channels (learned
sigma included, as in the paper), and returns a float64 scalar tensor, 0 for equal outputs.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from calibration.errors import CalibrationError

EPSILON = 1e-6
_SSIM_WINDOW = 11

Loss = Callable[[Tensor, Tensor], Tensor]


def mrae(reference: Tensor, candidate: Tensor) -> Tensor:
    """Mean relative absolute error, |O - O'| / (max(|O|, |O'|) + 1e-6) (DiTFastAttn, Sec. 3.4). At most 2."""
    scale = torch.maximum(reference.abs(), candidate.abs()) + EPSILON
    return ((reference - candidate).abs() / scale).mean(dtype=torch.float64)


def mrae_signed(reference: Tensor, candidate: Tensor) -> Tensor:
    """What the authors' program computes: the larger of O and O' keeps its sign; each ratio is clipped to [0, 10].

    Thresholds do not carry over between this and :func:`mrae`: it is 1.5 to 1.8 times larger on Gaussian data.
    """
    scale = torch.maximum(reference, candidate) + EPSILON
    return ((reference - candidate) / scale).abs().clamp(max=10).mean(dtype=torch.float64)


def mse(reference: Tensor, candidate: Tensor) -> Tensor:
    """Mean squared error."""
    return (reference - candidate).square().mean(dtype=torch.float64)


def cosine(reference: Tensor, candidate: Tensor) -> Tensor:
    """One minus the cosine between the outputs of each row, averaged over rows."""
    return (1 - F.cosine_similarity(reference.flatten(1).double(), candidate.flatten(1).double())).mean().clamp(min=0)


def ssim(reference: Tensor, candidate: Tensor) -> Tensor:
    """One minus the structural similarity of the outputs seen as images, over the range of the reference."""
    if min(reference.shape[-2:]) < _SSIM_WINDOW:
        raise CalibrationError(f"ssim needs outputs of {_SSIM_WINDOW} x {_SSIM_WINDOW} or more; choose another --loss")
    low, high = float(reference.min()), float(reference.max())
    similarity = structural_similarity_index_measure(
        candidate.float(), reference.float(), data_range=max(high - low, EPSILON)
    )
    assert isinstance(similarity, Tensor)
    return 1 - similarity.double()


LOSSES: dict[str, Loss] = {"mrae": mrae, "mrae-signed": mrae_signed, "mse": mse, "cosine": cosine, "ssim": ssim}
