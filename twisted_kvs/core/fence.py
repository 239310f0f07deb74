"""
Fences: what a full join leaves standing (R10).

A node that was away while others forgot pasts and dropped seals cannot be told what to
remove one by one: nobody remembers.  So it is told all that is live.  Everything else
below the claim was overwritten or deleted, for good; what is above the claim the sender
did not know, and stays.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from .causality import Actor, Dot, VersionVector, covers

LiveDots: TypeAlias = dict[Actor, list[int]]
"""Counters by actor, ascending."""


class Fence:
    """The claim of a full join, and the dots that live below it; eight bytes each."""

    def __init__(self, claim: VersionVector) -> None:
        """Let nothing below ``claim`` live, until told otherwise."""
        self.claim = claim
        self._live: dict[Actor, array[int]] = {}

    def __len__(self) -> int:
        """Count the dots that live."""
        return sum(map(len, self._live.values()))

    def spare(self, live: Mapping[Actor, Sequence[int]]) -> None:
        """
        Let these dots live.

        Of one actor in ascending order, over all calls.

        :raises ValueError: if they are not.
        """
        for actor, counters in live.items():
            known = self._live.setdefault(actor, array("q"))
            last = known[-1] if known else 0
            for counter in counters:
                if counter <= last:
                    raise ValueError("the dots of a full join do not ascend")
                last = counter
            known.extend(counters)

    def dooms(self, dot: Dot) -> bool:
        """Tell whether a version was overwritten or deleted at the sender."""
        if not covers(self.claim, dot):
            return False
        counters = self._live.get(dot[0])
        if counters is None:
            return True
        place = bisect_left(counters, dot[1])
        return place == len(counters) or counters[place] != dot[1]
