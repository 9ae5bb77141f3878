"""The kinds of values in a plan, and what all its parts have in common."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator

Scalar = str | int | float | bool | None


def _setting(value: Any) -> Scalar | tuple[Scalar, ...]:
    if isinstance(value, list | tuple):
        return tuple(_scalar(item) for item in value)
    return _scalar(value)


def _scalar(value: Any) -> Scalar:
    if value is not None and not isinstance(value, str | int | float | bool):
        raise ValueError(
            f"a {type(value).__name__} is not a setting; use text, a number, true, false, null or a list of these"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    return value


def _printable(text: str) -> str:
    if not text.isprintable():  # names go to terminals, which obey control characters
        raise ValueError(f"{text!r} has characters that cannot be printed; use plain text")
    return text


def _iso8601(text: str) -> str:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an ISO 8601 time like 2024-11-05T09:30:00+00:00") from None
    return text


Name = Annotated[str, Field(min_length=1), AfterValidator(_printable)]
Count = Annotated[int, Field(strict=True, ge=1)]
Integer = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Loss = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0)]
Setting = Annotated[Scalar | tuple[Scalar, ...], PlainValidator(_setting)]
Time = Annotated[str, AfterValidator(_iso8601)]


class Frozen(BaseModel):
    """A part of a plan: it cannot be changed, and refuses unknown keys."""

    # class_name and model are our words, not pydantic's: give up its protected prefix instead of renaming them.
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
