"""What prepared steps depend on in a model besides the values of its weights."""

from collections.abc import Mapping, Sequence, Set
from typing import Any

from torch import Tensor, nn

Identity = tuple[object, ...]

# What torch keeps in every module: weights and parts, compared by themselves, and hooks, which sessions refuse.
_OF_EVERY_MODULE = frozenset(nn.Module().__dict__) - {"training"}


def identity_of(model: nn.Module) -> Identity:
    """Where every weight is and what it looks like, and how every module computes.

    A change of values in place leaves it equal; a weight that is moved, cast or replaced, another module, a patched
    forward, another plain setting of a module (the scale of an adapter, say) do not. What lies outside of the model,
    such as a scale kept by a tool that patched a forward, cannot be seen.
    """
    weights = [
        (name, type(tensor), _place(tensor), tensor.dtype, tensor.shape, tensor.device)
        for named in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
        for name, tensor in named
    ]
    modules = [(name, id(module), type(module), _settings(module)) for name, module in model.named_modules()]
    return (*weights, *modules)


def _place(tensor: Tensor) -> int:
    """The address, or for a tensor of another kind (quantised weights) the object."""
    return tensor.data_ptr() if type(tensor) in (Tensor, nn.Parameter) else id(tensor)


def _settings(module: nn.Module) -> Identity:
    return tuple(
        (name, id(value) if name == "forward" else _plain(value))
        for name, value in module.__dict__.items()
        if name not in _OF_EVERY_MODULE
    )


_PLAIN = (bool, int, float, str)


def _plain(value: Any, depth: int = 2) -> object:
    """``value`` as far as it is made of numbers, strings and containers of them; anything else counts as equal."""
    if value is None or isinstance(value, _PLAIN):
        return value
    if depth and isinstance(value, Mapping):
        return tuple((str(key), _plain(item, depth - 1)) for key, item in value.items())
    if depth and isinstance(value, Set):
        return tuple(sorted(str(item) for item in value))
    if depth and isinstance(value, Sequence):
        return tuple(_plain(item, depth - 1) for item in value)
    return type(value)
