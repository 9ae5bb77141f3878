"""What is read: order, crop, refusals, and that memory does not grow with the images."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from metric_tools import network, pictures, write_folder
from PIL import Image

from ditfastattn.errors import MetricError
from eval.collect import Needs, collect
from eval.crop import centre_crop
from eval.random_images import write
from eval.sources import Folder, open_source


def all_of(path: Path, batch: int = 3, **options: int) -> np.ndarray:
    return np.concatenate(list(open_source(path, **options).batches(batch)))


def test_folder_run_folder_and_npz_hold_the_same(tmp_path: Path) -> None:
    images = pictures(7)
    write_folder(tmp_path / "flat", images)
    write_folder(tmp_path / "run" / "images", images)
    (tmp_path / "run" / "run.json").write_text(json.dumps({"n": 7}))
    np.savez(tmp_path / "stored.npz", images)
    np.savez_compressed(tmp_path / "deflated.npz", arr_0=images, labels=np.arange(7))
    for name in ("flat", "run", "stored.npz", "deflated.npz"):
        np.testing.assert_array_equal(all_of(tmp_path / name), images)
        part = list(open_source(tmp_path / name).batches(2, 2, 5))
        assert [len(p) for p in part] == [2, 1]
        np.testing.assert_array_equal(np.concatenate(part), images[2:5])


def test_class_folders_are_read_by_relative_name(tmp_path: Path) -> None:
    images = pictures(4)
    write_folder(tmp_path / "n02", images[2:])
    write_folder(tmp_path / "n01", images[:2])
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    write_folder(tmp_path / ".hidden", images)
    np.testing.assert_array_equal(all_of(tmp_path), images)


def test_centre_crop_is_adms() -> None:
    """200 x 90 to 40: halved once by pairs (not twice: 45 < 80), scaled to 89 x 40, then the middle."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 200, 3), dtype=np.uint8))
    halved = np.asarray(image).astype(float).reshape(45, 2, 100, 2, 3).mean((1, 3))
    half = image.resize((100, 45), Image.Resampling.BOX)
    assert np.abs(np.asarray(half) - halved).max() <= 1  # PIL rounds after rows and after columns
    scaled = np.asarray(half.resize((89, 40), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(centre_crop(image, 40), scaled[:, 24:64])
    small = Image.fromarray(pictures(1, 16)[0])
    np.testing.assert_array_equal(centre_crop(small, 16), np.asarray(small))
    assert centre_crop(small, 32).shape == (32, 32, 3)


def test_real_images_are_cropped_converted_and_counted(tmp_path: Path) -> None:
    write_folder(tmp_path, pictures(3, 20))
    Image.fromarray(pictures(1, 24)[0]).convert("L").save(tmp_path / "grey.jpg")
    Image.fromarray(pictures(1, 24)[0]).convert("CMYK").save(tmp_path / "print.jpg")
    source = Folder(tmp_path, crop=16)
    assert np.concatenate(list(source.batches(2))).shape == (5, 16, 16, 3)
    assert [n.split(" were")[0] for n in source.notes] == ["1 images of mode CMYK", "1 images of mode L"]


def test_unreadable_real_images_are_listed(tmp_path: Path) -> None:
    write_folder(tmp_path, pictures(3, 64))
    whole = (tmp_path / "000001.png").read_bytes()
    (tmp_path / "000001.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not an image")
    source = Folder(tmp_path, crop=16)
    assert sum(map(len, source.batches(2))) == 2
    assert source.unreadable == ["000001.png", "text.png"]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda p: None, "holds no images; expected files ending in"),
        (
            lambda p: (write_folder(p, pictures(2)), write_folder(p / "b", pictures(1, 8))),
            "mixed sizes: .* 16 x 16.* 8 x 8",
        ),
        (lambda p: (write_folder(p, pictures(2)), (p / "x.png").write_text("no")), "x.png cannot be read as an image"),
        (lambda p: Image.new("L", (8, 8)).save(p / "g.png"), "g.png is grey; expected RGB images"),
        (lambda p: Image.new("RGBA", (8, 8)).save(p / "g.png"), "of mode RGBA; expected RGB images"),
        (
            lambda p: (write_folder(p, pictures(2)), (p / "run.json").write_text('{"n": 9}')),
            "of 9 images, and there are 2",
        ),
    ],
    ids=["empty", "mixed sizes", "corrupt", "grey", "transparent", "unfinished run"],
)
def test_samples_that_are_refused(tmp_path: Path, break_it: object, message: str) -> None:
    break_it(tmp_path)  # type: ignore[operator]
    with pytest.raises(MetricError, match=message):
        open_source(tmp_path)


