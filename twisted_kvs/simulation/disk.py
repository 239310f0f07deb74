"""
A disk of a simulation: commits take a while, may find no room, and may die half-way.

Nothing is durable before its time, so whatever leaves a node too early shows.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from ..core.errors import DiskFull
from ..core.messages import Commit, CommitResult
from ..storage.memory import MemoryStorage

SLOW_S = 0.02
"""A commit that takes so long is one of a slow disk."""


class SimulatedDisk(MemoryStorage):
    """An in-memory store whose commits become durable as virtual time passes."""

    def __init__(
        self,
        clock: IReactorTime,
        rng: random.Random,
        *,
        delay_s: tuple[float, float],
        given: Callable[[Commit], None],
    ) -> None:
        """
        Make an empty disk.

        :param rng: draws how long each commit takes.
        :param delay_s: least and greatest time of a commit.
        :param given: told of every commit that begins, before anybody else can know
            of what it holds.
        """
        super().__init__(manual=True)
        self.clock = clock
        """Of the process that uses it: while that stands still nothing is written."""
        self._rng = rng
        self.delay_s = delay_s
        """May be changed: a disk that is slow for a while."""
        self._given = given
        self.full = False
        """Whether commits fail for want of room."""
        self.refused = 0
        """Commits that did."""
        self.slow = 0
        """Commits that took ``SLOW_S`` or longer."""

    def commit(self, commit: Commit) -> Deferred[CommitResult]:
        """Begin a commit."""
        self._given(commit)
        done = super().commit(commit)
        delay = self._rng.uniform(*self.delay_s)
        self.slow += delay >= SLOW_S
        self.clock.callLater(delay, self._end, commit)
        return done

    @property
    def serial(self) -> int:
        """Count the commits since the disk was new."""
        return self._tally.serial

    def copied(self) -> SimulatedDisk:
        """Copy what is durable: a backup, or the disk of a cloned machine."""
        made = SimulatedDisk(
            self.clock, self._rng, delay_s=self.delay_s, given=self._given
        )
        own = vars(made)
        stored = {
            name: value
            for name, value in vars(self).items()
            if name not in ("clock", "_rng", "_given", "_waiting", "_snapshots")
        }
        # In one piece, as parts of it share rows; versions never change.
        own.update(copy.deepcopy(stored))
        made.full, made.refused, made.slow = False, 0, 0
        return made

    def _end(self, commit: Commit) -> None:
        if self.waiting is not commit:
            return  # A crash came first.
        if self.full:
            self.refused += 1
            self.fail_next(DiskFull("no room on the simulated disk"))
        self.flush()
