"""The bundled demo: a small class-conditional DiT pipeline in diffusers' folder format, and how it was
trained.

The weights lie in `pipeline/`, `DiTPipeline.from_pretrained` loads them with no code of ours. Of this
package, only `pipeline_path` is needed to use them; `python -m ditfastattn.demo.train` makes them anew from
the art in ART.md.
"""

from __future__ import annotations

from pathlib import Path


def pipeline_path() -> Path:
    """The folder to give to `diffusers.DiTPipeline.from_pretrained`."""
    path = Path(__file__).parent / "pipeline"
    if not (path / "model_index.json").exists():
        raise FileNotFoundError(
            f"the demo's weights are missing at {path}: install the package with its data, or make them with "
            "python -m ditfastattn.demo.train"
        )
    return path
