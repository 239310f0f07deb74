"""
Versions, the antichain of a key, and its winner (rules R2, R4, R5).

Invariant: the live versions of a key are pairwise concurrent.  Joining versions into an
antichain is commutative, associative and idempotent, because *which* versions are kept
depends on causality alone; timestamps only choose what a read shows.  (Deciding pairs
by "causal order, else timestamp" is no merge at all: hole H1.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Annotated, TypeAlias

import msgspec

from .causality import (
    COUNTER_MAX,
    DOT_COUNTER_MAX,
    Actor,
    Dot,
    Name,
    VersionVector,
    actor_name,
    covers,
    including,
)
from .names import name_order

KEY_CODE_POINTS_MAX = 200
SEAL_TS = -1
"""The timestamp of a seal: below that of every write of a client."""
VALUE_BYTES_MAX = 16 * 2**20
"""The protocol's own limit for one value; what clients may send is an option."""

Value: TypeAlias = Annotated[
    bytes, msgspec.Meta(min_length=1, max_length=VALUE_BYTES_MAX)
]
Counter: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=DOT_COUNTER_MAX)]
WireVector: TypeAlias = dict[Actor, Counter]


class Version(msgspec.Struct, frozen=True, array_like=True, gc=False, eq=False):
    """
    One immutable write of one key (R2).

    Two versions with the same dot are the same version; ``==`` is identity on purpose,
    compare dots.
    """

    actor: Actor
    """Who minted the dot; its name is the node that first processed the write."""
    counter: Counter
    """The dot is ``(actor, counter)``."""
    key: Annotated[str, msgspec.Meta(min_length=1, max_length=KEY_CODE_POINTS_MAX)]
    value: Value | None
    """The value as JSON text in UTF-8, as it will be shown; None: a tombstone."""
    ts: Annotated[int, msgspec.Meta(ge=SEAL_TS, le=COUNTER_MAX)]
    """Wall clock of the node that took the write, microseconds since the epoch;
    ``SEAL_TS``: a seal (R9)."""
    past: WireVector
    """Everything that the write comes after, its own dot excluded; closed.  Empty also
    where it was forgotten: then the floor covers it (R11)."""

    @property
    def dot(self) -> Dot:
        """The name of this write."""
        return self.actor, self.counter

    @property
    def is_seal(self) -> bool:
        """Whether it only dominates: a tombstone that beats no value (R9)."""
        return self.ts == SEAL_TS

    @property
    def origin(self) -> Name:
        """The node that first processed the write."""
        return actor_name(self.actor)

    @property
    def upto(self) -> VersionVector:
        """Past and dot: what an observer of this version depends on."""
        return including(self.past, (self.actor, self.counter))


Antichain: TypeAlias = tuple[Version, ...]
"""The live versions of one key, pairwise concurrent, in no particular order."""


def dominates(later: Version, earlier: Version) -> bool:
    """Tell whether ``later`` was written in the knowledge of ``earlier``."""
    return covers(later.past, (earlier.actor, earlier.counter))


def insert(chain: Antichain, version: Version) -> Antichain:
    """
    Join one version into an antichain (R4).

    :returns: ``chain`` itself if the version is already there or is dominated; else a
        new antichain with it and without what it dominates.
    """
    dot = version.dot
    for present in chain:
        if present.dot == dot or covers(present.past, dot):
            return chain
    return (*(x for x in chain if not dominates(version, x)), version)


def maximal(versions: Iterable[Version]) -> Antichain:
    """Join any versions of one key into an antichain."""
    chain: Antichain = ()
    for version in versions:
        chain = insert(chain, version)
    return chain


def rank(version: Version) -> tuple[object, ...]:
    """
    Order concurrent versions totally: timestamp, node name, actor, counter (R5).

    By the *name*, never by its number in the view, which can shift (hole H14).
    """
    return version.ts, name_order(version.origin), version.actor, version.counter


def winner(chain: Antichain) -> Version | None:
    """Choose what a read shows: the same on all nodes; None for an empty antichain."""
    if len(chain) < 2:
        return chain[0] if chain else None
    return max(chain, key=rank)


def version_hash(version: Version) -> int:
    """
    Hash dot and value to 64 bits, for the self-check of R17.

    XOR of these over a set of versions is a check sum that costs O(1) per change.  A
    seal counts nothing: replicas drop it at their own time.
    """
    if version.is_seal:
        return 0
    dot = f"{version.actor}:{version.counter}:".encode()
    digest = hashlib.blake2b(dot, digest_size=8)
    digest.update(version.value or b"")
    return int.from_bytes(digest.digest(), "big")
