"""What a budget for the drift of the final latents came to."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from plans.fields import Frozen, Loss


class Budget(Frozen):
    """A bound on how far compression moves the final latents, relative L2, and what was found of it.

    asked: the bound. predicted: from the losses of the search, on the images it ran on. achieved: measured on batches
    of other noise, each as large as a calibration's. upper: what one more such batch stays under with a chance of
    97.5 %, by the mean and the spread of those; it is at most ``asked``, or the plan compresses nothing.
    """

    asked: Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0)]
    predicted: Loss
    achieved: Annotated[tuple[Loss, ...], Field(min_length=1)]
    upper: Loss
