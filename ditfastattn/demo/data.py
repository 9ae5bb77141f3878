"""The demo's images: emoji art from npm packages, rasterised at 64 px on white.

`prepare(art, ...)` reads `<art>/@iconify-json/<set>/icons.json` of seven sets and the labels of
`<art>/emojibase-data`, names each icon's emoji by its CLDR label, sorts it into a class (`classes.py`) and
draws it several times through slightly different view boxes, so that shifts and zooms are drawn by the vector
renderer and stay sharp.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ditfastattn.demo.classes import CLASSES, classify

SETS: tuple[str, ...] = (
    "noto",
    "noto-v1",
    "fxemoji",
    "fluent-emoji-flat",
    "fluent-emoji",
    "twemoji",
    "emojione",
)
"""Icon sets under `@iconify-json/`, all Apache-2.0, MIT or CC-BY-4.0 (see ART.md)."""

SIZE = 64
HELD_OUT = 0.1


@dataclass(frozen=True)
class Icon:
    """One drawing: the emoji it shows (a code sequence such as "1F600"), its class and its vector body."""

    style: str
    name: str
    emoji: str
    label: int
    body: str
    box: tuple[float, float, float, float]  # left, top, width, height


@dataclass(frozen=True)
class Art:
    """The rasterised set. `images` is (N, V, 64, 64, 3) uint8, drawing 0 of each being the plain one; the
    other arrays are (N,): class index, set index, emoji code, and whether the emoji is held out of
    training."""

    images: np.ndarray
    labels: np.ndarray
    styles: np.ndarray
    emoji: np.ndarray
    held_out: np.ndarray


def _key(text: str) -> str:
    """A label or an icon name reduced to letters and digits, accents dropped: the form that names are
    matched in."""
    plain = unicodedata.normalize("NFKD", text.lower().replace("&", "and"))
    return re.sub("[^a-z0-9]", "", plain)


def _load(path: Path) -> Any:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: install the npm packages that ditfastattn/demo/ART.md lists")
    return json.loads(path.read_text(encoding="utf-8"))


def emoji_names(art: Path) -> dict[str, tuple[str, str, str]]:
    """Map each known name of an emoji, reduced by `_key`, to (code, CLDR label, subgroup). CLDR labels win
    over Unicode names, and those over shortcodes."""
    base = art / "emojibase-data"
    subgroups = _load(base / "meta" / "groups.json")["subgroups"]
    entries = [e for e in _load(base / "en" / "data.json") if e.get("subgroup") is not None]
    known = {e["hexcode"]: (e["hexcode"], e["label"], subgroups[str(e["subgroup"])]) for e in entries}
    names: dict[str, tuple[str, str, str]] = {}
    for value in known.values():
        names.setdefault(_key(value[1]), value)
    for code, name in _load(base / "meta" / "unicode-names.json").items():
        if code in known:
            names.setdefault(_key(name), known[code])
    for path in sorted((base / "en" / "shortcodes").glob("*.json")):
        for code, short in _load(path).items():
            for name in [short] if isinstance(short, str) else short:
                if code in known:
                    names.setdefault(_key(name), known[code])
    return names


def _lookup(names: dict[str, tuple[str, str, str]], candidates: Iterable[str]) -> tuple[str, str, str] | None:
    for candidate in candidates:
        # Two of the sets write "flag-for-x" or "flag-for-flag-x" for CLDR's "flag: x".
        for form in (candidate, re.sub("^flag-for-(flag-)?", "flag-", candidate)):
            if _key(form) in names:
                return names[_key(form)]
    return None


def read_icons(art: Path, sets: tuple[str, ...] = SETS) -> list[Icon]:
    """Every icon that names an emoji of one of the classes, at most one per emoji and set, in a fixed order.
    Skin-tone variants carry names of their own that match no base emoji, so they are left out."""
    names = emoji_names(art)
    icons: list[Icon] = []
    for style in sets:
        pack = _load(art / "@iconify-json" / style / "icons.json")
        aliases: dict[str, list[str]] = defaultdict(list)
        for alias, target in pack.get("aliases", {}).items():
            if not {"hFlip", "vFlip", "rotate"} & target.keys():
                aliases[target["parent"]].append(alias)
        taken: set[str] = set()
        for name, icon in sorted(pack["icons"].items()):
            found = _lookup(names, [name, *sorted(aliases[name])])
            label = classify(found[1], found[2]) if found else None
            if found is None or label is None or found[0] in taken:
                continue
            taken.add(found[0])
            width = icon.get("width", pack.get("width", 16))
            height = icon.get("height", pack.get("height", 16))
            box = (icon.get("left", 0), icon.get("top", 0), width, height)
            icons.append(Icon(style, name, found[0], label, icon["body"], box))
    return icons


def emoji_family(code: str) -> str:
    """The code with gender and presentation marks taken off: the man, woman and person of one drawing are one
    emoji to the split, or near copies would stand on both sides of it."""
    parts = [part for part in code.split("-") if part not in {"2640", "2642", "FE0F", "200D", "27A1"}]
    return "-".join("1F9D1" if part in {"1F468", "1F469", "1F9D1"} else part for part in parts)


def held_out(emoji: list[str], labels: list[int], fraction: float = HELD_OUT) -> np.ndarray:
    """(N,) bool: about `fraction` of each class's emoji, at least one where there are two, chosen by hash
    of the code, so neither the order nor the presence of other emoji of other classes matters."""
    families: dict[int, set[str]] = defaultdict(set)
    for code, label in zip(emoji, labels, strict=True):
        families[label].add(emoji_family(code))
    out: set[str] = set()
    for members in families.values():
        order = sorted(members, key=lambda m: hashlib.sha256(m.encode()).hexdigest())
        out.update(order[: max(1, round(fraction * len(order)))] if len(order) > 1 else [])
    return np.array([emoji_family(code) in out for code in emoji], dtype=bool)


def view_boxes(icon: Icon, count: int, seed: int) -> list[tuple[float, float, float, float]]:
    """`count` view boxes: the plain one, then random ones that zoom by 0.9 to 1.08 and shift by up to 5 %."""
    left, top, width, height = icon.box
    side = max(width, height)
    left, top = left - (side - width) / 2, top - (side - height) / 2
    digest = hashlib.sha256(f"{seed}/{icon.style}/{icon.name}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    boxes = [(left, top, side, side)]
    for _ in range(count - 1):
        zoom = side / rng.uniform(0.9, 1.08)
        dx, dy = rng.uniform(-0.05, 0.05, 2) * side
        boxes.append((left + (side - zoom) / 2 + dx, top + (side - zoom) / 2 + dy, zoom, zoom))
    return boxes


def draw(icon: Icon, count: int = 1, seed: int = 0, size: int = SIZE) -> np.ndarray:
    """The icon on white through `view_boxes`: (count, size, size, 3) uint8."""
    import resvg_py
    from PIL import Image

    images = []
    for box in view_boxes(icon, count, seed):
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{size}" height="{size}" viewBox="{" ".join(f"{v:.5f}" for v in box)}">{icon.body}</svg>'
        )
        png = resvg_py.svg_to_bytes(svg_string=svg, background="white", width=size, height=size, skip_system_fonts=True)
        images.append(np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB")))
    return np.stack(images)


def _draw_job(job: tuple[Icon, int, int]) -> np.ndarray:
    return draw(*job)


def prepare(art: Path, drawings: int = 6, seed: int = 0, sets: tuple[str, ...] = SETS, per_class: int = 350,
            workers: int | None = None, classes: Collection[str] = CLASSES) -> Art:  # fmt: skip
    """Read, draw and split the art of `classes` in folder `art` (a `node_modules`). At most `per_class` icons a class
    are kept, chosen by hash; icons that two sets draw alike to the pixel are kept once."""
    from tqdm import tqdm

    groups: dict[int, list[Icon]] = defaultdict(list)
    for icon in read_icons(art, sets):
        if CLASSES[icon.label] in classes:
            groups[icon.label].append(icon)
    icons: list[Icon] = []
    for label in sorted(groups):
        ranked = sorted(groups[label], key=lambda i: hashlib.sha256(f"{i.style}/{i.name}".encode()).hexdigest())
        icons += ranked[:per_class]
    jobs = [(icon, drawings, seed) for icon in icons]
    # Processes are worth their start for many icons only.
    workers = min(workers or os.cpu_count() or 1, 1 + len(jobs) // 64)
    progress = functools.partial(tqdm, total=len(jobs), desc="drawing", unit="icon")
    if workers == 1:
        images = list(progress(map(_draw_job, jobs)))
    else:
        with ProcessPoolExecutor(workers) as pool:
            images = list(progress(pool.map(_draw_job, jobs, chunksize=16)))
    first: dict[bytes, int] = {}
    for index, image in enumerate(images):
        first.setdefault(hashlib.sha256(image[0].tobytes()).digest(), index)
    keep = sorted(first.values())
    icons = [icons[i] for i in keep]
    emoji, labels = [i.emoji for i in icons], [i.label for i in icons]
    return Art(
        images=np.stack([images[i] for i in keep]),
        labels=np.array(labels),
        styles=np.array([sets.index(i.style) for i in icons]),
        emoji=np.array(emoji),
        held_out=held_out(emoji, labels),
    )


def class_weights(labels: np.ndarray, power: float = 0.5) -> np.ndarray:
    """(N,) sampling weights that sum to 1 and give a class of n images a share in proportion to n^power."""
    counts = np.bincount(labels, minlength=len(CLASSES)).astype(np.float64)
    weights = counts[labels] ** (power - 1.0)
    return weights / weights.sum()
