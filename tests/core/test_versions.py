"""Versions, antichains and winners (rules R2, R4, R5)."""

from __future__ import annotations

import functools
import itertools
import random

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import strategies as kvs
from tests.laws import LatticeLaws
from twisted_kvs.core.causality import Actor, Dot, covers, join, make_actor
from twisted_kvs.core.names import name_order, parse_name
from twisted_kvs.core.versions import (
    SEAL_TS,
    Antichain,
    Version,
    dominates,
    insert,
    maximal,
    rank,
    version_hash,
    winner,
)


def version(
    actor: Actor,
    ts: int,
    past: dict[Actor, int] | None = None,
    *,
    counter: int = 1,
    value: bytes | None = b'"v"',
) -> Version:
    """Make a version of the key ``k``."""
    return Version(actor, counter, "k", value, ts, past or {})


def dots(chain: Antichain) -> frozenset[Dot]:
    """Tell which versions an antichain has; their order in it means nothing."""
    return frozenset(x.dot for x in chain)


NODE_A, NODE_B, NODE_C = (make_actor(name, 1) for name in kvs.NAMES[:3])


class AntichainLawTests(LatticeLaws[Antichain], SynchronousTestCase):
    """Joining what two nodes have of a key, out of one history."""

    def several(self, count: int) -> st.SearchStrategy[list[Antichain]]:
        """Draw from one history, since a dot names one version."""
        return kvs.histories().flatmap(
            lambda written: st.lists(
                st.lists(st.sampled_from(written)).map(maximal),
                min_size=count,
                max_size=count,
            )
        )

    def join(self, left: Antichain, right: Antichain) -> Antichain:
        """Insert one by one."""
        return functools.reduce(insert, right, left)

    def canonical(self, value: Antichain) -> object:
        """Compare as sets."""
        return dots(value)


class AntichainTests(SynchronousTestCase):
    """``insert``, ``maximal`` and ``dominates``."""

    @given(kvs.histories(), st.randoms(use_true_random=False))
    def test_any_order_of_arrival_leaves_the_same_versions(
        self, written: list[Version], chance: random.Random
    ) -> None:
        """All nodes end with the same versions, and show the same one of them."""
        wanted = maximal(written)
        # Some arrive twice.
        arrived = [*written, *chance.choices(written, k=3)]
        chance.shuffle(arrived)
        chain = maximal(arrived)
        self.assertEqual(dots(chain), dots(wanted))
        self.assertIs(winner(chain), winner(wanted))

    @given(kvs.histories())
    def test_what_is_kept_is_what_nothing_dominates(
        self, written: list[Version]
    ) -> None:
        """A write goes only when one that knew of it is there, and then it goes."""
        kept = dots(maximal(written))
        for x in written:
            beaten = any(dominates(y, x) for y in written)
            self.assertEqual(x.dot in kept, not beaten)

    @given(kvs.histories())
    def test_live_versions_are_pairwise_concurrent(
        self, written: list[Version]
    ) -> None:
        """Of two writes of which one knew the other, only the later one is kept."""
        chain = maximal(written)
        for x, y in itertools.permutations(chain, 2):
            self.assertFalse(dominates(x, y))
        self.assertEqual(len({x.actor for x in chain}), len(chain))

    @given(kvs.histories())
    def test_joins_only_grow(self, written: list[Version]) -> None:
        """What was once known is live or beaten for ever."""
        chain: Antichain = ()
        for arrived in written:
            grown = insert(chain, arrived)
            for x in (*chain, arrived):
                self.assertTrue(
                    x.dot in dots(grown) or any(dominates(y, x) for y in grown)
                )
            chain = grown

    @given(kvs.histories())
    def test_a_version_that_changes_nothing_costs_nothing(
        self, written: list[Version]
    ) -> None:
        """Hearing of a known or beaten write again leaves the very same antichain."""
        chain = maximal(written)
        for known in written:
            self.assertIs(insert(chain, known), chain)

    def test_domination_is_knowledge_not_time(self) -> None:
        """A write that knew another replaces it, although its clock was behind."""
        first = version(NODE_A, 30)
        second = version(NODE_B, 10, {NODE_A: 1})
        self.assertTrue(dominates(second, first))
        self.assertFalse(dominates(first, second))
        self.assertEqual(maximal([first, second]), (second,))
        self.assertEqual(maximal([second, first]), (second,))

    @given(kvs.histories())
    def test_upto_is_past_and_dot(self, written: list[Version]) -> None:
        """Who has seen a write depends on it and on all that it came after."""
        for x in written:
            self.assertEqual(x.upto, join(x.past, {x.actor: x.counter}))
            self.assertTrue(covers(x.upto, x.dot))
            self.assertEqual(x.origin, x.actor.rpartition("#")[0])


