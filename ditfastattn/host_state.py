"""What work recorded as a graph relies on outside of it: numbers and settings on the host, tensors in fixed places."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from diffusers.configuration_utils import FrozenDict
from torch import Tensor


class Part(Protocol):
    """One value, or the values of a list, as a recording found them."""

    def stand_in(self) -> Any:
        """What the recorded work is given in its place."""

    def fits(self, value: Any) -> bool:
        """Whether the recording holds for another value too."""

    def sources(self, value: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Buffers of the recording, and what of ``value`` belongs into them."""


class Plain:
    """A number, a text, an array, None, or diffusers' config, which does not change."""

    def __init__(self, value: Any) -> None:
        self._value = value.copy() if isinstance(value, np.ndarray) else value

    def stand_in(self) -> Any:
        return self._value

    def fits(self, value: Any) -> bool:
        if value is self._value:  # no array, of which this has a copy
            return True
        if type(value) is not type(self._value):
            return False
        return bool(np.array_equal(value, self._value) if isinstance(value, np.ndarray) else value == self._value)

    def sources(self, value: Any) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(())


class HostTensor:
    """A tensor elsewhere than on the device: its numbers are part of the recording."""

    def __init__(self, value: Tensor) -> None:
        self._known, self._values = value, value.clone()
        self._version = None if value.is_inference() else value._version  # nothing counts changes of inference tensors

    def stand_in(self) -> Tensor:
        return self._known

    def fits(self, value: Any) -> bool:
        if value is self._known and self._version is not None and value._version == self._version:
            return True
        return isinstance(value, Tensor) and _kind(value) == _kind(self._values) and torch.equal(value, self._values)

    def sources(self, value: Any) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(())


class Buffer:
    """A tensor on the device: the recording reads it in a place of its own."""

    def __init__(self, place: Tensor) -> None:
        self.place = place

    def stand_in(self) -> Tensor:
        return self.place

    def fits(self, value: Any) -> bool:
        if value is self.place:
            return True
        return isinstance(value, Tensor) and _kind(value) == _kind(self.place)

    def sources(self, value: Any) -> Iterator[tuple[Tensor, Tensor]]:
        if value is not self.place:
            yield self.place, value


class Items:
    """A list or a tuple of values."""

    def __init__(self, kind: type, parts: list[Part]) -> None:
        self._kind, self._parts = kind, parts

    def stand_in(self) -> Any:
        return self._kind(part.stand_in() for part in self._parts)

    def fits(self, value: Any) -> bool:
        items: Any = value
        same = type(value) is self._kind and len(items) == len(self._parts)
        return same and all(part.fits(item) for part, item in zip(self._parts, value, strict=True))

    def sources(self, value: Any) -> Iterator[tuple[Tensor, Tensor]]:
        for part, item in zip(self._parts, value, strict=True):
            yield from part.sources(item)


def part_of(value: Any, device: torch.device, stays: Callable[[Tensor], bool]) -> Part:
    """What a recording keeps of a value.

    Args:
        device: of the graph; tensors there are read from buffers.
        stays: whether such a tensor is in a place of its own already.

    Raises:
        RuntimeError: a value that may do or become anything: a function, an object, a dict.
    """
    if isinstance(value, Tensor):
        if value.device != device:
            return HostTensor(value)
        return Buffer(value if stays(value) else value.clone())
    if type(value) in (list, tuple):
        return Items(type(value), [part_of(item, device, stays) for item in value])
    if not isinstance(value, bool | int | float | str | np.ndarray | FrozenDict | None):
        raise RuntimeError(f"nothing is known of what a {type(value).__name__} does, or becomes")
    return Plain(value)


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of an object, its lists with a life of their own."""
    return {name: list(value) if type(value) is list else value for name, value in state.items()}


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Those in a value, an attribute or what a sampler returns, in their order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item)
