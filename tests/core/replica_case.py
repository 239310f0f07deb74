"""Replicas with their storage, driven by hand; every step ends with the invariants."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from twisted_kvs.core.causality import Actor, Name, VersionVector, join, leq
from twisted_kvs.core.compaction import stable
from twisted_kvs.core.fence import LiveDots
from twisted_kvs.core.messages import (
    Commit,
    CommitResult,
    Delta,
    Standing,
)
from twisted_kvs.core.names import parse_name
from twisted_kvs.core.outcomes import Read, Stage, Taken, Written
from twisted_kvs.core.payload import EMPTY_PAYLOAD, Payload
from twisted_kvs.core.replica import Replica
from twisted_kvs.core.versions import Version
from twisted_kvs.core.view import ReplicaCount, View
from twisted_kvs.simulation.invariants import Invariants, minted
from twisted_kvs.simulation.oracle import Oracle
from twisted_kvs.storage.api import START
from twisted_kvs.storage.memory import MemoryStorage

_T = TypeVar("_T")


class Station:
    """One replica and its disk; a commit happens when the test says so."""

    def __init__(
        self, invariants: Invariants, name: Name, storage: MemoryStorage, seed: int
    ) -> None:
        """
        Start a process on a disk.

        :param seed: draws the incarnation.
        """
        self.invariants = invariants
        self.name = name
        self.storage = storage
        self.results: list[CommitResult] = []
        self.reports: dict[Name, VersionVector] = {}
        """R12: what peers have reported."""
        self.live: LiveDots = {}
        """What the last full join that was made lists."""
        self.stored = storage.open() or Replica.fresh_state(View(), ReplicaCount(0, 3))
        self.replica = Replica(
            name=name, reader=storage, stored=self.stored, rng=random.Random(seed)
        )

    @property
    def actor(self) -> Actor:
        """Under whom it mints now."""
        return self.replica.actor

    @property
    def vv(self) -> VersionVector:
        """What it knows, durable or not."""
        return self.replica.applied.vv

    def do(self, step: Callable[..., _T], *arguments: object, **named: object) -> _T:
        """Call the replica, then check everything."""
        try:
            return step(*arguments, **named)
        finally:
            self.invariants.check(self.replica)

    def put(
        self,
        key: str = "k",
        value: bytes | None = b'"v"',
        payload: Payload = EMPTY_PAYLOAD,
        *,
        at: int = 1,
        durable: bool = True,
    ) -> Written:
        """Write at wall clock ``at``; None deletes."""
        written = self.replica.put(key, value, payload, wall_us=at)
        self.invariants.oracle.mint(minted(written.version))
        self.invariants.demand_closed(written.payload.vector)
        self.invariants.check(self.replica)
        if durable:
            self.commit()
        return written

    def read(self, key: str = "k", payload: Payload = EMPTY_PAYLOAD) -> Read:
        """Read; the payload that it gives is closed."""
        read = self.replica.read(key, payload)
        self.invariants.demand_closed(read.payload.vector)
        return read

    def value(self, key: str = "k") -> bytes | None:
        """Tell what a client without history sees."""
        version = self.read(key).version
        return None if version is None else version.value

    def push(self, *versions: Version, lamport: int = 0) -> Taken:
        """Take a push."""
        return self.do(self.replica.apply_push, list(versions), lamport)

    def delta(self, base: VersionVector | None = None, *, session: int = 0) -> Delta:
        """Make what an asker with this VV lacks of what is durable here."""
        asker = base or {}
        snapshot = self.storage.snapshot()
        frontier = self.replica.frontier_of(snapshot.state)
        base = self.replica.delta_base(
            asker, frontier, holds_all=snapshot.state.holds_all
        )
        versions, _ = snapshot.missing(base, START, versions_max=10**6, bytes_max=10**9)
        floor = frontier.floor
        full = not leq(floor, base)
        self.live = snapshot.live(START, dots_max=10**6)[0] if full else {}
        snapshot.close()
        return Delta(
            base=dict(base),
            claim=snapshot.state.vv,
            lamport=snapshot.state.lamport,
            standing=Standing.SERVING,
            versions=versions,
            session=session or full,
            floor=dict(floor),
            full=full,
        )

    def take(self, delta: Delta) -> int | None:
        """Take a whole delta."""
        return self.do(self.replica.apply_delta, delta)

    def pull(self, peer: Station) -> None:
        """Take all that a peer has, durably; what it claims is its report (R12)."""
        delta = peer.delta(self.replica.durable.vv)
        told = peer.replica.durable
        if not delta.full:
            taken = self.take(delta) is not None
        else:
            stage = self.replica.begin_stage(delta)
            self.do(self.replica.add_part, stage, delta.versions, peer.live)
            self.commit()
            taken = self.do(self.replica.finish_stage, stage) is not None
        self.commit()
        self.fold()
        if taken and peer.replica.holds_all:
            self.reports[peer.name] = told.vv
        elif taken:
            self.reports[peer.name] = join(told.clock, told.vv)

    def compact(self, *members: Station, seal: bool = True) -> int:
        """Compact what all members have reported; tell how many seals were written."""
        reports = [self.reports.get(m.name) for m in members if m is not self]
        upto = stable(self.replica.durable.vv, reports)
        keys, after = self.storage.unsettled(
            upto, START, versions_max=10**6, bytes_max=10**9
        )
        assert after is None
        done = self.replica.compact(keys, upto, seal=seal)
        for version in self.replica.uncommitted():
            if version.dot not in self.invariants.oracle.writes:
                self.invariants.oracle.mint(minted(version))
        self.invariants.check(self.replica)
        self.commit()
        return done.seals

    def stage(self, delta: Delta, *parts: list[Version]) -> Stage:
        """Begin to receive a delta in parts, and store these, durably."""
        stage = self.replica.begin_stage(delta)
        for part in parts:
            self.do(self.replica.add_part, stage, part)
        self.commit()
        return stage

    def give(self) -> tuple[Commit, Deferred[CommitResult]] | None:
        """Begin the next commit; ``land`` ends it."""
        commit = self.do(self.replica.take_commit)
        if commit is None:
            return None
        done = self.storage.commit(commit)
        self.invariants.check(self.replica)
        return commit, done

    def land(self, given: tuple[Commit, Deferred[CommitResult]]) -> None:
        """Let a commit that was begun become durable."""
        commit, done = given
        done.addCallback(self.results.append)
        assert self.storage.flush()
        self.stored = commit.state
        self.do(self.replica.committed, commit)

    def commit(self) -> list[Commit]:
        """Make durable all that is applied, and tell in which commits."""
        commits = []
        while (given := self.give()) is not None:
            self.land(given)
            commits.append(given[0])
        return commits

    def fold(self) -> int:
        """Fold to the end, one version at a time, and count the commits."""
        slices = 0
        while self.storage.result.unfolded:
            self.replica.fold(1)
            self.commit()
            slices += 1
        return slices

    def restart(self, seed: int, *, disk: bool = True) -> Station:
        """Kill the process and start another, on the same disk or on an empty one."""
        self.storage.crash()
        storage = self.storage if disk else MemoryStorage(manual=True)
        started = Station(self.invariants, self.name, storage, seed)
        if not disk:
            started.replica.set_holds_all(self.replica.holds_all)
        return started


class ReplicaCase(SynchronousTestCase):
    """Makes replicas that share a history and an oracle."""

    def setUp(self) -> None:
        """Begin a history."""
        self.oracle = Oracle()
        self.invariants = Invariants(self.oracle)

    def station(self, number: int, *, holds_all: bool = True) -> Station:
        """Start a node with an empty disk; the greater number wins ties."""
        name = parse_name(f"10.0.0.{number}:80")
        storage = MemoryStorage(manual=True)
        station = Station(self.invariants, name, storage, number)
        station.replica.set_holds_all(holds_all)
        station.commit()
        return station

    def stations(self, count: int) -> list[Station]:
        """Start replicas 1, 2, 3 ..."""
        return [self.station(number) for number in range(1, count + 1)]

    def converge(self, *stations: Station) -> set[bytes | None]:
        """Let all pull from all; tell what they show of ``k``."""
        for _ in range(2):
            for one in stations:
                for other in stations:
                    if one is not other:
                        one.pull(other)
        right = self.oracle.winner("k", stations[0].vv)
        shown = {station.value() for station in stations}
        self.assertEqual(shown, {right.value if right else None})
        return shown
