"""Imports point one way, eval -> calibration -> ditfastattn -> plans, and --help waits for few of them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ditfastattn
from ditfastattn import api, kernel_names, kernels
from ditfastattn.__main__ import main
from eval import geometry, pareto
from eval.arguments import common
from eval.arguments.pareto import SOURCES
from eval.cli import main as eval_main

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
for command in eval.cli.COMMANDS:
    for arguments in ([command, "--help"], [command, "--no-such-option"]):
        try:
            assert eval.cli.main(arguments) == 2
        except SystemExit as end:
            assert end.code == 0, command
assert not {"torch", "diffusers"} & set(sys.modules)
import calibration.cli
assert not {"diffusers", "transformers", "torchmetrics", "matplotlib"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_what_options_name_is_there() -> None:
    """Options are read before what they name is loaded."""
    assert tuple(kernels.KERNELS) == kernel_names.KERNELS
    assert set(common.IMAGES) | set(common.VIDEOS) == {*geometry.TRANSFORMERS, *common.DEMOS}
    assert tuple(pareto.SOURCES) == SOURCES


def test_a_wrong_option_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    commands = (
        (eval_main, ["pareto-speed", "--model", "nosuch"]),
        (eval_main, ["fid"]),
        (main, ["resample", "--nosuch"]),
    )
    for command, arguments in commands:
        assert command(arguments) == 2
        said = capsys.readouterr()
        assert said.err.startswith("error: ") and said.err.count("\n") == 1 and not said.out
        assert f"see python -m {'eval' if command is eval_main else 'ditfastattn'} {arguments[0]} --help" in said.err


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
