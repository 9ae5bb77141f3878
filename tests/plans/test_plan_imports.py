"""`import plans` needs pydantic only, so that a plan loads anywhere, at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "numpy", "matplotlib", "diffusers", "ditfastattn", "calibration", "eval"}


@pytest.mark.parametrize("code", ["import plans", "import plans.cli, plans.render, plans.macs, plans.figure"])
def test_nothing_heavy_is_imported(code: str) -> None:
    command = f"{code}; import sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert "plans" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_showing_a_plan_needs_no_matplotlib() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from plans.cli import main\n"
        "path = 'tests/plans/golden/full-12x4.json'\n"
        "assert main(['show', path]) == 0\n"
        "assert main(['show', path, '--out', 'never.png']) == 2\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "error: pictures need matplotlib, which is not installed; pip install matplotlib\n"
