"""Retired actors (R20): names of generations, markers, and what others know of them."""

from __future__ import annotations

import msgspec
from hypothesis import assume, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import strategies as kvs
from twisted_kvs.core import retiring
from twisted_kvs.core.causality import Actor, Name, VersionVector, join, leq, make_actor
from twisted_kvs.core.errors import BadPeerMessage
from twisted_kvs.core.retiring import (
    MARKER,
    NOBODY,
    NOTHING,
    Retired,
    has_marker,
    may_retire,
)

STEPS = st.lists(kvs.vectors(), max_size=4)


def grown(steps: list[VersionVector], start: Retired = NOBODY) -> Retired:
    """Retire one after the other."""
    for step in steps:
        start = start.retire(step)
    return start


class RetiredTests(SynchronousTestCase):
    """``Retired``."""

    @given(STEPS, STEPS, kvs.vectors())
    def test_what_is_packed_is_read_back_by_all_who_know_the_generation(
        self, steps: list[VersionVector], later: list[VersionVector], vv: VersionVector
    ) -> None:
        """Exactly, also after more were retired."""
        writer = grown(steps)
        reader = grown(later, writer)
        vector = join(writer.entries(writer.head), vv)
        packed = writer.pack(vector, writer.head)
        self.assertEqual(reader.unpack(packed), vector)
        if writer.head != NOTHING:
            self.assertIn(MARKER + writer.head, packed)
            self.assertLessEqual(len(packed), len(vector) + 1)

    @given(STEPS, kvs.vectors())
    def test_only_what_covers_all_of_a_generation_is_packed(
        self, steps: list[VersionVector], vector: VersionVector
    ) -> None:
        """A marker never says more than stood there."""
        retired = grown(steps)
        assume(not leq(retired.entries(retired.head), vector))
        self.assertIs(retired.pack(vector, retired.head), vector)

    @given(STEPS, STEPS)
    def test_two_that_hear_of_each_other_go_by_the_same(
        self, mine: list[VersionVector], theirs: list[VersionVector]
    ) -> None:
        """And read each other's earlier markers."""
        one, other = grown(mine), grown(theirs)
        both, turned = one.join(other), other.join(one)
        self.assertEqual(both.head, turned.head)
        wanted = join({}, *mine, *theirs)
        self.assertEqual(both.entries(both.head), wanted)
        for earlier in (one, other):
            self.assertTrue(both.knows(earlier.head))
            known = earlier.entries(earlier.head)
            self.assertEqual(both.entries(earlier.head), known)
        self.assertIs(both.join(both), both)
        self.assertEqual(both.join(one).head, both.head)

    @given(STEPS)
    def test_it_comes_back_from_wire_and_disk(self, steps: list[VersionVector]) -> None:
        """With every generation that was known."""
        retired = grown(steps)
        again = Retired.decode(retired.encode())
        self.assertEqual(again.head, retired.head)
        self.assertEqual(again.encode(), retired.encode())

    @given(STEPS, STEPS, STEPS)
    def test_what_is_known_needs_no_second_look(
        self,
        common: list[VersionVector],
        mine: list[VersionVector],
        theirs: list[VersionVector],
    ) -> None:
        """And what comes of it is the same as if all had been looked at."""
        both = grown(common)
        one, other = grown(mine, both), grown(theirs, both)
        for sent in (other, other.join(one), one.join(other)):
            short = Retired.decode(sent.encode(), known=one)
            self.assertEqual(one.join(short).head, one.join(sent).head)
            self.assertEqual(short.head, sent.head if sent.encode() else NOTHING)
            for generation in (*sent._generations, *one._generations):
                known = sent if sent.knows(generation) else one
                self.assertEqual(
                    one.join(short).entries(generation), known.entries(generation)
                )

    def test_a_log_is_looked_at_once(self) -> None:
        """
        A thousand generations cost a hash for each of their entries where they are
        new, and none after.

        A peer tells all that it knows whenever it retires one more or meets a node
        that was just started; that is one turn of the reactor.
        """
        hashed: list[Actor] = []
        whole = retiring._entry_hash

        def counted(actor: Actor, counter: int) -> int:
            hashed.append(actor)
            return whole(actor, counter)

        actors = [make_actor(Name("10.0.0.1:8080"), n) for n in range(1001)]
        known = grown([{actor: 1} for actor in actors[:1000]])
        more = known.retire({actors[1000]: 1})
        self.patch(retiring, "_entry_hash", counted)
        Retired.decode(more.encode(), known=known)
        self.assertEqual(hashed, actors[1000:])
        hashed.clear()
        self.assertEqual(Retired.decode(more.encode()).head, more.head)
        self.assertEqual(hashed, actors)

    def test_a_name_means_its_entries(self) -> None:
        """However they came together, with smaller counters in between or not."""
        one, two = kvs.ACTORS[:2]
        names = {
            NOBODY.retire({one: 3, two: 1}).head,
            NOBODY.retire({one: 3}).retire({two: 1}).head,
            NOBODY.retire({two: 1}).retire({one: 2}).retire({one: 3}).head,
        }
        self.assertEqual(len(names), 1)
        self.assertNotIn(NOBODY.retire({one: 2, two: 1}).head, names)

    def test_an_unknown_marker_stays(self) -> None:
        """Nothing covers it, so who has it is not told something stale."""
        retired = NOBODY.retire({kvs.ACTORS[0]: 3})
        packed = retired.pack({kvs.ACTORS[0]: 3, kvs.ACTORS[1]: 1}, retired.head)
        self.assertTrue(has_marker(NOBODY.unpack(packed)))
        self.assertFalse(has_marker(retired.unpack(packed)))

    def test_who_writes_after_all_stands_in_vectors_again(self) -> None:
        """A wrong decision costs a few bytes."""
        actor = kvs.ACTORS[0]
        retired = NOBODY.retire({actor: 3})
        packed = retired.pack({actor: 4}, retired.head)
        self.assertEqual(packed[actor], 4)
        self.assertEqual(retired.unpack(packed), {actor: 4})

    def test_a_log_that_lies_is_refused(self) -> None:
        """A generation's name means the same everywhere."""
        first = NOBODY.retire({kvs.ACTORS[0]: 3})
        log = msgspec.msgpack.decode(first.retire({kvs.ACTORS[1]: 1}).encode())
        head, generations = log
        less = retiring._name(head, {kvs.ACTORS[0]: 3}, {kvs.ACTORS[0]: 2})
        lies = (
            ["0" * 16, generations],
            [head, generations[1:]],
            [less, [*generations, [less, head, {kvs.ACTORS[0]: 2}]]],
            [head, [generations[0], ["0" * 16, generations[0][0], {}]]],
            [head, [generations[0], [head, generations[0][0], {kvs.ACTORS[1]: 2}]]],
            [head, [*generations, ["1" * 16, "", {"no actor": 1}]]],
            [head, 1],
        )
        for lie in lies:
            encoded = msgspec.msgpack.encode(lie)
            self.assertRaises(BadPeerMessage, Retired.decode, encoded)
        self.assertRaises(BadPeerMessage, Retired.decode, b"\xc1")


class MayRetireTests(SynchronousTestCase):
    """``may_retire``."""

    def test_only_who_writes_no_more_and_whom_all_have(self) -> None:
        """Not who writes now, nor of whom somebody lacks or only heard of a write."""
        done, writing, lacked, heard = kvs.ACTORS[:4]
        vv = {done: 2, writing: 1, lacked: 5, heard: 1}
        found = may_retire(
            vv,
            clock={**vv, heard: 2},
            stable={**vv, lacked: 4},
            writing={writing},
        )
        self.assertEqual(found, {done: 2})
