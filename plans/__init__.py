"""What was decided: which method each layer of a Diffusion Transformer uses at each sampler step.

This package needs pydantic only, so that a plan loads anywhere, at once, without torch.

    plan = plans.load("plan.json")
    plan.methods[10][3]        # the method of layer 3 at step 10
    plan.sites["temporal"]     # what the attention between frames does, in a model of video that has it
    plan.sites["mlp"]          # what the MLPs do, in a plan that says; "cross", the cross-attentions
    plan.skipped               # the steps in which the model is not called
    plan.differences(model=my_model_spec)
"""

from plans.budget import Budget
from plans.calibration import Calibration
from plans.errors import PlanError, PlanMismatch
from plans.method import Method, TokenOrder, Window
from plans.model import CrossShape, MlpShape, ModelSpec, SiteName, SiteShape, TemporalShape
from plans.run import GuidanceSpec, SamplerSpec
from plans.schema import Plan
from plans.site import Site
from plans.store import dumps, load, loads, save

__all__ = [
    "Budget",
    "Calibration",
    "CrossShape",
    "GuidanceSpec",
    "Method",
    "MlpShape",
    "ModelSpec",
    "Plan",
    "PlanError",
    "PlanMismatch",
    "SamplerSpec",
    "Site",
    "SiteName",
    "SiteShape",
    "TemporalShape",
    "TokenOrder",
    "Window",
    "dumps",
    "load",
    "loads",
    "save",
]
