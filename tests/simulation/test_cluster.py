"""What a cluster of real nodes promises, on a simulated network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import msgspec
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.simulation.cluster_case import ClusterCase
from tests.simulation.histories import CLOCKS, CUTS, KILLS, NOISE, REQUESTS, seeded
from twisted_kvs.core.causality import Name
from twisted_kvs.core.errors import Overloaded, StorageFull
from twisted_kvs.core.messages import PeerRequest
from twisted_kvs.core.names import parse_name
from twisted_kvs.core.payload import EMPTY_PAYLOAD, Payload, before
from twisted_kvs.operations import Reply
from twisted_kvs.simulation.storm import Storm

FRESH = parse_name("10.0.0.99:8080")


class CausalityTests(ClusterCase):
    """What follows what, across nodes and keys."""

    def test_what_was_overwritten_at_one_is_read_at_the_next_at_once(self) -> None:
        """Write at one replica, overwrite at another, read at the third."""
        self.start(3)
        client = self.client()
        self.assertEqual(client.put(self.names[0], "k", "1").status, 201)
        self.assertEqual(client.put(self.names[1], "k", "2").status, 200)
        self.assertEqual(client.get(self.names[2], "k"), "2")
        self.assertFalse(client.stale)

    def test_causality_is_transitive_across_keys(self) -> None:
        """Who knows the later of two related writes can read the earlier anywhere."""
        self.start(3)
        one, two, three = self.names
        self.cluster.network.cut(one, three)
        writer, reader = self.client(), self.client()
        writer.put(one, "t", "transitive")
        self.assertEqual(reader.get(two, "t"), "transitive")
        self.cluster.network.cut(two, three)
        reader.put(two, "u", "later")
        self.storm.do_heal()
        self.cluster.network.cut(one, three)
        since = self.cluster.clock.seconds()
        self.assertEqual(reader.get(three, "u"), "later")
        self.assertEqual(reader.get(three, "t"), "transitive")
        self.assertFalse(reader.stale)
        self.assertLess(self.cluster.clock.seconds() - since, 0.1)

    def test_a_read_fetches_what_its_payload_names(self) -> None:
        """A replica that missed a push asks for it before it answers."""
        self.start(3)
        one, _, three = self.names
        self.storm.do_partition(0b100)
        client = self.client()
        client.put(one, "k", "v")
        self.storm.do_heal()
        self.assertEqual(client.get(three, "k"), "v")
        self.assertFalse(client.stale)
        self.assertEqual(self.node(2).fetch.fetches, 1)

    def test_a_write_looks_first_whether_it_creates(self) -> None:
        """201 and 200 are right even where the node lags behind its client."""
        self.start(3)
        self.storm.do_partition(0b100)
        client = self.client()
        client.put(self.names[0], "k", "v")
        self.storm.do_heal()
        self.assertEqual(client.put(self.names[2], "k", "w").status, 200)
        self.storm.do_partition(0b001)
        since = self.cluster.clock.seconds()
        client.put(self.names[0], "k", "x")
        self.storm.do_partition(0b110)
        self.assertEqual(client.put(self.names[2], "new", "w").status, 201)
        self.assertLess(self.cluster.clock.seconds() - since, 0.5)

    def test_writes_of_one_node_are_ordered(self) -> None:
        """Also of a proxy, and of replicas that have not heard of each other's."""
        self.start(4)
        self.cluster.advance(3)
        one, two, three, _ = self.names
        for pair in ((one, two), (one, three), (two, three)):
            self.cluster.network.cut(*pair)
        last, minters = Payload({}, 0), set()
        for number in range(6):
            client = self.client()
            answer = client.put(self.names[3], f"k{number}", "v")
            payload = self.payload(client)
            self.assertTrue(before(last, payload))
            last = payload
            minters.add(self.dot(answer))
        self.assertEqual(minters, set(self.names[:3]))

    def test_a_proxys_writes_are_ordered_when_it_was_cut_off(self) -> None:
        """A write that it took itself comes before the next one that it hands on."""
        self.start(4, gossip_interval_s=9)
        self.storm.do_partition(0b1000)
        first, second = self.client(), self.client()
        taken = first.put(self.names[3], "a", "v")
        self.assertEqual(self.dot(taken), self.names[3])
        self.storm.do_heal()
        self.cluster.advance(2)
        handed_on = second.put(self.names[3], "b", "v")
        self.assertNotEqual(self.dot(handed_on), self.names[3])
        self.assertTrue(before(self.payload(first), self.payload(second)))

    def test_the_later_of_two_unrelated_writes_wins(self) -> None:
        """Timestamps decide between writes that know nothing of each other."""
        self.start(3)
        self.storm.do_partition(0b100)
        self.storm.do_skew(2, 3600)
        self.client().put(self.names[2], "k0", "an hour ahead")
        self.cluster.advance(1)
        self.client().put(self.names[0], "k0", "in time")
        self.storm.calm()
        self.assertEqual(self.client().get(self.names[0], "k0"), "an hour ahead")

    def test_an_overwrite_wins_with_a_clock_that_is_hours_behind(self) -> None:
        """Causality decides first, and the clock only where there is none."""
        self.start(3)
        client = self.client()
        client.put(self.names[0], "k0", "old")
        self.storm.do_skew(1, -7200)
        client.put(self.names[1], "k0", "new")
        self.storm.calm()
        self.assertEqual(self.client().get(self.names[2], "k0"), "new")


