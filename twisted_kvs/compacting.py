"""
Compaction of one node: what every member has reported to have is forgotten (R9 to R12).

Every few seconds, in slices: each reads some keys in one turn, changes them in one
commit, and waits for it and a moment more, so that clients are served in between.  A
member that reports nothing holds up compaction, on purpose, and nothing else.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from .cluster import Cluster
from .core.causality import EMPTY, Actor, Name, VersionVector, leq
from .core.compaction import stable
from .core.errors import DiskFull
from .core.messages import Standing
from .core.names import name_order
from .core.retiring import may_retire
from .storage.api import START

USEFUL_SHARE = 10
"""A pass that changes less than this part of the keys it looks at was in vain."""
VAIN_REST = 9
"""And is followed by so many times the time it took."""


class Compacting:
    """Compacts the replica of a cluster."""

    _log = Logger()

    def __init__(self, cluster: Cluster) -> None:
        """Begin with the first beat."""
        self._cluster = cluster
        self._next = self._next_retiring = 0.0
        self._running = False
        self._stopped = False
        self._versions = cluster.settings.compact_versions
        """Of the next slice."""
        self._pause: tuple[Deferred[None], IDelayedCall] | None = None
        self._done: tuple[VersionVector, bool] | None = None
        """What is stable, and whether seals were written, in the last whole pass."""
        self._lacking: dict[Name, tuple[VersionVector, float]] = {}
        """A VV of ours that a member has not reported, and since when we have it."""
        self._told: set[Name] = set()
        self._unheld: dict[Actor, tuple[int, float]] = {}
        """A write that our clock names and VV lacks, and since when it does."""
        self._unheld_told: set[Actor] = set()
        self.passes = 0
        self.compacted = 0
        """Keys of which something was forgotten, dropped or sealed."""
        self.seals = 0

    @property
    def stable(self) -> VersionVector:
        """What every member has reported to have (R12)."""
        cluster = self._cluster
        reports = [cluster.record(peer).report for peer in sorted(cluster.peers)]
        return stable(cluster.replica.durable.vv, reports)

    def held_up(self) -> dict[Name, float]:
        """
        Tell who holds up compaction, and for how long it has, seconds.

        A member that has not reported what was durable here so long ago.
        """
        now = self._cluster.now()
        return {
            name: now - since
            for name, (_, since) in sorted(self._lacking.items())
            if now - since >= self._cluster.settings.compact_held_s
        }

    def missing(self) -> dict[Actor, int]:
        """
        Tell which writes others are known to come after, and nobody has brought.

        The last counter of each actor whose writes have been missing for so long: of a
        node that is cut off, or has lost its disk.  Until they come nothing that was
        written after them is compacted (H12), here or anywhere.
        """
        return self._unheld_for(self._cluster.settings.compact_held_s)

    def _unheld_for(self, seconds: float) -> dict[Actor, int]:
        now = self._cluster.now()
        return {
            actor: counter
            for actor, (counter, since) in sorted(self._unheld.items())
            if now - since >= seconds
        }

    def beat(self) -> None:
        """Look whether there is something to compact; call on every beat of gossip."""
        cluster = self._cluster
        self._look_who_holds_up()
        self._look_what_is_missing()
        cluster.note_shared()
        if self._running or self._stopped or cluster.now() < self._next:
            return
        self._next = cluster.now() + cluster.settings.compact_interval_s
        if not self._able:
            return
        goal = self.stable, self._seals()
        if goal[1]:
            # Not only at rest: who writes all the time starts anew, too.
            self._retire(goal[0])
        if goal == self._done:
            return
        self._running = True
        ensureDeferred(self._pass(*goal)).addBoth(self._ended)

    def _retire(self, upto: VersionVector) -> None:
        """
        Retire the actors that write no more (R20).

        One node does it, as with seals; that two do costs a few bytes.  Not one by one:
        every generation is kept for good.
        """
        cluster, now = self._cluster, self._cluster.now()
        records = [cluster.record(peer) for peer in sorted(cluster.peers)]
        actors = [cluster.replica.actor, *(r.actor for r in records if r.actor)]
        if now < self._next_retiring or len(actors) <= len(records):
            return
        applied, durable = cluster.replica.applied, cluster.replica.durable
        over = may_retire(
            durable.vv, clock=applied.clock, stable=upto, writing=frozenset(actors)
        )
        retired = applied.retired.retire(over)
        if retired is not applied.retired:
            self._next_retiring = now + cluster.settings.retire_interval_s
            cluster.replica.retire(retired)
            cluster.committer.kick()

    @property
    def _able(self) -> bool:
        cluster = self._cluster
        return (
            cluster.replica.compactable
            and not cluster.committer.result.unfolded
            and not cluster.committer.full
        )

    def _seals(self) -> bool:
        """Whether this node writes seals: the lowest name, while it serves (R9)."""
        cluster = self._cluster
        return (
            cluster.standing is Standing.SERVING
            and cluster.replica.may_seal
            and min(cluster.replicas(), key=name_order, default=None) == cluster.me
        )

    async def _pass(self, upto: VersionVector, seal: bool) -> None:
        cluster, settings = self._cluster, self._cluster.settings
        self.passes += 1
        began_s, looked, left = cluster.now(), 0, self.compacted
        after = START
        while True:
            began = cluster.now()
            keys, then = cluster.storage.unsettled(
                upto,
                after,
                versions_max=self._versions,
                bytes_max=settings.compact_bytes,
            )
            compacted = cluster.replica.compact(keys, upto, seal=seal)
            self._fit(cluster.now() - began)
            looked += len(keys)
            self.compacted += compacted.changed
            self.seals += compacted.seals
            if compacted.changed:
                await cluster.committer.durable(compacted.commit)
            if then is None:
                break
            after = then
            await self._rest(settings.compact_pause_s)
            if self._stopped or not self._able:
                return
        self._done = upto, seal
        if (self.compacted - left) * USEFUL_SHARE < looked:
            # Most of it waits for something else, and would be looked at in vain again.
            took = cluster.now() - began_s
            self._next = max(self._next, cluster.now() + VAIN_REST * took)

    def _fit(self, took_s: float) -> None:
        """Choose how many versions are next: pasts of many actors take longer."""
        settings = self._cluster.settings
        if took_s > settings.compact_turn_s:
            self._versions = max(1, self._versions // 2)
        elif took_s < settings.compact_turn_s / 2:
            grown = self._versions + 1 + self._versions // 4
            self._versions = min(grown, settings.compact_versions)

    async def _rest(self, seconds: float) -> None:
        rested: Deferred[None] = Deferred()
        timer = self._cluster.clock.callLater(seconds, rested.callback, None)
        self._pause = rested, timer
        await rested
        self._pause = None

    def _ended(self, result: Failure | None) -> None:
        self._running = False
        if isinstance(result, Failure) and result.check(DiskFull) is None:
            self._log.failure("compaction failed", failure=result)

    def _look_who_holds_up(self) -> None:
        cluster, now = self._cluster, self._cluster.now()
        mine = cluster.replica.durable.vv
        for name in [n for n in self._lacking if n not in cluster.peers]:
            del self._lacking[name]
        for name in sorted(cluster.peers):
            report = cluster.record(name).report
            wanted = self._lacking.get(name)
            if leq(mine, report or EMPTY):
                self._lacking.pop(name, None)
            elif wanted is None or leq(wanted[0], report or EMPTY):
                self._lacking[name] = mine, now
        self._tell_who_holds_up()

    def _look_what_is_missing(self) -> None:
        replica, now = self._cluster.replica, self._cluster.now()
        vv, clock = replica.durable.vv, replica.durable.clock
        # A proxy's clock is meant to name what it does not have.
        unheld = replica.holds_all and not leq(clock, vv)
        missing = {a for a, n in clock.items() if vv.get(a, 0) < n} if unheld else set()
        for actor in self._unheld.keys() - missing:
            del self._unheld[actor]
        for actor in sorted(missing):
            wanted = self._unheld.get(actor)
            if wanted is None or vv.get(actor, 0) >= wanted[0]:
                self._unheld[actor] = clock[actor], now
        long = self._unheld_for(self._cluster.settings.compact_held_told_s)
        for actor in sorted(long.keys() - self._unheld_told):
            self._log.warn(
                "nobody has brought what {actor} wrote, up to {counter}; others come "
                "after: its node is cut off, or has lost its disk; until that "
                "comes, deleted keys and pasts take up room",
                actor=actor,
                counter=long[actor],
            )
        for actor in sorted(self._unheld_told - long.keys()):
            self._log.info("the writes of {actor} have come", actor=actor)
        self._unheld_told = set(long)

    def _tell_who_holds_up(self) -> None:
        now, limit = self._cluster.now(), self._cluster.settings.compact_held_told_s
        long = {n for n, (_, since) in self._lacking.items() if now - since >= limit}
        for name in sorted(long - self._told):
            self._log.warn(
                "{peer} has held up compaction for {seconds:.0f} s: it does not report "
                "what it has; nothing is lost, but deleted keys take up room",
                peer=name,
                seconds=now - self._lacking[name][1],
            )
        for name in sorted(self._told - long):
            self._log.info("{peer} holds up compaction no more", peer=name)
        self._told = long

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopped = True
        if self._pause is not None and self._pause[1].active():
            self._pause[1].cancel()
