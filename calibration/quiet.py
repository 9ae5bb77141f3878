"""A solver's own lines, kept off the terminal."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """What C code prints on standard output meanwhile is dropped; exceptions, warnings and standard error are not.

    For code that heeds no option to be silent, and as short as can be: the file descriptor belongs to the process, so
    that what other threads print meanwhile is dropped too. Where there is no standard output, or none of POSIX,
    nothing is done.
    """
    try:
        kept = os.dup(1) if os.name == "posix" else None
    except OSError:  # closed
        kept = None
    if kept is None:
        yield
        return
    _flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        _flush()  # while it still leads nowhere
        os.dup2(kept, 1)
        os.close(nowhere)
        os.close(kept)


def _flush() -> None:
    """What Python and C have not written yet: each has a buffer of its own."""
    if sys.stdout is not None:
        sys.stdout.flush()
    ctypes.CDLL(None).fflush(None)
