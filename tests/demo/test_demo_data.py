from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ditfastattn.demo import data
from ditfastattn.demo.classes import CLASSES, NO_FLIP, RULES, classify

SETS = ("noto", "twemoji")


def test_classes_are_named_for_the_pipeline() -> None:
    # DiTPipeline splits an entry of id2label at commas, each part a name of the class.
    assert not [name for name in CLASSES if "," in name or name != name.strip()]
    assert len(CLASSES) == len({rule.name for rule in RULES}) <= 1000
    assert set(CLASSES) >= NO_FLIP


@pytest.mark.parametrize(
    ("label", "subgroup", "name"),
    [
        ("smiling face with horns", "face-negative", "angry face"),
        ("skull", "face-negative", None),
        ("tiger face", "animal-mammal", "cat face"),
        ("tiger", "animal-mammal", "mammal"),
        ("spouting whale", "animal-marine", "fish"),
        ("jellyfish", "animal-marine", "shellfish"),
        ("three o’clock", "time", "clock"),
        ("hourglass done", "time", None),
        ("oncoming bus", "transport-ground", "truck or bus"),
        ("keycap: #", "keycap", None),
    ],
)
def test_classify(label: str, subgroup: str, name: str | None) -> None:
    found = classify(label, subgroup)
    assert (None if found is None else CLASSES[found]) == name


def test_icons_are_matched_by_label_alias_and_unicode_name(art: Path) -> None:
    icons = data.read_icons(art, SETS)
    by_style = {style: {icon.emoji: icon.name for icon in icons if icon.style == style} for style in SETS}
    assert by_style["twemoji"]["2764"] == "zz"
    assert by_style["twemoji"]["1F534"] == "large-red-circle"
    assert by_style["noto"]["1F1E6-1F1E8"] == "flag-for-Ascension-Island"
    assert set(by_style["noto"]) == set(by_style["twemoji"])
    assert all("skin-tone" not in icon.name and "keycap" not in icon.name for icon in icons)


def test_missing_art_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"ART\.md"):
        data.read_icons(tmp_path)


def test_split_is_by_emoji_and_does_not_depend_on_order() -> None:
    rng = np.random.default_rng(0)
    codes = [f"{0x1F300 + k:X}" for k in range(60)] * 3
    labels = [k % 4 for k in range(60)] * 3
    out = data.held_out(codes, labels)
    chosen = {code for code, held in zip(codes, out, strict=True) if held}
    assert chosen.isdisjoint(code for code, held in zip(codes, out, strict=True) if not held)
    assert len(chosen) == 8  # round(0.1 * 15) in each of four classes
    order = rng.permutation(len(codes))
    again = data.held_out([codes[i] for i in order], [labels[i] for i in order])
    np.testing.assert_array_equal(again, out[order])


def test_split_keeps_the_genders_of_an_emoji_together() -> None:
    codes = [f"{base}-200D-{sex}-FE0F" for base in ("1F3C3", "1F3CA", "1F6B4") for sex in ("2640", "2642")]
    out = data.held_out(codes, [0] * 6)
    assert out.sum() == 2
    assert (out[::2] == out[1::2]).all()
    assert data.emoji_family("1F468-200D-2695-FE0F") == data.emoji_family("1F469-200D-2695-FE0F") == "1F9D1-2695"


def test_a_lone_emoji_is_not_held_out() -> None:
    assert not data.held_out(["1F534", "1F534"], [0, 0]).any()


def test_prepare(art: Path) -> None:
    pytest.importorskip("resvg_py")
    a, b = (data.prepare(art, drawings=3, sets=SETS, workers=1) for _ in range(2))
    assert a.images.shape == (20, 3, 64, 64, 3)
    np.testing.assert_array_equal(a.images, b.images)
    np.testing.assert_array_equal(a.held_out, b.held_out)
    assert (a.images[:, 0, 0, 0] == 255).all()  # white outside of the drawing
    assert (a.images[:, 0] != a.images[:, 1]).any((1, 2, 3)).all()
    assert len(data.prepare(art, drawings=1, sets=SETS, per_class=2, workers=1).images) == 8


def test_class_weights_follow_the_power_of_the_counts() -> None:
    labels = np.array([0] * 16 + [1] * 4)
    weights = data.class_weights(labels)
    assert weights.sum() == pytest.approx(1)
    assert weights[labels == 0].sum() == pytest.approx(2 * weights[labels == 1].sum())


def test_view_boxes_begin_with_the_plain_one() -> None:
    icon = data.Icon("noto", "wide", "1F534", 0, "", (0, 0, 32, 16))
    boxes = data.view_boxes(icon, 4, seed=0)
    assert boxes[0] == (0, -8, 32, 32)
    assert boxes == data.view_boxes(icon, 4, seed=0)
    assert boxes[1:] != data.view_boxes(icon, 4, seed=1)[1:]
