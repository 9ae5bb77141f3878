"""Writing the demo as a folder that `diffusers.DiTPipeline.from_pretrained` loads."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel, DPMSolverMultistepScheduler

from ditfastattn.demo.classes import CLASSES
from ditfastattn.demo.diffusion import BETA_END, BETA_START, STEPS
from ditfastattn.demo.model import NULL_CLASS


def build_scheduler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++(2M) on the schedule that the transformer was trained with."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=STEPS,
        beta_start=BETA_START,
        beta_end=BETA_END,
        beta_schedule="linear",
        prediction_type="epsilon",
        algorithm_type="dpmsolver++",
        solver_order=2,
    )


@torch.no_grad()
def clear_unused(transformer: DiTTransformer2DModel) -> None:
    """Zero the label embeddings of ImageNet's classes that the demo has not: they were never trained, and
    zeros take no room in a compressed package."""
    for block in transformer.transformer_blocks:
        block.norm1.emb.class_embedder.embedding_table.weight[len(CLASSES) : NULL_CLASS] = 0


def export(folder: Path, transformer: DiTTransformer2DModel, vae: AutoencoderKL) -> int:
    """Write the pipeline in float16 and return its size in bytes. The arguments are left as they are."""
    halves = [copy.deepcopy(m).to("cpu", torch.float16) for m in (transformer, vae)]
    clear_unused(halves[0])
    labels = dict(enumerate(CLASSES))
    DiTPipeline(*halves, scheduler=build_scheduler(), id2label=labels).save_pretrained(folder, safe_serialization=True)
    index = folder / "model_index.json"
    content = json.loads(index.read_text())
    # save_pretrained writes modules only, but from_pretrained passes this entry on.
    content["id2label"] = {str(k): v for k, v in labels.items()}
    index.write_text(json.dumps(content, indent=2) + "\n")
    for config in folder.rglob("config.json"):
        # The path a module was loaded from says nothing to a user.
        entries = {k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}
        config.write_text(json.dumps(entries, indent=2) + "\n")
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