class WinnerTests(SynchronousTestCase):
    """``winner`` and ``rank``."""

    def test_h1_three_orders_of_arrival_have_one_winner(self) -> None:
        """Three writes of which two are concurrent end alike in every order."""
        # The second comes after the first, the third is concurrent with both; its
        # timestamp lies between theirs.
        written = [
            version(NODE_A, 30),
            version(NODE_B, 10, {NODE_A: 1}),
            version(NODE_C, 20),
        ]

        def pairwise(shown: Version, arrived: Version) -> Version:
            """Decide by causal order, else by timestamp, which looks right."""
            if dominates(arrived, shown):
                return arrived
            return shown if dominates(shown, arrived) else max(shown, arrived, key=rank)

        orders = list(itertools.permutations(written))
        naive = {functools.reduce(pairwise, order).actor for order in orders}
        self.assertEqual(naive, {NODE_A, NODE_B, NODE_C})
        shown = {getattr(winner(maximal(order)), "actor", None) for order in orders}
        self.assertEqual(shown, {NODE_C})

    def test_nothing_wins_where_nothing_is(self) -> None:
        """A key without versions shows nothing."""
        self.assertIs(winner(()), None)

    def test_a_single_version_wins(self) -> None:
        """What is alone is shown."""
        alone = version(NODE_A, 0)
        self.assertIs(winner((alone,)), alone)

    def test_the_greater_timestamp_wins(self) -> None:
        """Of concurrent writes the later one by the clocks is shown."""
        old, new = version(NODE_C, 1), version(NODE_A, 2)
        self.assertIs(winner((old, new)), new)
        self.assertIs(winner((new, old)), new)

    def test_h14_equal_timestamps_go_by_name_as_a_number(self) -> None:
        """Ties go to the greater address, which no change of the view can move."""
        # As text 9 is greater than 10, and as numbers of nodes anything may be.
        smaller, greater = (
            version(make_actor(parse_name(name), incarnation), 7)
            for name, incarnation in [("10.0.0.9:80", 9), ("10.0.0.10:80", 1)]
        )
        self.assertLess(greater.origin, smaller.origin)
        for chain in itertools.permutations((smaller, greater)):
            self.assertIs(winner(chain), greater)

    def test_ties_within_a_node_are_decided_too(self) -> None:
        """Two processes under one name, with equal clocks, still give one winner."""
        name = kvs.NAMES[0]
        chain = [version(make_actor(name, n), 7) for n in (1, 2)]
        for order in itertools.permutations(chain):
            self.assertIs(winner(order), chain[1])

    @given(kvs.histories())
    def test_the_winner_is_greatest_by_timestamp_then_name(
        self, written: list[Version]
    ) -> None:
        """No live version has a later timestamp, or the same and a greater name."""
        chain = maximal(written)
        shown = winner(chain)
        assert shown is not None
        self.assertIn(shown, chain)
        for x in chain:
            self.assertLessEqual(
                (x.ts, name_order(x.origin)), (shown.ts, name_order(shown.origin))
            )

    @given(kvs.histories())
    def test_ranks_differ(self, written: list[Version]) -> None:
        """No two versions tie, so no node has to choose by chance."""
        self.assertEqual(len({rank(x) for x in written}), len(written))


