"""``python -m eval agreement``: how far the demo's images by each kernel are from the reference kernel's.

Every kernel samples the same plan, labels and noise. One that rounds otherwise than the reference moves an image a
little at each step, and sampling carries that on. So its PSNR stands beside a yardstick, what the dtype alone
does to the reference: sdpa in this dtype against sdpa in float32. A kernel at or above the yardstick agrees.
"""

import json
import math
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from diffusers import __version__ as diffusers_version

import ditfastattn
from calibration.drift import Images, drift, sample
from calibration.picture import save_grid
from ditfastattn.errors import DitFastAttnError, KernelError
from ditfastattn.kernels import KERNELS
from ditfastattn.kernels.versions import versions
from ditfastattn.ranks import ALONE
from ditfastattn.sampling import label_condition
from eval.arguments.agreement import LABELS, parser
from eval.record import command_line, device_name
from plans import Plan, load
from plans.files import write_text

ROOT = Path(__file__).parent
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
REFERENCE = "sdpa"


def fitting(names: Sequence[str], plan: Plan, labels: Sequence[int], dtype: str, device: str) -> dict[str, list[str]]:
    """For each kernel the reasons why it cannot sample this plan; none if it can."""
    rows = len(labels) * (1 if plan.guidance.layout == "none" else 2)
    shape = (rows, plan.model.tokens, plan.model.heads, plan.model.head_dim)
    queries = torch.empty(shape, dtype=DTYPES[dtype], device=device)
    return {name: KERNELS[name]().not_supported_reasons(queries, plan.window) for name in names}


def agreement(
    plan: Plan, names: Sequence[str], dtypes: Sequence[str], labels: tuple[int, ...], seed: int, device: str
) -> tuple[list[dict[str, Any]], list[dict[str, str]], dict[str, Images]]:
    """Samples the demo by every kernel that fits.

    Returns:
        Rows: ``kernel`` in ``dtype`` against ``against``, with PSNR in dB (None if the images are equal), SSIM and the
        relative L2 distance of the latents. What was left out, with reasons. The images by "kernel, dtype".
    """

    rows: list[dict[str, Any]] = []
    left_out: list[dict[str, str]] = []
    shown: dict[str, Images] = {}

    def compare(kernel: str, dtype: str, ours: Images, against: str) -> None:
        d = drift(shown[against], ours)
        psnr = round(d.psnr, 2) if math.isfinite(d.psnr) else None
        rows.append({"kernel": kernel, "dtype": dtype, "against": against, "psnr": psnr, "ssim": round(d.ssim, 5),
                     "latent_rel_l2": round(d.latent_rel_l2, 6)})  # fmt: skip
        print(line(rows[-1]), flush=True)

    def images(pipe: Any, kernel: str) -> Images:
        return sample(pipe, plan, label_condition(pipe.transformer, labels), seed, 0, kernel, compressed=True)

    exact = f"{REFERENCE}, fp32"
    shown[exact] = images(ditfastattn.load_pipeline("demo", dtype=torch.float32, device=device), REFERENCE)
    for dtype in dtypes:
        pipe = ditfastattn.load_pipeline("demo", dtype=DTYPES[dtype], device=device)
        reference = f"{REFERENCE}, {dtype}"
        if reference != exact:
            shown[reference] = images(pipe, REFERENCE)
            compare(REFERENCE, dtype, shown[reference], exact)
        for name, reasons in fitting(names, plan, labels, dtype, device).items():
            if name == REFERENCE:
                continue
            if not reasons:
                try:
                    shown[f"{name}, {dtype}"] = images(pipe, name)
                except Exception as error:  # a library's own; the others can still be compared
                    reasons = [f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"]
            if reasons:
                left_out.append({"kernel": name, "dtype": dtype, "why": "; ".join(reasons)})
                print(f"left out: {name} in {dtype}: {'; '.join(reasons)}", flush=True)
            else:
                compare(name, dtype, shown[f"{name}, {dtype}"], reference)
    return rows, left_out, shown


def line(row: dict[str, Any]) -> str:
    yardstick = "   <- yardstick" if row["kernel"] == REFERENCE else ""
    return f"{row['kernel']:<9} {row['dtype']}  against {row['against']:<10}  {decibels(row):>8}{yardstick}"


def decibels(row: dict[str, Any]) -> str:
    return "equal" if row["psnr"] is None else f"{row['psnr']:.1f} dB"


def _names(text: str, known: Sequence[str], what: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in known:
            raise KernelError(f"there is no {what} {name!r}; choose among {', '.join(known)}")
    return names


def main(argv: Sequence[str] | None = None) -> None:
    """Print the distances; write agreement.json and agreement.png, a row of images for each kernel."""
    options = parser().parse_args(argv)
    options.device = ALONE.device(options.device)
    names = _names(options.kernels, list(KERNELS), "kernel")
    dtypes = _names(options.dtype, list(DTYPES), "dtype")
    if not 1 <= options.labels <= len(LABELS):
        raise DitFastAttnError(f"--labels {options.labels}: from 1 to {len(LABELS)} images can be compared")
    plan = load(options.plan or ROOT.parent / "plans" / "library" / "demo-dpm50-mrae-0.025.json")
    labels = LABELS[: options.labels]
    rows, left_out, shown = agreement(plan, names, dtypes, labels, options.seed, options.device)
    result = {
        "what": "PSNR over all pixels of all images, dB; null: equal to the last bit",
        "command": command_line("agreement", argv),
        "plan": options.plan.name if options.plan else "demo-dpm50-mrae-0.025.json",
        "steps": plan.steps,
        "labels": list(labels),
        "seed": options.seed,
        "device": device_name(options.device),
        "versions": {"ditfastattn": ditfastattn.__version__, "diffusers": diffusers_version, **versions()},
        "date": date.today().isoformat(),
        "rows": rows,
        "left_out": left_out,
    }
    write_text(options.out / "agreement.json", json.dumps(result, indent=1) + "\n")
    title = f"One plan, one noise, every kernel: {result['plan']}, {result['device']}"
    distances = {f"{row['kernel']}, {row['dtype']}": f"{decibels(row)} to\n{row['against']}" for row in rows}
    grid = [(f"{name}\n{distances.get(name, '')}".strip(), images) for name, images in shown.items()]
    save_grid(options.out / "agreement.png", grid, [f"label {label}" for label in labels], title)
    print(f"written: {options.out / 'agreement.json'}, {options.out / 'agreement.png'}")
