"""
The clock of one process: virtual time, at which the process can stand still.

Invariant: it always shows the time of all; what was due while its process stood still
runs when the process goes on, late, as after SIGSTOP and SIGCONT.
"""

from __future__ import annotations

import math

from twisted.internet.task import Clock

CALLS_MAX = 1000
"""A dead process has no more calls left than this."""


class ProcessClock(Clock):
    """A clock whose calls run when they are asked to."""

    def __init__(self, time: Clock) -> None:
        """Show the time of ``time``."""
        super().__init__()
        self._time = time

    def seconds(self) -> float:
        """Tell the time of all."""
        return float(self._time.rightNow)

    def next_at(self) -> float:
        """Tell when the next call is due; never: infinity."""
        # They are kept in the order of their times.
        return self.calls[0].time if self.calls else math.inf

    def due(self) -> bool:
        """Tell whether a call waits to be run."""
        return self.next_at() <= self._time.rightNow

    def run_out(self) -> None:
        """Run all that is left: for a process that is dead, whose time flies."""
        self._time = Clock()
        for _ in range(CALLS_MAX):
            if not self.calls:
                return
            self._time.rightNow = self.next_at()
            self.run_due()

    def run_due(self) -> None:
        """Run what is due by now, in the order of its times."""
        if self.due():
            self.advance(0)
