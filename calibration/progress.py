"""The bars of a calibration: steps of the search, the attention MACs left so far and the time left."""

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from calibration.budget import SEARCHES, upper_drift
from calibration.sensitivity import Sensitivity
from calibration.trace import Searched
from calibration.work import Watch


@contextmanager
def bars(name: str) -> Iterator[Watch]:
    """A bar for each part of a calibration, one after the other.

    Args:
        name: of the search, where there is one only.
    """
    shown: dict[str, tqdm] = {}  # at most one, by its description
    spent, done, search, verified = 0.0, 0, name, 0

    def close() -> None:
        while shown:
            shown.popitem()[1].close()

    def bar(description: str, total: int, unit: str = "step") -> tqdm:
        if description not in shown:
            close()
            shown[description] = tqdm(total=total, desc=description, unit=unit, dynamic_ncols=True)
        return shown[description]

    def on_sensitivity(total: int, sensitivity: Sensitivity) -> None:
        now = bar("sensitivities", total)
        now.set_postfix_str(f"last {sensitivity.value:.2g}", refresh=False)
        now.update()

    def on_step(total: int, share: float) -> None:
        nonlocal spent, done
        spent, done = spent + share, done + 1
        now = bar(search, total)
        now.set_postfix_str(f"attention MACs {100 * spent / done:.1f} %", refresh=False)
        now.update()

    def on_search(threshold: float) -> None:
        nonlocal spent, done, search
        close()
        spent, done, search = 0.0, 0, f"price {threshold:.4g} ({verified + 1} of at most {SEARCHES})"

    def on_batch(done: int, total: int) -> None:
        now = bar("on other noise", total, "batch")
        now.update(done - now.n)

    def on_verified(searched: Searched, percent: float) -> None:
        nonlocal verified
        verified += 1
        close()
        most, upper = max(searched.achieved), upper_drift(searched.achieved)
        print(
            f"  price {searched.threshold or 0:.4g}: {percent:.1f} % of attention MACs, on other noise a drift of "
            f"{most:.4f} at most, {upper:.4f} to be safe"
        )

    try:
        yield Watch(on_step, on_sensitivity, on_search, on_verified, on_batch)
    finally:
        close()
