"""
Stores with many keys, written directly: real replicas and real storage, no HTTP.

The first node mints the writes, the others apply them as deltas, so what is on disk is
what nodes would have written that were up at the time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_kvs.core.causality import Name
from twisted_kvs.core.messages import CommitResult, Delta, Standing
from twisted_kvs.core.payload import Payload
from twisted_kvs.core.replica import Replica
from twisted_kvs.core.secrets import DEFAULT_SECRET, Secrets
from twisted_kvs.core.settings import Settings
from twisted_kvs.core.versions import Version
from twisted_kvs.core.view import ReplicaCount, View
from twisted_kvs.storage.api import START
from twisted_kvs.storage.sqlite import SqliteStorage
from twisted_kvs.storage.thread import CallersThread

from .load import key_name, value_text
from .wire import Address

BATCH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """What a slice of compaction took, seconds."""

    turn_s: float
    """The longer one of its turns: read, change and hand over; or take note."""
    cpu_s: float
    """Of the same turn; what else ran does not count."""
    commit_s: float
    """A node spends it on another thread."""
    keys: int
    """Of which something was forgotten."""


class Store:
    """One node's store, open."""

    def __init__(
        self, directory: Path, name: str, *, view: Sequence[Address], replicas: int
    ) -> None:
        """Open it, or make it; the node begins as another actor every time."""
        self._storage = SqliteStorage(
            directory,
            name=Name(name),
            fingerprints=Secrets([DEFAULT_SECRET]).fingerprints,
            thread=CallersThread(),
        )
        stored = self._storage.open()
        if stored is None:
            first = View.start([Name(member.name) for member in view])
            stored = Replica.fresh_state(first, ReplicaCount(1, replicas))
        self.replica = Replica(
            name=Name(name),
            reader=self._storage,
            stored=stored,
            rng=random.SystemRandom(),
        )
        self.replica.set_holds_all(True)
        self.replica.set_started_with_k(replicas)

    def commit(self) -> None:
        """Store what was applied."""
        while (commit := self.replica.take_commit()) is not None:
            _now(self._storage.commit(commit))
            self.replica.committed(commit)

    def compact(self, settings: Settings) -> Iterator[Slice]:
        """Go once through what can be forgotten, as if all members had reported it."""
        upto, after = self.replica.durable.vv, START
        while True:
            began, cpu = time.perf_counter(), time.thread_time()
            keys, then = self._storage.unsettled(
                upto,
                after,
                versions_max=settings.compact_versions,
                bytes_max=settings.compact_bytes,
            )
            compacted = self.replica.compact(keys, upto, seal=True)
            commit = self.replica.take_commit()
            first = time.perf_counter() - began, time.thread_time() - cpu
            second = 0.0, 0.0
            began = time.perf_counter()
            if commit is not None:
                _now(self._storage.commit(commit))
                committed_s = time.perf_counter() - began
                began, cpu = time.perf_counter(), time.thread_time()
                self.replica.committed(commit)
                second = time.perf_counter() - began, time.thread_time() - cpu
                turn_s, cpu_s = max(first, second)
                yield Slice(
                    turn_s=turn_s,
                    cpu_s=cpu_s,
                    commit_s=committed_s,
                    keys=compacted.changed,
                )
            if then is None:
                return
            after = then

    def close(self) -> None:
        """Close it."""
        _now(self._storage.close())


def _now(done: Deferred[CommitResult] | Deferred[None]) -> None:
    """Raise what went wrong; on the caller's thread nothing is ever pending."""
    assert done.called
    if isinstance(done.result, Failure):
        done.result.raiseException()


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What stores are to hold."""

    keys: int
    """Those of ``load.key_name``, from 0; values have 100 bytes."""
    writes_each: int = 1
    """So often is every key written."""
    shared: int | None = None
    """So many of the writes, the oldest, are everywhere; None: all."""
    actors: int = 1
    """So often the first node was started: so many actors does a late past name."""
    forgotten: bool = False
    """Who has all has forgotten the pasts, as if the others had been removed then."""


def make_stores(
    parent: Path,
    nodes: Sequence[Address],
    contents: Contents,
    *,
    holders: int,
    others: Sequence[Address] = (),
) -> list[Path]:
    """
    Write the stores of a cluster.

    :param nodes: its replicas; the first of them makes all writes.
    :param holders: so many nodes, the first ones, have all; the others missed what is
        not shared.
    :param others: more members, proxies: nothing is written for them.
    :returns: the directories, one for each of ``nodes``.
    """
    writes = contents.keys * contents.writes_each
    shared = writes if contents.shared is None else contents.shared
    rng = random.Random(writes)
    directories = [parent / str(node.port) for node in nodes]
    view = [*nodes, *others]

    def opened(number: int) -> Store:
        name = nodes[number].name
        return Store(directories[number], name, view=view, replicas=len(nodes))

    stores = [opened(number) for number in range(len(nodes))]
    step = max(-(-writes // contents.actors // BATCH) * BATCH, BATCH)
    for first in range(0, writes, BATCH):
        if first and first % step == 0:
            stores[0].close()
            stores[0] = opened(0)
        last = min(first + BATCH, writes)
        cut = max(first, min(shared, last))
        for holding, numbers in (
            (stores, range(first, cut)),
            (stores[:holders], range(cut, last)),
        ):
            if numbers:
                names = [key_name(number % contents.keys) for number in numbers]
                _write(holding, names, rng)
    slices = Settings(compact_versions=BATCH)
    for number, store in enumerate(stores):
        store.commit()
        if contents.forgotten and number < holders:
            assert sum(part.keys for part in store.compact(slices))
        store.close()
    return directories


def _write(stores: Sequence[Store], keys: list[str], rng: random.Random) -> None:
    origin = stores[0].replica
    base = dict(origin.applied.vv)
    versions: list[Version] = []
    for key in keys:
        value = f'"{value_text(rng, 100)}"'.encode()
        written = origin.put(key, value, Payload({}, 0), wall_us=time.time_ns() // 1000)
        versions.append(written.version)
    delta = Delta(
        base=base,
        claim=dict(origin.applied.vv),
        lamport=origin.applied.lamport,
        standing=Standing.SERVING,
        versions=versions,
    )
    for store in stores[1:]:
        applied = store.replica.apply_delta(delta)
        assert applied is not None, "deltas follow each other without a gap"
    for store in stores:
        store.commit()
