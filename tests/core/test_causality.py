"""Actors, dots and version vectors."""

from __future__ import annotations

from hypothesis import given
from twisted.trial.unittest import SynchronousTestCase

from tests import strategies as kvs
from tests.laws import LeastUpperBoundLaws
from twisted_kvs.core.causality import (
    COUNTER_MAX,
    EMPTY,
    Actor,
    Dot,
    Name,
    Ordering,
    VersionVector,
    actor_name,
    compare,
    covers,
    including,
    join,
    leq,
    make_actor,
    missing_actors,
    restrict,
)
from twisted_kvs.core.versions import Version

A, B = kvs.ACTORS[:2]


class _VectorLaws(LeastUpperBoundLaws[VersionVector]):
    def join(self, left: VersionVector, right: VersionVector) -> VersionVector:
        return join(left, right)

    def leq(self, left: VersionVector, right: VersionVector) -> bool:
        return leq(left, right)


class VectorLawTests(_VectorLaws, SynchronousTestCase):
    """Vectors of any kind."""

    values = kvs.vectors()


class ClosedVectorLawTests(_VectorLaws, SynchronousTestCase):
    """Vectors as the store makes them."""

    values = kvs.closed_vectors()


class VectorTests(SynchronousTestCase):
    """What is asked of vectors."""

    @given(kvs.vectors(), kvs.vectors())
    def test_join_is_the_pointwise_maximum(
        self, a: VersionVector, b: VersionVector
    ) -> None:
        """A join knows of each node what the better informed of the two knows."""
        both = join(a, b)
        for actor in a.keys() | b.keys():
            self.assertEqual(both[actor], max(a.get(actor, 0), b.get(actor, 0)))
        self.assertEqual(both.keys(), a.keys() | b.keys())

    @given(kvs.vectors(), kvs.vectors(), kvs.vectors())
    def test_join_takes_any_number_and_changes_none(
        self, a: VersionVector, b: VersionVector, c: VersionVector
    ) -> None:
        """Joining many at once is joining one by one, and leaves them as they were."""
        copies = dict(a), dict(b), dict(c)
        self.assertEqual(join(a, b, c), join(join(a, b), c))
        self.assertEqual((a, b, c), copies)
        self.assertEqual(join(), EMPTY)

    @given(kvs.vectors(), kvs.vectors())
    def test_join_returns_the_first_where_it_covers_the_others(
        self, a: VersionVector, b: VersionVector
    ) -> None:
        """The frequent case, where nothing is new, costs no memory."""
        self.assertIs(join(a), a)
        self.assertIs(join(a, a, EMPTY), a)
        both = join(a, b)
        self.assertIs(join(both, b, a), both)

    @given(kvs.vectors(), kvs.vectors())
    def test_compare_agrees_with_leq(self, a: VersionVector, b: VersionVector) -> None:
        """Two states of knowledge stand to each other in exactly one of four ways."""
        wanted = {
            (True, True): Ordering.EQUAL,
            (True, False): Ordering.BEFORE,
            (False, True): Ordering.AFTER,
            (False, False): Ordering.CONCURRENT,
        }
        self.assertEqual(compare(a, b), wanted[leq(a, b), leq(b, a)])
        self.assertEqual(compare(a, b) is Ordering.EQUAL, a == b)

    def test_counters_fit_into_a_signed_word(self) -> None:
        """Counters go from 1 to 2^63 - 1, in every store and every message."""
        self.assertEqual(COUNTER_MAX, 9_223_372_036_854_775_807)

    def test_vectors_compare_in_four_ways(self) -> None:
        """Before, after, equal or concurrent."""
        self.assertIs(compare({A: 1}, {A: 1, B: 1}), Ordering.BEFORE)
        self.assertIs(compare({A: 2}, {A: 1}), Ordering.AFTER)
        self.assertIs(compare({A: 1}, {A: 1}), Ordering.EQUAL)
        self.assertIs(compare({A: 1}, {B: 1}), Ordering.CONCURRENT)

    @given(kvs.vectors(), kvs.dots())
    def test_including_a_dot_covers_it_and_adds_nothing_else(
        self, vector: VersionVector, dot: Dot
    ) -> None:
        """A dot is covered from the moment it is included, and only then."""
        grown = including(vector, dot)
        self.assertTrue(covers(grown, dot))
        self.assertEqual(grown, join(vector, {dot[0]: dot[1]}))
        self.assertEqual(grown is vector, covers(vector, dot))
        self.assertFalse(covers(grown, (dot[0], grown[dot[0]] + 1)))

    @given(kvs.vectors(), kvs.vectors())
    def test_missing_actors_are_those_that_keep_it_from_being_covered(
        self, wanted: VersionVector, known: VersionVector
    ) -> None:
        """A node asks the right peers for what it lacks, in a fixed order."""
        missing = missing_actors(wanted, known)
        self.assertEqual(missing, sorted(missing))
        self.assertEqual(missing == [], leq(wanted, known))
        supplied = join(known, restrict(wanted, missing))
        self.assertTrue(leq(wanted, supplied))
        for actor in missing:
            self.assertFalse(covers(known, (actor, wanted[actor])))

    @given(kvs.vectors(), kvs.vectors())
    def test_restricting_keeps_these_actors_only(
        self, vector: VersionVector, actors: VersionVector
    ) -> None:
        """A part of a vector says of its actors what the whole says."""
        part = restrict(vector, [*actors, Actor("nobody")])
        self.assertEqual(part, {a: n for a, n in vector.items() if a in actors})

    @given(kvs.histories(writes_max=5))
    def test_drawn_histories_have_closed_pasts(self, written: list[Version]) -> None:
        """The tests draw what a cluster makes: no dot twice, every past closed."""
        self.assertEqual(len({x.dot for x in written}), len(written))
        for version in written:
            self.assertFalse(covers(version.past, version.dot))
            for other in written:
                if covers(version.past, other.dot):
                    self.assertTrue(leq(other.past, version.past))


class ActorTests(SynchronousTestCase):
    """``make_actor`` and ``actor_name``."""

    def test_an_actor_is_name_and_sixteen_hex_digits(self) -> None:
        """Two processes under one name are told apart."""
        name = Name("[::1]:80")
        self.assertEqual(make_actor(name, 0xAB), "[::1]:80#00000000000000ab")
        self.assertEqual(make_actor(name, 2**64 - 1), "[::1]:80#" + "f" * 16)
        self.assertRaises(AssertionError, make_actor, name, 2**64)
        self.assertRaises(AssertionError, make_actor, name, -1)

    @given(kvs.actors())
    def test_an_actor_tells_its_node(self, actor: Actor) -> None:
        """A version names the node that took the write, for ever."""
        name = actor_name(actor)
        self.assertEqual(make_actor(name, int(actor[-16:], 16)), actor)
