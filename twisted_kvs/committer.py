"""
Group commit: one commit under way, what is applied meanwhile goes into the next (R6).

The batch size follows the load by itself.  Nothing that was applied leaves the node
before ``durable`` fired for its commit; commits become durable in the order of
applying.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from .core.errors import DiskFull
from .core.messages import Commit, CommitResult, ReplicaState
from .core.replica import Replica
from .core.settings import Settings
from .metrics import CommitMetrics
from .storage.api import Storage


class Committer:
    """Moves the replica's commits to the storage, one at a time."""

    _log = Logger()

    def __init__(
        self,
        replica: Replica,
        storage: Storage,
        *,
        stored: ReplicaState,
        settings: Settings,
        clock: IReactorTime,
        rng: random.Random,
        published: Callable[[Commit, CommitResult], None],
        fatal: Callable[[Failure], None],
    ) -> None:
        """
        Connect a replica to its storage.

        :param stored: the state record that is durable now.
        :param published: called for every durable commit, before its waiters.
        :param fatal: called when a commit failed for another reason than a full disk,
            or the store proves unusable: the process must end, it cannot know what is
            on its disk.
        """
        self._replica = replica
        self._storage = storage
        self._stored = stored
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._published = published
        self._fatal = fatal
        self._waiters: dict[int, list[Deferred[None]]] = {}
        self._flying = False
        self._dead = False
        self._retry: IDelayedCall | None = None
        self.full = False
        """Whether the disk takes no more: nothing may be minted."""
        self.taken_back: Callable[[int], None] = lambda durable: None
        """Called when all that was applied after commit ``durable`` is dropped."""
        self.result = storage.result
        self.commits = 0
        self.metrics = CommitMetrics()
        self._began = 0.0
        storage.when_broken(self._broken)
        self.waiting_bytes = 0
        """Bytes of values that were minted and are not durable yet."""

    def durable(self, number: int) -> Deferred[None]:
        """
        Wait until commit ``number`` is durable, and start it if none is under way.

        :returns: fires then; fails with ``DiskFull`` if it will never be.
        """
        if number <= self._replica.durable_commit:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._waiters.setdefault(number, []).append(waiter)
        self.kick()
        return waiter

    def kick(self) -> None:
        """Start a commit if there is something to store and none is under way."""
        if self._flying or self._dead:
            return
        commit = self._replica.take_commit()
        if commit is None:
            return
        self._flying = True
        self._began = self._clock.seconds()
        self._storage.commit(commit).addCallbacks(
            self._done, self._failed, callbackArgs=(commit,)
        ).addErrback(self._broken)

    def drained(self) -> Deferred[None]:
        """Wait until everything applied by now is durable, or will never be."""
        self.kick()
        if self._replica.idle or self._dead:
            return succeed(None)
        waiter = self.durable(self._replica.last_commit)
        return waiter.addErrback(lambda failure: failure.trap(DiskFull) and None)

    def stop(self) -> None:
        """Cancel timers; call after ``drained``."""
        self._dead = True
        if self._retry is not None and self._retry.active():
            self._retry.cancel()

    def _done(self, result: CommitResult, commit: Commit) -> None:
        self._flying = False
        self._stored = commit.state
        self.result = result
        self.commits += 1
        self._count(commit)
        self._replica.committed(commit)
        self.waiting_bytes -= sum(len(v.value or b"") for v in commit.minted)
        self._published(commit, result)
        self.kick()
        for waiter in self._waiters.pop(commit.number, ()):
            waiter.callback(None)

    def _count(self, commit: Commit) -> None:
        staged = 0 if commit.stage is None else len(commit.stage.versions)
        self.metrics.versions.observe(len(commit.insert) + staged)
        self.metrics.seconds.observe(self._clock.seconds() - self._began)
        self.metrics.conflicts += commit.conflicts

    def _failed(self, failure: Failure) -> None:
        failure.trap(DiskFull)
        self._flying = False
        if not self.full:
            self._log.error(
                "disk is full, taking no writes: {error}", error=failure.value
            )
        self.full = True
        waiters = [w for _, waiting in sorted(self._waiters.items()) for w in waiting]
        self._waiters.clear()
        self.waiting_bytes = 0
        durable = self._replica.durable_commit
        self._replica.reload(self._stored, self._rng)
        self.taken_back(durable)
        for waiter in waiters:
            waiter.errback(DiskFull("the disk takes no more"))
        if self._retry is None or not self._retry.active():
            self._retry = self._clock.callLater(
                self._settings.full_disk_retry_s, self._try_space
            )

    def _broken(self, failure: Failure) -> None:
        self._dead = True
        self._fatal(failure)

    def _try_space(self) -> None:
        if self._dead:
            return
        number = self._replica.try_space(self._settings.value_bytes_max)
        self.durable(number).addCallbacks(self._has_space, lambda _: None)

    def _has_space(self, _: None) -> None:
        self.full = False
        self._replica.drop_leftovers()
        self.kick()
        self._log.info("the disk takes writes again")
