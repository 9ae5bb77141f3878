"""Attention compression for Diffusion Transformers, after DiTFastAttn (arXiv 2406.08552).

import ditfastattn

pipe = ditfastattn.load_pipeline("demo")
with ditfastattn.apply(pipe, "plan.json") as session:
    images = pipe(class_labels=[0, 1], guidance_scale=4.0, num_inference_steps=50).images
print(session.summary())
"""

from ditfastattn.api import apply
from ditfastattn.condition import Condition
from ditfastattn.models import model_spec, register
from ditfastattn.models.base import Call
from ditfastattn.pipelines import load_pipeline
from ditfastattn.session import Session
from ditfastattn.swap import use_kernel
from ditfastattn.version import VERSION as __version__

__all__ = [
    "Call",
    "Condition",
    "Session",
    "__version__",
    "apply",
    "load_pipeline",
    "model_spec",
    "register",
    "use_kernel",
]
