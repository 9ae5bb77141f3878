"""What the paper reports, for tables side by side: DiTFastAttn (arXiv 2406.08552, NeurIPS 2024), on an A100.

FLOPs are of self-attention with its projections, in percent of the uncompressed model's. In Table 1 DiT is sampled at
guidance 4, where FID falls while the images get worse; Table 5 is at guidance 1.5 and says more about quality.
"""

from __future__ import annotations

from dataclasses import dataclass

NAMES = ("full", "D1", "D2", "D3", "D4", "D5", "D6")
SOURCE = "DiTFastAttn, arXiv 2406.08552"
PAPER_SHARES = {
    "dit-xl-2-512": (85, 69, 59, 49, 41, 34),
    "pixart-sigma-1k": (90, 74, 63, 52, 44, 37),
    "pixart-sigma-2k": (81, 60, 46, 36, 29, 24),
}


@dataclass(frozen=True)
class Reported:
    """One plan's figures; None where the paper has none."""

    name: str
    attention_flops: float | None  # percent
    fid: float
    inception_score: float
    clip: float | None = None


@dataclass(frozen=True)
class Table:
    """Figures of one model in one table; ``models`` are names by which a run's model is recognised."""

    title: str
    table: str
    models: tuple[str, ...]
    settings: str
    sampler: str
    steps: int
    guidance: float
    rows: tuple[Reported, ...]

    def row(self, name: str) -> Reported | None:
        return next((row for row in self.rows if row.name == name), None)


def _rows(*figures: tuple[float | None, float, float, float | None]) -> tuple[Reported, ...]:
    """From (attention FLOPs %, IS, FID, CLIP) of full, D1, D2, ..., in Table 1's order of columns."""
    return tuple(
        Reported(name, flops, fid, score, clip) for name, (flops, score, fid, clip) in zip(NAMES, figures, strict=False)
    )


TABLE_1_DIT = Table(
    title="DiT-XL/2-512",
    table="Table 1",
    models=("dit-xl-2-512", "dit-xl-2-512x512"),
    settings="50 DPM-Solver++ steps, guidance 4",
    sampler="dpm",
    steps=50,
    guidance=4.0,
    rows=_rows(
        (100, 408.16, 25.43, None),
        (85, 412.24, 25.32, None),
        (69, 412.18, 24.67, None),
        (59, 411.74, 23.76, None),
        (49, 391.80, 21.52, None),
        (41, 370.07, 19.32, None),
        (34, 352.20, 16.80, None),
    ),
)
TABLE_1_PIXART_1K = Table(
    title="PixArt-Sigma 1K",
    table="Table 1",
    models=("pixart-sigma-xl-2-1024-ms", "pixart-sigma-1k"),
    settings="50 DPM-Solver++ steps, guidance 4.5",
    sampler="dpm",
    steps=50,
    guidance=4.5,
    rows=_rows(
        (100, 55.65, 24.33, 31.27),
        (90, 55.73, 24.27, 31.27),
        (74, 55.69, 24.25, 31.26),
        (63, 55.61, 24.16, 31.25),
        (52, 55.32, 24.07, 31.24),
        (44, 54.54, 24.17, 31.22),
        (37, 52.73, 23.94, 31.18),
    ),
)
TABLE_1_PIXART_2K = Table(
    title="PixArt-Sigma 2K",
    table="Table 1",
    models=("pixart-sigma-xl-2-2k-ms", "pixart-sigma-2k"),
    settings="50 DPM-Solver++ steps, guidance 4.5",
    sampler="dpm",
    steps=50,
    guidance=4.5,
    rows=_rows(
        (100, 51.89, 23.67, 31.47),
        (81, 52.34, 23.28, 31.46),
        (60, 53.01, 22.90, 31.32),
        (46, 52.54, 22.96, 31.36),
        (36, 51.74, 22.95, 31.39),
        (29, 51.21, 22.82, 31.34),
        (24, 49.34, 22.38, 31.28),
    ),
)
TABLE_5 = Table(
    title="DiT-XL/2-512",
    table="Table 5",
    models=("dit-xl-2-512", "dit-xl-2-512x512"),
    settings="250 IDDPM steps, guidance 1.5",
    sampler="iddpm",
    steps=250,
    guidance=1.5,
    rows=_rows(
        (None, 219.97, 3.16, None),
        (None, 218.20, 3.09, None),
        (None, 210.36, 3.10, None),
        (None, 196.05, 3.54, None),
        (None, 180.34, 4.52, None),
    ),
)
TABLES = (TABLE_1_DIT, TABLE_1_PIXART_1K, TABLE_1_PIXART_2K, TABLE_5)


def matching(model: str, sampler: str, steps: int, guidance: float) -> Table | None:
    """The table made with the same model, sampler, steps and guidance, whose numbers one's own should resemble."""
    name = model.rstrip("/").split("/")[-1].lower().removesuffix(".pt")
    for table in TABLES:
        if name in table.models and (sampler, steps, guidance) == (table.sampler, table.steps, table.guidance):
            return table
    return None
