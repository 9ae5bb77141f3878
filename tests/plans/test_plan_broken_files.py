"""Every kind of broken file is refused by `python -m plans check`: exit 2, one sentence of its own, no traceback."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from plan_examples import golden

import plans
from plans.cli import main
from plans.format import seal

ROOT = Path(__file__).parents[2]
PLAN = golden()["heun-12x19"]
NO_GUIDANCE = golden()["no-guidance-12x20"]


def _edited(edit: Callable[[dict[str, Any]], object], plan: plans.Plan = PLAN) -> bytes:
    """A plan with one edit and the digest that belongs to it, so that only the rule can refuse it."""
    document = json.loads(plans.dumps(plan))
    edit(document)
    return json.dumps(seal(document)).encode()


def _unsealed(edit: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(plans.dumps(PLAN))
    edit(document)
    return json.dumps(document).encode()


def _cell(step: int, layer: int, value: object, key: str = "methods") -> Callable[[dict[str, Any]], object]:
    return lambda document: document["sites"]["attn"][key][step].__setitem__(layer, value)


def _put(*path: str, value: object) -> Callable[[dict[str, Any]], object]:
    def edit(document: dict[str, Any]) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return edit


def _zip() -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr("data.pkl", b"")
    return memory.getvalue()


TEXT = plans.dumps(PLAN)

# name -> (content, what its sentence says)
BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "text": (b"hello", "is not JSON (line 1, column 1"),
    "truncated": (TEXT.encode()[:1000], "is not JSON"),
    "pickle": (pickle.dumps({"plan": 1}), "is a pickle, which could run code and is never loaded"),
    "zip": (_zip(), "is a zip archive"),
    "latin1": ("é".encode("latin-1"), "is not UTF-8 text (byte 0 is 0xe9)"),
    "nul": (b"{\0}", "is a binary file"),
    "array": (b"[]", "holds a JSON array"),
    "number": (b"3", "holds a JSON number"),
    "deep": (b"[" * 200_000, "is nested too deeply"),
    "nan": (TEXT.replace('"scale": 4.5', '"scale": NaN').encode(), "contains NaN"),
    "infinity": (TEXT.replace('"scale": 4.5', '"scale": -Infinity').encode(), "contains -Infinity"),
    "overflow": (TEXT.replace('"scale": 4.5', '"scale": 1e999').encode(), "contains the number 1e999"),
    "huge integer": (
        TEXT.replace('"seed": 0', '"seed": 1' + "0" * 5000).encode(),
        "an integer of 5001 digits",
    ),
    "key twice": (TEXT.replace('"note"', '"window"').encode(), "has the key 'window' twice"),
    "no format": (_edited(lambda d: d.pop("format")), 'has no "format"'),
    "other format": (_edited(_put("format", value="onnx")), "has the format 'onnx'"),
    "no version": (_edited(lambda d: d.pop("version")), 'has no "version"'),
    "newer": (_edited(_put("version", value=2)), "made by a newer ditfastattn"),
    "version 0": (_edited(_put("version", value=0)), "has the version 0"),
    "version true": (_edited(_put("version", value=True)), "has the version True"),
    "no digest": (_unsealed(lambda d: d.pop("digest")), "has no digest"),
    "changed": (_unsealed(_cell(3, 3, "FULL")), "does not match its digest"),
    "no model": (_edited(lambda d: d.pop("model")), "model is missing"),
    "no calibration": (_edited(lambda d: d.pop("calibration")), "calibration is missing"),
    "unknown key": (_edited(_put("steps", value=19)), "steps is not a key of a plan"),
    "inner unknown key": (_edited(_put("window", "up", value=1)), "window.up is not a key of a plan"),
    "layers as text": (_edited(_put("model", "layers", value="12")), "model.layers is '12'"),
    "half a head": (_edited(_put("model", "heads", value=5.5)), "model.heads is 5.5"),
    "too few rows": (_edited(lambda d: d["sites"]["attn"]["methods"].pop()), "has 18 rows"),
    "too few cells": (_edited(lambda d: d["sites"]["attn"]["methods"][4].pop()), "methods[4] has 11 cells"),
    "loss rows": (_edited(lambda d: d["sites"]["attn"]["losses"].pop()), "losses has 18 rows"),
    "unknown method": (_edited(_cell(2, 5, "WARS")), "sites.attn.methods[2][5] is 'WARS'"),
    "step 0": (_edited(_cell(0, 7, "AST")), "step 0 has AST in layer 7"),
    "no halves": (_edited(_cell(4, 2, "ASC"), NO_GUIDANCE), "but the guidance layout is 'none'"),
    "negative loss": (_edited(_cell(3, 1, -1.0, "losses")), "sites.attn.losses[3][1] is -1.0"),
    "loss as text": (_edited(_cell(3, 1, "low", "losses")), "sites.attn.losses[3][1] is 'low'"),
    "wide window": (_edited(_put("window", "left", value=257)), "more than the model's 256 tokens"),
    "negative window": (_edited(_put("window", "right", value=-1)), "window.right is -1"),
    "rising timesteps": (_edited(lambda d: d["sampler"]["timesteps"].reverse()), "must not increase"),
    "no timesteps": (_edited(_put("sampler", "timesteps", value=[])), "sampler.timesteps is []"),
    "nested setting": (_edited(_put("sampler", "settings", "x", value={})), "a dict is not a setting"),
    "scale without halves": (
        _edited(_put("guidance", "layout", value="none")),
        "does not go with layout 'none'",
    ),
    "unknown layout": (_edited(_put("guidance", "layout", value="both")), "guidance.layout is 'both'"),
    "token order": (_edited(_put("token_order", value="spiral")), "token_order is 'spiral'"),
    "no attn": (_edited(_put("sites", value={})), "sites has no 'attn'"),
    "other site": (_edited(lambda d: d["sites"].update(words=d["sites"]["attn"])), "sites.words is 'words'"),
    "bad time": (_edited(_put("calibration", "created", value="now")), "'now' is not an ISO 8601 time"),
    "lone surrogate": (_edited(_put("note", value="\ud800")), "contains \\ud800, half of a character"),
}


@dataclass
class Result:
    returncode: int
    stdout: str
    stderr: str


def _check(path: Path) -> Result:
    """`main` in this process, which is all that `python -m plans` calls."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main(["check", str(path)])
    return Result(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every broken file, and the things that are no file."""
    folder = tmp_path_factory.mktemp("broken")
    found = {name: folder / f"{number}.json" for number, name in enumerate(BROKEN)}
    for name, path in found.items():
        path.write_bytes(BROKEN[name][0])
    found["folder"] = folder
    found["missing"] = folder / "missing.json"
    found["pipe"] = folder / "pipe.json"
    os.mkfifo(found["pipe"])
    found["too large"] = folder / "large.json"
    with open(found["too large"], "wb") as file:
        file.truncate(2**30)
    return found


OTHER = {
    "folder": "is a folder",
    "missing": "does not exist",
    "pipe": "is not a regular file",
    "too large": "more than the 33554432 a plan may have",
}
SENTENCES = {name: sentence for name, (_, sentence) in BROKEN.items()} | OTHER


def _assert_refused(result: Any, sentence: str) -> None:
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert len(result.stderr) < 400
    assert "pydantic" not in result.stderr
    assert sentence in result.stderr


@pytest.mark.parametrize("name", SENTENCES)
def test_refused(name: str, paths: dict[str, Path]) -> None:
    _assert_refused(_check(paths[name]), SENTENCES[name])


@pytest.mark.parametrize("name", ["pickle", "truncated", "deep", "changed", "step 0", "pipe", "lone surrogate"])
def test_refused_by_the_command(name: str, paths: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "plans", "check", str(paths[name])]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    _assert_refused(result, SENTENCES[name])


def test_every_sentence_is_its_own(paths: dict[str, Path]) -> None:
    said = {name: _check(path).stderr.replace(str(path), "FILE") for name, path in paths.items()}
    assert len(set(said.values())) == len(said) > 20


@pytest.mark.parametrize("depth", [17, 100, 900, 990, 5000])
def test_nesting_of_every_depth_is_refused(depth: int) -> None:
    text = TEXT.replace('"Heun: two calls at one time"', "[" * depth + "]" * depth)
    with pytest.raises(plans.PlanError, match="nested too deeply"):
        plans.loads(text)
