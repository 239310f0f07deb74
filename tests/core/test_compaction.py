"""What may be forgotten, and when (R9, R11, R12)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import strategies as kvs
from twisted_kvs.core.causality import VersionVector, covers, join, leq
from twisted_kvs.core.compaction import awaits_seal, settled, stable
from twisted_kvs.core.versions import SEAL_TS, Version, maximal, winner

A, B = kvs.ACTORS[0], kvs.ACTORS[1]


class StableTests(SynchronousTestCase):
    """``stable``."""

    @given(kvs.vectors(), st.lists(kvs.vectors(), max_size=3))
    def test_it_is_what_all_cover(
        self, own: VersionVector, reports: list[VersionVector]
    ) -> None:
        """A dot is stable if and only if everybody has reported it."""
        low = stable(own, reports)
        for actor in {*own, *(a for r in reports for a in r)}:
            for counter in range(1, 6):
                dot = (actor, counter)
                wanted = all(covers(vector, dot) for vector in (own, *reports))
                self.assertEqual(covers(low, dot), wanted)
        self.assertTrue(all(low.values()), "no entry says 0")

    def test_nothing_is_stable_while_one_has_not_reported(self) -> None:
        """It may write anything."""
        self.assertEqual(stable({A: 1}, [{A: 1}, None]), {})
        self.assertEqual(stable({A: 1}, []), {A: 1})


class SettledTests(SynchronousTestCase):
    """``settled`` and ``awaits_seal``."""

    @given(kvs.antichains(), kvs.closed_vectors())
    def test_what_is_shown_stays(
        self, chain: tuple[Version, ...], upto: VersionVector
    ) -> None:
        """Only pasts and seals go, and the floor covers what went."""
        left, floor = settled(chain, upto)
        self.assertTrue(leq(floor, upto))
        before, after = winner(chain), winner(left)
        shown = None if before is None else before.value
        self.assertEqual(None if after is None else after.value, shown)
        kept = {version.dot: version for version in left}
        for version in chain:
            now = kept.pop(version.dot, None)
            if now is None:
                self.assertTrue(version.is_seal and leq(version.upto, floor))
            elif now.past != version.past:
                self.assertEqual(now.past, {})
                self.assertTrue(leq(version.upto, floor))
        self.assertEqual(kept, {})
        again, more = settled(left, upto)
        self.assertIs(again, left)
        self.assertTrue(leq(more, floor))

    @given(kvs.antichains())
    def test_a_cluster_at_rest_keeps_dots_and_no_seals(
        self, chain: tuple[Version, ...]
    ) -> None:
        """When all have all, a version is a dot, a time and a name."""
        upto = join({}, *(version.upto for version in chain))
        left, _ = settled(chain, upto)
        self.assertFalse(any(version.past or version.is_seal for version in left))

    def test_only_a_deletion_that_won_and_is_stable_with_all_it_beat_is_sealed(
        self,
    ) -> None:
        """Neither a value, nor a seal, nor what somebody may lack."""
        value = Version(A, 1, "k", b"1", 5, {})
        tombstone = Version(B, 1, "k", None, 6, {})
        seal = Version(B, 2, "k", None, SEAL_TS, {B: 1})
        both = {A: 1, B: 1}
        self.assertTrue(awaits_seal((tombstone,), both))
        self.assertTrue(awaits_seal(maximal([value, tombstone]), both))
        self.assertFalse(awaits_seal(maximal([value, tombstone]), {B: 1}))
        older = Version(B, 1, "k", None, 4, {})
        self.assertFalse(awaits_seal(maximal([value, older]), both))
        self.assertFalse(awaits_seal((seal,), {B: 2}))
        self.assertFalse(awaits_seal((), both))