class DurabilityTests(ClusterCase):
    """What was acknowledged, and what is shown."""

    def test_an_acknowledged_write_survives_the_node_that_took_it(self) -> None:
        """Put, kill that node and its disk at once, get elsewhere."""
        for index in range(3):
            self.start(3)
            client = self.client()
            client.put(self.names[index], "k", "v")
            self.storm.do_kill(index, False)
            for name in self.names:
                if name in self.cluster.nodes:
                    self.assertEqual(client.get(name, "k"), "v")
                    self.assertFalse(client.stale)

    def test_an_acknowledgement_means_that_it_is_on_the_disk(self) -> None:
        """A write waits for the disk of one other replica, but not for long."""
        self.start(2, k=2)
        self.cluster.disks[self.names[1]].delay_s = (0.03, 0.03)
        since = self.cluster.clock.seconds()
        self.client().put(self.names[0], "k", "v")
        self.assertGreater(self.cluster.clock.seconds() - since, 0.03)
        self.assertEqual(self.client().get(self.names[1], "k"), "v")
        self.cluster.disks[self.names[1]].delay_s = (0.3, 0.3)
        since = self.cluster.clock.seconds()
        self.client().put(self.names[0], "k", "w")
        waited = self.cluster.clock.seconds() - since
        self.assertTrue(0.05 <= waited < 0.07, waited)
        self.assertEqual(self.client().get(self.names[1], "k"), "v")

    def test_a_write_that_nobody_else_can_take_is_not_held_up(self) -> None:
        """A replica alone answers for itself soon, and hands over later."""
        self.start(3)
        self.storm.do_partition(0b001)
        since = self.cluster.clock.seconds()
        self.client().put(self.names[0], "k", "v")
        self.assertLess(self.cluster.clock.seconds() - since, 0.1)

    def test_nothing_is_shown_or_sent_before_it_is_durable(self) -> None:
        """On a slow disk readers and peers wait; who asks meanwhile sees the old."""
        self.start(2, k=2)
        one, two = self.names
        self.client().put(one, "k", "old")
        self.cluster.disks[one].delay_s = (0.2, 0.2)
        writing = self.node(0).put("k", b'"new"', EMPTY_PAYLOAD)
        self.cluster.advance(0.1)
        self.assertNoResult(writing)
        self.assertEqual(self.client().get(one, "k"), "old")
        self.assertEqual(self.client().get(two, "k"), "old")
        self.assertEqual(len(self.node(1).replica.applied.vv), 1)
        self.assertEqual(self.cluster.wait(writing).status, 200)
        self.assertEqual(self.client().get(two, "k"), "new")

    def test_a_reader_of_its_own_write_waits_for_the_disk(self) -> None:
        """A payload that the applied state covers waits for that commit."""
        self.start(2, k=2)
        one, two = self.names
        client = self.client()
        client.put(one, "k", "v")
        self.cluster.disks[two].delay_s = (0.15, 0.15)
        client.put(one, "k", "w")
        self.assertEqual(client.get(two, "k"), "w")
        self.assertFalse(client.stale)

    def test_a_full_disk_hands_writes_on_and_goes_on_reading(self) -> None:
        """507 only where no replica can be reached; with room again all is well."""
        self.start(3)
        client = self.client()
        client.put(self.names[0], "k", "v")
        self.storm.do_full(0, True)
        handed_on = client.put(self.names[0], "k", "w")
        self.assertNotEqual(self.dot(handed_on), self.names[0])
        self.assertEqual(client.get(self.names[1], "k"), "w")
        self.storm.do_partition(0b001)
        self.assertRaises(StorageFull, client.put, self.names[0], "k", "x")
        reader = self.client()
        self.assertEqual(reader.get(self.names[0], "k"), "v")
        self.storm.do_full(0, False)
        self.cluster.advance(1.1)
        self.assertEqual(self.dot(client.put(self.names[0], "k", "y")), self.names[0])
        self.storm.calm()

    def test_a_full_disk_hands_on_reads_of_what_it_cannot_take_in(self) -> None:
        """What others have told to have is read there; marked where none is reached."""
        self.start(4)
        one, two, *_ = self.names
        self.storm.do_full(0, True)
        writer = self.client()
        writer.put(two, "k", "v")
        # Also a proxy, whichever replica it asks.
        for name in (*self.names, *self.names[3:] * 2):
            reader = self.client()
            reader.token = writer.token
            self.assertEqual(reader.get(name, "k"), "v")
            self.assertFalse(reader.stale)
        self.storm.do_partition(0b0001)
        reader = self.client()
        reader.token = writer.token
        self.assertIsNone(reader.get(one, "k"))
        self.assertTrue(reader.stale)
        self.storm.do_full(0, False)
        self.storm.calm()

    def test_what_could_be_fetched_is_not_asked_of_others(self) -> None:
        """And where they have too much to do the node says what it has."""
        self.start(3)
        one, two, _ = self.names
        writer, reader = self.client(), self.client()
        handed_on: list[object] = []

        async def busy(request: object, targets: object) -> None:
            handed_on.append(targets)
            raise Overloaded("busy")

        self.patch(self.node(0).forwarder, "forward", busy)
        self.storm.do_partition(0b001)
        writer.put(two, "k", "v")
        self.storm.do_heal()
        reader.token = writer.token
        self.assertEqual(reader.get(one, "k"), "v")
        self.assertEqual(handed_on, [])
        self.storm.do_full(0, True)
        writer.put(two, "k", "w")
        reader.token = writer.token
        self.assertEqual(reader.get(one, "k"), "v")
        self.assertTrue(reader.stale)
        self.assertEqual(len(handed_on), 1)
        self.storm.do_full(0, False)
        self.storm.calm()

    def test_a_delta_in_parts_is_visible_at_once_or_not_at_all(self) -> None:
        """While hundreds of versions come in, none is shown; then all are."""
        self.start(2, k=2, delta_part_versions_max=10, fold_versions=7)
        one, two = self.names
        self.cluster.network.cut(one, two)
        client = self.client()
        for number in range(120):
            client.put(one, f"k{number}", str(number))
        self.storm.do_heal()
        receiver, seen = self.node(1).receiver, set()
        for _ in range(8000):
            self.cluster.advance(0.001)
            shown = len(self.node(1).replica.durable.vv) > 0
            seen.add((receiver.receiving is not None, shown))
            count = self.cluster.disks[two].count()
            self.assertEqual(count, 120 if shown else 0)
            if shown and not self.cluster.disks[two].result.unfolded:
                break
        self.assertLessEqual({(True, False), (False, True)}, seen)
        self.storm.calm()
        self.assertEqual(
            self.cluster.versions(two), {f"k{n}": str(n) for n in range(120)}
        )

    def test_a_lost_snapshot_costs_another_pull(self) -> None:
        """The store of the sender takes a snapshot back: the delta begins anew."""
        self.start(2, k=2, delta_part_versions_max=2)
        one, two = self.names
        self.cluster.network.cut(one, two)
        client = self.client()
        for number in range(30):
            client.put(one, f"k{number}", "v")
        self.storm.do_heal()
        receiver = self.node(1).receiver
        for _ in range(8000):
            self.cluster.advance(0.001)
            if receiver.received >= 4:
                break
        self.assertEqual(receiver.receiving, one)
        self.cluster.disks[one].lose_snapshots()
        self.storm.calm()
        self.assertEqual(len(self.cluster.versions(two)), 30)
        self.assertEqual(self.cluster.disks[two].count(), 30)


