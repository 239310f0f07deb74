"""The heap of the process: what is free of it is given back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable


def _find_trim() -> Callable[[int], int] | None:
    """Find ``malloc_trim``, which glibc alone has."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return trim


_trim = _find_trim()


def trim_heap() -> None:
    """
    Give free memory back, also from the middle of the heap; else only its end is.

    Takes some milliseconds, without the interpreter's lock.
    """
    if _trim is not None:
        _trim(0)