class WireTests(SynchronousTestCase):
    """Versions as nodes send and store them."""

    def decode(self, **changed: object) -> Version:
        """Read a version in which some fields are others."""
        fields = {
            "actor": NODE_A,
            "counter": 1,
            "key": "k",
            "value": b"1",
            "ts": 0,
            "past": {NODE_B: 2},
        } | changed
        packed = msgspec.msgpack.encode(list(fields.values()))
        return msgspec.msgpack.decode(packed, type=Version)

    @given(kvs.versions())
    def test_a_version_comes_back_from_the_wire(self, sent: Version) -> None:
        """Nothing of a write is lost between nodes, and its form is a list."""
        packed = msgspec.msgpack.encode(sent)
        got = msgspec.msgpack.decode(packed, type=Version)
        self.assertEqual(msgspec.structs.astuple(got), msgspec.structs.astuple(sent))
        plain = [sent.actor, sent.counter, sent.key, sent.value, sent.ts, sent.past]
        self.assertEqual(msgspec.msgpack.decode(packed), plain)

    def test_limits_are_taken_and_what_is_beyond_them_is_refused(self) -> None:
        """No peer can bring in what this store could not have written."""
        goods: tuple[dict[str, object], ...] = (
            {"counter": 1},
            {"counter": 2**43 - 2},
            {"key": "k" * 200},
            {"key": "\N{GRINNING FACE}" * 200},
            {"value": b"1"},
            {"value": None},
            {"value": None, "ts": SEAL_TS},
            {"value": bytes(16 * 2**20)},
            {"ts": 0},
            {"ts": 2**63 - 1},
            {"past": {}},
            {"past": {NODE_B: 2**43 - 2}},
        )
        for good in goods:
            self.decode(**good)
        bads: tuple[dict[str, object], ...] = (
            {"counter": 0},
            {"counter": 2**43 - 1},
            {"key": ""},
            {"key": "k" * 201},
            {"value": bytes(16 * 2**20 + 1)},
            {"value": b""},
            {"value": "text"},
            {"ts": SEAL_TS - 1},
            {"ts": 2**63},
            {"ts": 1.5},
            {"past": {NODE_B: 0}},
            {"past": {NODE_B: 2**43 - 1}},
            {"past": None},
        )
        for bad in bads:
            self.assertRaises(msgspec.ValidationError, self.decode, **bad)

    def test_a_version_never_changes(self) -> None:
        """What several antichains share stays as it is, and is equal to itself only."""
        one, other = version(NODE_A, 1), version(NODE_A, 1)
        self.assertRaises(AttributeError, setattr, one, "ts", 2)
        self.assertNotEqual(one, other)


class VersionHashTests(SynchronousTestCase):
    """``version_hash``."""

    def test_hash_depends_on_dot_and_value(self) -> None:
        """Two nodes that hold different things under one dot find that out."""
        versions = [
            version(NODE_A, 1),
            version(NODE_B, 1),
            version(NODE_A, 1, counter=2),
            version(NODE_A, 1, value=b'"w"'),
            version(NODE_A, 1, value=None),
        ]
        hashes = {version_hash(x) for x in versions}
        self.assertEqual(len(hashes), len(versions))
        self.assertTrue(all(0 <= x < 2**64 for x in hashes))

    def test_a_seal_counts_nothing(self) -> None:
        """Replicas drop it at their own time."""
        self.assertEqual(version_hash(version(NODE_A, SEAL_TS, value=None)), 0)

    def test_hash_does_not_depend_on_what_may_differ_or_on_the_process(self) -> None:
        """Equal stores have equal hashes on every node and after every start."""
        one, other = version(NODE_A, 1), version(NODE_A, 2, {NODE_B: 1})
        self.assertEqual(version_hash(one), version_hash(other))
        self.assertEqual(version_hash(one), 4736802118594597026)
