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
        globals().update({known: getattr(public, known) for known in ("__all__", *public.__all__)})
        if name not in globals():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals()[name]