class RoleTests(ClusterCase):
    """Replicas and proxies, and who takes whose place (R13, R15)."""

    def test_roles_are_as_the_view_says(self) -> None:
        """The first K are replicas, on all nodes alike; the others are proxies."""
        self.start(5)
        details = [
            msgspec.json.decode(self.node(index).node_details().body)["replica"]
            for index in range(5)
        ]
        self.assertEqual(details, ["Yes", "Yes", "Yes", "No", "No"])
        for name in self.names:
            self.assertEqual(self.replicas(name), self.names[:3])
        self.assertEqual(len(self.node(4).replica.applied.vv), 0)

    def test_proxies_spread_requests_evenly(self) -> None:
        """Asked through proxies, replicas handle the same number of requests."""
        self.start(5)
        self.cluster.advance(3)
        minted: Counter[str] = Counter()
        for number in range(120):
            answer = self.client().put(self.names[3 + number % 2], "k", "v")
            minted[self.dot(answer)] += 1
        self.assertEqual(set(minted), set(self.names[:3]))
        self.assertLessEqual(max(minted.values()) - min(minted.values()), 4)

    def test_a_slow_replica_is_not_waited_for(self) -> None:
        """Another is asked besides after 0.2 s; the first question goes on."""
        self.start(4)
        client = self.client()
        client.put(self.names[0], "k", "v")
        self.cluster.advance(3)
        asked: list[tuple[Name, Deferred[Reply]]] = []
        transport = self.node(3).cluster.transport
        ask = transport.ask

        def noted(peer: Name, request: PeerRequest, **limits: float) -> Deferred[Reply]:
            asked.append((peer, ask(peer, request, **limits)))
            return asked[-1][1]

        self.patch(transport, "ask", noted)
        began = self.cluster.clock.seconds()
        reading = self.node(3).get("k", self.payload(client))
        [(slow, first)] = asked
        self.storm.do_pause(self.names.index(slow), 300)
        answer = self.cluster.wait(reading)
        self.assertEqual(answer.status, 200)
        self.assertNotIn("KVS-Stale", dict(answer.headers))
        taken_s = self.cluster.clock.seconds() - began
        self.assertTrue(0.2 <= taken_s < 0.25, taken_s)
        self.assertFalse(first.called)
        self.cluster.advance(0.15)
        self.assertTrue(first.called)
        self.assertFalse(self.node(3).cluster.skipped(slow))

    def test_replicas_spread_requests_where_they_should(self) -> None:
        """With --spread the same holds whichever node is asked."""
        self.start(4, spread=True)
        self.cluster.advance(3)
        minted: Counter[str] = Counter()
        for _ in range(90):
            minted[self.dot(self.client().put(self.names[0], "k", "v"))] += 1
        self.assertLessEqual(max(minted.values()) - min(minted.values()), 9)
        self.assertEqual(set(minted), set(self.names[:3]))

    def test_a_dead_replica_is_replaced_and_its_place_taken_back(self) -> None:
        """A proxy becomes a replica with all data; the old one returns and serves."""
        self.start(4)
        client = self.client()
        client.put(self.names[1], "k0", "v")
        self.storm.do_kill(1)
        self.cluster.advance(6)
        left = [n for n in self.names if n != self.names[1]]
        for name in left:
            self.assertEqual(self.replicas(name), left)
        self.assertEqual(self.cluster.versions(self.names[3]), {"k0": "v"})
        client.put(self.names[3], "k0", "w")
        self.storm.do_start(1)
        self.assertEqual(client.get(self.names[1], "k0"), "w")
        self.assertFalse(client.stale)
        self.storm.calm()
        self.assertEqual(self.replicas(self.names[0]), self.names[:3])

    def test_a_demoted_node_drops_its_data_in_the_end(self) -> None:
        """What all replicas have needs not be on the node that stood in."""
        self.start(4)
        self.client().put(self.names[0], "k0", "v")
        self.storm.do_kill(1)
        self.cluster.advance(6)
        self.storm.do_start(1)
        self.cluster.advance(10)
        self.assertEqual(self.cluster.disks[self.names[3]].count(), 1)
        self.cluster.advance(25)
        self.assertEqual(self.cluster.disks[self.names[3]].count(), 0)
        self.assertEqual(self.client().get(self.names[3], "k0"), "v")
        self.storm.calm()

    def test_fewer_nodes_than_k_are_all_replicas(self) -> None:
        """Degraded mode takes writes."""
        self.start(4)
        for index in (2, 3):
            self.storm.do_kill(index)
        client = self.client()
        client.put(self.names[0], "k0", "v")
        self.cluster.advance(4)
        client.put(self.names[1], "k0", "w")
        self.assertEqual(client.get(self.names[0], "k0"), "w")
        self.assertFalse(client.stale)
        self.assertEqual(self.replicas(self.names[1]), self.names[:2])

    def test_every_node_answers_in_time_when_its_network_is_gone(self) -> None:
        """Within a second, from what it has; reads and writes, replica and proxy."""
        self.start(4)
        self.client().put(self.names[0], "k0", "v")
        self.cluster.advance(1)
        self.cluster.network.partition(*([name] for name in self.names))
        for name in self.names:
            for moment in range(6):
                client = self.client()
                since = self.cluster.clock.seconds()
                client.put(name, f"new{moment}", "w")
                self.assertEqual(client.get(name, f"new{moment}"), "w")
                self.assertLess(self.cluster.clock.seconds() - since, 1.0)
                self.cluster.advance(0.9)
        for name in self.names[:3]:
            self.assertEqual(self.client().get(name, "k0"), "v")
        lonely = self.client()
        self.assertIsNone(lonely.get(self.names[3], "k0"))
        self.assertTrue(lonely.stale)
        self.storm.calm()

    def test_a_client_that_moves_over_a_cut_is_told(self) -> None:
        """The other side of a partition cannot know its write, and says so in time."""
        self.start(4)
        self.cluster.advance(1)
        self.storm.do_partition(0b0011)
        client = self.client()
        client.put(self.names[0], "k0", "v")
        since = self.cluster.clock.seconds()
        self.assertIsNone(client.get(self.names[2], "k0"))
        self.assertTrue(client.stale)
        self.assertLess(self.cluster.clock.seconds() - since, 1.0)
        self.storm.calm()
        self.assertEqual(client.get(self.names[2], "k0"), "v")
        self.assertFalse(client.stale)


