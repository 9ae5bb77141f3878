"""How far a candidate's model output is from the uncompressed one. Adding a loss is adding a function to LOSSES.

``drift`` alone is none of them: it needs the run's guidance and a weight for each step (``calibration.sensitivity``).

Every loss takes the reference O and the candidate O' (B, C, h, w), both guidance branches and all channels (learned
sigma included, as in the paper), and returns a float64 scalar tensor, 0 for equal outputs. It is a mean over rows: of
rows that lie with several ranks it is the mean of their means, weighted by their rows (:func:`over_ranks`).
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from calibration.errors import CalibrationError
from ditfastattn.ranks import Ranks

EPSILON = 1e-6
_SSIM_WINDOW = 11

DRIFT = "drift"

Loss = Callable[[Tensor, Tensor], Tensor | float]


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
    cosines = F.cosine_similarity(reference.flatten(1).double(), candidate.flatten(1).double())
    return (1 - cosines).clamp(min=0).mean()


def ssim(reference: Tensor, candidate: Tensor, extent: tuple[float, float] | None = None) -> Tensor:
    """One minus the structural similarity of the outputs seen as images, over the range of the reference.

    ``extent``: least and greatest value of the whole reference, where ``reference`` is a part of it.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # a second, for one loss of five

    if min(reference.shape[-2:]) < _SSIM_WINDOW:
        raise CalibrationError(f"ssim needs outputs of {_SSIM_WINDOW} x {_SSIM_WINDOW} or more; choose another --loss")
    low, high = extent or _extent(reference)
    similarity = structural_similarity_index_measure(
        candidate.float(), reference.float(), data_range=max(high - low, EPSILON)
    )
    assert isinstance(similarity, Tensor)
    return 1 - similarity.double()


def _extent(reference: Tensor) -> tuple[float, float]:
    return float(reference.min()), float(reference.max())


LOSSES: dict[str, Loss] = {"mrae": mrae, "mrae-signed": mrae_signed, "mse": mse, "cosine": cosine, "ssim": ssim}

LOSS_NAMES = (*LOSSES, DRIFT)


def relative_l2(reference: Tensor, candidate: Tensor, ranks: Ranks) -> float:
    """|candidate - reference| / |reference|, Euclidean norms over all elements of the rows of all ranks together: the
    same number on each, NaN where a value is not finite. All ranks must call it in step."""
    error = (candidate.double() - reference.double()).square().sum()
    parts = ranks.gather((float(error), float(reference.double().square().sum())))
    if not all(math.isfinite(part) for pair in parts for part in pair):
        return math.nan
    above, below = (math.fsum(pair[i] for pair in parts) for i in (0, 1))
    return math.sqrt(above / below) if below else (math.inf if above else 0.0)


def over_ranks(name: str, ranks: Ranks) -> Loss:
    """The loss of that name over the rows of all ranks, the same number on each to the last bit.

    It is the loss of one process that has all rows, but for the rounding of float64 sums. All ranks must call it in
    step: it raises RankError where one has ended.
    """
    if ranks.world == 1:
        return LOSSES[name]

    def reduced(reference: Tensor, candidate: Tensor) -> Tensor:
        part = LOSSES[name]
        if name == "ssim":  # the one loss with something in it that is no mean
            extents = ranks.gather(_extent(reference))
            part = partial(ssim, extent=(min(low for low, _ in extents), max(high for _, high in extents)))
        mean = ranks.mean(float(part(reference, candidate)), weight=len(reference))
        return torch.tensor(mean, dtype=torch.float64)

    return reduced
