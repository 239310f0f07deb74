"""
The known ways to get replication wrong, continued: names, proxies, lost and new nodes.

A history fails when the rule that prevents it is broken; where it is cheap, the naive
rule stands beside it and is seen to go wrong.  The numbers are those of the design:
x(10) is x with timestamp 10.  Not here, since nothing is deleted or compacted yet: H4,
H11, H16, H17, H18, H20.
"""

from __future__ import annotations

import itertools

from twisted.trial.unittest import SynchronousTestCase

from tests.core.replica_case import ReplicaCase
from twisted_kvs.core.causality import Name, make_actor
from twisted_kvs.core.messages import Standing
from twisted_kvs.core.names import parse_name
from twisted_kvs.core.payload import EMPTY_PAYLOAD
from twisted_kvs.core.versions import Version, insert
from twisted_kvs.simulation.cluster import Client
from twisted_kvs.simulation.storm import Storm


class ProxyTests(ReplicaCase):
    """H9: a proxy's writes under another's dots."""

    def test_h09_a_proxys_write_keeps_its_dot(self) -> None:
        """Handed over late and twice, an old write beats no newer one, and is one."""
        r, p = self.station(1), self.station(2, holds_all=False)
        old = p.put(value=b"old", at=10)
        new = r.put(value=b"new", at=20)
        delta = p.delta(r.replica.durable.vv)
        r.take(delta)
        r.take(delta)
        r.commit()
        self.assertEqual(r.value(), b"new")
        dots = {v.dot for v in r.storage.versions("k")}
        self.assertEqual(dots, {old.version.dot, new.version.dot})
        self.assertEqual(r.vv, {p.actor: 1, r.actor: 1})

    def test_h09_a_write_with_a_new_dot_would_win(self) -> None:
        """The naive rule: handed off as the replica's own, the old write dominates."""
        (r,) = self.stations(1)
        r.put(value=b"new", at=20)
        r.put(value=b"old", at=10)
        self.assertEqual(r.value(), b"old")

    def test_h09_a_cut_off_proxy_hands_over_what_it_took(self) -> None:
        """On the network: what a proxy wrote alone counts by its own time."""
        storm = Storm(nodes=3, k=2)
        one, _, proxy = storm.names
        storm.do_partition(0b100)
        storm.cluster.advance(1)
        client = storm.cluster.client()
        client.put(proxy, "k0", "old")
        client.put(proxy, "k1", "only")
        self.assertTrue(client.stale)
        storm.cluster.advance(0.1)
        storm.cluster.client().put(one, "k0", "new")
        storm.calm()
        for name in storm.names:
            reader = storm.cluster.client()
            self.assertEqual(
                [reader.get(name, "k0"), reader.get(name, "k1")], ["new", "only"]
            )
        self.assertEqual(len(storm.oracle.writes), 3)


