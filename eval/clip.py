"""``python -m eval clip``: how well images fit the captions they were made from.

100 times the cosine of CLIP's image and caption embeddings, not below zero, meant over the images (CLIPScore, arXiv
2104.08718, without its factor 2.5, as DiTFastAttn's Table 1 and most papers report it). Scores of two CLIP models do
not compare, so the number carries the model's name. torchmetrics' CLIPScore does the same, but does not read what
transformers 5 returns.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from calibration.calibrate import package_versions
from ditfastattn.errors import DitFastAttnError, LoadError
from ditfastattn.ranks import ALONE
from eval.arguments.clip import parser
from eval.runs import Run, RunError
from plans.files import write_text


def read_captions(path: Path) -> dict[int, str]:
    """Annotation id -> caption, of COCO's ``captions_*.json``.

    Raises:
        DitFastAttnError: the file is not one, in one sentence.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DitFastAttnError(f"{path} does not exist; name COCO's annotations/captions_val2014.json") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DitFastAttnError(f"{path} is not JSON ({str(error)[:80]}); name COCO's captions_val2014.json") from None
    try:
        found = {int(entry["id"]): str(entry["caption"]).strip() for entry in content["annotations"]}
    except (KeyError, TypeError, ValueError):
        raise DitFastAttnError(
            f"{path} is not COCO's caption file: expected annotations, each with an id and a caption"
        ) from None
    if not found:
        raise DitFastAttnError(f"{path} holds no captions; name COCO's captions_val2014.json")
    return found


def captions_of(run: Run, captions: dict[int, str] | None) -> list[str]:
    """The caption of each image.

    Args:
        captions: by id, of which the run recorded one an image (``caption_ids`` of run.json). None: the run recorded
            the captions themselves (``captions``).

    Raises:
        RunError: the run was not made from captions, or from others than these.
    """
    if captions is None:
        return _own_captions(run)
    ids = run.record.get("caption_ids")
    if not isinstance(ids, list):
        raise RunError(
            f"{run.path} was not made from captions (run.json has no caption_ids); CLIP scores need a text-to-image run"
        )
    if len(ids) != run.n:
        raise RunError(f"{run.path} records {len(ids)} caption_ids for {run.n} images; sample again")
    missing = [number for number in ids if number not in captions]
    if missing:
        raise RunError(
            f"{len(missing)} of the {run.n} caption_ids of {run.path} are not in the caption file (the first is "
            f"{missing[0]}); name the file that the run was made from"
        )
    return [captions[number] for number in ids]


def _own_captions(run: Run) -> list[str]:
    found = run.record.get("captions")
    if found is None and "caption_ids" in run.record:
        raise RunError(f"{run.path} records ids of captions: name the file they are in with --captions")
    if not isinstance(found, list):
        raise RunError(
            f"{run.path} was not made from captions (run.json has none); CLIP scores need a text-to-image run"
        )
    if len(found) != run.n:
        raise RunError(f"{run.path} records {len(found)} captions for {run.n} images; sample again")
    return [str(caption) for caption in found]


class ClipScorer:
    """A CLIP model with its own preprocessing.

    Args:
        model: a folder or hub id that transformers' CLIPModel loads.

    Raises:
        LoadError: it cannot be loaded, in one sentence.
    """

    def __init__(self, model: str, device: str = "cpu") -> None:
        from transformers import CLIPModel, CLIPProcessor

        local = Path(model).exists()
        if not local and model.startswith((".", "/", "~")):
            raise LoadError(f"{model} does not exist; name a folder or a hub id such as openai/clip-vit-base-patch16")
        try:
            self.model: Any = CLIPModel.from_pretrained(model, local_files_only=local).eval()
            self.processor = CLIPProcessor.from_pretrained(model, local_files_only=local)
        except Exception as error:  # transformers, the hub client and safetensors raise many kinds
            kind = "folder" if local else "hub id (is there a network, and does the name exist?)"
            reason = " ".join(str(error).split())[:200]
            raise LoadError(f"cannot load {model!r} as a CLIP {kind}: {type(error).__name__}: {reason}") from error
        self.model.to(device)
        self.device = device
        self.name = Path(model).name if local else model

    @torch.no_grad()
    def __call__(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Scores (B,) float32 on the CPU of (B, 3, H, W) uint8 images and their captions, long ones cut."""
        pictures = [image.permute(1, 2, 0).numpy() for image in images]
        inputs = self.processor(
            text=list(captions), images=pictures, return_tensors="pt", padding=True, truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
        )  # fmt: skip
        found = self.model(**inputs.to(self.device))
        cosine = torch.nn.functional.cosine_similarity(found.image_embeds, found.text_embeds)
        return (100 * cosine).clamp(min=0).float().cpu()


def clip_scores(run: Run, captions: dict[int, str] | None, scorer: ClipScorer, batch: int = 64) -> np.ndarray:
    """A score for each image of the run, float64 (N,)."""
    texts = captions_of(run, captions)
    found = []
    with tqdm(total=run.n, desc="CLIP", unit="image", leave=False, disable=None) as bar:
        for indices, images in run.batches(batch):
            found.append(scorer(images, texts[indices.start : indices.stop]))
            bar.update(len(indices))
    return torch.cat(found).double().numpy()


def main(argv: Sequence[str] | None = None) -> None:
    """Print the mean score; write every image's."""
    options = parser().parse_args(argv)
    options.device = ALONE.device(options.device)
    if options.batch < 1:
        raise RunError(f"--batch must be at least 1, got {options.batch}")
    run, captions = Run.open(options.run), read_captions(options.captions) if options.captions else None
    captions_of(run, captions)  # before a model is loaded
    scorer = ClipScorer(options.clip_model, options.device)
    scores = clip_scores(run, captions, scorer, options.batch)
    error = float(scores.std(ddof=1) / len(scores) ** 0.5) if len(scores) > 1 else None
    spread = "" if error is None else f" (standard error {error:.3f})"
    print(f"CLIP score, {scorer.name}: {scores.mean():.3f}{spread}, {run.n} images")
    result: dict[str, Any] = {
        "what": "100 x cosine of CLIP's image and caption embeddings, clipped at 0, meant over the images",
        "model": scorer.name,
        "run": run.name,
        "n": run.n,
        "clip_score": round(float(scores.mean()), 6),
        "standard_error": None if error is None else round(error, 6),
        "command": shlex.join(["python", "-m", "eval", "clip", *(sys.argv[2:] if argv is None else argv)]),
        "versions": package_versions(),
        "date": date.today().isoformat(),
        "images": [round(float(score), 4) for score in scores],
    }
    out = options.out or options.run / "clip.json"
    write_text(out, json.dumps(result, indent=1) + "\n")
    print(f"written: {out}")
