"""Views, their order and numbers, and K (rules R15, R16)."""

from __future__ import annotations

import itertools

import msgspec
from hypothesis import assume, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import strategies as kvs
from tests.laws import LatticeLaws, LeastUpperBoundLaws
from twisted_kvs.core.causality import Name
from twisted_kvs.core.names import parse_name
from twisted_kvs.core.view import (
    REPLICA_COUNT_DEFAULT,
    Member,
    ReplicaCount,
    View,
    may_adopt,
)

# In the order of addresses, which is not that of texts.
N9, N10, N20, N100 = ALL = tuple(
    parse_name(f"10.0.0.{number}:8080") for number in (9, 10, 20, 100)
)
assert sorted(ALL) != list(ALL)

OPERATIONS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(ALL),
        st.booleans(),
        st.integers(0, 2),
        st.integers(0, 2),
    ),
    min_size=5,
    max_size=20,
)


class ViewLawTests(LeastUpperBoundLaws[View], SynchronousTestCase):
    """Two sides of a partition meet again."""

    values = kvs.views()

    def join(self, left: View, right: View) -> View:
        """Join."""
        return left.join(right)

    def leq(self, left: View, right: View) -> bool:
        """Compare name by name: newer membership, older number."""
        for name, x in left.entries.items():
            y = right.entries.get(name)
            if y is None or x.first < y.first:
                return False
            if (x.n, not x.present) > (y.n, not y.present):
                return False
        return True


class ReplicaCountLawTests(LatticeLaws[ReplicaCount], SynchronousTestCase):
    """Nodes that know different K agree."""

    values = kvs.replica_counts()

    def join(self, left: ReplicaCount, right: ReplicaCount) -> ReplicaCount:
        """Join."""
        return left.join(right)


class ReplicaCountTests(SynchronousTestCase):
    """``ReplicaCount``."""

    @given(kvs.replica_counts(), kvs.replica_counts(), st.integers(1, 9))
    def test_a_restart_with_another_k_wins_over_all_it_knows(
        self, old: ReplicaCount, known: ReplicaCount, k: int
    ) -> None:
        """An operator's new K is taken over, be it greater or smaller."""
        new = old.join(known).restarted_with(k)
        self.assertEqual(new, ReplicaCount(max(old.n, known.n) + 1, k))
        self.assertEqual(new.join(old), new)
        self.assertEqual(known.join(new), new)

    def test_at_a_tie_the_greater_k_wins(self) -> None:
        """Two operators who act at once leave one K, and more copies not fewer."""
        self.assertEqual(ReplicaCount(1, 2).join(ReplicaCount(1, 3)).k, 3)
        self.assertEqual(ReplicaCount(1, 2).join(ReplicaCount(0, 3)).k, 2)

    def test_an_option_wins_over_the_default(self) -> None:
        """A node that was told a K does not learn the default from another."""
        self.assertEqual(REPLICA_COUNT_DEFAULT.k, 3)
        self.assertEqual(REPLICA_COUNT_DEFAULT.join(ReplicaCount(1, 2)).k, 2)

    def test_there_is_always_a_replica(self) -> None:
        """K is above 0, whoever says otherwise."""
        self.assertRaises(AssertionError, REPLICA_COUNT_DEFAULT.restarted_with, 0)
        for fields in ([0, 0], [-1, 1], [0, 2**63], [0, 1.5]):
            self.assertRaises(
                msgspec.ValidationError, msgspec.convert, fields, ReplicaCount
            )


