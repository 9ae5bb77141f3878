"""Commands that follow one another, each done once: what is finished stays finished, whatever ends the process."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ditfastattn.errors import DitFastAttnError
from plans.files import write_text


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        module: "calibration", or a command of eval by its module, such as "eval.sample".
        command: how a person would call it, after ``python -m``.
        arguments: of the command.
        inputs: files whose content it depends on.
        is_done: whether what it leaves is there.
        processes: more than 1 runs it by torchrun.
    """

    name: str
    module: str
    command: str
    arguments: tuple[str, ...]
    inputs: tuple[Path, ...]
    is_done: Callable[[], bool]
    processes: int = 1

    @property
    def line(self) -> str:
        """The command as it can be given by hand."""
        launcher = "python -m" if self.processes == 1 else f"torchrun --nproc-per-node {self.processes} -m"
        return f"{launcher} {self.command} {shlex.join(self.arguments)}"

    def key(self) -> str:
        """Of the arguments and the inputs' content: a stage of another key is another stage."""
        found = hashlib.sha256(json.dumps([self.command, self.arguments]).encode())
        for file in self.inputs:
            found.update(hashlib.sha256(file.read_bytes()).digest())
        return found.hexdigest()

    def run(self) -> None:
        """Raises what the command raises, or DitFastAttnError where it only says so."""
        if self.processes > 1:
            launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={self.processes}", "-m"]
            status = subprocess.run([*launch, *self.command.split(), *self.arguments]).returncode
        else:
            status = import_module(self.module).main(list(self.arguments)) or 0
        if status == 130:
            raise KeyboardInterrupt
        if status:
            raise DitFastAttnError(f"{self.name} did not finish (see above); the same command goes on from there")


class Ledger:
    """What was done, in a file: stage name -> key and seconds; and the settings that all of it has in common."""

    def __init__(self, file: Path, settings: dict[str, Any]) -> None:
        """Raises DitFastAttnError where the file is of other settings, and lists them."""
        self._file = file
        self._content: dict[str, Any] = {"settings": json.loads(json.dumps(settings)), "stages": {}}
        if not file.exists():
            return
        try:
            found = json.loads(file.read_text())
            before, self._content["stages"] = found["settings"], dict(found["stages"])
        except (ValueError, KeyError, TypeError):
            raise DitFastAttnError(f"{file} is not a record of this command; name another --out") from None
        now = self._content["settings"]
        changed = [
            f"{k}: {before.get(k)!r}, now {now.get(k)!r}" for k in {**before, **now} if before.get(k) != now.get(k)
        ]
        if changed:
            listed = "".join(f"\n  - {line}" for line in changed)
            raise DitFastAttnError(f"{file.parent} was begun with other settings; name another --out:{listed}")

    def run(self, stages: Sequence[Callable[[], Stage]]) -> list[str]:
        """Runs what is not done, in order; the names of those that ran.

        Args:
            stages: made one after another, since a later one may need what an earlier one leaves.
        """
        ran = []
        for number, make in enumerate(stages, start=1):
            stage = make()
            head = f"[{number}/{len(stages)}] {stage.name}"
            key, done = stage.key(), self._content["stages"].get(stage.name)
            if done and done["key"] == key and stage.is_done():
                print(f"{head}: done before", flush=True)
                continue
            print(f"{head}: {stage.line}", flush=True)
            began = time.monotonic()
            stage.run()
            self._content["stages"][stage.name] = {"key": key, "seconds": round(time.monotonic() - began, 1)}
            write_text(self._file, json.dumps(self._content, indent=1) + "\n")
            ran.append(stage.name)
        return ran
