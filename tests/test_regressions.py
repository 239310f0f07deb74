"""Faults that were found by review, each as the history that showed it."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twisted_kvs.core.causality import Name
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
