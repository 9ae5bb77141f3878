"""What can go wrong with a plan, each as one sentence: what was given, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError


class PlanError(ValueError):
    """A plan cannot be read, written or accepted; the message is one sentence for the user."""


class PlanMismatch(PlanError):
    """A valid plan does not belong to the model, sampler or guidance at hand.

    Args:
        differences: every difference, one sentence each, as `Plan.differences` gives them; not empty.
        subject: what was compared, for the first words of the message.
        advice: what to change.
    """

    def __init__(
        self, differences: Sequence[str], subject: str = "the plan", advice: str = "change the settings"
    ) -> None:
        self.differences: list[str] = list(differences)
        count = len(self.differences)
        listed = "".join(f"\n  - {difference}" for difference in self.differences)
        super().__init__(
            f"{subject} does not fit what it is applied to ({count} difference{'s' if count != 1 else ''}); "
            f"{advice}, or calibrate a plan for them:{listed}"
        )


def explain(error: ValidationError) -> str:
    """The first problem of a pydantic error as half a sentence, and how many more there are."""
    problems = error.errors(include_url=False, include_context=False)
    first = problems[0]
    text = _sentence(_place(first["loc"]), first["type"], first["msg"], first["input"])
    more = len(problems) - 1
    return text + (f" (and {more} more problem{'s' if more > 1 else ''})" if more else "")


def _place(loc: tuple[int | str, ...]) -> str:
    """("sites", "attn", "methods", 3, 4) -> "sites.attn.methods[3][4]"."""
    text = ""
    for part in loc:
        if part == "[key]":
            continue
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _sentence(place: str, kind: str, message: str, given: object) -> str:
    if kind == "missing":
        return f"{place} is missing"
    if kind == "extra_forbidden":
        return f"{place} is not a key of a plan; remove it or correct its spelling"
    if kind == "value_error":
        text = message.removeprefix("Value error, ")
        return f"{place}: {text}" if place else text
    shown = repr(given)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    expected = message[0].lower() + message[1:]
    return f"{place} is {shown}, which is wrong: {expected}"
