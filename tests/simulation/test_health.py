"""When a node of a cluster says that clients may ask it."""

from __future__ import annotations

from tests.simulation.cluster_case import ClusterCase
from twisted_kvs.core.messages import Standing
from twisted_kvs.core.names import parse_name
from twisted_kvs.health import obstacle
from twisted_kvs.simulation.cluster import SimulatedCluster


class ReadyTests(ClusterCase):
    """Ready is who answers as well as anybody does."""

    def ready(self) -> list[bool]:
        """Ask all nodes, in the order of their names."""
        return [
            obstacle(self.cluster.nodes[name].cluster) is None
            for name in self.names
            if name in self.cluster.nodes
        ]

    def test_all_of_a_healthy_cluster(self) -> None:
        """Replicas, which serve, and a proxy, which reaches them."""
        self.start(4)
        self.cluster.advance(3)
        self.assertEqual(self.ready(), [True] * 4)

    def test_a_node_alone(self) -> None:
        """There is nobody to catch up with: it is ready from the start."""
        self.start(1)
        self.assertEqual(self.ready(), [True])

    def test_not_while_it_looks(self) -> None:
        """A node of a cluster that has just started cannot know yet what it lacks."""
        cluster = SimulatedCluster(1)
        self.cluster, self.names = cluster, [parse_name(f"10.0.0.{n}:1") for n in "123"]
        cluster.start(self.names)
        self.assertEqual(self.ready(), [False] * 3)
        cluster.advance(1)
        self.assertEqual(self.ready(), [True] * 3)

    def test_a_restarted_replica_that_reaches_one_that_serves(self) -> None:
        """It hands on until it has caught up, so it may be asked at once."""
        self.start(3)
        self.cluster.advance(3)
        self.cluster.kill(self.names[2])
        self.cluster.advance(1)
        self.cluster.start([self.names[2]], view=self.names)
        self.assertEqual(self.ready()[2], False)
        node = self.node(2)
        while node.cluster.standing is not Standing.SERVING:
            serving = bool(node.cluster.serving_peers())
            self.assertEqual(self.ready()[2], serving)
            self.cluster.advance(0.001)
        self.assertEqual(self.ready(), [True] * 3)

    def test_a_proxy_that_is_cut_off(self) -> None:
        """Not while it knows of replicas that serve; again when it is all there is."""
        self.start(4)
        self.cluster.advance(3)
        self.storm.do_partition(0b1000)
        self.client().get(self.names[3], "k")
        self.assertEqual(self.ready(), [True, True, True, False])
        self.cluster.advance(5)
        self.assertIs(self.node(3).cluster.standing, Standing.PROVISIONAL)
        self.assertEqual(self.ready(), [True] * 4)
        self.storm.do_heal()
        self.cluster.advance(10)
        self.assertEqual(self.ready(), [True] * 4)

    def test_a_removed_node(self) -> None:
        """Who was removed answers 410: its clients should go."""
        self.start(4)
        self.cluster.advance(3)
        self.cluster.wait(self.node(0).update_view("remove", self.names[3]))
        self.cluster.advance(1)
        self.assertEqual(self.ready(), [True, True, True, False])
