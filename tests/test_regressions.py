"""Faults that were found by review or search, each as the history that showed it."""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.logger import (
    ILogObserver,
    LogEvent,
    formatEvent,
    globalLogPublisher,
)
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from twisted_kvs.core.causality import Name
from twisted_kvs.core.errors import Overloaded, SlowDisk, StorageFull
from twisted_kvs.core.messages import (
    Forward,
    ForwardAnswer,
    Hello,
    Operation,
    Refused,
    Standing,
)
from twisted_kvs.core.payload import EMPTY_PAYLOAD
from twisted_kvs.core.settings import Settings
from twisted_kvs.simulation.cluster import SimulatedCluster
from twisted_kvs.storage.memory import MemoryStorage

NAMES = [Name(f"127.0.0.1:{port}") for port in range(8080, 8084)]
A, B, C, D = NAMES


class FoldingTests(SynchronousTestCase):
    """A delta in parts, after it became valid."""

    def test_store_in_memory_folds_any_number_of_slices(self) -> None:
        """A node without a disk takes a delta of many slices and stays alive."""
        settings = Settings(fold_versions=1, delta_part_versions_max=50)
        cluster = SimulatedCluster(1, k=2, settings=settings)
        disks: dict[Name, Any] = cluster.disks
        # Its commits are durable at once, unlike those of a disk.
        disks[B] = MemoryStorage()
        cluster.start([A], view=[A, B])
        cluster.advance(1)
        for number in range(400):
            cluster.nodes[A].put(f"k{number}", b"1", EMPTY_PAYLOAD)
        cluster.advance(1)
        cluster.start([B], view=[A, B])
        cluster.advance(3)
        self.assertEqual(disks[B].result.unfolded, 0)
        self.assertEqual(disks[B].count(), 400)


class ServingTests(SynchronousTestCase):
    """Who may say that it serves, and answer without a flag (R15)."""

    def test_removed_node_makes_nobody_serve(self) -> None:
        """A lagging node that reaches only a removed one goes on to flag answers."""
        cluster = SimulatedCluster(3, k=4)
        cluster.start(NAMES)
        cluster.advance(3)
        cluster.network.partition([D], [A, B, C])
        cluster.advance(4)
        cluster.wait(cluster.nodes[A].update_view("remove", D))
        cluster.client().put(D, "own", "written after its removal")
        cluster.kill(C)
        cluster.client().put(A, "k", "new")
        cluster.network.heal()
        cluster.network.partition([A, B], [C, D])
        cluster.start([C], view=NAMES)
        cluster.advance(5)
        client = cluster.client()
        self.assertIsNone(client.get(C, "k"))
        self.assertTrue(client.stale)

    def test_second_promotion_lags_again(self) -> None:
        """A node that was demoted and is cut off later flags what it answers."""
        cluster = SimulatedCluster(1, k=3)
        cluster.start([A, B, C])
        cluster.advance(3)
        cluster.kill(A)
        cluster.k = 2
        cluster.start([A], view=[A, B, C])
        cluster.advance(3)
        self.assertFalse(cluster.nodes[C].cluster.is_replica)
        cluster.network.partition([A, B], [C])
        cluster.client().put(A, "k", "new")
        cluster.advance(8)
        client = cluster.client()
        self.assertIsNone(client.get(C, "k"))
        self.assertTrue(client.stale)

    def test_one_lost_request_makes_nobody_serve(self) -> None:
        """A lagging node that knows of one that serves waits for it all the same."""
        cluster = SimulatedCluster(1, k=3)
        cluster.start([A, B, C])
        cluster.advance(3)
        node = cluster.nodes[A]
        cluster.network.partition([A], [B, C])
        node.membership.lag()
        cluster.advance(0.31)
        node.membership.completed(C, Standing.LAGGING)
        node.cluster.skip(B)
        node.cluster.record(C).standing = Standing.LAGGING
        node.membership.settle()
        self.assertIsNot(node.cluster.standing, Standing.SERVING)


