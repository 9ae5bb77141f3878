"""The transformers that plans can be applied to, and how a model finds its adapter. The only place that knows them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ditfastattn.errors import ApplyError
from ditfastattn.models.base import ModelAdapter


@dataclass(frozen=True)
class Family:
    """One kind of transformer.

    A model belongs to it by its class, or, where no package carries the class, if ``missing`` finds nothing missing.
    The last two fields are for readers: the README's table is written from them.
    """

    name: str
    adapter: Callable[[Any], ModelAdapter]
    transformer: type[nn.Module] | None = None
    missing: Callable[[nn.Module], list[str]] | None = None
    loaded_by: str = "its own program"
    calibration: str = "of a `Condition`"


class Registry:
    """Families in the order in which they are asked."""

    def __init__(self, built_in: list[Family]) -> None:
        self.built_in = tuple(built_in)
        self._added: dict[type, Family] = {}

    def add(self, transformer: type[nn.Module], adapter: Callable[[Any], ModelAdapter]) -> None:
        """One's own class; a second description of it takes the place of the first.

        Raises:
            ApplyError: a class that is built in.
        """
        if any(family.transformer is transformer for family in self.built_in):
            raise ApplyError(f"{transformer.__name__} is known already; register a subclass of your own instead")
        self._added[transformer] = Family(transformer.__name__, adapter, transformer)

    def find(self, model: nn.Module) -> Family:
        """The family of a model: of its nearest known class, else the first that it has all parts of.

        Raises:
            ApplyError: none; says what is missing.
        """
        by_class = {family.transformer: family for family in self.built_in if family.transformer} | self._added
        for cls in type(model).__mro__:
            if cls in by_class:
                return by_class[cls]
        lacking = []
        for family in self.built_in:
            if family.missing is None:
                continue
            missing = family.missing(model)
            if not missing:
                return family
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            lacking.append(f"{', '.join(missing[:3])}{more} to be a {family.name}")
        name = type(model).__name__
        if isinstance(getattr(model, "_orig_mod", None), nn.Module):
            raise ApplyError(f"{name} is what torch.compile() returned: give apply() the model inside, compile=True")
        raise ApplyError(
            f"{name} is not supported: it is none of {', '.join(cls.__name__ for cls in by_class)}, and it lacks "
            f"{'; '.join(lacking)}; describe it with ditfastattn.register({name}, ...)"
        )
