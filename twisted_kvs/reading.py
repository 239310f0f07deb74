"""
Fetching what a client's payload names and this node lacks, before it answers (R14).

First from the nodes of the missing dots, after 100 ms from all other live replicas in
parallel.  Pulls are shared: who comes while one is under way waits for at most one
more.
What nobody could give is remembered for a moment, so that a lost dot costs one wait and
not one for every read (hole H12).
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred

from .cluster import Cluster
from .core.causality import Actor, Name, VersionVector, actor_name, missing_actors
from .deltas import Pulls

LOST_ACTORS_MAX = 4096


class CausalFetch:
    """Pulls on behalf of reads and of writes that must tell 201 from 200."""

    def __init__(self, cluster: Cluster, pulls: Pulls) -> None:
        """Fetch for the replica of ``cluster``."""
        self.cluster = cluster
        self.pulls = pulls
        self._lost: dict[Actor, tuple[int, float]] = {}
        self.fetches = 0

    async def for_read(self, key: str, vector: VersionVector, deadline: float) -> None:
        """Wait until a read of ``key`` covers ``vector``, durably, or time is up."""
        settings = self.cluster.settings
        left = deadline - settings.answer_reserve_s - self.cluster.now()
        limit = min(settings.causal_read_s, left)

        def missing() -> VersionVector:
            return self.cluster.replica.lacks(key, vector)

        if limit > 0:
            await self._wait(_Fetch(self, missing, limit, patient=True))

    async def for_write(self, key: str, vector: VersionVector, deadline: float) -> None:
        """Wait the same way, but shortly: a PUT never waits for its payload (R3)."""
        settings = self.cluster.settings
        replica = self.cluster.replica
        left = deadline - settings.answer_reserve_s - self.cluster.now()

        def missing() -> VersionVector:
            return (
                replica.lacks(key, vector) if replica.applied_lacks(key, vector) else {}
            )

        if left > 0:
            limit = min(settings.put_wait_s, left)
            await self._wait(_Fetch(self, missing, limit, patient=False))

    async def _wait(self, fetch: _Fetch) -> None:
        self.fetches += 1
        try:
            await fetch.run()
        finally:
            fetch.stop()

    def obtainable(self, missing: VersionVector) -> VersionVector:
        """
        Leave out the dots that nobody could give a moment ago.

        And those after them, as VV covers no dot before the ones before it; unless they
        have come meanwhile.
        """
        now, vv = self.cluster.now(), self.cluster.replica.durable.vv
        wanted = {}
        for actor, counter in missing.items():
            lost, until = self._lost.get(actor, (0, 0.0))
            if until < now or counter < lost or vv.get(actor, 0) >= lost:
                wanted[actor] = counter
        return wanted

    def remember_lost(self, missing: VersionVector) -> None:
        """Do not wait for these dots for a while."""
        if len(self._lost) + len(missing) > LOST_ACTORS_MAX:
            self._lost.clear()
        until = self.cluster.now() + self.cluster.settings.lost_dots_s
        for actor, counter in missing.items():
            self._lost[actor] = (counter, until)


class _Fetch:
    """
    One wait: pulls until nothing is missing, nobody is left to ask, or time is up.
    """

    def __init__(
        self,
        owner: CausalFetch,
        missing: Callable[[], VersionVector],
        limit_s: float,
        *,
        patient: bool,
    ) -> None:
        self._owner = owner
        self._cluster = owner.cluster
        self._missing = missing
        self._patient = patient
        self._done: Deferred[None] = Deferred()
        self._asked: set[Name] = set()
        self._waiting = 0
        self._busy: set[Name] = set()
        """Who has given no answer: it, or this node, was busy with a delta in parts."""
        self._spread = False
        self._timers = [
            self._cluster.clock.callLater(limit_s, self._time_is_up),
            self._cluster.clock.callLater(
                min(self._cluster.settings.causal_read_spread_s, limit_s), self._ask_all
            ),
        ]

    async def run(self) -> None:
        """Return when there is nothing to wait for any more."""
        missing = self._owner.obtainable(self._missing())
        if not missing:
            return
        committed = self._cluster.committer.durable(self._cluster.replica.last_commit)
        committed.addBoth(lambda _: self._look())
        if self._done.called:
            return
        alive = self._cluster.alive()
        origins = {actor_name(actor) for actor in missing_actors(missing, {})}
        for name in sorted(origins & alive):
            self._ask(name)
        if not self._waiting:
            self._ask_all()
        await self._done

    def stop(self) -> None:
        """Cancel the timers."""
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        if not self._done.called:
            self._done.callback(None)

    def _ask(self, name: Name) -> None:
        cluster = self._cluster
        if name == cluster.me or name in self._asked or name not in cluster.peers:
            return
        self._asked.add(name)
        if cluster.skipped(name):
            return
        self._waiting += 1
        pulling = self._owner.pulls.pull(name, connect_s=cluster.settings.connect_s)
        pulling.addCallback(self._gave, name)

    def _ask_all(self) -> None:
        if self._done.called or self._spread:
            return
        self._spread = True
        for name in self._cluster.replicas():
            self._ask(name)
        if not self._waiting:
            self._nobody_left()

    def _gave(self, settled: bool, name: Name) -> None:
        self._waiting -= 1
        self._look()
        if self._done.called:
            return
        if settled:
            self._busy.discard(name)
        else:
            self._busy.add(name)
            if not self._cluster.committer.full:
                self._ask_again(name)
        self._go_on()

    def _ask_again(self, name: Name) -> None:
        """Ask in a moment who was busy: that does not last."""

        def ask() -> None:
            self._waiting -= 1
            self._asked.discard(name)
            self._ask(name)
            self._go_on()

        self._waiting += 1
        wait_s = self._cluster.settings.busy_wait_s
        self._timers.append(self._cluster.clock.callLater(wait_s, ask))

    def _go_on(self) -> None:
        if self._done.called or self._waiting:
            return
        if self._spread:
            self._nobody_left()
        else:
            self._ask_all()

    def _look(self) -> None:
        if not self._owner.obtainable(self._missing()):
            self._finish()

    def _nobody_left(self) -> None:
        """All who could be asked have answered without it, or cannot be reached."""
        if not (self._busy or self._done.called):
            self._owner.remember_lost(self._missing())
        self._finish()

    def _time_is_up(self) -> None:
        """Who has not answered by now has timed out; unless a delta is under way."""
        if self._patient and not self._owner.pulls.receiving:
            self._nobody_left()
        self._finish()

    def _finish(self) -> None:
        if not self._done.called:
            self._done.callback(None)
