"""
What becomes of whoever finds the database damaged.

Damage is looked for at the start; where it is done under a running node, it is found by
whoever reads the page.  No answer can be made of it then, and the node must not go on.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import update_wrapper
from typing import Concatenate, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_PRIMARY = 0xFF
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_UNREADABLE = frozenset({sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ})


class Reader(Protocol):
    """Reads a database."""

    def cannot_read(self, error: sqlite3.DatabaseError) -> None:
        """Take note that the database is damaged."""


R = TypeVar("R", bound=Reader)


def reads(method: Callable[Concatenate[R, P], T]) -> Callable[Concatenate[R, P], T]:
    """Let a method that reads tell its object of damage, and fail with it."""

    def read(self: R, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except sqlite3.DatabaseError as error:
            if is_damage(error):
                self.cannot_read(error)
            raise

    update_wrapper(read, method)
    return read


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether what is stored is at fault, and no want of room, locks or memory."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code & _PRIMARY in _DAMAGED or code in _UNREADABLE