class IdentityTests(ReplicaCase):
    """H10, H14: who mints, and who wins a tie."""

    def test_h10_a_dot_that_is_used_twice_diverges(self) -> None:
        """The naive rule: each ignores the other's write, for ever."""
        actor = make_actor(parse_name("10.0.0.1:80"), 1)
        one, other = (Version(actor, 2, "k", b"v", ts, {}) for ts in (5, 9))
        self.assertIs(insert((one,), other)[0], one)
        self.assertIs(insert((other,), one)[0], other)

    def test_h10_a_restored_backup_mints_under_another_name(self) -> None:
        """A node that comes back from an old copy of its disk reuses no dot."""
        a, b = self.stations(2)
        first = a.put(value=b"1")
        backup = a.restart(5, disk=False)
        backup.pull(a)
        a.put(value=b"2", at=5)
        b.pull(a)
        restored = backup.put(value=b"3", payload=first.payload, at=9)
        self.assertNotEqual(restored.version.actor, a.actor)
        self.assertEqual(self.converge(backup, b), {b"3"})

    def test_h10_a_process_that_was_set_back_takes_another_name(self) -> None:
        """A restored image of a running process meets its own later writes."""
        storm = Storm(nodes=3)
        one = storm.names[0]
        client = storm.cluster.client()
        client.put(one, "k0", "1")
        actor = storm.cluster.nodes[one].replica.actor
        client.put(one, "k0", "2")
        storm.cluster.advance(0.5)
        storm.do_kill(0, False)
        storm.do_start(0)
        replica = storm.cluster.nodes[one].replica
        replica.actor, replica._counter = actor, 1
        storm.cluster.advance(1.5)
        self.assertNotEqual(replica.actor, actor)
        client.put(one, "k0", "3")
        storm.calm()
        self.assertEqual(storm.cluster.client().get(storm.names[2], "k0"), "3")
        self.flushLoggedErrors()

    def test_h10_a_pull_shows_who_was_set_back(self) -> None:
        """The first word of its later writes may be the answer to a causal read."""
        storm = Storm(nodes=2, k=2)
        one, two = storm.names
        client = storm.cluster.client()
        for value in ("1", "2", "3"):
            client.put(one, "k0", value)
        node = storm.cluster.nodes[one]
        actor = node.replica.actor
        storm.do_kill(0, False)
        storm.do_partition(0b01)
        storm.do_start(0)
        storm.cluster.advance(1)
        node = storm.cluster.nodes[one]
        node.replica.actor, node.replica._counter = actor, 1
        node.cluster.standing = Standing.SERVING
        storm.do_heal()
        node.cluster.record(two).skip_until = 0.0
        self.assertEqual(client.get(one, "k0"), "3")
        client.put(one, "k0", "4")
        storm.calm()
        self.assertEqual(storm.cluster.client().get(two, "k0"), "4")
        self.flushLoggedErrors()

    def test_h14_ties_are_decided_by_name_and_not_by_place(self) -> None:
        """Equal stamps: the greater address wins, whatever the order in the view."""
        for order in itertools.permutations([9, 10, 100]):
            self.setUp()
            stations = [self.station(number) for number in order]
            for station in stations:
                station.put(value=station.name.encode(), at=7)
            self.assertEqual(self.converge(*stations), {b"10.0.0.100:80"})

    def test_h14_removing_a_node_changes_no_winner(self) -> None:
        """After the view shifts, all still show the same of two equal stamps."""
        storm = Storm(nodes=4)
        n0, n1, n2, n3 = storm.names
        storm.do_partition(0b1011)
        writes = [
            storm.cluster.nodes[name].put("k0", f'"{name}"'.encode(), EMPTY_PAYLOAD)
            for name in (n1, n2)
        ]
        for write in writes:
            storm.cluster.wait(write)
        stamps = {write.ts for write in storm.oracle.writes.values()}
        self.assertEqual(len(stamps), 1)
        storm.do_heal()
        storm.cluster.advance(8)
        storm.cluster.wait(storm.cluster.nodes[n3].update_view("remove", n0))
        storm.cluster.advance(2)
        for name in (n1, n2, n3):
            self.assertEqual(storm.cluster.client().get(name, "k0"), n2)


