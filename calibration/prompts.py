"""Which prompts a calibration runs on: the lines of a file, or of the one that comes with this package."""

import unicodedata
from pathlib import Path

from calibration.errors import CalibrationError
from ditfastattn.condition import FromPrompts

OURS = Path(__file__).parent / "prompts.txt"


def read_prompts(path: Path) -> tuple[str, ...]:
    """One prompt a line, spaces put in order, empty lines left out; UTF-8, with or without byte order marks.

    Raises:
        CalibrationError: no such file, another encoding, characters that are no text, or no prompt at all.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"{path} is not UTF-8 (byte {error.start} cannot be read): save it as UTF-8, one prompt a line"
        ) from None
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read ({error.strerror}): name a file of one prompt a line") from None
    prompts = []
    for number, line in enumerate(text.split("\n"), start=1):
        prompt = clean(line, f"line {number} of {path}")
        if prompt:
            prompts.append(prompt)
    if not prompts:
        raise CalibrationError(f"{path} holds no prompt: write one a line")
    return tuple(prompts)


def clean(text: str, source: str) -> str:
    """The text with single spaces and without what is never seen; "" if nothing is left to see.

    Raises:
        CalibrationError: control characters, or such as turn the direction of writing: plans carry them to terminals.
    """
    words = " ".join(text.translate(_UNSEEN).split())
    strange = [letter for letter in words if _is_no_text(letter)]
    if strange:
        raise CalibrationError(f"{source} holds the character {strange[0]!a}, which is no text: take it out")
    return words if words.strip(_JOINERS + " ") else ""


_JOINERS = "\u200c\u200d"  # between letters, and between the parts of an emoji, they say how these are drawn
_UNSEEN = dict.fromkeys(map(ord, "\ufeff\u200b\u2060\u00ad"))  # byte order mark of a joined file, breaks, hyphen


def _is_no_text(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cs", "Cf") and letter not in _JOINERS


def choose_prompts(path: Path | None, count: int | None, usual: int = FromPrompts.usual_prompts) -> tuple[str, ...]:
    """The first ``count`` prompts: by default all of a file that was given, ``usual`` ones of ours.

    Raises:
        CalibrationError: an unreadable file, or fewer prompts than ``count``.
    """
    prompts = read_prompts(path or OURS)
    if count is None:
        return prompts if path else prompts[:usual]
    if count < 1:
        raise CalibrationError(f"--n-calib must be at least 1, got {count}")
    if count > len(prompts):
        raise CalibrationError(
            f"--n-calib asks for {count} prompts, but {path or 'the list that comes with this package'} holds "
            f"{len(prompts)}: give a longer file with --prompts"
        )
    return prompts[:count]
