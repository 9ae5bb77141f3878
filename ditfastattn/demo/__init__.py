"""The bundled demos: small class-conditional DiT pipelines in diffusers' folder format, and how they were trained.

`pipeline/` holds one pipeline, which `DiTPipeline.from_pretrained` loads with no code of ours, and beside its
transformer a second one of four times as many tokens, for the same autoencoder, sampler and labels:

    transformer = DiTTransformer2DModel.from_pretrained(folder, subfolder="transformer-long")
    pipe = DiTPipeline.from_pretrained(folder, transformer=transformer)

Of this package, only the paths below are needed to use them; `python -m ditfastattn.demo.train` makes them anew
from the art in ART.md.
"""

from __future__ import annotations

from pathlib import Path

TRANSFORMERS = {"demo": "transformer", "demo-long": "transformer-long"}
"""The demos by name, each with the folder of its transformer in `pipeline_path()`."""


def pipeline_path() -> Path:
    """The folder to give to `diffusers.DiTPipeline.from_pretrained`.

    Raises:
        FileNotFoundError: the package was installed without its data.
    """
    return _existing(Path(__file__).parent / "pipeline", "model_index.json")


def transformer_path(name: str) -> Path:
    """The folder of a demo's transformer, to give to `diffusers.DiTTransformer2DModel.from_pretrained`.

    Raises:
        FileNotFoundError: the package was installed without its data.
    """
    return _existing(pipeline_path() / TRANSFORMERS[name], "config.json")


def _existing(folder: Path, file: str) -> Path:
    if not (folder / file).exists():
        raise FileNotFoundError(
            f"the demo's weights are missing at {folder}: install the package with its data, or make them as "
            "ditfastattn/demo/ART.md says"
        )
    return folder
