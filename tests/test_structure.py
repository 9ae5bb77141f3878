"""Imports point one way, eval -> calibration -> ditfastattn -> plans, and --help waits for few of them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ditfastattn
from ditfastattn import api

ROOT = Path(__file__).parent.parent
ORDER = ["plans", "ditfastattn", "calibration", "eval"]


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", ORDER)
def test_no_package_imports_one_above_it(package: str) -> None:
    above = set(ORDER[ORDER.index(package) + 1 :]) | {"tests"}
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert not imported(path) & above, f"{path.relative_to(ROOT)} imports {imported(path) & above}"


def test_help_waits_for_no_library_of_models() -> None:
    program = """
import sys
import eval.cli, ditfastattn.__main__, plans.cli
assert not {"torch", "diffusers"} & set(sys.modules)
import calibration.cli
assert not {"diffusers", "transformers", "torchmetrics", "matplotlib"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_the_package_hands_on_what_it_loads_when_asked() -> None:
    assert ditfastattn.apply is api.apply and set(ditfastattn.__all__) <= set(vars(ditfastattn))
    with pytest.raises(AttributeError, match="no attribute 'aply'"):
        ditfastattn.aply  # noqa: B018


def test_names_are_completed_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ditfastattn.__all__:
        monkeypatch.delitem(vars(ditfastattn), name)
    assert set(ditfastattn.__all__) <= set(dir(ditfastattn))


def test_what_takes_the_place_of_a_name_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = object()
    monkeypatch.setattr(ditfastattn, "apply", stand_in)
    assert not hasattr(ditfastattn, "aply") and ditfastattn.apply is stand_in
