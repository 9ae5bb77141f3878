"""Instance attributes set for a while and taken back exactly."""

from typing import Any

_ABSENT = object()


class Overrides:
    """Sets attributes on instances (never on classes) and restores each ``__dict__`` to what it was.

    ``module.forward = f`` on an instance is seen by both ``module(x)`` and ``module.forward(x)``.
    """

    def __init__(self) -> None:
        self._set: list[tuple[Any, str, Any, Any]] = []  # owner, name, before, ours

    def set(self, owner: Any, name: str, value: Any) -> None:
        before = owner.__dict__.get(name, _ABSENT)
        object.__setattr__(owner, name, value)
        self._set.append((owner, name, before, value))

    def replaced(self) -> list[tuple[Any, str]]:
        """(owner, name) of the attributes that another tool has replaced since."""
        return [(owner, name) for owner, name, _, ours in self._set if owner.__dict__.get(name, _ABSENT) is not ours]

    def restore(self) -> list[tuple[Any, str]]:
        """Puts back whatever is still ours, the last set first. Returns what is not; calling again tries it again."""
        foreign = self.replaced()
        kept = []
        for entry in reversed(self._set):
            owner, name, before, ours = entry
            if owner.__dict__.get(name, _ABSENT) is not ours:
                kept.append(entry)
            elif before is _ABSENT:
                owner.__dict__.pop(name)
            else:
                owner.__dict__[name] = before
        self._set = kept[::-1]
        return foreign
