"""
Actors, dots and version vectors.

A version vector maps an actor to the highest counter seen of it; an absent actor is 0,
and no stored counter is 0.  Vectors are plain mappings that nobody changes after they
were built: every function here returns a new one (or one of its arguments, where that
is the answer).  Plain mappings, because they cross the wire and the disk as they are.

Invariant of every vector that this package mints or hands out: it is *closed*, that is
with every dot it also covers the past of that dot's version (rule R3).

Follows Parker et al., "Detection of mutual inconsistency in distributed systems"
(1983) for vectors, Preguica et al., "Dotted version vectors" (arXiv 1011.5808) for
dots.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import NewType, TypeAlias

Name = NewType("Name", str)
"""A node's canonical ``ip:port``."""

Actor = NewType("Actor", str)
"""Node name, ``#``, 16 hex digits of incarnation (R1): who mints dots."""

VersionVector: TypeAlias = Mapping[Actor, int]
Dot: TypeAlias = tuple[Actor, int]

EMPTY: VersionVector = {}
INCARNATION_BITS = 64
COUNTER_MAX = 2**63 - 1
"""Of L and timestamps."""
DOT_COUNTER_MAX = 2**43 - 2
"""Of dots: a thousand writes a second for 278 years; stores pack dots into 63 bits."""


class Ordering(enum.Enum):
    """How one vector stands to another in the partial order."""

    BEFORE = "before"
    AFTER = "after"
    EQUAL = "equal"
    CONCURRENT = "concurrent"


def make_actor(name: Name, incarnation: int) -> Actor:
    """
    Name the process that runs under ``name`` with this incarnation (R1).

    :param incarnation: 64 random bits, drawn at every start of a process.
    """
    assert 0 <= incarnation < 2**INCARNATION_BITS
    return Actor(f"{name}#{incarnation:016x}")


def actor_name(actor: Actor) -> Name:
    """Tell the node name of an actor."""
    return Name(actor.rpartition("#")[0])


def covers(vector: VersionVector, dot: Dot) -> bool:
    """Tell whether ``dot <= vector``."""
    return vector.get(dot[0], 0) >= dot[1]


def leq(left: VersionVector, right: VersionVector) -> bool:
    """Tell whether ``left <= right`` at every actor."""
    if left is right:
        return True
    get = right.get
    return all(get(actor, 0) >= counter for actor, counter in left.items())


def join(*vectors: VersionVector) -> VersionVector:
    """
    Take the pointwise maximum: the least vector that covers all of them.

    Commutative, associative, idempotent.  Returns the first argument itself where that
    already covers the others, so that the frequent case allocates nothing.
    """
    if not vectors:
        return EMPTY
    first = vectors[0]
    grown: dict[Actor, int] | None = None
    for vector in vectors[1:]:
        if vector is first:
            continue
        for actor, counter in vector.items():
            if counter > (first if grown is None else grown).get(actor, 0):
                if grown is None:
                    grown = dict(first)
                grown[actor] = counter
    return first if grown is None else grown


def meet(left: VersionVector, right: VersionVector) -> VersionVector:
    """Take the pointwise minimum: the greatest vector that both cover."""
    return {
        actor: least
        for actor, counter in left.items()
        if (least := min(counter, right.get(actor, 0)))
    }


def including(vector: VersionVector, dot: Dot) -> VersionVector:
    """Join a vector with one dot."""
    if covers(vector, dot):
        return vector
    return {**vector, dot[0]: dot[1]}


def compare(left: VersionVector, right: VersionVector) -> Ordering:
    """Place ``left`` against ``right`` in the partial order."""
    below, above = leq(left, right), leq(right, left)
    if below and above:
        return Ordering.EQUAL
    if below:
        return Ordering.BEFORE
    return Ordering.AFTER if above else Ordering.CONCURRENT


def missing_actors(wanted: VersionVector, known: VersionVector) -> list[Actor]:
    """List the actors of whom ``wanted`` names dots that ``known`` lacks, sorted."""
    return sorted(a for a, counter in wanted.items() if known.get(a, 0) < counter)


def own_writes(vector: VersionVector, name: Name) -> VersionVector:
    """Take the part of a vector that names writes of one node."""
    return {actor: n for actor, n in vector.items() if actor_name(actor) == name}


def restrict(vector: VersionVector, actors: Iterable[Actor]) -> VersionVector:
    """Keep the entries of these actors only."""
    return {actor: vector[actor] for actor in actors if actor in vector}
