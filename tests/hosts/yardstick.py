"""
How late the machine itself is: what nodes are not to blame for.

Nodes, clients and whatever else runs here share processors and a disk.  A thread does
again and again what takes a node's write a few milliseconds: it waits, writes a little
and has it synced.  What that takes longer is taken off the time of answers that were
waited for meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from threading import Condition, Thread

PAUSE_S = 0.03
LATE_S = 0.1
"""From here on it is noted."""
WRITTEN = b"x" * 4096

Stall = tuple[float, float]
"""When the machine was late, from and to, by the monotonic clock."""


class Yardstick:
    """Measures in a thread of its own."""

    noted: Callable[[Stall], None] | None = None
    """Called in the thread with each stall when it is over."""

    def __init__(self, directory: Path) -> None:
        """
        Begin.

        :param directory: on the disk that is to be measured.
        """
        self._path = directory / "yardstick"
        self._news = Condition()
        self._ended = False
        self._since = time.monotonic()
        self._stalls: list[Stall] = []
        self._thread = Thread(target=self._measure, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Measure no more."""
        with self._news:
            self._ended = True
            self._news.notify_all()
        self._thread.join()
        self._path.unlink()

    def late_s(self, began: float, ended: float) -> float:
        """Tell how long of it the machine was late; waits until that is known."""
        with self._news:
            self._news.wait_for(lambda: self._ended or self._since >= ended)
            return late_s(self._stalls, began, ended)

    def _measure(self) -> None:
        disk = os.open(self._path, os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            while self._once(disk):
                pass
        finally:
            os.close(disk)

    def _once(self, disk: int) -> bool:
        began = time.monotonic()
        time.sleep(PAUSE_S)
        os.pwrite(disk, WRITTEN, 0)
        os.fsync(disk)
        ended = time.monotonic()
        stall = (began, ended) if ended - began > PAUSE_S + LATE_S else None
        with self._news:
            if stall is not None:
                self._stalls.append(stall)
            self._since = ended
            self._news.notify_all()
            going_on = not self._ended
        if stall is not None and self.noted is not None:
            self.noted(stall)
        return going_on


def late_s(stalls: list[Stall], began: float, ended: float) -> float:
    """Sum up the parts of stalls that lie between two moments."""
    return sum(max(0.0, min(ended, e) - max(began, b)) for b, e in stalls)
