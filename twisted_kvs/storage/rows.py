"""
Versions as rows of a table, and the numbers that stand for actors on disk.

Invariant: a row's key is its dot, ``number of the actor << 43 | counter``, so that the
versions of one actor lie next to each other in the order of their counters: a delta is
read in sequence, and appending to it never splits a page.

Actors are numbered from 1 in the order in which a store meets them; a number is never
used for another actor, and stays when the last version of its actor is gone.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import TypeAlias

import msgspec

from ..core.causality import Actor, Dot, VersionVector
from ..core.versions import Version, version_hash
from .api import STORED_COUNTER_MAX

COUNTER_BITS = 43
ACTORS_MAX = 2 ** (63 - COUNTER_BITS) - 1
assert STORED_COUNTER_MAX == 2**COUNTER_BITS - 1

HASH_MASK = 2**64 - 1

Row: TypeAlias = tuple[int, str, bytes, int, bytes | None, int, int]
"""dot, key, value, ts, past, stage, hash; the columns of the table ``version``."""

_encode_past = msgspec.msgpack.Encoder().encode
_decode_past = msgspec.msgpack.Decoder(list[int]).decode


class ActorNumbers:
    """
    The actors of one store by number and the numbers by actor, as one thread sees them.

    The writer numbers new actors and stores them with its commit; readers look for
    numbers that they do not know in the table: it only ever grows.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Read the table of actors, now and when it has grown."""
        self._connection = connection
        self._numbers: dict[Actor, int] = {}
        self._names: dict[int, Actor] = {}
        self._last = self._stored = self._settled = 0
        """The greatest number of all, of the table's, and when both were equal."""
        self.refresh()

    def refresh(self) -> None:
        """Read what the table has got since."""
        rows = self._connection.execute(
            "SELECT id, name FROM actor WHERE id > ? ORDER BY id", (self._stored,)
        )
        for number, name in rows.fetchall():
            self._numbers[name] = number
            self._names[number] = name
            # Not more: what was assigned and is not stored yet has to be.
            self._stored = number
            self._last = max(number, self._last)

    def name(self, number: int) -> Actor:
        """Tell the actor of a number that a stored row has."""
        if number not in self._names:
            self.refresh()
        return self._names[number]

    def named(self, dot: int) -> Dot:
        """Tell the dot of a stored row."""
        return self.name(dot >> COUNTER_BITS), dot & STORED_COUNTER_MAX

    def find(self, actor: Actor) -> int | None:
        """Tell the number of an actor; None if the store has none of its versions."""
        if actor not in self._numbers:
            self.refresh()
        return self._numbers.get(actor)

    def assign(self, actor: Actor) -> int:
        """Tell the number of an actor, a new one if need be; only for the writer."""
        number = self._numbers.get(actor)
        if number is None:
            number = self._last + 1
            if number > ACTORS_MAX:
                raise ValueError(f"no room for more than {ACTORS_MAX} actors")
            self._last = number
            self._numbers[actor] = number
            self._names[number] = actor
        return number

    def store_new(self) -> None:
        """Write the actors that no commit has stored yet; one may have failed."""
        new = range(self._stored + 1, self._last + 1)
        if new:
            self._connection.executemany(
                "INSERT INTO actor VALUES (?, ?)", [(n, self._names[n]) for n in new]
            )

    def settle(self) -> None:
        """See which actors are stored, after a transaction and whatever came of it."""
        if self._settled == self._last:
            return
        query = "SELECT ifnull(max(id), 0) FROM actor"
        (self._stored,) = self._connection.execute(query).fetchone()
        self._settled = self._stored

    def dot(self, dot: Dot) -> int | None:
        """Tell the key of a dot's row; None if there can be no such row."""
        number = self._numbers.get(dot[0])
        if number is None or dot[1] > STORED_COUNTER_MAX:
            return None
        return number << COUNTER_BITS | dot[1]

    def pack(self, version: Version, stage: int) -> Row:
        """
        Make the row of a version.

        :raises ValueError: if the counter of its dot cannot be stored.
        """
        if version.counter > STORED_COUNTER_MAX:
            raise ValueError(
                f"{version.actor} counts to {version.counter}, "
                f"stored are counters up to {STORED_COUNTER_MAX}"
            )
        number = self._numbers.get(version.actor) or self.assign(version.actor)
        packed = None
        if version.past:
            flat = []
            for actor, counter in version.past.items():
                flat.append(self._numbers.get(actor) or self.assign(actor))
                flat.append(counter)
            packed = _encode_past(flat)
        return (
            number << COUNTER_BITS | version.counter,
            version.key,
            # No value is empty.
            version.value or b"",
            version.ts,
            packed,
            stage,
            as_signed(version_hash(version)),
        )

    def unpack(
        self, key: str, columns: tuple[int, bytes, int, bytes | None]
    ) -> Version:
        """
        Make the version of a row.

        :param columns: dot, value, ts and past.
        """
        dot, value, ts, packed = columns
        return Version(
            self.name(dot >> COUNTER_BITS),
            dot & STORED_COUNTER_MAX,
            key,
            value or None,
            ts,
            self.unpack_past(packed),
        )

    def unpack_past(self, packed: bytes | None) -> dict[Actor, int]:
        """Make the vector of a row's past."""
        if packed is None:
            return {}
        flat = _decode_past(packed)
        names = self._names
        try:
            return {names[flat[i]]: flat[i + 1] for i in range(0, len(flat), 2)}
        except KeyError:
            self.refresh()
            return {names[flat[i]]: flat[i + 1] for i in range(0, len(flat), 2)}

    def spans(
        self, wanted: VersionVector, known: VersionVector
    ) -> list[tuple[int, int]]:
        """
        List the rows that ``wanted`` covers and ``known`` does not, as ranges of dots.

        :returns: pairs (above this, up to this), ascending; none overlap.
        """
        found = []
        for actor, counter in wanted.items():
            base = known.get(actor, 0)
            if counter > base and (number := self.find(actor)) is not None:
                first = number << COUNTER_BITS
                found.append(
                    (
                        first | min(base, STORED_COUNTER_MAX),
                        first | min(counter, STORED_COUNTER_MAX),
                    )
                )
        return sorted(found)


def as_signed(number: int) -> int:
    """Turn 64 bits into an integer as SQLite has them."""
    return number - 2**64 if number >= 2**63 else number


def join_hashes(hashes: Iterable[int]) -> int:
    """XOR hashes of rows, which have a sign, into 64 bits without."""
    joined = 0
    for one in hashes:
        joined ^= one
    return joined & HASH_MASK
