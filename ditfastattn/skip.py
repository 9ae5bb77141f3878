"""Steps in which the model is not called: its output is reused or forecast, and returned as its own forward would."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ditfastattn.errors import StepError

Form = Callable[[Tensor], Any]


def form_of(result: Any) -> Form:
    """How the model's forward returns its output: makes of another output what ``result`` is of its own.

    Raises:
        StepError: it returns more than one output, of which a plan reuses the first only.
    """
    if isinstance(result, Tensor):
        return lambda output: output
    kind = type(result)
    if kind is tuple and len(result) == 1:
        return lambda output: (output,)
    if isinstance(result, dict) and len(result) == 1:  # diffusers' outputs are dictionaries
        name = next(iter(result))
        return lambda output: kind(**{name: output})
    raise StepError(
        f"the model returned a {kind.__name__}, but a plan that skips steps needs one output, bare or by itself in a "
        "tuple or a diffusers output; use a plan without the site model"
    )
