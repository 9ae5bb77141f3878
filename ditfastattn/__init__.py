"""Attention compression for Diffusion Transformers, after DiTFastAttn (arXiv 2406.08552).

import ditfastattn

pipe = ditfastattn.load_pipeline("demo")
with ditfastattn.apply(pipe, "plan.json") as session:
    images = pipe(class_labels=[0, 1], guidance_scale=4.0, num_inference_steps=50).images
print(session.summary())
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ditfastattn.version import VERSION as __version__  # noqa: F401

if TYPE_CHECKING:
    from ditfastattn.public import *  # noqa: F403
else:

    def __getattr__(name: str) -> Any:
        """Loads the package when something of it is first asked for (PEP 562): with torch and diffusers that takes
        seconds, for which ``--help`` need not wait."""
        public = import_module("ditfastattn.public")
        for known in ("__all__", *public.__all__):
            globals().setdefault(known, getattr(public, known))  # what a test or a tool has put in its place stays
        if name not in globals():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals()[name]

    def __dir__() -> list[str]:
        """What can be asked for, for whoever completes names."""
        __getattr__("__all__")
        return sorted(globals())
