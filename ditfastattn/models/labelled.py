"""Models conditioned on class labels, one of which stands for "no class": what tells the guidance branches apart."""

from abc import abstractmethod

from torch import Tensor

from ditfastattn.errors import StepError
from ditfastattn.models.base import Call, ModelAdapter


def square(height: int, width: int) -> int:
    """The side of square latents. Raises StepError: of others DiT's own forward puts the patches together wrongly."""
    if height != width:
        raise StepError(f"DiT takes square latents only, got {height} x {width}")
    return height


class Labelled(ModelAdapter):
    """``call.condition`` is (B,), integers."""

    @property
    @abstractmethod
    def null_label(self) -> int:
        """The label of the unconditional branch."""

    def labels_of(self, call: Call) -> Tensor:
        """(B,). Raises StepError if the call brings none."""
        if call.condition is None:
            raise StepError("this model is conditioned on class labels: give its call one for each row of the batch")
        return call.condition

    def is_guided(self, call: Call) -> bool:
        batch = call.latents.shape[0]
        if call.condition is None or batch % 2:
            return False
        null = (call.condition == self.null_label).tolist()
        return not any(null[: batch // 2]) and all(null[batch // 2 :])

    def mixes_branches(self, call: Call) -> bool:
        if call.condition is None:
            return False
        null = (call.condition == self.null_label).tolist()
        return any(null) and not all(null)