class GossipTests(ClusterCase):
    """What it costs, and what it finds (R17, R19)."""

    def idle_bytes(self, keys: int) -> int:
        """Count what a cluster at rest sends in ten seconds."""
        self.start(3)
        for number in range(keys):
            self.client().put(self.names[0], f"k{number}", "v")
        self.cluster.advance(3)
        sent = self.cluster.network.traffic.bytes_carried
        self.cluster.advance(10)
        return self.cluster.network.traffic.bytes_carried - sent

    def test_a_cluster_at_rest_sends_the_same_whatever_it_holds(self) -> None:
        """Ten keys or five hundred: equal hashes end an exchange."""
        few, many = self.idle_bytes(10), self.idle_bytes(500)
        self.assertLess(abs(few - many), few / 10)

    def test_sixteen_members_converge_within_ten_seconds(self) -> None:
        """After a long partition, and with a third of the messages lost."""
        self.start(16, k=16)
        self.storm.do_partition(0x00FF)
        self.cluster.advance(10)
        for number, name in enumerate(self.names):
            client = self.client()
            client.put(name, f"k{number % 4}", name)
            client.put(name, name, name)
        self.cluster.advance(3)
        self.storm.do_heal()
        self.storm.do_noise(30, 0, 20)
        self.cluster.advance(10)
        self.assertGreater(self.cluster.network.traffic.lost, 100)
        vvs = {tuple(sorted(n.replica.durable.vv.items())) for n in self.nodes()}
        self.assertEqual(len(vvs), 1)
        shown = [self.cluster.versions(name) for name in self.names]
        self.assertEqual(len(shown[0]), 20)
        for other in shown[1:]:
            self.assertEqual(other, shown[0])

    def test_equal_knowledge_with_different_data_is_told(self) -> None:
        """A broken disk is noticed by gossip and logged; nothing is repaired."""
        self.start(2, k=2)
        self.client().put(self.names[0], "k0", "v")
        self.cluster.advance(3)
        self.assertEqual(self.node(0).cluster.hash_mismatches, 0)
        self.cluster.disks[self.names[1]]._tally.live_hash ^= 1
        self.client().put(self.names[0], "k1", "v")
        self.cluster.advance(3)
        self.assertGreater(self.node(0).cluster.hash_mismatches, 0)
        self.flushLoggedErrors()

    def test_a_node_that_stops_finishes_what_it_took(self) -> None:
        """A write that was accepted is answered and durable; new ones are refused."""
        self.start(3)
        writing = self.node(0).put("k0", b'"v"', EMPTY_PAYLOAD)
        stopping = self.node(0).stop()
        self.assertEqual(self.cluster.wait(writing).status, 201)
        self.cluster.wait(stopping)
        self.storm.do_kill(0)
        self.storm.calm()
        self.assertEqual(self.client().get(self.names[0], "k0"), "v")

    def test_a_node_that_stops_answers_who_waits_for_its_start(self) -> None:
        """Found by a search: stopped while it looks for one that serves."""
        self.start(3)
        self.storm.do_kill(2)
        self.storm.do_partition(0b100)
        self.storm.do_start(2)
        reading = self.node(2).get("k0", EMPTY_PAYLOAD)
        self.cluster.advance(0.05)
        self.assertNoResult(reading)
        self.cluster.wait(self.node(2).stop())
        self.assertEqual(self.successResultOf(reading).status, 404)
        self.storm.do_kill(2)
        self.storm.calm()


class ReplayTests(SynchronousTestCase):
    """One seed replays everything."""

    def trace(self, seed: int) -> int:
        """Hash every message of a storm."""
        storm = Storm(nodes=4, seed=seed)
        history = seeded(9, REQUESTS | CUTS | NOISE | KILLS | CLOCKS, size=120)
        storm.run(history)
        assert storm.events["killed"] and storm.events["lost"]
        return storm.cluster.network.traffic.trace

    def test_the_same_seed_gives_the_same_trace(self) -> None:
        """Message by message and byte by byte; another seed gives another."""
        self.assertEqual(self.trace(1), self.trace(1))
        self.assertNotEqual(self.trace(1), self.trace(2))

    def test_the_order_of_sets_decides_nothing(self) -> None:
        """The same in processes that hash text differently."""
        program = (
            "from tests.simulation.test_cluster import ReplayTests;"
            "print(ReplayTests().trace(1))"
        )
        traces = {
            subprocess.check_output(
                [sys.executable, "-c", program],
                env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": ROOT},
            )
            for seed in ("1", "2")
        }
        self.assertEqual(traces, {b"%d\n" % self.trace(1)})


ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
