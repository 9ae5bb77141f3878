"""The drawings as one file of images."""

from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from ditfastattn.demo import data, drawings
from eval.sources import open_source

SETS = ("noto", "twemoji")


def test_training_drawings_as_images(art: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawings, "prepare", partial(data.prepare, sets=SETS, workers=1))
    file = tmp_path / "build" / "emoji.npz"
    drawings.main(["--art", str(art), "--out", str(file)])

    all_of_them = data.prepare(art, drawings=1, sets=SETS, workers=1)
    (batch,) = open_source(file).batches(1000)
    assert all_of_them.held_out.any()
    assert (batch == all_of_them.images[~all_of_them.held_out, 0]).all()


@pytest.mark.parametrize(("name", "reason"), [("emoji.npz", "ART.md"), ("emoji.png", "must end in .npz")])
def test_what_cannot_be_is_told_in_a_sentence(
    name: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        drawings.main(["--art", str(tmp_path), "--out", str(tmp_path / name)])
    assert left.value.code == 2 and reason in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_half_written(
    art: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(drawings, "prepare", partial(data.prepare, sets=SETS, workers=1))

    def full_disk(file: BinaryIO, **arrays: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(drawings.np, "savez_compressed", full_disk)
    with pytest.raises(SystemExit):
        drawings.main(["--art", str(art), "--out", str(tmp_path / "emoji.npz")])
    assert "No space left on device" in capsys.readouterr().err and not list(tmp_path.iterdir())
