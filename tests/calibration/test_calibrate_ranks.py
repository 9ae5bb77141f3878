"""Calibration over ranks: losses reduced right, and one plan, that of a single process."""

import pytest
import torch
from small_models import small_pipeline
from thread_ranks import on_ranks

from calibration.calibrate import calibrate
from calibration.errors import CalibrationError
from calibration.loss import LOSSES, over_ranks
from calibration.settings import Settings
from ditfastattn.ranks import Ranks


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("cuts", [(4, 4), (2, 6), (1, 3, 4)])
def test_a_loss_over_ranks_is_the_loss_of_all_rows(name: str, cuts: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(-1, 1, 8)[:, None, None, None]  # rows that differ: a plain mean of parts would be wrong
    reference = torch.randn(8, 4, 16, 16, generator=generator) * scales
    candidate = reference + torch.randn(reference.shape, generator=generator) * scales.flip(0) * 0.1
    parts = list(zip(reference.split(cuts), candidate.split(cuts), strict=True))
    losses = on_ranks(len(cuts), lambda ranks: float(over_ranks(name, ranks)(*parts[ranks.rank])))
    assert len(set(losses)) == 1
    assert losses[0] == pytest.approx(float(LOSSES[name](reference, candidate)), rel=1e-6)


@pytest.mark.parametrize("labels", [(1, 2), (1, 2, 3, 4, 5)])
def test_every_rank_arrives_at_the_plan_of_one_process(labels: tuple[int, ...]) -> None:
    settings = Settings(threshold=0.3, labels=labels, steps=6)
    alone = calibrate(small_pipeline(), settings)
    results = on_ranks(2, lambda ranks: calibrate(small_pipeline(), settings, ranks=ranks))
    assert results[0].decisions == results[1].decisions  # every loss to the last bit
    assert results[0].plan.methods == alone.plan.methods
    assert results[0].plan.calibration is not None and results[0].plan.calibration.labels == labels
    for ours, theirs in zip(results[0].decisions, alone.decisions, strict=True):
        for one, other in zip(ours.trials, theirs.trials, strict=True):
            assert (one.layer, one.method) == (other.layer, other.method)
            assert one.loss == pytest.approx(other.loss, rel=1e-4)
    assert results[0].latents.shape == alone.latents.shape  # all images, on every rank, in order
    torch.testing.assert_close(results[0].latents, alone.latents, rtol=1e-3, atol=1e-3)
    assert torch.equal(results[0].latents, results[1].latents)


def test_more_ranks_than_labels_are_refused() -> None:
    with pytest.raises(CalibrationError, match=r"3 processes cannot share 2 labels.*--n-calib"):
        calibrate(small_pipeline(), Settings(threshold=0.3, labels=(1, 2), steps=4), ranks=Ranks(0, 3))