class DiskTests(SynchronousTestCase):
    """Disks that are slow or full."""

    def test_write_that_finds_the_disk_full_is_handed_on(self) -> None:
        """The first write for which there is no room is taken by another replica."""
        cluster = SimulatedCluster(2, k=3)
        cluster.start([A, B, C])
        cluster.advance(3)
        cluster.disks[A].full = True
        put = cluster.nodes[A].put("k", b"1", EMPTY_PAYLOAD)
        self.assertEqual(cluster.wait(put).status, 201)
        self.assertEqual(cluster.client().get(B, "k"), 1)

    def test_slow_disk_keeps_no_client_waiting(self) -> None:
        """A write that the disk does not take in time is answered within a second."""
        cluster = SimulatedCluster(2, k=3, disk_s=(2.0, 2.1))
        cluster.start(NAMES)
        cluster.advance(10)
        for name in (A, D):
            put = cluster.nodes[name].put("k", b"1", EMPTY_PAYLOAD)
            with self.assertRaises(SlowDisk):
                cluster.wait(put, limit_s=0.99)
        with self.assertRaises(Overloaded):
            cluster.wait(cluster.nodes[A].update_view("remove", D), limit_s=0.99)
        cluster.advance(10)
        self.assertTrue(cluster.converged())


class NewcomerTests(SynchronousTestCase):
    """A node that was added and does not know it yet."""

    def test_node_without_a_view_takes_no_requests_of_members(self) -> None:
        """A write goes to no node that was not told the view: it could be removed."""
        cluster = SimulatedCluster(1)
        cluster.start_alone(C)
        forward = Forward(
            operation=Operation.PUT,
            key="k",
            value=b"1",
            vector={},
            lamport=0,
            seen={},
            budget_ms=400,
        )
        answer = cluster.wait(cluster.nodes[C].answer_peer(A, 7, forward))
        self.assertIsInstance(answer, Refused)
        self.assertIsNone(cluster.client().get(C, "k"))

    def test_two_additions_at_once_tell_different_numbers(self) -> None:
        """Two nodes that are added at different members are told their own numbers."""
        cluster = SimulatedCluster(1, k=3)
        cluster.start([A, B])
        cluster.advance(3)
        numbers: dict[Name, int] = {}
        for at, name in ((A, D), (B, C)):
            cluster.start_alone(name)
            added = cluster.nodes[at].update_view("add", name)
            added.addCallback(
                lambda answer, name: numbers.update(
                    {name: msgspec.json.decode(answer.body)["node_id"]}
                ),
                name,
            )
        cluster.advance(1)
        self.assertEqual(numbers, {C: 2, D: 3})


class OrderTests(SynchronousTestCase):
    """Two writes through one node are ordered (R13)."""

    def test_forwarded_write_comes_after_s_although_a_commit_failed(self) -> None:
        """Found by `kvs simulate`: S was forgotten while the write looked for P."""
        settings = Settings(full_disk_retry_s=0.02)
        cluster = SimulatedCluster(5, settings=settings)
        cluster.start([A, B, C])
        cluster.advance(1)
        cluster.network.partition([A, B], [C])
        earlier, client = cluster.client(), cluster.client()
        earlier.put(A, "x", "1")
        client.put(B, "y", "2")
        decode = cluster.nodes[C].payloads.decode
        seen, payload = decode(earlier.token).vector, decode(client.token)
        forward = Forward(
            operation=Operation.PUT,
            key="k",
            value=b"1",
            vector=dict(payload.vector),
            lamport=payload.lamport,
            seen=dict(seen),
            budget_ms=400,
        )
        answering = cluster.nodes[C].answer_peer(D, 1, forward)
        cluster.disks[C].full = True
        refused = cluster.nodes[C].put("z", b"1", EMPTY_PAYLOAD)
        refused.addErrback(lambda failure: failure.trap(StorageFull) and None)
        cluster.advance(0.03)
        self.assertTrue(cluster.nodes[C].cluster.committer.full)
        cluster.disks[C].full = False
        answer = cluster.wait(answering)
        assert isinstance(answer, ForwardAnswer)
        self.assertEqual(answer.status, 201)
        self.assertLessEqual(seen.items(), answer.vector.items())


class NameTests(SynchronousTestCase):
    """Two processes that use one name."""

    def test_two_processes_under_one_name_do_not_fill_the_log(self) -> None:
        """A peer that seems to start anew with every message is told of once."""
        told: list[str] = []

        @implementer(ILogObserver)
        def watch(event: LogEvent) -> None:
            told.append(formatEvent(event))

        cluster = SimulatedCluster(1, k=3)
        cluster.start([A, B])
        cluster.advance(3)
        globalLogPublisher.addObserver(watch)
        self.addCleanup(globalLogPublisher.removeObserver, watch)
        node, hello = cluster.nodes[A], Hello(cluster.nodes[B].cluster.header())
        for boot_id in [1, 2] * 50:
            cluster.wait(node.answer_peer(B, boot_id, hello))
            cluster.wait(node.answer_peer(A, boot_id, hello))
        anew = [line for line in told if "was started anew" in line]
        ours = [line for line in told if "under our name" in line]
        self.assertEqual((len(anew), len(ours)), (1, 1))


