"""
Versions as the store in memory keeps them: by actor, in the order of their counters.

Invariant: what is gone takes room only until as much again has gone, or comes.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..core.causality import Actor, Dot, VersionVector
from ..core.versions import Version
from .api import STORED_COUNTER_MAX, Cursor

_COUNTER_BITS = 43
assert STORED_COUNTER_MAX == 2**_COUNTER_BITS - 1
_DEAD_MIN = 16


@dataclass(slots=True, eq=False)
class Row:
    """A version and where it belongs."""

    version: Version
    hash: int
    stage: int
    since: int
    """Serial of the commit that made it visible; 0 while its stage is not valid."""


@dataclass(slots=True)
class ActorRows:
    """The versions of one actor by counter."""

    number: int
    """Where the actor stands in the order in which the store met them."""
    rows: dict[int, Row] = field(default_factory=dict)
    counters: list[int] = field(default_factory=list)
    """Ascending; those of versions that are gone are left in until many are."""

    def add(self, counter: int, row: Row) -> None:
        """Take a row in, or another one for the same dot."""
        counters = self.counters
        if not counters or counters[-1] < counter:
            counters.append(counter)
        else:
            place = bisect_right(counters, counter)
            if counters[place - 1 : place] != [counter]:
                insort(counters, counter)
        self.rows[counter] = row

    def drop(self, counter: int) -> None:
        """Let a row go."""
        del self.rows[counter]
        if len(self.counters) > 2 * len(self.rows) + _DEAD_MIN:
            self.counters = sorted(self.rows)
            # A dictionary keeps the room of what was deleted from it.
            self.rows = dict(self.rows)

    def between(self, above: int, upto: int) -> Iterator[tuple[int, Row]]:
        """List the rows of a range of counters, ascending."""
        for place in range(bisect_right(self.counters, above), len(self.counters)):
            counter = self.counters[place]
            if counter > upto:
                return
            row = self.rows.get(counter)
            if row is not None:
                yield counter, row


class Rows:
    """
    Rows by dot, in an order in which a cursor finds its way.

    Actors come in the order in which they were met; one that was let go of comes last
    when it is met again.
    """

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._actors: dict[Actor, ActorRows] = {}
        self._met = 0
        self._emptied = False

    def get(self, dot: Dot) -> Row | None:
        """Tell the row of a dot."""
        of_actor = self._actors.get(dot[0])
        return None if of_actor is None else of_actor.rows.get(dot[1])

    def put(self, row: Row) -> None:
        """Take a row in, or another one for the same dot."""
        actor, counter = row.version.dot
        of_actor = self._actors.get(actor)
        if of_actor is None:
            self._met += 1
            of_actor = self._actors[actor] = ActorRows(self._met)
        of_actor.add(counter, row)

    def drop(self, dot: Dot) -> None:
        """Let a row go that is there."""
        of_actor = self._actors[dot[0]]
        of_actor.drop(dot[1])
        self._emptied = self._emptied or not of_actor.rows

    def discard(self, dot: Dot) -> None:
        """Let a row go if it is there."""
        if self.get(dot) is not None:
            self.drop(dot)

    def let_go(self) -> None:
        """Let go of the actors of whom nothing is left; no cursor may be in use."""
        if self._emptied:
            self._actors = {a: rows for a, rows in self._actors.items() if rows.rows}
            self._emptied = False

    def of(self, actor: Actor) -> ActorRows | None:
        """Tell the rows of one actor."""
        return self._actors.get(actor)

    def ordered(self, vector: VersionVector) -> list[tuple[Cursor, Actor, ActorRows]]:
        """List the actors of a vector in order, and the place before each."""
        found = []
        for actor in vector:
            of_actor = self._actors.get(actor)
            if of_actor is not None:
                place = Cursor(of_actor.number << _COUNTER_BITS)
                found.append((place, actor, of_actor))
        return sorted(found, key=lambda x: x[0])

    def after(self, upto: VersionVector, after: Cursor) -> Iterator[tuple[Cursor, Row]]:
        """List the rows that ``upto`` covers from a place on, and where each stands."""
        for first, actor, of_actor in self.ordered(upto):
            for counter, row in of_actor.between(after - first, upto[actor]):
                yield Cursor(first | counter), row
