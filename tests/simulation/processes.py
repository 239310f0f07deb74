"""One run of one replica, its clients and its messages, for ``replicas``."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from twisted_kvs.cluster import Cluster
from twisted_kvs.committer import Committer
from twisted_kvs.core.causality import Name, VersionVector
from twisted_kvs.core.messages import (
    Delta,
    PeerAnswer,
    PeerRequest,
    Vectors,
)
from twisted_kvs.core.payload import EMPTY_PAYLOAD, Payload
from twisted_kvs.core.replica import Replica
from twisted_kvs.core.settings import Settings
from twisted_kvs.core.versions import Version
from twisted_kvs.core.view import ReplicaCount, View
from twisted_kvs.deltas import DeltaReceiver, DeltaSender
from twisted_kvs.operations import Reply
from twisted_kvs.storage.memory import MemoryStorage

SETTINGS = Settings(delta_part_versions_max=2, fold_versions=1, value_bytes_max=64)


class World(Protocol):
    """What a process needs of what is around it."""

    rng: random.Random
    clock: Clock
    names: list[Name]
    failures: list[Failure]

    def send(self, message: Message) -> None:
        """Put something on the network."""


@dataclass(slots=True)
class Message:
    """Something on its way; delivered in any order, any number of times, or never."""

    source: Process
    target: Name
    content: PeerRequest | Delta | PeerAnswer
    answered: Deferred[Reply] | None = None
    told: Vectors | None = None
    """What the source knew when it made a delta: its report (R12)."""


@dataclass(slots=True)
class Session:
    """A client, and what it has a right to."""

    payload: Payload = EMPTY_PAYLOAD
    knows: VersionVector = field(default_factory=dict)
    """All that it has written and been shown, with their pasts."""
    waiting: tuple[Process, ...] = ()
    """Whom it waits for; a client does one thing at a time."""


class Process:
    """One run of one replica; also its ``PeerTransport``."""

    def __init__(self, world: World, name: Name, storage: MemoryStorage) -> None:
        self.world = world
        self.name = name
        self.storage = storage
        self.dead = False
        rng = random.Random(world.rng.getrandbits(64))
        fresh = Replica.fresh_state(View(), ReplicaCount(0, 3))
        stored = storage.open() or fresh
        self.replica = Replica(name=name, reader=storage, stored=stored, rng=rng)
        self.cluster = Cluster(
            me=name,
            boot_id=rng.getrandbits(64),
            settings=SETTINGS,
            clock=world.clock,
            wall_us=lambda: 0,
            rng=rng,
            replica=self.replica,
            storage=storage,
            transport=self,
        )
        self.cluster.committer = self.committer = Committer(
            self.replica,
            storage,
            stored=stored,
            settings=SETTINGS,
            clock=world.clock,
            rng=rng,
            published=self._published,
            fatal=self._fatal,
        )
        self.sender = DeltaSender(self.cluster)
        self.receiver = DeltaReceiver(self.cluster, lambda peer, standing: None)
        self.members = set(world.names)
        """Whose reports it waits for before it forgets anything."""
        self.pushable: list[Version] = []
        self.answered: list[Payload] = []
        """Of writes, minted here or forwarded, in the order of their answers."""

    def _published(self, commit: object, result: object) -> None:
        self.pushable += getattr(commit, "minted", ())
        if getattr(result, "unfolded", 0):
            self.replica.fold(SETTINGS.fold_versions)

    def _fatal(self, failure: Failure) -> None:
        self.world.failures.append(failure)

    def ask(
        self, peer: Name, request: PeerRequest, *, connect_s: float, total_s: float
    ) -> Deferred[Reply]:
        """Put a request on the network."""
        answered: Deferred[Reply] = Deferred()
        self.world.send(Message(self, peer, request, answered))
        return answered

    def close(self) -> Deferred[None]:
        """Nothing to close."""
        return succeed(None)

    def halt(self) -> None:
        """Die."""
        self.dead = True
        self.committer.stop()
        self.sender.stop()
        self.storage.crash()
