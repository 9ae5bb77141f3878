"""A run's folder: one run in it, told by ``run.json``, begun, interrupted, taken up again, and whole in the end.

DIR/run.json                what made the images, and how fast
DIR/plan.json               the plan, if one was followed
DIR/labels.npy              (n,) int64, of a model conditioned on classes
DIR/images/000000.png ...   or DIR/samples.npz: arr_0, uint8 (n, H, W, 3)
DIR/videos/000000.gif ...   of a model of videos (or .mp4), or DIR/samples.npz: arr_0, uint8 (n, T, H, W, 3)
DIR/latents/000000.npy ...  if asked for: (C, h, w) float32 before the VAE, of videos (C, T, h, w)
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from eval import sample_files as files
from eval.sample_batches import Batches
from eval.sample_settings import SampleError, differences
from eval.sample_videos import ENDINGS, is_whole_video, video_path, write_videos
from plans import Plan, save
from plans.files import write_text

KIND, VERSION = "ditfastattn-run", 1
_SETTLING = 90.0  # seconds until every host of a network file system must see what the others wrote


class RunFolder:
    """``settings``: of :func:`eval.sample_settings.describe`; ``latent_shape``: of one image or video."""

    def __init__(self, path: Path, settings: dict[str, Any], latent_shape: tuple[int, ...]) -> None:
        self.path = path
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.batches = Batches(settings["n"], settings["batch"])
        self._size: tuple[int, ...] = tuple(settings["size"])
        self._format: str = settings["format"]
        self._archive = self._format == "npz"
        self._latent_shape = latent_shape if settings["latents"] else None

    def begin(self, notes: dict[str, Any], plan: Plan | None, labels: list[int] | None) -> None:
        """Makes the folder this run's, or finds that it is; for rank 0, which :func:`held` it.

        Args:
            notes: what else ``run.json`` says, and another command of the same run may say otherwise.

        Raises:
            SampleError: another run, or anything else, lies there.
        """
        record = read_record(self.path)
        if record is None:
            found = sorted(entry.name for entry in self.path.iterdir() if not files.is_left_over(entry.name))
            if found:
                raise SampleError(
                    f"{self.path} holds {_some(found)} but no run.json, so it is not a folder of samples; name another "
                    "--out, or an empty folder"
                )
        else:
            self._compare(record)
        files.sweep(self.path)
        self._refuse_strangers()
        if record is not None:
            return
        if plan is not None:
            save(plan, self.path / "plan.json")
        if labels is not None:
            files.write_array(self.path / "labels.npy", np.array(labels, dtype=np.int64))
        created = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"kind": KIND, "version": VERSION, **self.settings, **notes, "created": created, "finished": None}
        self._write(record)

    def join(self) -> None:
        """For the other ranks, after :meth:`begin`. Raises SampleError where they do not see the same folder."""
        until = time.monotonic() + 10
        while (record := read_record(self.path)) is None and time.monotonic() < until:
            time.sleep(0.2)
        if record is None:
            raise SampleError(f"{self.path} is not the same folder on every host: name one on a shared file system")
        self._compare(record)

    def pending(self) -> list[int]:
        """Numbers of the batches of which anything is missing, or half there."""
        if self._archive and self._latent_shape is None and self._is_packed():
            return []
        return [number for number in range(len(self.batches)) if not self._is_done(number)]

    def write(self, number: int, latents: Tensor, images: Tensor) -> int:
        """Saves a batch as it was drawn; how many of its images are kept. Raises PlanError for a file that cannot be
        written."""
        kept = self.batches.kept(number)
        pixels = images[: len(kept)].numpy()
        if self._latent_shape is not None:
            for index, one in zip(kept, latents.numpy(), strict=False):
                files.write_array(files.latents_path(self.path, index), one)
        if self._archive:
            files.write_array(files.part_path(self.path, kept[0]), pixels)
        elif self._format in ENDINGS:
            write_videos(self.path, kept, pixels, self._format)
        else:
            files.write_pngs(self.path, kept, pixels)
        return len(kept)

    def finish(self, throughput: dict[str, Any] | None, patient: bool) -> None:
        """Packs what is to be packed and closes the run; for rank 0, when all batches are written.

        Args:
            patient: other hosts may have written, whose files a network file system shows only after a while.

        Raises:
            SampleError: images are missing.
        """
        until = time.monotonic() + (_SETTLING if patient else 0)
        while (missing := self.pending()) and time.monotonic() < until:
            time.sleep(3)
        if missing:
            raise SampleError(f"{len(missing)} batches that were written are missing from {self.path}; sample again")
        if self._archive:
            self._pack()
        record = read_record(self.path) or {}
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        self._write({**record, "finished": finished, "throughput": throughput})

    def is_finished(self) -> bool:
        return bool((read_record(self.path) or {}).get("finished"))

    # ---------------------------------------------------------------------------------------------------------------

    def _compare(self, record: dict[str, Any]) -> None:
        found = differences({key: record.get(key) for key in self.settings}, self.settings)
        if found:
            listed = "".join(f"\n  - {line}" for line in found)
            raise SampleError(
                f"{self.path} is the folder of another run; name another --out, or ask for the same:{listed}"
            )

    def _refuse_strangers(self) -> None:
        """Images of no index below n would be counted by whoever reads the folder."""
        n = self.settings["n"]
        for place, ending in (("images", "png"), ("videos", self._format), ("latents", "npy"), ("parts", "npy")):
            folder = self.path / place
            names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
            strangers = sorted(names - {f"{files.name(index)}.{ending}" for index in range(n)})
            if strangers:
                raise SampleError(f"{folder} holds {_some(strangers)}, not of this run's {n} images; take them away")

    def _is_done(self, number: int) -> bool:
        kept = self.batches.kept(number)
        if self._latent_shape is not None and not all(
            files.is_whole_array(files.latents_path(self.path, index), self._latent_shape) for index in kept
        ):
            return False
        if self._format in ENDINGS:
            return all(is_whole_video(video_path(self.path, index, self._format), self._size) for index in kept)
        if not self._archive:
            return all(files.is_whole_png(files.png_path(self.path, index), self._size) for index in kept)
        part = files.part_path(self.path, kept[0])
        return files.is_whole_array(part, (len(kept), *self._size, 3)) or self._is_packed()

    def _is_packed(self) -> bool:
        return files.is_whole_npz(self.path / "samples.npz", self.batches.n, self._size)

    def _pack(self) -> None:
        parts = [files.part_path(self.path, self.batches.kept(number)[0]) for number in range(len(self.batches))]
        if not self._is_packed():
            files.pack(self.path / "samples.npz", parts, self.batches.n, self._size)
        for part in parts:
            part.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not there, or not ours alone
            (self.path / "parts").rmdir()

    def _write(self, record: dict[str, Any]) -> None:
        write_text(self.path / "run.json", json.dumps(record, indent=1) + "\n")


def read_record(path: Path) -> dict[str, Any] | None:
    """What ``run.json`` of a folder says; None where there is none. Raises SampleError if it is not one of ours."""
    try:
        record = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (UnicodeDecodeError, json.JSONDecodeError):
        record = None
    if not isinstance(record, dict) or record.get("kind") != KIND:
        raise SampleError(f"{path / 'run.json'} is not the record of a run of eval sample; name another --out")
    if record.get("version") != VERSION:
        raise SampleError(f"{path} was made by another version of ditfastattn; name another --out")
    return record


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Makes the folder and keeps every other process out of it; a kill lets go of it, too.

    Raises:
        SampleError: it is a file, or another process holds it.
    """
    if path.exists() and not path.is_dir():
        raise SampleError(f"{path} is a file; name a folder for the images")
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
        raise SampleError(f"{path} may not be written; check its permissions, or name another --out")
    try:
        import fcntl
    except ImportError:  # no such lock on this system
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SampleError(f"another process is sampling into {path}; wait for it, or name another --out") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