class TakenBackTests(SynchronousTestCase):
    """What was applied and found no room on the disk has not happened (R6)."""

    def test_a_view_change_that_found_no_room_makes_nobody_sure(self) -> None:
        """Found by `kvs simulate`: alone for a moment, a node served for good."""
        cluster = SimulatedCluster(7, disk_s=(0.05, 0.06))
        cluster.start([A, B])
        cluster.advance(1)
        cluster.kill(A)
        cluster.kill(B)
        cluster.start([B], view=[A, B])
        cluster.advance(1)
        node = cluster.nodes[B]
        self.assertIs(node.cluster.standing, Standing.PROVISIONAL)
        cluster.disks[B].full = True
        refused = node.update_view("remove", A).addErrback(lambda _: None)
        cluster.wait(refused)
        self.assertEqual(node.cluster.view.order, (A, B))
        cluster.advance(1)
        self.assertIs(node.cluster.standing, Standing.PROVISIONAL)


class LostDotTests(SynchronousTestCase):
    """What nobody could give is not waited for a while (H12)."""

    def test_what_has_come_since_holds_up_nothing_after_it(self) -> None:
        """Found by `kvs simulate`: a write after one that had come was not fetched."""
        cluster = SimulatedCluster(6)
        cluster.start([A, B, C])
        cluster.advance(1)
        cluster.network.partition([A, B], [C])
        client = cluster.client()
        client.put(A, "k", "1")
        self.assertIsNone(client.get(C, "k"))
        self.assertTrue(client.stale)
        fetch, actor = cluster.nodes[C].fetch, cluster.nodes[A].replica.actor
        self.assertEqual(fetch.obtainable({actor: 1}), {})
        self.assertEqual(fetch.obtainable({actor: 2}), {})
        cluster.network.heal()
        cluster.advance(0.7)
        self.assertEqual(fetch.obtainable({actor: 2}), {actor: 2})


class BusyTests(SynchronousTestCase):
    """A node that receives a delta in parts takes no other one meanwhile."""

    def test_a_read_asks_again_who_was_busy(self) -> None:
        """Found by `kvs simulate`: it was answered at once, and marked."""
        cluster = SimulatedCluster(6)
        cluster.start([A, B, C])
        cluster.advance(1)
        asked: list[Name] = []
        pulls = cluster.nodes[C].pulls
        ask = pulls.pull

        def busy_at_first(peer: Name, *, connect_s: float) -> Deferred[bool]:
            asked.append(peer)
            if len(asked) < 4:
                return succeed(False)
            return ask(peer, connect_s=connect_s)

        pulls.pull = busy_at_first  # type: ignore[method-assign] # the others are busy
        cluster.network.cut(B, C)
        cluster.nodes[B].pushes.push = lambda versions: None  # type: ignore[method-assign] # nobody is told
        client = cluster.client()
        client.put(B, "k", "v")
        cluster.network.heal()
        self.assertEqual(client.get(C, "k"), "v")
        self.assertFalse(client.stale)
        self.assertGreaterEqual(len(asked), 4)


class ProxyTests(SynchronousTestCase):
    """What a proxy knows of the writes that it has handed on."""

    def test_what_a_proxy_has_heard_is_logged_by_its_next_beat(self) -> None:
        """Found by `kvs simulate`: not before the next write, where all were wiped."""
        cluster = SimulatedCluster(1, k=2)
        cluster.start([A, B, C])
        cluster.advance(1)
        cluster.wait(cluster.nodes[C].put("k", b"1", EMPTY_PAYLOAD))
        for name in (A, B):
            cluster.kill(name, keep_disk=False)
        cluster.start([A, B], view=[A, B, C])
        cluster.advance(2)
        proxy = cluster.nodes[C].replica
        self.assertTrue(proxy.applied.clock)
        self.assertEqual(proxy.durable.clock, proxy.applied.clock)
