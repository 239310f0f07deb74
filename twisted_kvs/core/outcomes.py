"""
What a replica answers when it is asked to do something.

A result names the commit that must be durable before it may leave the node.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .causality import VersionVector, join
from .fence import Fence
from .messages import ReplicaState
from .payload import Payload
from .retiring import NOBODY, Retired
from .versions import Version


@dataclass(frozen=True, slots=True)
class Frontier:
    """How far a state has come; VV, clock, L and floor of one instant."""

    vv: VersionVector
    clock: VersionVector
    lamport: int
    floor: VersionVector = field(default_factory=dict)
    retired: Retired = NOBODY
    """Actors that write no more (R20)."""
    dropped: VersionVector = field(default_factory=dict)
    """Own writes that were dropped, since all replicas had them (R15)."""

    @classmethod
    def of(cls, state: ReplicaState, retired: Retired) -> Frontier:
        """Read a state record, in which retired actors may be one marker."""
        return cls(
            state.vv,
            join(retired.unpack(state.clock), state.vv),
            state.lamport,
            retired.unpack(state.floor),
            retired,
            state.dropped,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The outcome of a write."""

    version: Version
    created: bool
    """Whether the node showed no value of the key before."""
    payload: Payload
    commit: int
    """May be answered when this commit is durable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What a read shows."""

    version: Version | None
    payload: Payload
    fresh: bool
    """Whether the client's payload is covered; else the answer is stale (R14)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compacted:
    """The outcome of compacting some keys."""

    commit: int
    changed: int
    """Keys of which something was forgotten, dropped or sealed."""
    seals: int
    """Seals that were written: ordinary writes, to be pushed (R9)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """The outcome of a push."""

    commit: int
    """The acknowledgement may leave when this commit is durable."""
    gap: bool
    """Something came out of turn: pull from the sender (R8)."""
    taken: int
    """Versions that were new."""


@dataclass(slots=True)
class Stage:
    """A delta in parts that is being received (R7)."""

    number: int
    base: VersionVector
    claim: VersionVector
    lamport: int
    upto: VersionVector
    """Join of upto of its versions: joins the clock in the same turn as VV moves."""
    floor: VersionVector = field(default_factory=dict)
    """The sender's: joins ours in the same turn."""
    fence: Fence | None = None
    """Of a full join: what lives of all that the claim covers (R10)."""
    versions: int = 0
