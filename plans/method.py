"""What can be done instead of computing all: the paper's five methods, two forecasts, and the window.

Sources: DiTFastAttn (NeurIPS 2024, arXiv 2406.08552), sections 3.2 to 3.4; forecasting instead of reusing is the idea
of TaylorSeer (arXiv 2503.06923).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Side = Annotated[int, Field(strict=True, ge=0)]
TokenOrder = Literal["raster", "tile", "hilbert"]  # how the tokens of a grid stand while the blocks run
TOKEN_ORDERS: tuple[TokenOrder, ...] = get_args(TokenOrder)


class Method(StrEnum):
    """What one layer of a site, most often its self-attention, does at one sampler step.

    The members stand in cost order, cheapest first: the order in which calibration tries them.
    """

    AST = "AST"  # attention sharing across timesteps: the layer's last output again
    AST_1 = "AST_1"  # a forecast: the line through the layer's last two computed outputs, over the timesteps
    AST_2 = "AST_2"  # a forecast: the parabola through the last three
    WA_RS_ASC = "WA_RS_ASC"  # both techniques below
    WA_RS = "WA_RS"  # window attention plus the residual of the last refresh
    ASC = "ASC"  # attention sharing across CFG: the conditional half, copied
    FULL = "FULL"  # every query sees every key

    @property
    def outputs_read(self) -> int:
        """How many outputs it needs, of the layer's last steps that computed one; 0 for what computes its own."""
        return _OUTPUTS_READ.get(self, 0)

    @property
    def reuses_output(self) -> bool:
        """Computes nothing and needs outputs of the layer's last steps that did."""
        return self.outputs_read > 0

    @property
    def forecasts(self) -> bool:
        """Extrapolates several outputs over the sampler's timesteps."""
        return self.outputs_read > 1

    @property
    def windowed(self) -> bool:
        """Sees a window of keys and adds the residual of the last refresh."""
        return self in (Method.WA_RS, Method.WA_RS_ASC)

    @property
    def shares_guidance(self) -> bool:
        """Computes the conditional half of the batch only, so it needs a batch that holds both halves."""
        return self in (Method.ASC, Method.WA_RS_ASC)

    @property
    def refreshes_residual(self) -> bool:
        """Sees every key, so a new residual (full minus window) can be stored here."""
        return self in (Method.FULL, Method.ASC)

    @property
    def letter(self) -> str:
        """One ASCII character for terminals: F(ull), C(onditional half), W(indow), B(oth), a dot for AST, and the order
        of a forecast."""
        return _LETTERS[self]


_LETTERS = {
    Method.AST: ".",
    Method.AST_1: "1",
    Method.AST_2: "2",
    Method.WA_RS_ASC: "B",
    Method.WA_RS: "W",
    Method.ASC: "C",
    Method.FULL: "F",
}
_OUTPUTS_READ = {Method.AST: 1, Method.AST_1: 2, Method.AST_2: 3}

FORECASTS = tuple(method for method in Method if method.forecasts)
PAPER = tuple(method for method in Method if not method.forecasts)  # DiTFastAttn's own, in cost order


class Window(BaseModel):
    """A band on the flattened token order: query i sees the keys [i - left, i + right], both ends included.

    i counts places in the plan's token order, which is the raster's unless the plan says otherwise. Both sides are
    counted in tokens. Keys outside [0, tokens) do not exist, so queries near an edge see fewer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    left: Side
    right: Side

    def pairs(self, tokens: int) -> int:
        """The exact number of visible (query, key) pairs among `tokens` tokens, edges truncated.

        Query i sees itself, min(left, i) keys before and min(right, tokens - 1 - i) keys after it.
        """
        if tokens < 1:
            raise ValueError(f"tokens is {tokens}; a window needs at least 1 token")
        return tokens + _visible_on_one_side(self.left, tokens) + _visible_on_one_side(self.right, tokens)

    @classmethod
    def default(cls, tokens: int) -> Window:
        """tokens // 8 on each side, the reading of the paper's "1/8 of the token size" that gives its Table 2."""
        return cls(left=tokens // 8, right=tokens // 8)

    @classmethod
    def parse(cls, text: str) -> Window:
        """Read a window: "32" is 32 tokens on each side; "32,16" is 32 on the left and 16 on the right.

        Raises:
            ValueError: anything else.
        """
        parts = [part.strip() for part in text.split(",")]
        if len(parts) > 2 or not all(part.isascii() and part.isdecimal() for part in parts):
            raise ValueError(f"window {text!r} is not one or two token counts; write it like 32 or 32,16")
        return cls(left=int(parts[0]), right=int(parts[-1]))

    def __str__(self) -> str:
        return f"{self.left},{self.right}"


def _visible_on_one_side(side: int, tokens: int) -> int:
    """Sum over i in [0, tokens) of min(side, i)."""
    side = min(side, tokens - 1)
    return side * (side - 1) // 2 + side * (tokens - side)
