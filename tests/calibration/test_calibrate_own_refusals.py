"""Calibrating one's own transformer: what is missing, registered wrongly, or cannot be followed by any plan."""

from typing import Any

import diffusers
import pytest
import torch
from calibrated_own import LABELS, condition, ddim_scheduler, settings
from own_dit import Attention, OwnDiT, own_dit, registration
from small_models import small_pipeline
from torch import Tensor, nn

import ditfastattn
from calibration.calibrate import calibrate
from calibration.errors import CalibrationError
from ditfastattn.errors import ApplyError, DitFastAttnError, StepError
from plans import PlanError

ELSEWHERE = Attention(48, 2)  # in no model
pytestmark = pytest.mark.usefixtures("own_dit_registered")


def refused(words: str, kind: type[Exception] = DitFastAttnError, cls: type = OwnDiT, **changes: Any) -> None:
    given = {"settings": settings(), "scheduler": ddim_scheduler(), "condition": condition()} | changes
    model = own_dit(small_pipeline().transformer, cls)
    before = [dict(module.__dict__) for module in model.modules()]
    with pytest.raises(kind, match=words) as error:
        calibrate(model, given.pop("settings"), **given)
    assert "\n" not in str(error.value) or isinstance(error.value, PlanError)
    assert [dict(module.__dict__) for module in model.modules()] == before


def test_what_is_not_given_is_asked_for() -> None:
    refused(r"give calibrate\(\) condition=ditfastattn.Condition", CalibrationError, condition=None)
    refused("give scheduler= one of diffusers, .* not none", CalibrationError, scheduler=None)
    refused("not Linear, which has no config", CalibrationError, scheduler=nn.Linear(1, 1))
    refused("guidance needs the arguments of the unconditional branch", condition=condition(unconditional=None))
    refused("condition is of 2 images, the settings of 3", CalibrationError, settings=settings(labels=(1, 2, 3)))
    with pytest.raises(CalibrationError, match="leave scheduler= out"):
        calibrate(small_pipeline(), settings(labels=LABELS), scheduler=ddim_scheduler())
    with pytest.raises(CalibrationError, match="dict has no transformer and scheduler"):
        calibrate({}, settings(labels=LABELS))
    with pytest.raises(CalibrationError, match="at least one label or prompt for DiTTransformer2DModel"):
        calibrate(small_pipeline(), settings())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"latent_shape": (8, 8)}, r"not \(8, 8\)"),
        ({"latent_shape": (4, 8, 8.0)}, "latent_shape is that of one image"),
        ({"unconditional": {"labels": torch.tensor([1, 2])}}, r"\['label'\] and the unconditional one \['labels'\]"),
        ({"unconditional": {"label": torch.tensor([1])}}, r"one entry for each image, .* are \(2,\), \(1,\)"),
        ({"conditional": {"label": torch.tensor(1)}}, r"one entry for each image"),
        ({"conditional": {}, "unconditional": {}}, "are none, images=None"),
        ({"images": 3}, "images=3"),
    ],
)
def test_conditions_that_cannot_be(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ApplyError, match=words):
        condition(**change)


def spoilt(spoil: Any) -> type[OwnDiT]:
    class Spoilt(OwnDiT):
        def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
            return spoil(super().forward(x, time, label))

    return Spoilt


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda output: output[:, :4], r"predicted \(4, 4, 8, 8\), but .* counts on \(4, 8, 8, 8\): 4 rows \(2 images"),
        (lambda output: output[:2], r"predicted \(2, 8, 8, 8\)"),
        (lambda output: output / 0, "predicts NaN or infinite values at the first step"),
        (lambda output: {"sample": output}, "returned a dict, in which a plan cannot find its output"),
    ],
)
def test_predictions_of_another_kind(spoil: Any, words: str) -> None:
    refused(words, cls=spoilt(spoil))


def twice(model: Any, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
    half = len(x) // 2
    return torch.cat([model(x[:half], time[:half], label[:half]), model(x[half:], time[half:], label[half:])])


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"predict": twice}, PlanError, "both branches in one call"),
        ({"predict": lambda model, x, time, label: model(x[:3], time[:3], label[:3])}, PlanError, "this batch of 3"),
        ({"predict": lambda model, x, time, label: model(x, time, label.flip(0))}, PlanError, "in that order"),
        ({"predict": lambda model, x, time, label: model(x, time / 1000, label)}, StepError, "is not one of the plan"),
        ({"predict": lambda model, x, time, label: x}, CalibrationError, "did not call OwnDiT"),
        ({"predict": lambda model, x, time, y: model(x, time, y)}, StepError, "predict= registered for OwnDiT, called"),
        ({"predict": lambda model, x, time, label: model(time, x, label)}, StepError, "not latents"),
        ({"project": lambda attention, heads: heads.flatten(2)}, StepError, "the registration misses something"),
        ({"attentions": lambda model: model.attentions[:3]}, None, ""),
        ({"attentions": lambda model: [*model.attentions, ELSEWHERE]}, StepError, "block 4 did not run"),
    ],
)
def test_a_registration_that_no_plan_could_follow(
    changes: dict[str, Any], kind: type[Exception] | None, words: str
) -> None:
    ditfastattn.register(OwnDiT, **registration(**changes))
    if kind is None:  # attention that was not registered is left alone
        model = own_dit(small_pipeline().transformer)
        assert calibrate(model, settings(), scheduler=ddim_scheduler(), condition=condition()).plan.layers == 3
    else:
        refused(words, kind)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("PNDMScheduler", "calls the model 14 times in 5 steps, which a plan cannot find again"),
        ("DDIMInverseScheduler", "cannot make 5 steps of a plan .Value error, timesteps must not increase"),
        (
            "DPMSolverSinglestepScheduler",
            "changes its own settings when it is given its steps .sampler setting lower_order",
        ),
        ("RePaintScheduler", "cannot step with a prediction .2, 4, 8, 8. alone .TypeError"),
        ("DiscreteDDIMScheduler", "has no num_train_timesteps: choose a sampler of diffusion"),
        ("DDPMWuerstchenScheduler", "which has no order"),
    ],
)
def test_samplers_that_no_plan_can_follow(name: str, words: str) -> None:
    refused(words, CalibrationError, scheduler=getattr(diffusers, name)())


def test_layers_in_another_order_are_refused_at_whatever_step() -> None:
    class Late(OwnDiT):
        def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
            self.order = [0, 1, 2, 3] if time[0] > 500 else [1, 0, 2, 3]
            try:
                return super().forward(x, time, label)
            finally:
                del self.order

    refused(r"in the order \[1, 0, 2, 3\]", StepError, cls=Late)
