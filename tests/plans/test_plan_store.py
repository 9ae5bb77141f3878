"""Files: what is written is read back, whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from plan_examples import golden
from plan_strategies import plans as any_plan

import plans
from plans import Plan, PlanError
from plans.store import reseal

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.json"))


@pytest.fixture
def plan() -> Plan:
    return golden()["full-12x4"]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_files_load_and_are_written_back_byte_for_byte(path: Path, tmp_path: Path) -> None:
    loaded = plans.load(path)
    assert loaded == golden()[path.stem]
    plans.save(loaded, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_a_plan_that_ships_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: Plan) -> None:
    monkeypatch.chdir(tmp_path)
    name = "demo-dpm50-mrae-0.05"
    assert plans.load(name) == plans.load(Path(plans.__file__).parent / "library" / f"{name}.json")
    with pytest.raises(PlanError, match="does not exist"):
        plans.load(f"elsewhere/{name}")
    plans.save(plan, tmp_path / name)
    assert plans.load(name) == plan


def test_there_is_a_golden_file_for_every_example() -> None:
    assert [path.stem for path in GOLDEN] == sorted(golden())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # by the wall clock
@given(plan=any_plan())
def test_any_plan_comes_back_equal(plan: Plan) -> None:
    text = plans.dumps(plan)
    again = plans.loads(text)
    assert again == plan
    assert plans.dumps(again) == text


def test_a_grid_row_is_a_line() -> None:
    plan = golden()["dit-12x50"]
    lines = plans.dumps(plan).splitlines()
    rows = [line for line in lines if '"FULL"' in line or '"AST"' in line or '"WA_RS"' in line]
    assert len([row for row in rows if row.count(",") >= plan.layers - 1]) == plan.steps


def test_setting_types_survive(plan: Plan) -> None:
    values: dict[str, Any] = {
        "a": 1,
        "b": 1.0,
        "c": True,
        "d": None,
        "e": "1",
        "f": (1, 1.0, False, None, "x"),
        "g": (),
    }
    sampler = plans.SamplerSpec(class_name="S", settings=values, timesteps=plan.sampler.timesteps)
    again = plans.loads(plans.dumps(Plan(**dict(plan) | {"sampler": sampler})))
    assert repr(again.sampler.settings) == repr(values)


def test_folders_are_made_and_nothing_else_is_left(plan: Plan, tmp_path: Path) -> None:
    plans.save(plan, tmp_path / "a" / "b" / "plan.json")
    assert os.listdir(tmp_path / "a" / "b") == ["plan.json"]


def test_a_link_stays_a_link_and_the_mode_is_kept(plan: Plan, tmp_path: Path) -> None:
    plans.save(plan, tmp_path / "real.json")
    (tmp_path / "real.json").chmod(0o640)
    (tmp_path / "link.json").symlink_to("real.json")
    plans.save(plan, tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert stat.S_IMODE((tmp_path / "real.json").stat().st_mode) == 0o640


def _no_space(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("fails", ["replace", "fsync"])
@pytest.mark.parametrize("existing", [True, False])
def test_a_full_disk_leaves_the_old_file_and_nothing_half_written(
    fails: str, existing: bool, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.json"
    if existing:
        plans.save(plan, path)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    monkeypatch.setattr(os, fails, _no_space)
    kept = "the file there before is unchanged" if existing else "nothing was left behind"
    with pytest.raises(PlanError, match=rf"plan.json cannot be written \(No space left on device\); {kept}"):
        plans.save(golden()["dit-12x50"], path)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_write_that_fails_half_way_leaves_nothing(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = open

    def full_disk(path: Any, mode: str = "r", **keywords: Any) -> Any:
        if "w" in mode:
            real(path, mode, **keywords).close()  # the file appears, as it does on a full disk
            path = "/dev/full"
        return real(path, mode, **keywords)

    monkeypatch.setattr("builtins.open", full_disk)
    with pytest.raises(PlanError, match="No space left on device"):
        plans.save(plan, tmp_path / "plan.json")
    assert os.listdir(tmp_path) == []


def test_an_interrupt_leaves_nothing(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        plans.save(plan, tmp_path / "plan.json")
    assert os.listdir(tmp_path) == []


def test_a_folder_is_not_overwritten(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="is a folder; name the file to write in it"):
        plans.save(plan, tmp_path)


def test_a_pipe_is_not_replaced(plan: Plan, tmp_path: Path) -> None:
    """Nor a device, which is no regular file either."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(PlanError, match=f"{path.name} is not a regular file; name a file to write instead"):
            plans.save(plan, path)
    assert pipe.is_fifo() and set(tmp_path.iterdir()) == {pipe, link}


def test_a_plan_that_dodged_the_rules_is_not_written(plan: Plan, tmp_path: Path) -> None:
    broken = plan.model_copy(update={"window": plans.Window(left=999, right=0)})
    with pytest.raises(PlanError, match=r"window\.left is 999"):
        plans.save(broken, tmp_path / "plan.json")
    half = plan.model_copy(update={"note": "\ud800"})
    with pytest.raises(PlanError, match="half of a character"):
        plans.save(half, tmp_path / "plan.json")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied"), "may not be read"),
        (OSError(5, "Input/output error"), "cannot be read"),
    ],
)
def test_unreadable_files(error: OSError, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    path.write_text("{}")

    def fails(_: Path) -> bytes:
        raise error

    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(PlanError, match=message):
        plans.load(path)


def test_a_path_with_a_nul_is_refused() -> None:
    with pytest.raises(PlanError, match="cannot be read"):
        plans.load("plan\0.json")


def test_seal_accepts_an_edit_that_follows_the_rules(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plans.save(plan, path)
    document = json.loads(path.read_text())
    document["sites"]["attn"]["methods"][2][5] = "AST"
    path.write_text(json.dumps(document))
    with pytest.raises(PlanError, match="does not match its digest"):
        plans.load(path)
    sealed, changed = reseal(path)
    assert changed
    assert sealed.methods[2][5] is plans.Method.AST
    assert plans.load(path) == sealed
    assert reseal(path) == (sealed, False)


def test_seal_leaves_a_broken_file_as_it_is(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    text = plans.dumps(plan).replace('"FULL"', '"FULLY"', 1)
    path.write_text(text)
    with pytest.raises(PlanError, match="'FULLY'"):
        reseal(path)
    assert path.read_text() == text
