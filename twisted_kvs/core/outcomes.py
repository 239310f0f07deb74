"""
What a replica answers when it is asked to do something.

A result names the commit that must be durable before it may leave the node.
"""

from __future__ import annotations

from dataclasses import dataclass

from .causality import VersionVector
from .payload import Payload
from .versions import Version


@dataclass(frozen=True, slots=True)
class Frontier:
    """How far a state has come; VV, clock and L of one instant."""

    vv: VersionVector
    clock: VersionVector
    lamport: int


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
    versions: int = 0
