"""
The lists of full joins (R10) in a database, until all that they doom is removed.

Invariant: while a valid stage has a fence, the stored parts of its list are whole, so
that a process that starts anew finds the same fence.
"""

from __future__ import annotations

import sqlite3
from array import array
from collections import defaultdict
from itertools import accumulate, pairwise

import msgspec

from ..core.causality import VersionVector
from ..core.fence import Fence, LiveDots
from .rows import ActorNumbers

DROPPED_AT_ONCE = 16
"""Parts of a list; some kilobytes each."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[list[int]]).decode


def store_listed(
    connection: sqlite3.Connection, actors: ActorNumbers, *, stage: int, live: LiveDots
) -> int:
    """
    Keep a part of the list of a stage: most often a byte for each dot.

    :returns: how many bytes.
    """
    packed = _encode(
        [
            [actors.assign(actor), *(b - a for a, b in pairwise([0, *counters]))]
            for actor, counters in live.items()
        ]
    )
    connection.execute(
        "INSERT INTO listed (stage, dots) VALUES (?, ?)", (stage, packed)
    )
    return len(packed)


def read_fence(
    connection: sqlite3.Connection,
    actors: ActorNumbers,
    *,
    stage: int,
    claim: VersionVector,
) -> Fence:
    """Make the fence of a stage from its list."""
    live: defaultdict[int, array[int]] = defaultdict(lambda: array("q"))
    for (packed,) in connection.execute(
        "SELECT dots FROM listed WHERE stage = ? ORDER BY part", (stage,)
    ):
        for number, *steps in _decode(packed):
            live[number].extend(accumulate(steps))
    fence = Fence(claim)
    for number, counters in live.items():
        if any(a >= b for a, b in pairwise(counters)):
            # A part came twice.
            counters = array("q", sorted(set(counters)))
        fence.spare({actors.name(number): counters.tolist()})
    return fence


def listed_stages(connection: sqlite3.Connection) -> list[int]:
    """Tell the stages of which there are lists."""
    rows = connection.execute("SELECT DISTINCT stage FROM listed").fetchall()
    return [stage for (stage,) in rows]


def drop_listed(connection: sqlite3.Connection, stage: int) -> bool:
    """
    Remove some of a stage's list.

    :returns: whether nothing is left of it.
    """
    gone = connection.execute(
        "DELETE FROM listed WHERE part IN"
        " (SELECT part FROM listed WHERE stage = ? LIMIT ?)",
        (stage, DROPPED_AT_ONCE),
    ).rowcount
    return gone < DROPPED_AT_ONCE