class RepairTests(SynchronousTestCase):
    """H12, H13, H15: what is lost, cut off, or new."""

    def test_h12_lost_writes_flag_answers_and_cost_one_wait(self) -> None:
        """The only copy is gone: reads say so, and do not wait for it each time."""
        storm = Storm(nodes=3)
        one, two, _ = storm.names
        storm.do_partition(0b110)
        client = storm.cluster.client()
        client.put(one, "k0", "gone")
        storm.do_kill(0, False)
        waited = [self.read_s(storm, client, two) for _ in range(4)]
        self.assertLess(waited[0], 0.6)
        self.assertLess(max(waited[1:]), 0.01)
        client.put(two, "k0", "again")
        self.assertEqual(client.get(two, "k0"), "again")
        self.assertFalse(client.stale)
        self.assertIsNone(client.get(two, "k1"))
        self.assertTrue(client.stale)
        storm.calm()
        waited = [self.read_s(storm, client, two, "k1") for _ in range(4)]
        self.assertLess(max(waited[1:]), 0.01)

    def read_s(self, storm: Storm, client: Client, at: Name, key: str = "k0") -> float:
        """Read something that is not there; tell how long it took."""
        since = storm.cluster.clock.seconds()
        self.assertIsNone(client.get(at, key))
        self.assertTrue(client.stale)
        return storm.cluster.clock.seconds() - since

    def test_h13_a_healed_partition_is_noticed(self) -> None:
        """Both sides think the other dead; once healed, they meet within seconds."""
        storm = Storm(nodes=4, seed=5)
        one, _, three, _ = storm.names
        storm.do_partition(0b1100)
        storm.cluster.advance(30)
        for name, side in ((one, storm.names[:2]), (three, storm.names[2:])):
            alive = storm.cluster.nodes[name].cluster.alive()
            self.assertEqual(alive, frozenset(side))
            storm.cluster.client().put(name, "k0", name)
            storm.cluster.client().put(name, name, name)
        storm.do_heal()
        storm.cluster.advance(4)
        for node in storm.cluster.nodes.values():
            self.assertEqual(node.cluster.alive(), frozenset(storm.names))
        storm.cluster.advance(3)
        storm.demand_converged()
        for name in storm.names:
            reader = storm.cluster.client()
            self.assertEqual(reader.get(name, one), one)
            self.assertEqual(reader.get(name, three), three)

    def test_h15_an_empty_node_answers_with_the_clusters_data(self) -> None:
        """A replica that lost its disk, just started, does not say 404 for old keys."""
        storm = Storm(nodes=3)
        storm.cluster.client().put(storm.names[0], "k0", "old")
        storm.cluster.advance(1)
        for name in storm.names:
            index = storm.names.index(name)
            storm.do_kill(index, False)
            storm.do_start(index)
            reader = storm.cluster.client()
            self.assertEqual(reader.get(name, "k0"), "old")
            self.assertFalse(reader.stale)
            storm.cluster.advance(3)

    def test_h15_a_promoted_proxy_answers_with_the_clusters_data(self) -> None:
        """A proxy that takes a dead replica's place forwards until it has caught up."""
        storm = Storm(nodes=4)
        storm.cluster.client().put(storm.names[0], "k0", "old")
        storm.do_kill(0)
        proxy = storm.cluster.nodes[storm.names[3]]
        for _ in range(600):
            reader = storm.cluster.client()
            self.assertEqual(reader.get(storm.names[3], "k0"), "old")
            self.assertFalse(reader.stale)
            storm.cluster.advance(0.01)
        self.assertTrue(proxy.cluster.is_replica)

    def test_h15_an_added_node_answers_with_the_clusters_data(self) -> None:
        """A node that was just added, and knows nothing yet, answers for old keys."""
        storm = Storm(nodes=3)
        client = storm.cluster.client()
        client.put(storm.names[0], "k0", "old")
        storm.do_kill(1)
        fresh = parse_name("10.0.0.99:8080")
        storm.cluster.start_alone(fresh)
        adding = storm.cluster.nodes[storm.names[0]].update_view("add", fresh)
        storm.cluster.wait(adding)
        self.assertTrue(storm.cluster.nodes[fresh].cluster.is_replica)
        for reader in (storm.cluster.client(), client):
            self.assertEqual(reader.get(fresh, "k0"), "old")
            self.assertFalse(reader.stale)

    def test_h15_who_reaches_nobody_says_so(self) -> None:
        """An empty node that is cut off answers, and flags what it does not know."""
        storm = Storm(nodes=3)
        storm.cluster.client().put(storm.names[0], "k0", "old")
        storm.do_kill(2, False)
        storm.do_partition(0b100)
        storm.do_start(2)
        reader = storm.cluster.client()
        self.assertIsNone(reader.get(storm.names[2], "k0"))
        self.assertTrue(reader.stale)
        storm.calm()
        self.assertEqual(reader.get(storm.names[2], "k0"), "old")
