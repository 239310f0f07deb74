"""
A disk of a simulation: commits take a while, may find no room, and may die half-way.

Nothing is durable before its time, so whatever leaves a node too early shows.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from ..core.errors import DiskFull
from ..core.messages import Commit, CommitResult
from ..storage.memory import MemoryStorage


class SimulatedDisk(MemoryStorage):
    """An in-memory store whose commits become durable as virtual time passes."""

    def __init__(
        self,
        clock: Clock,
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
        self._clock = clock
        self._rng = rng
        self.delay_s = delay_s
        """May be changed: a disk that is slow for a while."""
        self._given = given
        self.full = False
        """Whether commits fail for want of room."""
        self.refused = 0
        """Commits that did."""

    def commit(self, commit: Commit) -> Deferred[CommitResult]:
        """Begin a commit."""
        self._given(commit)
        done = super().commit(commit)
        self._clock.callLater(self._rng.uniform(*self.delay_s), self._end, commit)
        return done

    def _end(self, commit: Commit) -> None:
        if self.waiting is not commit:
            return  # A crash came first.
        if self.full:
            self.refused += 1
            self.fail_next(DiskFull("no room on the simulated disk"))
        self.flush()