class ViewTests(SynchronousTestCase):
    """``View``."""

    @given(OPERATIONS)
    def test_views_converge_whatever_the_order(
        self, operations: list[tuple[int, Name, bool, int, int]]
    ) -> None:
        """Nodes that have told each other agree on members, order and numbers."""
        # The third was started without a view.
        views = [View.start(ALL[:3]), View.start(ALL[:3]), View()]
        for at, name, present, source, target in operations:
            views[at] = views[at].change(name, present=present)
            views[target] = views[target].join(views[source])
        ends = [x.join(y).join(z) for x, y, z in itertools.permutations(views)]
        for end in ends:
            self.assertEqual(end, ends[0])
            self.assertEqual(end.order, ends[0].order)
            self.assertEqual(end.numbers, ends[0].numbers)

    @given(kvs.views(), kvs.KNOWN_NAMES, st.booleans())
    def test_a_change_is_seen_and_wins_over_what_it_knew(
        self, view: View, name: Name, present: bool
    ) -> None:
        """An add or remove holds against every older opinion, wherever it is met."""
        changed = view.change(name, present=present)
        self.assertEqual(name in changed.members, present)
        self.assertEqual(view.join(changed), changed)
        self.assertEqual(changed.join(view), changed)
        self.assertEqual(changed.members - {name}, view.members - {name})

    @given(kvs.views(), kvs.KNOWN_NAMES, st.booleans())
    def test_a_change_that_is_already_so_changes_nothing(
        self, view: View, name: Name, present: bool
    ) -> None:
        """Adding a member twice, or removing a stranger, leaves the very same view."""
        changed = view.change(name, present=present)
        self.assertIs(changed.change(name, present=present), changed)
        self.assertEqual(changed is view, (name in view.members) == present)

    @given(kvs.views(), kvs.views())
    def test_hearing_nothing_new_gives_the_same_view(self, a: View, b: View) -> None:
        """A node can tell at once that a peer's view says nothing new."""
        both = a.join(b)
        self.assertIs(both.join(a), both)
        self.assertIs(both.join(b), both)
        self.assertIs(a.join(View()), a)

    @given(kvs.views(), kvs.views())
    def test_equal_views_are_written_and_hashed_equally(self, a: View, b: View) -> None:
        """Nodes with equal views have equal digests, however they came to them."""
        one, other = a.join(b), b.join(a)
        self.assertEqual(one, other)
        self.assertEqual(hash(one), hash(other))
        self.assertEqual(
            msgspec.msgpack.encode(one.entries), msgspec.msgpack.encode(other.entries)
        )
        self.assertEqual(len({one, other}), 1)

    @given(kvs.views())
    def test_entries_come_back_from_the_wire(self, view: View) -> None:
        """A view that was sent is the view that was meant."""
        wire = msgspec.msgpack.encode(view.entries)
        entries = msgspec.msgpack.decode(wire, type=dict[Name, Member])
        self.assertEqual(View(entries), view)

    def test_first_nodes_are_older_than_all_changes(self) -> None:
        """A first view is the same on every node that was started with it."""
        self.assertEqual(
            View.start([N9, N10]).entries,
            {N9: Member(1, True, (1, 0)), N10: Member(1, True, (1, 1))},
        )

    def test_members_and_k_are_lists_on_the_wire(self) -> None:
        """Nodes of different releases read each other's views."""
        self.assertEqual(
            msgspec.to_builtins([Member(1, True, (1, 0)), ReplicaCount(0, 1)]),
            [[1, True, (1, 0)], [0, 1]],
        )
        self.assertEqual(msgspec.convert([0, 1], ReplicaCount), ReplicaCount(0, 1))

    def test_members_and_k_cannot_be_changed(self) -> None:
        """What two views share stays as it is."""
        for value in (Member(1, True, (1, 0)), ReplicaCount(0, 1)):
            self.assertRaises(AttributeError, setattr, value, "n", 2)

    def test_entries_out_of_range_are_refused(self) -> None:
        """No peer can put a number into a view that another could not pass on."""
        for fields in (
            [-1, True, [1, 0]],
            [2**63, True, [1, 0]],
            [1, 1, [1, 0]],
            [1, True, [1]],
            [1, True, [1, -1]],
        ):
            self.assertRaises(msgspec.ValidationError, msgspec.convert, fields, Member)

    def test_views_differ_from_each_other_and_from_all_else(self) -> None:
        """A view equals views only, and shows what it holds."""
        one, two = View.start([N9]), View.start([N10])
        self.assertNotEqual(one, two)
        self.assertNotEqual(one, one.entries)
        self.assertIn(N9, repr(one))

    def test_a_view_does_not_change_with_what_it_was_made_of(self) -> None:
        """A view stays what it was."""
        entries = {N9: Member(1, True, (1, 0))}
        view = View(entries)
        entries[N10] = Member(1, True, (1, 1))
        self.assertEqual(view.order, (N9,))

    def test_a_node_without_a_view_knows_nobody(self) -> None:
        """The empty view names no one, not even the node itself."""
        self.assertEqual((View().order, View().members), ((), frozenset()))
        self.assertFalse(View())
        self.assertTrue(View.start([N9]))

    def test_the_first_that_a_node_alone_enters_is_number_0(self) -> None:
        """A node that was alone and adds another is 0, the other is 1."""
        view = View().change(N20, present=True)
        self.assertEqual(view.entries, {N20: Member(1, True, (1, 0))})
        self.assertEqual(view.change(N9, present=True).numbers, {N20: 0, N9: 1})

    def test_first_nodes_must_differ(self) -> None:
        """One node cannot have two numbers."""
        self.assertRaises(AssertionError, View.start, [N9, N9])

    def test_a_removed_node_that_comes_with_its_old_view_learns_that_it_is_out(
        self,
    ) -> None:
        """A restart with the options of once does not bring a removed node back."""
        view = View.start(ALL[:3]).change(N9, present=False)
        met = View.start(ALL[:3]).join(view)
        self.assertTrue(met.removed(N9))
        self.assertTrue(met.knows(N9))
        self.assertFalse(met.removed(N10) or met.removed(N100) or met.knows(N100))
        back = met.change(N9, present=True)
        self.assertEqual(back.order, (N10, N20, N9))
        self.assertFalse(back.removed(N9))

    def test_numbers_are_kept_and_not_reused(self) -> None:
        """A node keeps its number when it goes and returns, and nobody else gets it."""
        view = View.start([N20, N9, N10])
        self.assertEqual(view.order, (N20, N9, N10))
        view = view.change(N20, present=False).change(N100, present=True)
        self.assertEqual(view.numbers, {N20: 0, N9: 1, N10: 2, N100: 3})
        view = view.change(N20, present=True)
        self.assertEqual(view.order[-1], N20)
        self.assertEqual(view.numbers[N20], 0)
        self.assertEqual(View().join(view).numbers, view.numbers)

    def test_numbers_shift_only_where_two_sides_add_at_once(self) -> None:
        """Two sides of a partition may give one number twice; they agree after it."""
        view = View.start(ALL[:2])
        a, b = view.change(N100, present=True), view.change(N20, present=True)
        self.assertEqual((a.numbers[N100], b.numbers[N20]), (2, 2))
        self.assertEqual(a.join(b).numbers, {N9: 0, N10: 1, N20: 2, N100: 3})
        self.assertEqual(a.join(b).order, b.join(a).order)

    @given(kvs.views())
    def test_numbers_count_every_name_once(self, view: View) -> None:
        """Numbers are 0, 1, 2 ... over all names that were ever in the view."""
        self.assertEqual(sorted(view.numbers.values()), list(range(len(view.entries))))
        self.assertEqual(frozenset(view.order), view.members)
        self.assertEqual(len(view.order), len(view.members))

    @given(kvs.views(), kvs.KNOWN_NAMES)
    def test_a_newcomer_displaces_nobody(self, view: View, name: Name) -> None:
        """Whoever is added comes last, so no replica has to hand over its data."""
        assume(name not in view.members)
        self.assertEqual(view.change(name, present=True).order, (*view.order, name))

    def test_a_tie_at_one_name_goes_to_removed(self) -> None:
        """Where two sides added and removed a node at once, it is out."""
        view = View.start(ALL[:2]).change(N9, present=False)
        back = view.change(N9, present=True)
        # As many changes, of which the last concerns this name.
        out = view.change(N20, present=True)
        gone = View({**out.entries, N9: Member(back.entries[N9].n, False, (1, 0))})
        self.assertTrue(gone.join(back).removed(N9))
        self.assertTrue(back.join(gone).removed(N9))


