"""Fences: what a full join leaves standing (R10)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import strategies as kvs
from twisted_kvs.core.causality import Actor, Dot, VersionVector, covers
from twisted_kvs.core.fence import Fence

A = kvs.ACTORS[0]


class FenceTests(SynchronousTestCase):
    """``Fence``."""

    @given(kvs.vectors(), st.sets(kvs.dots()), st.data())
    def test_it_dooms_what_the_claim_covers_and_the_list_lacks(
        self, claim: VersionVector, live: set[Dot], data: st.DataObject
    ) -> None:
        """However the list was cut into parts."""
        fence = Fence(claim)
        left = sorted(live)
        while left:
            cut = data.draw(st.integers(1, len(left)))
            part: dict[Actor, list[int]] = {}
            for actor, counter in left[:cut]:
                part.setdefault(actor, []).append(counter)
            fence.spare(part)
            left = left[cut:]
        self.assertEqual(len(fence), len(live))
        for actor in kvs.ACTORS:
            for counter in range(1, 6):
                dot = (actor, counter)
                wanted = covers(claim, dot) and dot not in live
                self.assertEqual(fence.dooms(dot), wanted)

    def test_a_list_that_does_not_ascend_is_refused(self) -> None:
        """It could not be looked up in."""
        for parts in ([[2, 1]], [[1], [1]], [[0]]):
            fence = Fence({A: 5})
            with self.assertRaises(ValueError):
                for part in parts:
                    fence.spare({A: part})
