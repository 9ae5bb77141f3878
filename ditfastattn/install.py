"""Instance attributes set for a while and taken back exactly."""

from typing import Any

from ditfastattn.errors import ApplyError

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

    def restore(self) -> None:
        """Puts everything back, the last set first.

        Raises:
            ApplyError: another tool has since replaced one of the attributes; nothing is changed then.
        """
        for owner, name, _, ours in self._set:
            if owner.__dict__.get(name, _ABSENT) is not ours:
                raise ApplyError(
                    f"{type(owner).__name__}.{name} was replaced by another tool after the plan was applied (CPU "
                    "offload, another accelerator): undo that first, then remove the plan"
                )
        for owner, name, before, _ in reversed(self._set):
            if before is _ABSENT:
                owner.__dict__.pop(name)
            else:
                owner.__dict__[name] = before
        self._set.clear()
