"""A synthetic art folder: a few emoji drawn in two sets, laid out as the npm packages are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

EMOJI = [
    ("1F534", "red circle", "geometric"),
    ("1F535", "blue circle", "geometric"),
    ("1F7E9", "green square", "geometric"),
    ("2764", "red heart", "heart"),
    ("1F499", "blue heart", "heart"),
    ("1F1E6-1F1E8", "flag: Ascension Island", "country-flag"),
    ("1F1E6-1F1E9", "flag: Andorra", "country-flag"),
    ("1F3C3-200D-2642-FE0F", "man running", "person-activity"),
    ("1F3C3-200D-2640-FE0F", "woman running", "person-activity"),
    ("1F6B6", "person walking", "person-activity"),
    ("0023-FE0F-20E3", "keycap: #", "keycap"),
]


def body(index: int, style: str) -> str:
    shape = "M2 2h12v12h-12z" if style == "noto" else "M8 1l7 14h-14z"
    return f'<path fill="#{(index * 1234567) % 0xFFFFFF:06x}" d="{shape}"/>'


@pytest.fixture(scope="session")
def art(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("art")
    subgroups = sorted({subgroup for *_, subgroup in EMOJI})
    base = root / "emojibase-data"
    (base / "en" / "shortcodes").mkdir(parents=True)
    (base / "meta").mkdir()
    entries = [{"hexcode": c, "label": n, "subgroup": subgroups.index(s)} for c, n, s in EMOJI]
    entries.append({"hexcode": "1F1E6", "label": "regional indicator A"})
    (base / "en" / "data.json").write_text(json.dumps(entries))
    (base / "en" / "shortcodes" / "one.json").write_text(json.dumps({"2764": ["heart", "love"]}))
    groups = {"subgroups": {str(i): s for i, s in enumerate(subgroups)}}
    (base / "meta" / "groups.json").write_text(json.dumps(groups))
    (base / "meta" / "unicode-names.json").write_text(json.dumps({"1F534": "LARGE RED CIRCLE", "2049": "ELSEWHERE"}))
    names = [n.replace(": ", "-for-").replace(" ", "-") for _, n, _ in EMOJI]
    for style in ("noto", "twemoji"):
        icons = {n: {"body": body(i, style)} for i, n in enumerate(names)}
        icons["person-walking-dark-skin-tone"] = {"body": body(0, style)}
        pack = {"icons": icons, "width": 16, "height": 16, "aliases": {}}
        if style == "twemoji":
            icons["zz"] = icons.pop("red-heart")
            pack["aliases"] = {
                "love": {"parent": "zz"},
                "blue-circle-flipped": {"parent": "blue-circle", "hFlip": True},
            }
            icons["large-red-circle"] = icons.pop("red-circle")
        folder = root / "@iconify-json" / style
        folder.mkdir(parents=True)
        (folder / "icons.json").write_text(json.dumps(pack))
    return root
