"""Faults that were found by review, each as the history that showed it."""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from twisted_kvs.core.causality import Name
from twisted_kvs.core.errors import Overloaded
from twisted_kvs.core.messages import Forward, Operation, Refused, Standing
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
            with self.assertRaises(Overloaded):
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
