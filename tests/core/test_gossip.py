"""What a round of gossip says first, and whom it asks (R19)."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import strategies as kvs
from twisted_kvs.core.causality import Name, VersionVector
from twisted_kvs.core.gossip import DIGEST_BYTES, Deck, digest
from twisted_kvs.core.view import ReplicaCount, View

COUNTS = st.none() | kvs.replica_counts()
GENERATIONS = st.sampled_from(["", "0123456789abcdef"])
STATES = st.tuples(kvs.vectors(), kvs.views(), COUNTS, GENERATIONS)


def _digest(
    vv: VersionVector, view: View, count: ReplicaCount | None, retired: str
) -> bytes:
    return digest(vv, view, count, retired=retired)


class DigestTests(SynchronousTestCase):
    """``digest``."""

    @given(STATES, STATES)
    def test_digests_are_equal_where_nothing_is_to_be_exchanged(
        self,
        one: tuple[VersionVector, View, ReplicaCount | None, str],
        other: tuple[VersionVector, View, ReplicaCount | None, str],
    ) -> None:
        """Equal digests mean equal knowledge, view and K, and the other way round."""
        same = one == other
        self.assertEqual(_digest(*one) == _digest(*other), same)

    @given(kvs.vectors(), kvs.views(), COUNTS)
    def test_the_order_of_entries_does_not_matter(
        self, vv: VersionVector, view: View, count: ReplicaCount | None
    ) -> None:
        """Two nodes that learned the same in another order find that out."""
        backwards = dict(reversed(list(vv.items())))
        self.assertEqual(
            digest(vv, view, count, retired=""),
            digest(backwards, view, count, retired=""),
        )
        self.assertEqual(len(digest(vv, view, count, retired="")), DIGEST_BYTES)


class DeckTests(SynchronousTestCase):
    """``Deck``."""

    @given(st.sets(kvs.KNOWN_NAMES, min_size=1), st.integers(0, 9))
    def test_everybody_has_a_turn_in_every_round(
        self, members: set[Name], seed: int
    ) -> None:
        """No member waits longer than twice the number of members, none is left out."""
        deck, rng = Deck(), random.Random(seed)
        for _ in range(3):
            drawn = [deck.draw(members, rng) for _ in members]
            self.assertEqual(set(drawn), members)

    @given(st.data())
    def test_who_left_has_no_turn_and_who_came_has_one_soon(
        self, data: st.DataObject
    ) -> None:
        """The deck follows the view: at the latest after the cards that are left."""
        deck, rng = Deck(), random.Random(0)
        members = set(kvs.NAMES[:5])
        for _ in range(data.draw(st.integers(0, 7))):
            deck.draw(members, rng)
        members = {kvs.NAMES[0], kvs.NAMES[1], kvs.NAMES[7]}
        drawn = [deck.draw(members, rng) for _ in range(5 + len(members))]
        self.assertEqual(set(drawn), members)

    def test_nobody_is_drawn_where_there_is_nobody(self) -> None:
        """A node alone asks nobody."""
        self.assertIsNone(Deck().draw([], random.Random(0)))

    def test_the_same_chance_draws_the_same_order(self) -> None:
        """A run is replayed by its seed, in whatever order members are listed."""
        names = list(kvs.NAMES)
        orders = []
        for members in (names, names[::-1], set(names)):
            deck, rng = Deck(), random.Random(3)
            orders.append([deck.draw(members, rng) for _ in range(20)])
        self.assertEqual(orders[0], orders[1])
        self.assertEqual(orders[0], orders[2])

    def test_orders_differ_from_round_to_round(self) -> None:
        """Two nodes do not meet the same way each time."""
        deck, rng = Deck(), random.Random(1)
        names = kvs.NAMES
        rounds = {tuple(deck.draw(names, rng) for _ in names) for _ in range(5)}
        self.assertGreater(len(rounds), 1)
