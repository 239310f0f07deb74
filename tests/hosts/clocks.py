"""
Wall clocks of single nodes that are wrong.

Only the wall clock: seconds since some moment, by which nodes wait, go on as they do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from . import twistd_by_clock

TWISTD = (twistd_by_clock.__file__, "--nodaemon", "--pidfile=")
"""What Python runs for a node that goes by such a clock."""


class WallClock:
    """The clock of one node; set it while the node runs, or before."""

    def __init__(self, path: Path) -> None:
        """
        Let it be right.

        :param path: file that says how wrong it is.
        """
        self._path = path
        self._path.write_bytes(twistd_by_clock.OFFSET.pack(0))

    def set(self, offset_s: int) -> None:
        """Let it be ahead by so many seconds, or behind; it may go back by this."""
        with self._path.open("r+b", buffering=0) as file:
            file.write(twistd_by_clock.OFFSET.pack(offset_s * 1_000_000_000))

    @property
    def settings(self) -> Mapping[str, str]:
        """The environment of a process that goes by it."""
        return {twistd_by_clock.VARIABLE: str(self._path)}
