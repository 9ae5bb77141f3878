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
    such as a scale kept by a tool that patched a forward, cannot be seen. Hooks of its parts are counted, so that a
    model of the same identity has the same obstacles.
    """
    found: list[object] = []
    seen: set[nn.Module] = set()
    waiting: list[tuple[str, nn.Module]] = [("", model)]  # by hand: torch's own walks take three times as long
    while waiting:
        name, module = waiting.pop()
        hooks = 0 if module is model else len(module._forward_hooks) + len(module._forward_pre_hooks)
        found.append((name, id(module), type(module), hooks))
        if module in seen:
            continue
        seen.add(module)
        found.append(_settings(module))
        for tensors in (module._parameters, module._buffers):
            for tensor_name, tensor in tensors.items():
                if tensor is not None:
                    found.append((tensor_name, type(tensor), _place(tensor), tensor.dtype, tensor.shape, tensor.device))
        waiting += [(part_name, part) for part_name, part in module._modules.items() if part is not None]
    return tuple(found)


def _place(tensor: Tensor) -> int:
    """The address, or for a tensor of another kind (quantised weights) the object."""
    return tensor.data_ptr() if type(tensor) in (Tensor, nn.Parameter) else id(tensor)


def _settings(module: nn.Module) -> Identity:
    values = module.__dict__
    found: list[object] = []
    for name in values:
        if name not in _OF_EVERY_MODULE:
            value = values[name]
            found.append(name)
            found.append(value if type(value) in _PLAIN else id(value) if name == "forward" else _plain(value))
    return tuple(found)


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
