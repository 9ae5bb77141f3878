"""What a module was called with: the tensors among its arguments, and which kind of call it was."""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor


def _parts(value: Any) -> Iterable[tuple[Any, Any]]:
    """Names and values inside an argument that holds others."""
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, list | tuple) else ()


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Every tensor of an argument, in tuples, lists and dictionaries too."""
    if isinstance(value, Tensor):
        yield value
    for _, part in _parts(value):
        yield from tensors_of(part)


def kind_of(value: Any) -> Hashable:
    """What may decide how an attention computes: which arguments it is given, tensors by shape, flags by value."""
    if isinstance(value, Tensor):
        return "tensor", tuple(value.shape), value.dtype
    if isinstance(value, bool | str | None):
        return value
    parts = tuple((name, kind_of(part)) for name, part in _parts(value))
    return type(value).__name__, parts
