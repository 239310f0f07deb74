"""The scenario that the store is made for: four containers, three of them replicas."""

from __future__ import annotations

from tests.process.asking import ask, get, is_replica, put, replicas, update_view
from tests.process.harness import wait_until

from .docker import docker
from .harness import PORT, ContainerCase


class ScenarioTests(ContainerCase):
    """Started by ``docker run`` with K, VIEW, IPPORT, an address and a port."""

    def setUp(self) -> None:
        """Start four."""
        super().setUp()
        self.nodes = self.cluster()
        self.names = [node.name for node in self.nodes]

    def test_roles(self) -> None:
        """The first three are replicas, the fourth forwards; all say so."""
        roles = [is_replica(name) for name in self.names]
        self.assertEqual(roles, [True, True, True, False])
        for name in self.names:
            self.assertEqual(replicas(name), self.names[:3])

    def test_causality_across_keys(self) -> None:
        """What a client has seen is followed by nothing older, wherever it asks."""
        first, second, third, proxy = self.names
        t = put(first, "t", "one")
        self.assertEqual((t.status, t.fields["node_id"]), (201, 0))
        seen = get(second, "t", t.payload)
        self.assertEqual((seen.status, seen.fields["value"]), (200, "one"))
        self.assertEqual(seen.fields["timestamp"], t.fields["timestamp"])
        u = put(second, "u", "two", seen.payload)
        self.assertEqual((u.status, u.fields["node_id"]), (201, 1))
        for name in (third, proxy):
            u_read = get(name, "u", u.payload)
            t_read = get(name, "t", u_read.payload)
            values = [answer.fields["value"] for answer in (u_read, t_read)]
            self.assertEqual(values, ["two", "one"])
            self.assertFalse(u_read.stale or t_read.stale)
        replaced = put(proxy, "t", "three", u.payload)
        self.assertEqual(replaced.status, 200)
        self.wait_agree(self.nodes, {"t": "three", "u": "two"})

    def test_view_changes(self) -> None:
        """A fifth node is added and removed while the others run."""
        put(self.names[0], "old", "value")
        fifth = self.container(ip=self.ips[4], IPPORT=f"{self.ips[4]}:{PORT}")
        fifth.run()
        fifth.ready()
        added = update_view(self.names[3], "add", fifth.name)
        self.assertEqual(added.status, 200)
        self.assertEqual(
            (added.fields["node_id"], added.fields["number_of_nodes"]), (4, 5)
        )
        self.assertEqual(get(fifth.name, "old").fields["value"], "value")
        self.assertFalse(is_replica(fifth.name))
        removed = update_view(fifth.name, "remove", self.names[0])
        self.assertEqual(removed.fields["number_of_nodes"], 4)
        self.assertEqual(replicas(fifth.name), self.names[1:])
        self.assertEqual(get(self.names[0], "old").status, 410)

    def test_dead_replica_is_replaced(self) -> None:
        """A replica is killed: the proxy takes its place, with all that there is."""
        written = put(self.names[0], "key", "value")
        self.nodes[1].kill()
        wait_until(
            "the proxy is a replica",
            lambda: replicas(self.names[3]) == [self.names[n] for n in (0, 2, 3)],
        )
        read = get(self.names[3], "key", written.payload)
        self.assertEqual(read.fields["value"], "value")


class LoneTests(ContainerCase):
    """A node alone."""

    def test_published_port(self) -> None:
        """A port of this machine leads to the node."""
        node = self.container(
            "--publish=127.0.0.1::8080", ip=self.ips[0], IPPORT=f"{self.ips[0]}:{PORT}"
        )
        node.run()
        node.ready()
        [published] = docker("port", node.id, str(PORT)).splitlines()
        self.assertEqual(put(published, "key", "value").status, 201)
        self.assertEqual(get(node.name, "key").fields["value"], "value")

    def test_without_network_and_with_it_again(self) -> None:
        """It answers from what it has, takes writes, and is asked again later."""
        node = self.container(ip=self.ips[0], IPPORT=f"{self.ips[0]}:{PORT}")
        node.run()
        node.ready()
        before = put(node.name, "key", "before")
        node.disconnect()
        with self.assertRaises(OSError):
            ask(node.name, "GET", "/health/live")
        payload = before.payload
        read = node.ask_within("GET", "/kv-store/key", causal_payload=payload)
        self.assertEqual((read.status, read.fields["value"]), (200, "before"))
        self.assertFalse(read.stale)
        written = node.ask_within(
            "PUT", "/kv-store/key", val="alone", causal_payload=read.payload
        )
        self.assertEqual(written.status, 200)
        node.connect()
        node.ready()
        self.wait_agree([node], {"key": "alone"})
        self.assert_in_time([read, written])
