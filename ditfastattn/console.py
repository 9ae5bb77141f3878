"""How a command ends: what the user can mend is one sentence and exit status 2, never a traceback."""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from ditfastattn.errors import DitFastAttnError
from plans import PlanError


class _Help(argparse.HelpFormatter):
    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Of several lines, as examples are, none is wrapped."""
        return text if "\n" in text else super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """Options are written out in full and examples shown as they stand; errors are raised, for :func:`run` to tell."""

    def __init__(self, prog: str, description: str, epilog: str | None = None, **more: Any) -> None:
        given = {"formatter_class": _Help, "allow_abbrev": False, **more}
        super().__init__(prog=prog, description=description, epilog=epilog, **given)

    def error(self, message: str) -> NoReturn:
        """Raises DitFastAttnError: in one sentence, without the usage."""
        raise DitFastAttnError(f"{message}; see {self.prog} --help")


def run(command: Callable[[], int], interrupted: str = "interrupted") -> int:
    """The exit status of ``command()``: its own, 2 after a sentence on stderr, 130 after Ctrl-C.

    Args:
        interrupted: what is said after Ctrl-C, where the ``KeyboardInterrupt`` itself says nothing.
    """
    try:
        return command()
    except (DitFastAttnError, PlanError) as error:
        return _fail(str(error))
    except ImportError as error:
        return _fail(str(error))
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        return _fail(f"cannot read or write{where}: {error.strerror or error}")
    except RuntimeError as error:
        import torch  # not before it is needed: --help is run by this, too

        if not isinstance(error, torch.OutOfMemoryError):
            raise
        return _fail("the GPU ran out of memory: use smaller batches (fewer labels) or --dtype float16")
    except KeyboardInterrupt as stop:
        print(f"\n{str(stop) or interrupted}", file=sys.stderr)
        return 130


def _fail(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 2
