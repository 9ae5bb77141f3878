"""How a command ends: what the user can mend is one sentence and exit status 2, never a traceback."""

import sys
from collections.abc import Callable

from ditfastattn.errors import DitFastAttnError
from plans import PlanError


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
