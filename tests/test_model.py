"""The oracle of the simulator is right, or nothing that it says is worth much."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import model
from tests import strategies as kvs
from twisted_kvs.core.causality import (
    Actor,
    VersionVector,
    covers,
    join,
    make_actor,
)
from twisted_kvs.core.names import parse_name
from twisted_kvs.core.versions import Version, maximal, winner
from twisted_kvs.simulation.invariants import minted
from twisted_kvs.simulation.oracle import Oracle, Write, after, joined

A, B, C = (make_actor(parse_name(f"10.0.0.{n}:80"), n) for n in (9, 10, 11))


def write(
    actor: Actor, ts: int, past: VersionVector | None = None, *, counter: int = 1
) -> Write:
    """Make a write of the key ``k``."""
    return Write(actor, counter, "k", b"v", ts, past or {})


def oracle(*writes: Write) -> Oracle:
    """Make an oracle that saw these."""
    made = Oracle()
    for one in writes:
        made.mint(one)
    return made


class OracleTests(SynchronousTestCase):
    """``Oracle``."""

    @given(kvs.histories(writes_max=8))
    def test_oracle_and_core_choose_the_same_winner(
        self, written: list[Version]
    ) -> None:
        """Two programs that share nothing agree on what a read shows."""
        told = oracle(*map(minted, written))
        known = join({}, *(v.upto for v in written))
        right, best = told.winner("k", known), winner(maximal(written))
        shown = best if best is not None and best.value is not None else None
        self.assertEqual(right and right.dot, shown and shown.dot)
        live = {w.dot for w in told.live("k", known)}
        self.assertEqual(live, {v.dot for v in maximal(written)})
        self.assertEqual(told.upto(v.dot for v in written), known)

    @given(kvs.histories(writes_max=8))
    def test_oracle_chooses_what_the_definition_says(
        self, written: list[Version]
    ) -> None:
        """What stands, and what is shown of it, by brute force from who knew what."""
        told = oracle(*map(minted, written))
        defined = [
            model.Write(
                v.actor,
                v.counter,
                v.ts,
                frozenset(w.dot for w in written if covers(v.past, w.dot)),
            )
            for v in written
        ]
        known = join({}, *(v.upto for v in written))
        right, best = told.winner("k", known), model.shown(defined)
        deleted = {v.dot for v in written if v.value is None}
        shown = None if best is None or best.dot in deleted else best.dot
        self.assertEqual(right and right.dot, shown)
        self.assertEqual(
            {w.dot for w in told.live("k", known)},
            {w.dot for w in model.standing(defined)},
        )

    @given(st.lists(kvs.vectors(), max_size=4))
    def test_joined_is_the_join(self, vectors: list[VersionVector]) -> None:
        """Both take the pointwise maximum."""
        self.assertEqual(joined(*vectors), dict(join({}, *vectors)))

    def test_what_was_overwritten_never_wins(self) -> None:
        """Causality first, then the stamp, then the address as numbers."""
        told = oracle(write(A, 30), write(B, 10, {A: 1}), write(C, 20))
        everything = {A: 1, B: 1, C: 1}
        for known, wanted in (
            ({}, None),
            ({A: 1}, A),
            ({A: 1, C: 1}, A),
            ({A: 1, B: 1}, B),
            (everything, C),
        ):
            best = told.winner("k", known)
            self.assertEqual(best and best.actor, wanted)
        self.assertIsNone(told.winner("other", everything))
        tie = oracle(write(A, 7), write(B, 7)).winner("k", everything)
        self.assertEqual(tie and tie.actor, B)

    def test_a_dot_is_minted_once(self) -> None:
        """The same name for two writes is the end of all convergence."""
        told = oracle(write(A, 1))
        self.assertRaises(AssertionError, told.mint, write(A, 2))
        self.assertRaises(AssertionError, told.mint, write(B, 1, {B: 1}))

    def test_pasts_are_closed(self) -> None:
        """Who follows a write follows what that followed."""
        told = oracle(write(A, 1), write(B, 1, {A: 1}))
        self.assertRaises(AssertionError, told.mint, write(C, 1, {B: 1}))
        self.assertRaises(AssertionError, told.demand_closed, {B: 1})
        told.demand_closed({A: 1, B: 1})

    def test_an_answer_is_never_older_than_what_its_client_knows(self) -> None:
        """Gone back, missing, or beaten by what is known: each is found."""
        told = oracle(write(A, 30), write(B, 10, {A: 1}), write(C, 20))
        a, b, c = (A, 1), (B, 1), (C, 1)
        for knows, shown in (
            ({}, None),
            ({}, a),
            ({A: 1}, b),
            ({A: 1}, c),
            ({A: 1, B: 1}, c),
            ({C: 1}, a),
        ):
            told.demand_shown("k", knows, shown)
        for knows, shown in (
            ({A: 1}, None),
            ({A: 1, B: 1}, a),
            ({C: 1}, b),
        ):
            self.assertRaises(AssertionError, told.demand_shown, "k", knows, shown)
        self.assertRaises(AssertionError, told.demand_shown, "other", {}, a)
        self.assertTrue(after(told.writes[b], told.writes[a]))
