"""
What a round of gossip says first and whom it asks (R19).

Hash first: equal hashes of (VV, view, K) mean that nothing differs, whatever the number
of keys.  Whom: the next of a shuffled deck of *all* members, so that every member's
turn
comes within n-1 rounds (random choice misses some for long in small clusters) and a
healed partition is noticed although both sides believe the other dead (hole H13).

Demers et al., "Epidemic algorithms for replicated database maintenance" (1987);
Doerr and Kostrygin, "Randomized rumor spreading revisited" (ICALP 2017).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection

import msgspec

from .causality import Name, VersionVector
from .view import ReplicaCount, View

DIGEST_BYTES = 16
_encoder = msgspec.msgpack.Encoder(order="sorted")


def digest(
    vv: VersionVector,
    view: View,
    replica_count: ReplicaCount | None,
    *,
    retired: str,
) -> bytes:
    """Hash what an exchange would compare: 16 bytes, equal for equal arguments."""
    packed = _encoder.encode([vv, view.entries, replica_count, retired])
    return hashlib.blake2b(packed, digest_size=DIGEST_BYTES).digest()


class Deck:
    """Members in a random order, each once, then again in another order."""

    def __init__(self) -> None:
        """Start empty; the first draw shuffles."""
        self._cards: list[Name] = []

    def draw(self, members: Collection[Name], rng: random.Random) -> Name | None:
        """
        Draw whose turn it is.

        :param members: all members but oneself, believed dead ones included; who joins
            has a turn in the next shuffle at the latest.
        :returns: None if there are no members.
        """
        while self._cards:
            name = self._cards.pop()
            if name in members:
                return name
        if not members:
            return None
        self._cards = rng.sample(sorted(members), len(members))
        return self._cards.pop()
