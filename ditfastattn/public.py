"""All that a user of the package has to know; :mod:`ditfastattn` hands it on."""

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
