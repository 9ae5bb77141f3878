"""What calibrating the user's DiT of ``own_dit`` takes: settings, a sampler, and what the model is told."""

from typing import Any

import torch
from small_models import small_pipeline

import ditfastattn
from calibration.settings import Settings

LABELS, STEPS, NULL = (1, 2), 5, 1000


def condition(**changes: Any) -> ditfastattn.Condition:
    given = {
        "conditional": {"label": torch.tensor(LABELS)},
        "unconditional": {"label": torch.full((len(LABELS),), NULL)},
        "latent_shape": (4, 8, 8),
    }
    return ditfastattn.Condition(**given | changes)


def settings(**changes: Any) -> Settings:
    return Settings(**({"threshold": 0.3, "steps": STEPS} | changes))


def ddim_scheduler() -> Any:
    return small_pipeline(sampler="ddim").scheduler
