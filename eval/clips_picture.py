"""Videos of several plans frame beside frame, and what the plans save against what they cost."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from plans.files import write_whole

LABEL, GAP = 96, 10  # pixels: beside a row, between videos
COLORS = {"total": "#1d2b45", "attn": "#2f7fc1", "temporal": "#d1495b"}


def strip(path: Path, names: Sequence[str], videos: Sequence[Tensor], shown: int) -> None:
    """A sheet of the first ``shown`` videos: one row for each name, one column for each frame.

    Args:
        videos: for each name (B, T, H, W, 3) uint8.
    """
    count, frames, height, width, _ = videos[0].shape
    shown = min(shown, count)
    block = len(names) * height + GAP
    sheet = Image.new("RGB", (LABEL + frames * width, shown * block - GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for b in range(shown):
        for r, (name, pixels) in enumerate(zip(names, videos, strict=True)):
            top = b * block + r * height
            pen.text((6, top + height // 2), name, fill="black", font=font, anchor="lm")
            row = pixels[b].permute(1, 0, 2, 3).reshape(height, frames * width, 3)
            sheet.paste(Image.fromarray(row.numpy()), (LABEL, top))
    small = sheet.quantize(256)  # a third of the bytes, and no difference to the eye
    write_whole(path, lambda beside: small.save(beside, "PNG", optimize=True))


def plot(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Attention MACs of each site, and the distance of the latents, against the threshold."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    x = [row["threshold"] for row in rows]
    left.plot(x, [row["attention_macs"] for row in rows], "o-", color=COLORS["total"], label="both sites")
    for site, name in (("attn", "between tokens"), ("temporal", "between frames")):
        left.plot(x, [row["sites"][site] for row in rows], "o--", color=COLORS[site], label=name)
    left.set(xlabel="threshold", ylabel="attention MACs, % of full", ylim=(0, 102), xticks=x)
    left.legend(fontsize=8)
    right.plot([row["attention_macs"] for row in rows], [row["latent_rel_l2"] for row in rows], "o-",
               color=COLORS["total"])  # fmt: skip
    for row in rows:
        right.annotate(f"{row['threshold']:g}", (row["attention_macs"], row["latent_rel_l2"]), fontsize=8,
                       xytext=(4, 4), textcoords="offset points")  # fmt: skip
    right.set(xlabel="attention MACs, % of full", ylabel="distance of latents, rel. L2")
    right.margins(0.1)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    write_whole(path, lambda beside: figure.savefig(beside, dpi=110, format="png"))
    plt.close(figure)