def test_a_truncated_sample_is_refused_when_it_is_decoded(tmp_path: Path) -> None:
    """Its header is whole, so only decoding shows it."""
    write_folder(tmp_path, pictures(3, 64))
    whole = (tmp_path / "000001.png").read_bytes()
    (tmp_path / "000001.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MetricError, match=r"000001.png cannot be read as an image"):
        all_of(tmp_path)


def test_npz_files_that_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"

    def refused(message: str, **arrays: np.ndarray) -> None:
        np.savez(file, **arrays)
        with pytest.raises(MetricError, match=message):
            open_source(file)

    refused("has no array arr_0; it has images", images=pictures(2))
    refused(r"arr_0 in .* is float64 \(2, 8, 8, 3\); expected uint8", arr_0=np.zeros((2, 8, 8, 3)))
    refused(r"is uint8 \(2, 3, 8, 8\); expected uint8", arr_0=np.zeros((2, 3, 8, 8), np.uint8))
    refused("has no images", arr_0=np.zeros((0, 8, 8, 3), np.uint8))
    refused("Python objects, which are never loaded", arr_0=np.array([None]))
    file.write_bytes(b"PK no")
    with pytest.raises(MetricError, match=r"not a readable .npz file"):
        open_source(file)
    np.savez(file, arr_0=pictures(20, 32))
    with pytest.raises(MetricError, match="is never resized; expected 16 x 16"):
        open_source(file, 16)
    data = bytearray(file.read_bytes())
    data[5000] ^= 255
    file.write_bytes(data)
    with pytest.raises(MetricError, match="is damaged"):
        all_of(file)


def test_fingerprint_changes_with_the_content_even_if_the_time_is_set_back(tmp_path: Path) -> None:
    write_folder(tmp_path, pictures(2))
    source = open_source(tmp_path)
    before, file = source.fingerprint(), tmp_path / "000000.png"
    assert open_source(tmp_path).fingerprint() == before
    status, data = file.stat(), bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert source.fingerprint() != before


def test_images_that_change_meanwhile_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, pictures(2))
    source = open_source(tmp_path)
    read = source.batches

    def batches(*args: int) -> object:
        yield from read(*args)
        write_folder(tmp_path, pictures(2, seed=1))

    source.batches = batches  # type: ignore[method-assign, assignment]
    with pytest.raises(MetricError, match="changed while it was read"):
        collect(source, network(), Needs(moments=True))


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    peaks = []
    for count in (1000, 5000):
        write(tmp_path / f"{count}.npz", count, 16)
        source = open_source(tmp_path / f"{count}.npz")
        tracemalloc.start()
        found = collect(source, network(), Needs(moments=True, spatial=True, score=True), batch=50)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.count == count
    assert peaks[1] < peaks[0] + 200_000  # 4,000 more images are 3 MB of pixels; splits take 8 bytes an image


def test_random_images_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    write(tmp_path / "a.npz", 510, 8)
    write(tmp_path / "b.npz", 510, 8)
    images = np.load(tmp_path / "a.npz")["arr_0"]
    assert images.shape == (510, 8, 8, 3) and images.dtype == np.uint8 and images.std() > 30
    np.testing.assert_array_equal(images, np.load(tmp_path / "b.npz")["arr_0"])
