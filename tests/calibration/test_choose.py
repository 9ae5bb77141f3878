import ctypes

import numpy as np
import pytest

from calibration.choose import least_error
from calibration.columns import Schedule
from calibration.quiet import quiet


def _c_prints(text: bytes) -> None:
    libc = ctypes.CDLL(None)
    libc.puts(text)
    libc.fflush(None)


def test_the_solver_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)  # of this problem HiGHS tells that it repairs a solution
    menus = []
    for _ in range(24):
        costs, errors = np.sort(rng.random(40))[::-1] * 10 + 1, np.sort(rng.lognormal(0, 1, 40))
        errors[0] = 0
        menus.append([Schedule(float(cost), float(error), ()) for cost, error in zip(costs, errors, strict=True)])
    least, most = (sum(menu[end].cost for menu in menus) for end in (-1, 0))
    limit = least + (most - least) * rng.random()
    chosen = least_error(menus, limit)
    _c_prints(b"after")
    assert capfd.readouterr().out == "after\n"
    assert sum(schedule.cost for schedule in chosen) <= limit * (1 + 1e-6)


def test_quiet_drops_what_c_prints_and_puts_standard_output_back(capfd: pytest.CaptureFixture[str]) -> None:
    print("before")
    with pytest.raises(RuntimeError), quiet():
        ctypes.CDLL(None).puts(b"stray")  # left in C's buffer
        raise RuntimeError
    _c_prints(b"after")
    print("last")
    assert capfd.readouterr().out == "before\nafter\nlast\n"


def test_quiet_without_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(_: int) -> int:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr("os.dup", closed)
    with quiet():
        pass