class ReplicasTests(SynchronousTestCase):
    """``View.replicas``."""

    def test_the_first_live_members_are_replicas(self) -> None:
        """A dead replica is replaced by the next in the order of the view."""
        view = View.start(ALL[1:]).change(N9, present=True)
        self.assertEqual(view.order, (N10, N20, N100, N9))
        self.assertEqual(view.replicas(3, set(ALL)), (N10, N20, N100))
        self.assertEqual(view.replicas(3, set(ALL) - {N10}), (N20, N100, N9))
        self.assertEqual(view.replicas(3, {N9}), (N9,))
        self.assertEqual(view.replicas(9, set(ALL)), view.order)
        self.assertRaises(AssertionError, view.replicas, 0, set(ALL))

    @given(kvs.views(), st.integers(1, 4), st.sets(kvs.KNOWN_NAMES))
    def test_replicas_are_live_members_and_no_more_than_k(
        self, view: View, k: int, alive: set[Name]
    ) -> None:
        """There are K replicas, or all live members where there are fewer."""
        replicas = view.replicas(k, alive)
        self.assertEqual(len(replicas), min(k, len(view.members & alive)))
        self.assertLessEqual(set(replicas), view.members & alive)


class MayAdoptTests(SynchronousTestCase):
    """``may_adopt``."""

    def test_a_node_without_a_view_takes_one_that_names_it(self) -> None:
        """A node that waits to be added is not drawn into a cluster that did not."""
        self.assertTrue(may_adopt(View(), View.start([N9, N10]), me=N10))
        self.assertFalse(may_adopt(View(), View.start([N9, N10]), me=N20))
        self.assertFalse(may_adopt(View(), View(), me=N20))

    def test_a_node_takes_a_view_that_concerns_its_cluster(self) -> None:
        """A view with a known name, or with the node itself, is taken in."""
        mine = View.start([N9, N10])
        self.assertTrue(may_adopt(mine, View.start([N10, N20]), me=N9))
        self.assertTrue(may_adopt(mine, View.start([N9, N20]), me=N9))
        out = View.start([N9, N20]).change(N9, present=False)
        self.assertTrue(may_adopt(mine, out, me=N9))
        self.assertTrue(may_adopt(View.start([N20]), View.start([N9, N10]), me=N9))

    def test_two_clusters_do_not_fuse(self) -> None:
        """A view of strangers is refused."""
        mine = View.start([N9, N10])
        self.assertFalse(may_adopt(mine, View.start([N20, N100]), me=N9))
        self.assertFalse(may_adopt(mine, View(), me=N9))
        self.assertFalse(mine.shares_name(View.start([N20, N100])))

    def test_a_view_with_a_name_that_is_none_is_refused(self) -> None:
        """One broken peer cannot make all nodes dial nonsense for ever."""
        mine = View.start([N9, N10])
        for text in ["", "nonsense", "10.0.0.9", "HOST:1", "a:0"]:
            theirs = mine.change(Name(text), present=True)
            self.assertFalse(may_adopt(mine, theirs, me=N9), text)
            self.assertFalse(may_adopt(View(), theirs, me=N9), text)
