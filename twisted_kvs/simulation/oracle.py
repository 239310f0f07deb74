"""
What should happen, told by somebody who saw every write: the oracle.

Plain tuples and dicts, and nothing of the core but its types: a rule that the core gets
wrong must not be wrong here in the same way.  The tests compare it with a definition
that is simpler still.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..core.causality import Actor, Dot, VersionVector


@dataclass(frozen=True)
class Write:
    """One write, as it was minted."""

    actor: Actor
    counter: int
    key: str
    value: bytes | None
    """None: a tombstone."""
    ts: int
    """Below 0: a seal, a tombstone that beats nothing."""
    past: VersionVector = field(hash=False)

    @property
    def dot(self) -> Dot:
        """Its name."""
        return self.actor, self.counter

    @property
    def rank(self) -> tuple[int, tuple[int, ...], str, int]:
        """What decides between concurrent writes; node names are IPv4 here."""
        host, port = self.actor.partition("#")[0].split(":")
        address = (*(int(part) for part in host.split(".")), int(port))
        return self.ts, address, self.actor, self.counter


def reaped(write: Write, seals: Iterable[Write], floor: VersionVector) -> bool:
    """Tell whether a history ended in a seal that was dropped (R9)."""
    return any(
        (seal is write or after(seal, write))
        and covered(seal, floor)
        and all(floor.get(actor, 0) >= n for actor, n in seal.past.items())
        for seal in seals
        if seal.ts < 0
    )


def after(later: Write, earlier: Write) -> bool:
    """Tell whether one write was made in the knowledge of another."""
    return later.past.get(earlier.actor, 0) >= earlier.counter


def covered(write: Write, vector: VersionVector) -> bool:
    """Tell whether a vector names a write."""
    return vector.get(write.actor, 0) >= write.counter


def joined(*vectors: VersionVector) -> dict[Actor, int]:
    """Take the pointwise maximum."""
    return {
        actor: max(vector.get(actor, 0) for vector in vectors)
        for actor in sorted({actor for vector in vectors for actor in vector})
    }


class Oracle:
    """Every write that was ever minted, in the order of minting."""

    def __init__(self) -> None:
        """Know of nothing yet."""
        self.writes: dict[Dot, Write] = {}
        self.by_key: dict[str, list[Write]] = {}

    def mint(self, write: Write) -> None:
        """
        Take note of a write.

        :raises AssertionError: if its dot was used before (R1), or its past is not
            closed or names what nobody has written (R3).
        """
        assert write.dot not in self.writes, f"{write.dot} was minted twice"
        assert not covered(write, write.past), f"{write} comes after itself"
        for dot in write.past.items():
            assert dot in self.writes, f"{write} names {dot}, which nobody wrote"
        self.demand_closed(write.past)
        self.writes[write.dot] = write
        self.by_key.setdefault(write.key, []).append(write)

    def demand_closed(self, vector: VersionVector) -> None:
        """
        Who comes after a write comes after all that the write comes after (R3, H7).

        :raises AssertionError: if a vector names a write and not its past.
        """
        for write in self.writes.values():
            if covered(write, vector):
                for actor, counter in write.past.items():
                    assert vector.get(actor, 0) >= counter, (
                        f"{dict(vector)} names {write} and not its past"
                    )

    def live(
        self, key: str, vector: VersionVector, *, seals: bool = True
    ) -> list[Write]:
        """
        List what stands of a key where just the writes in ``vector`` are known.

        :param seals: False: as if no deletion had been sealed.
        """
        known = [
            w
            for w in self.by_key.get(key, ())
            if covered(w, vector) and (seals or w.ts >= 0)
        ]
        return [w for w in known if not any(after(other, w) for other in known)]

    def winner(
        self, key: str, vector: VersionVector, *, seals: bool = True
    ) -> Write | None:
        """
        Tell what a read shows where exactly the writes in ``vector`` are known.

        :param seals: False: as if no deletion had been sealed.
        """
        live = self.live(key, vector, seals=seals)
        won = max(live, key=lambda w: w.rank, default=None)
        return None if won is None or won.value is None else won

    def upto(self, dots: Iterable[Dot]) -> dict[Actor, int]:
        """Join these writes and their pasts."""
        writes = [self.writes[dot] for dot in dots]
        return joined({}, *(w.past for w in writes), *(dict([w.dot]) for w in writes))

    def demand_shown(self, key: str, knows: VersionVector, shown: Dot | None) -> None:
        """
        Check an unflagged answer: read your writes, monotonic reads, writes follow.

        What a client knows of a key is there, or something that was written in its
        knowledge; so that, or something that beats it, is shown.

        :param knows: every write that the client has made or seen, with their pasts.
        :param shown: what was shown to it; None for "no such key".
        :raises AssertionError: if no node that covers ``knows`` may show this.
        """
        writes = self.by_key.get(key, ())
        must = [w for w in writes if covered(w, knows)]
        tombstones = [w for w in writes if w.value is None]
        shows = tombstones if shown is None else [self.writes[shown]]
        for write in must:
            standing = [write, *(w for w in writes if after(w, write))]
            assert any(
                w is it or after(it, w) or (not after(w, it) and it.rank > w.rank)
                for w in standing
                for it in shows
            ), f"{shown} shown of {key} to one who knows {write}, which beats it"
        if shown is not None:
            (it,) = shows
            assert it.key == key and it.value is not None, f"{it} shown for {key}"
            for write in must:
                assert not after(write, it), f"{it} shown to one who knows {write}"
