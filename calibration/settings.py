"""Everything a calibration depends on besides the pipeline."""

from dataclasses import asdict, dataclass
from typing import Any

from calibration.errors import CalibrationError
from calibration.loss import DRIFT, LOSS_NAMES
from ditfastattn.condition import VideoSize
from plans import Method, TokenOrder, Window
from plans.method import PAPER, TOKEN_ORDERS

THRESHOLDS = {"D1": 0.025, "D2": 0.05, "D3": 0.075, "D4": 0.1, "D5": 0.125, "D6": 0.15}  # DiTFastAttn, Sec. 4.1
CANDIDATES = tuple(method for method in PAPER if method is not Method.FULL)
SEARCHES = ("replay", "plain", "fast")


@dataclass(frozen=True)
class Settings:
    """One calibration, on labels or on prompts, or, where neither is named, on a condition that is given beside it.

    ``methods`` are the candidates besides FULL, tried in cost order whatever order they are in. A ``budget`` for the
    drift of the final latents (relative L2) stands in place of a threshold, with the loss ``drift``. What only measures
    needs neither.
    """

    threshold: float | None = None
    labels: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()
    negative_prompt: str = ""
    video: VideoSize | None = None  # where videos may be of any size; None: the model's usual one
    steps: int = 50
    guidance_scale: float = 4.0
    loss: str = "mrae"
    methods: tuple[Method, ...] = CANDIDATES
    window: Window | None = None  # None: tokens // 8 on each side
    temporal_window: Window | None = None  # of attention between frames; None: frames // 8 on each side
    token_order: TokenOrder = "raster"
    search: str = "replay"
    kernel: str = "auto"
    compile: bool = False
    seed: int = 0
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and self.budget is not None:
            raise CalibrationError("a plan is searched for by a threshold or by a budget for the drift, not both")
        if self.threshold is not None and not 0 < self.threshold < float("inf"):
            raise CalibrationError(f"the threshold must be a positive number or D1..D6, got {self.threshold}")
        if self.budget is not None and not 0 < self.budget < 1:
            raise CalibrationError(
                f"the drift is a relative L2 distance of the final latents, above 0 and below 1, got {self.budget}"
            )
        if self.budget is not None and self.loss != DRIFT:
            raise CalibrationError(f"a budget is spent by the loss drift, not by {self.loss}: leave --loss out")
        if self.labels and self.prompts:
            raise CalibrationError("a calibration is on labels or on prompts: give one of them")
        if self.negative_prompt and not (self.prompts and self.guided):
            raise CalibrationError("a negative prompt is the other branch of guidance by prompts: give both, or none")
        if self.video is not None and not self.prompts:
            raise CalibrationError("videos are made from prompts: give prompts, or leave the size of a video out")
        if self.steps < 1:
            raise CalibrationError(f"the sampler needs at least one step, got {self.steps}")
        if not 0 <= self.seed < 2**63:
            raise CalibrationError(f"the seed must be a whole number from 0, got {self.seed}")
        if not 1 <= self.guidance_scale < float("inf"):
            raise CalibrationError(f"the guidance scale must be 1 (no guidance) or more, got {self.guidance_scale}")
        if self.loss not in LOSS_NAMES:
            raise CalibrationError(f"there is no loss {self.loss!r}; choose one of {', '.join(LOSS_NAMES)}")
        if self.search not in SEARCHES:
            raise CalibrationError(f"there is no search {self.search!r}; choose one of {', '.join(SEARCHES)}")
        if self.search == "fast" and self.threshold is not None:
            raise CalibrationError("the search fast predicts the drift of whole runs: give --drift, and no threshold")
        if self.token_order not in TOKEN_ORDERS:
            raise CalibrationError(
                f"there is no token order {self.token_order!r}; choose one of {', '.join(TOKEN_ORDERS)}"
            )
        if not self.candidates():
            raise CalibrationError("there is no method to choose besides FULL: name others in --methods")

    @property
    def images(self) -> int:
        """How many labels or prompts name; 0 where a condition is given in place of them."""
        return len(self.labels or self.prompts)

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1

    def candidates(self) -> tuple[Method, ...]:
        """Candidates in cost order; without guidance those that share it are left out."""
        usable = [m for m in CANDIDATES if m in self.methods and (self.guided or not m.shares_guidance)]
        return tuple(usable)

    def as_json(self) -> dict[str, Any]:
        values = asdict(self)
        for name in ("window", "temporal_window"):
            values[name] = None if values[name] is None else str(values[name])
        given = "threshold" if self.budget is None else "budget"
        values = {key: value for key, value in values.items() if key not in ("threshold", "budget") or key == given}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def parse_threshold(text: str) -> float:
    """ "D2" or "0.05"."""
    name = text.strip().upper()
    if name in THRESHOLDS:
        return THRESHOLDS[name]
    try:
        return float(text)
    except ValueError:
        raise CalibrationError(f"{text!r} is no threshold: give a number such as 0.05, or D1..D6") from None
