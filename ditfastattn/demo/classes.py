"""The classes of the demo: Unicode subgroups, narrowed by label so that a sample reads at a glance.

A rule is tried in order and the first that fits wins; an emoji that fits none is left out. Keycaps, letters
and other glyph signs have no rule.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Rule(NamedTuple):
    """A class: its name, the Unicode subgroups it takes from, and patterns searched in the lower-case CLDR
    label."""

    name: str
    subgroups: str
    include: str = ""
    exclude: str = r"(?!)"


_FACES = r"face|wolf|fox|raccoon|lion|moose|bear|koala|panda|hamster|unicorn|frog"
_SOLE = r"shoe|boot|sandal|skate$|ballet"
_HEAD = r"crown|hat$| cap$|helmet"
_BAG = r"purse|bag|backpack|briefcase|luggage"
_PAGE = r"page|scroll|newspaper|bookmark tabs|memo|receipt|clipboard|notepad|calendar|chart|card index$|ledger"
_DISH = r"bowl|pot of|pan of|salad|fondue|cooking|rice$|spaghetti|oden|bento|takeout|stuffed|canned"

RULES: tuple[Rule, ...] = (
    Rule("smiling face", "face-smiling face-affection face-tongue face-hat face-glasses"),
    Rule("angry face", "face-negative face-concerned", r"angry|enraged|pouting|steam|symbols on mouth|horns"),
    Rule("sad face", "face-concerned"),
    Rule("skeptical face", "face-neutral-skeptical face-hand"),
    Rule("sick face", "face-unwell face-sleepy"),
    Rule("cat face", "cat-face"),
    Rule("cat face", "animal-mammal", r"^cat face|^tiger face|^lion"),
    Rule("monkey", "monkey-face"),
    Rule("monkey", "animal-mammal", r"monkey|gorilla|orangutan"),
    Rule("animal face", "animal-mammal animal-amphibian", _FACES),
    Rule("mammal", "animal-mammal", exclude=r"nose|paw|bat$"),
    Rule("bird", "animal-bird", exclude=r"feather|wing|hatching"),
    Rule("reptile", "animal-reptile"),
    Rule("fish", "animal-marine", r"fish$|blowfish|whale|dolphin|orca|seal|shark", r"jelly"),
    Rule("shellfish", "animal-marine", exclude=r"coral"),
    Rule("insect", "animal-bug", exclude=r"web|microbe"),
    Rule("flower", "plant-flower", exclude=r"rosette"),
    Rule("tree", "plant-other event", r"tree|cactus|pine deco"),
    Rule("leaf", "plant-other", exclude=r"nest|mushroom"),
    Rule("fruit", "food-fruit"),
    Rule("vegetable", "food-vegetable"),
    Rule("sweet", "food-sweet"),
    Rule("dish of food", "food-prepared food-asian", _DISH),
    Rule("snack", "food-prepared food-asian", exclude=r"salt"),
    Rule("drink", "drink", exclude=r"^ice$|pouring"),
    Rule("heart", "heart", exclude=r"letter"),
    Rule("speech bubble", "emotion", r"balloon|bubble"),
    Rule(
        "hand",
        "hand-fingers-open hand-fingers-partial hand-single-finger hand-fingers-closed hands hand-prop",
    ),
    Rule("person", "person person-gesture"),
    Rule("worker", "person-role"),
    Rule("fantasy person", "person-fantasy"),
    Rule("athlete", "person-sport"),
    Rule("walking person", "person-activity", exclude=r"massage|haircut|bunny|steamy|wheelchair"),
    Rule("family", "family"),
    Rule("flag", "country-flag subdivision-flag"),
    Rule("clock", "time", exclude=r"hourglass"),
    Rule("moon", "sky-weather", r"moon"),
    Rule("cloud", "sky-weather", r"cloud|fog|tornado"),
    Rule(
        "star",
        "sky-weather other-symbol religion emotion event",
        r"\bstar$|^dizzy|sparkle|eight-pointed|pointed star",
    ),
    Rule("landscape", "place-geographic"),
    Rule("landscape", "place-other", r"fogg|night|city|sunrise|sunset"),
    Rule(
        "building",
        "place-building place-religious",
        exclude=r"brick|^wood|rock|tower|liberty|construction|kaaba|shrine",
    ),
    Rule("car", "transport-ground", r"automobile|taxi|police car$|utility|racing"),
    Rule("truck or bus", "transport-ground", r"bus$|ambulance|fire engine|truck|lorry|tractor"),
    Rule(
        "train",
        "transport-ground",
        r"train|locomotive|railway car|metro|light rail|station|tram|monorail|mountain rail",
    ),
    Rule("bike", "transport-ground", r"motorcycle|scooter|bicycle|rickshaw|wheelchair"),
    Rule("boat", "transport-water", exclude=r"anchor|buoy"),
    Rule("aircraft", "transport-air", exclude=r"seat|parachute|railway|cable|tramway"),
    Rule("medal", "award-medal"),
    Rule("ball", "sport game", r"ball$|tennis|rugby|bowling|yo-yo|cricket"),
    Rule("musical instrument", "musical-instrument"),
    Rule("shoe", "clothing sport transport-ground", _SOLE),
    Rule("hat", "clothing", _HEAD),
    Rule("bag", "clothing office hotel money", _BAG),
    Rule(
        "clothes",
        "clothing sport",
        r"shirt|coat|vest|jeans|dress|kimono|sari|swim|briefs|shorts|bikini|clothes|uniform",
    ),
    Rule("book", "book-paper", r"book$|books|book with"),
    Rule("paper", "book-paper office writing money", _PAGE),
    Rule(
        "computer",
        "computer phone light-video",
        r"phone$|laptop|desktop|television|printer|keyboard|fax|pager|with arrow",
    ),
    Rule("camera", "light-video", r"camera|projector"),
    Rule("envelope", "mail heart event", r"envelope|e-mail|letter"),
    Rule("mailbox", "mail", r"mailbox|postbox|tray"),
    Rule("pen", "writing"),
    Rule("lock or key", "lock"),
    Rule(
        "tool",
        "tool office",
        r"hammer|axe|pick|dagger|sword|saw|wrench|screwdriver|shovel|boomerang|hook|scissors",
    ),
    Rule("furniture", "household", r"door|elevator|mirror|window|bed|couch|chair|toilet|bathtub|shower$"),
    Rule("arrow", "arrow"),
    Rule("road sign", "warning", exclude=r"radio|bio"),
    Rule("coloured shape", "geometric"),
)

CLASSES: tuple[str, ...] = tuple(dict.fromkeys(rule.name for rule in RULES))
"""Class names; the index is the label."""

NO_FLIP: frozenset[str] = frozenset({"flag", "clock", "arrow", "musical instrument", "computer"})
"""Classes whose mirror image would be wrong or would show mirrored writing."""


def classify(label: str, subgroup: str) -> int | None:
    """The class index of an emoji with this CLDR `label` and Unicode `subgroup`, or None."""
    label = label.lower().replace("’", "'")
    for rule in RULES:
        if subgroup in rule.subgroups.split() and re.search(rule.include, label) and not re.search(rule.exclude, label):
            return CLASSES.index(rule.name)
    return None
