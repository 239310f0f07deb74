"""Members come and go while a cluster of real nodes runs, on a simulated network."""

from __future__ import annotations

from tests.simulation.cluster_case import ClusterCase
from twisted_kvs.core.errors import BadRequest, Overloaded, Removed
from twisted_kvs.core.names import parse_name

FRESH = parse_name("10.0.0.99:8080")


class ViewTests(ClusterCase):
    """Members that come and go (R16)."""

    def test_a_fresh_node_is_counted_listed_and_answers_at_once(self) -> None:
        """One replica and one proxy are dead; a node without K and VIEW is added."""
        self.start(4)
        self.client().put(self.names[0], "k0", "v")
        self.storm.do_kill(1)
        self.storm.do_kill(3)
        self.cluster.start_alone(FRESH)
        said = self.change_view(0, "add", FRESH)
        self.assertEqual(said["number_of_nodes"], 3)
        self.assertEqual(said["node_id"], 4)
        wanted = [self.names[0], self.names[2], FRESH]
        for name in wanted:
            self.assertEqual(self.replicas(name), wanted)
            self.assertEqual(self.client().get(name, "k0"), "v")
        self.assertEqual(self.cluster.nodes[FRESH].cluster.k, 3)

    def test_a_removed_node_says_so_and_its_place_is_taken(self) -> None:
        """Its clients are sent away, and nobody asks it any more."""
        self.start(4)
        self.client().put(self.names[0], "k0", "v")
        self.assertEqual(self.change_view(2, "remove", self.names[0])["msg"], "success")
        self.assertRaises(Removed, self.client().get, self.names[0], "k0")
        self.assertEqual(self.replicas(self.names[1]), self.names[1:])
        self.assertEqual(self.client().get(self.names[3], "k0"), "v")
        self.cluster.advance(3)
        quiet = self.cluster.network.traffic.messages
        for index in (1, 2, 3):
            self.storm.do_kill(index)
        self.cluster.advance(3)
        self.assertEqual(self.cluster.network.traffic.messages, quiet)

    def test_a_node_that_was_removed_while_away_hands_over_its_writes(self) -> None:
        """It learns that it is out, and what only it had is not lost."""
        self.start(4)
        self.storm.do_partition(0b0001)
        self.client().put(self.names[0], "k0", "only here")
        self.cluster.advance(4)
        self.change_view(1, "remove", self.names[0])
        self.storm.do_heal()
        self.cluster.advance(8)
        self.assertRaises(Removed, self.client().get, self.names[0], "k0")
        for name in self.names[1:]:
            self.assertEqual(self.client().get(name, "k0"), "only here")

    def test_a_removed_node_hands_over_what_it_knows_of_the_view(self) -> None:
        """Found by a search: a change that ended after its node was removed."""
        self.start(4)
        one, two, three, four = self.names
        self.storm.do_partition(0b1000)
        changing = self.node(3).update_view("remove", two)
        self.cluster.advance(0.01)
        self.storm.do_heal()
        self.change_view(3, "remove", four)
        self.assertEqual(self.cluster.wait(changing).status, 200)
        self.cluster.advance(5)
        for name in (one, three):
            members = self.cluster.nodes[name].cluster.view.members
            self.assertEqual(members, {one, three})

    def test_changes_that_are_none_change_nothing(self) -> None:
        """To add a member or remove a former one is well; other nonsense is not."""
        self.start(3)
        one, two, three = self.names
        self.assertEqual(self.change_view(0, "add", two)["number_of_nodes"], 3)
        self.change_view(0, "remove", three)
        self.assertEqual(self.change_view(1, "remove", three)["number_of_nodes"], 2)
        for kind, name in (("remove", FRESH), ("add", FRESH)):
            self.assertRaises(BadRequest, self.change_view, 0, kind, name)
        self.change_view(0, "remove", two)
        self.assertRaises(BadRequest, self.change_view, 0, "remove", one)
        self.assertEqual(self.node(0).cluster.view.order, (one,))

    def test_nodes_that_are_far_are_added_and_told(self) -> None:
        """0.4 s there and back: nobody is taken for dead, and it takes no second."""
        self.start(2)
        self.cluster.start_alone(FRESH)
        self.cluster.network.faults.delay_s = (0.2, 0.21)
        began = self.cluster.clock.seconds()
        added = self.change_view(0, "add", FRESH)
        self.assertLess(self.cluster.clock.seconds() - began, 1.0)
        self.assertEqual(added["number_of_nodes"], 3)
        for name in (*self.names, FRESH):
            self.assertEqual(self.cluster.nodes[name].cluster.view.order[2], FRESH)

    def test_a_slow_disk_and_a_silent_member_take_no_second_together(self) -> None:
        """All that answer are told before the answer, although a member does not."""
        self.start(4)
        one, two, three, four = self.names
        self.cluster.advance(5)
        self.cluster.disks[one].delay_s = (0.28, 0.29)
        self.cluster.network.faults.delay_s = (0.02, 0.021)
        self.cluster.network.cut(one, three)
        began = self.cluster.clock.seconds()
        self.change_view(0, "remove", four)
        self.assertLess(self.cluster.clock.seconds() - began, 1.0)
        self.assertNotIn(four, self.cluster.nodes[two].cluster.view.members)

    def test_a_disk_that_is_too_slow_is_told_in_time(self) -> None:
        """Not before those who answered could have been told."""
        self.start(4)
        one, _, three, four = self.names
        self.cluster.advance(5)
        self.cluster.disks[one].delay_s = (0.44, 0.445)
        self.cluster.network.cut(one, three)
        began = self.cluster.clock.seconds()
        self.assertRaises(Overloaded, self.change_view, 0, "remove", four)
        self.assertLess(self.cluster.clock.seconds() - began, 0.9)

    def test_members_fall_silent_while_a_change_is_made(self) -> None:
        """Who is not reached any more is not waited for beyond the second."""
        self.start(4)
        one, two, three, four = self.names
        self.cluster.advance(5)
        self.cluster.disks[one].delay_s = (0.28, 0.29)
        self.cluster.network.cut(one, three)
        began = self.cluster.clock.seconds()
        self.cluster.clock.callLater(0.3, self.cluster.network.cut, one, two)
        self.change_view(0, "remove", four)
        self.assertLess(self.cluster.clock.seconds() - began, 0.91)

    def test_both_sides_of_a_partition_may_add(self) -> None:
        """The views of both sides are joined, and nobody is lost."""
        self.start(4)
        other = parse_name("10.0.0.98:8080")
        self.storm.do_partition(0b1100)
        self.cluster.advance(4)
        for fresh, side in ((FRESH, 0), (other, 2)):
            self.cluster.start_alone(fresh)
            self.change_view(side, "add", fresh)
            self.client().put(fresh, "k0", fresh)
        self.storm.do_heal()
        self.cluster.advance(10)
        views = {node.cluster.view for node in self.cluster.nodes.values()}
        self.assertEqual(len(views), 1)
        self.assertEqual(len(next(iter(views)).members), 6)
        shown = {self.client().get(name, "k0") for name in self.cluster.nodes}
        self.assertEqual(len(shown), 1)

    def test_clusters_do_not_fuse(self) -> None:
        """A node of another view is not added, and neither side learns anything."""
        self.start(2)
        self.cluster.start([FRESH], view=[FRESH])
        self.cluster.advance(1)
        self.assertRaises(BadRequest, self.change_view, 0, "add", FRESH)
        self.cluster.advance(3)
        self.assertEqual(self.node(0).cluster.view.members, frozenset(self.names))
        self.assertEqual(self.cluster.nodes[FRESH].cluster.view.members, {FRESH})
