"""The store in memory: the contract, and what simulations do with it."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from twisted_kvs.core.errors import DiskFull
from twisted_kvs.core.messages import Commit, CommitResult
from twisted_kvs.storage.api import START, SnapshotLost, Storage
from twisted_kvs.storage.memory import MemoryStorage

from . import contract, deletes
from .commits import A, dots, listed, version


class _Memory(contract.StorageCase):
    storage: MemoryStorage

    def make(self) -> Storage:
        return MemoryStorage()

    def again(self) -> Storage:
        return self.storage

    def crash(self) -> Storage:
        self.storage.crash()
        return self.storage


class MemoryTests(_Memory, contract.StorageContract, deletes.DeletesContract):
    """Commits that are durable at once."""


class _Manual(_Memory):
    def make(self) -> Storage:
        return MemoryStorage(manual=True)

    def give(self, commit: Commit) -> Deferred[CommitResult]:
        done = self.storage.commit(commit)
        self.storage.flush()
        return done


class ManualMemoryTests(_Manual, contract.StorageContract, deletes.DeletesContract):
    """Commits that are durable when a simulation says so."""


class SimulatedDiskTests(_Manual):
    """What a simulation can let happen to a store."""

    def test_commit_is_invisible_until_it_is_flushed(self) -> None:
        """A write can be read when it is durable, and not before."""
        self.put(version(A, 1))
        commit = self.commits.of(insert=[version(A, 2, past={A: 1})], remove=[(A, 1)])
        done = self.storage.commit(commit)
        self.assertNoResult(done)
        self.assertIs(self.storage.waiting, commit)
        self.assertEqual(self.held(), [(A, 1)])
        self.assertEqual(dots(self.visible()), [(A, 1)])
        self.assertTrue(self.storage.flush())
        self.assertFalse(self.storage.flush())
        self.assertEqual(self.successResultOf(done), self.storage.result)
        self.assertEqual(self.held(), [(A, 2)])

    def test_crash_loses_the_commit_under_way(self) -> None:
        """A crash takes back what was not durable; its caller never hears of it."""
        kept = self.commits.of(insert=[version(A, 1)])
        self.finish(kept)
        snapshot = self.storage.snapshot()
        done = self.storage.commit(self.commits.of(insert=[version(A, 2, "other")]))
        self.restart()
        self.assertNoResult(done)
        self.assertFalse(self.storage.flush())
        self.assertEqual(self.stored, kept.state)
        self.assertEqual(self.held("other"), [])
        with self.assertRaises(SnapshotLost):
            snapshot.missing({}, START, versions_max=1, bytes_max=1)

    def test_commit_can_be_made_to_fail(self) -> None:
        """A failed commit stores nothing, and the store can be used on."""
        self.put(version(A, 1))
        before = self.storage.result
        self.storage.fail_next(DiskFull("no room"))
        done = self.storage.commit(self.commits.of(insert=[version(A, 2, "other")]))
        self.storage.flush()
        self.failureResultOf(done, DiskFull)
        self.assertEqual(self.storage.result, before)
        self.assertEqual(self.held("other"), [])
        self.put(version(A, 2, "other"))
        self.assertEqual(self.held("other"), [(A, 2)])

    def test_closing_finishes_the_commit_under_way(self) -> None:
        """A store that is closed has stored what it was given."""
        done = self.storage.commit(self.commits.of(insert=[version(A, 1)]))
        self.close()
        self.successResultOf(done)
        self.assertEqual(self.held(), [(A, 1)])

    def test_snapshots_can_be_taken_away(self) -> None:
        """A delta that is being sent can lose its snapshot, as on a full disk."""
        self.put(version(A, 1))
        snapshot = self.storage.snapshot()
        self.assertEqual(dots(listed(snapshot)), [(A, 1)])
        self.storage.lose_snapshots()
        with self.assertRaises(SnapshotLost):
            snapshot.missing({}, START, versions_max=1, bytes_max=1)
