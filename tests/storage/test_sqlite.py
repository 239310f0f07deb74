"""The store in a directory: the contract, and what only a disk can do to it."""

from __future__ import annotations

import os
import queue
import resource
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_kvs.core.causality import Name, make_actor
from twisted_kvs.core.errors import DiskFull
from twisted_kvs.core.messages import Commit, CommitResult
from twisted_kvs.storage.api import START, SnapshotLost, Storage
from twisted_kvs.storage.sqlite import WAL_BYTES_MAX, SqliteStorage
from twisted_kvs.storage.thread import CallersThread, CallRunner, StoreThread

from . import contract, deletes
from .commits import NAME, A, B, C, dots, fence_of, hash_of, listed, run_of, version

T = TypeVar("T")
WAIT_S = 30


class SqliteCase(contract.StorageCase):
    """A store in a directory."""

    storage: SqliteStorage

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        super().setUp()

    def make(self) -> Storage:
        return self.in_directory(CallersThread())

    def in_directory(
        self, thread: CallRunner, *, wal_bytes_max: int = WAL_BYTES_MAX
    ) -> SqliteStorage:
        return SqliteStorage(
            self.path,
            name=NAME,
            fingerprints=("f1",),
            thread=thread,
            wal_bytes_max=wal_bytes_max,
        )

    def again(self) -> Storage:
        return self.make()

    def crash(self) -> Storage:
        # What is on disk while the store is open is what a kill leaves.
        image = Path(self.mktemp())
        shutil.copytree(self.path, image)
        self.close()
        self.path = image
        return self.make()

    @contextmanager
    def file_size_limit(self, bytes_: int) -> Iterator[None]:
        """Let no file grow over a size, as a full disk or a quota would."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class DaemonTests(SqliteCase):
    """What a daemon does between the check and the opening."""

    def test_directory_is_that_of_the_start(self) -> None:
        """A relative directory stays where it was when the process was configured."""
        self.path = Path(self.mktemp())
        store = self.in_directory(CallersThread())
        here = Path.cwd()
        self.addCleanup(os.chdir, here)
        os.chdir("/")
        store.open()
        self.successResultOf(store.close())
        self.assertTrue((here / self.path / "kvs.sqlite").exists())


class SqliteTests(SqliteCase, contract.StorageContract, deletes.DeletesContract):
    """Commits written where they are made, without a thread."""


class DiskTests(SqliteCase):
    """What is on the disk beside what can be seen."""

    def rows(self) -> int:
        """Count the rows of versions, by another connection."""
        connection = sqlite3.connect(self.path / "kvs.sqlite")
        try:
            (count,) = connection.execute("SELECT count(*) FROM version").fetchone()
        finally:
            connection.close()
        return int(count)

    def test_dropped_stage_takes_no_room(self) -> None:
        """A delta that broke off leaves no rows, be it by a crash."""
        self.put(version(A, 1))
        self.stage(1, *run_of(B, range(1, 2501)))
        self.finish(self.commits.drop(1))
        self.assertEqual(self.rows(), 1)
        self.stage(2, *run_of(B, range(1, 2501)))
        self.stage(3, *run_of(C, range(1, 2501)))
        self.finish(self.commits.validate(3, {C: 2500}))
        self.assertEqual(self.rows(), 5001)
        self.restart()
        self.assertEqual(self.rows(), 2501)
        self.assertEqual(len(self.visible()), 2501)


class ActorTests(SqliteCase):
    """The table of actors, without which no row can be read."""

    def test_a_name_that_is_looked_for_in_vain_hides_no_new_one(self) -> None:
        """A fold looks for an actor of a claim, beside a part with another new one."""
        gone = make_actor(Name("10.0.0.9:8080"), 9)
        self.put(*run_of(A, range(1, 200)))
        live = [(A, n) for n in range(1, 200, 2)]
        self.finish(self.commits.part(1, (), live))
        claim = {A: 199, gone: 3}
        self.finish(self.commits.validate(1, claim, fence_of(claim, live)))
        part = self.commits.part(2, [version(C, n, f"c{n}") for n in (1, 2)])
        self.finish(replace(part, fold_versions=500))
        self.finish(self.commits.validate(2, {C: 2}))
        self.assertEqual(self.held("c1"), [(C, 1)])
        self.restart()
        self.assertEqual(self.held("c1"), [(C, 1)])


class _SlowThread:
    """Runs calls when told, and answers when told."""

    def __init__(self) -> None:
        self._calls: list[Callable[[], None]] = []
        self._answers: list[Callable[[], None]] = []

    def run(self, call: Callable[[], T]) -> Deferred[T]:
        done: Deferred[T] = Deferred()

        def work() -> None:
            try:
                result = call()
            except Exception:
                failure = Failure()
                self._answers.append(lambda: done.errback(failure))
            else:
                self._answers.append(lambda: done.callback(result))

        self._calls.append(work)
        return done

    run_beside = run

    def stop(self) -> Deferred[None]:
        return succeed(None)

    def work(self) -> None:
        """Run all calls, answer none."""
        while self._calls:
            self._calls.pop(0)()

    def step(self) -> None:
        """Run all calls, and answer the first."""
        self.work()
        self._answers.pop(0)()

    def answer(self) -> None:
        """Run all calls and answer them."""
        while self._calls or self._answers:
            self.work()
            self._answers.pop(0)()


class PublicationTests(SqliteCase):
    """Between the writer's commit and its publication on the reactor's thread."""

    def make(self) -> Storage:
        self.thread = _SlowThread()
        return self.in_directory(self.thread)

    def close(self) -> None:
        closed = self.storage.close()
        self.thread.answer()
        self.successResultOf(closed)

    def give(self, commit: Commit) -> Deferred[CommitResult]:
        done = self.storage.commit(commit)
        self.thread.answer()
        return done

    def test_valid_stage_is_seen_when_it_is_published(self) -> None:
        """A delta becomes visible in one turn of the reactor, not before."""
        self.put(version(A, 1))
        self.stage(1, version(B, 1, past={A: 1}), version(B, 2, "other"))
        done = self.storage.commit(self.commits.validate(1, {B: 2}))
        self.thread.work()
        self.assertNoResult(done)
        self.assertEqual((self.held(), self.held("other")), ([(A, 1)], []))
        self.assertEqual(dots(self.storage.staged(1, "k")), [(B, 1)])
        self.assertEqual(self.storage.result.unfolded, 0)
        self.thread.answer()
        self.assertEqual(self.successResultOf(done).unfolded, 2)
        self.assertEqual((self.held(), self.held("other")), ([(B, 1)], [(B, 2)]))

    def test_who_was_in_a_commit_that_found_no_room_is_known_later(self) -> None:
        """Although a dropped stage has been swept away in between."""
        self.successResultOf(self.give(self.commits.of(insert=[version(A, 1)])))
        self.successResultOf(self.give(self.commits.part(1, run_of(B, range(1, 5001)))))
        dropped = self.storage.commit(self.commits.drop(1))
        self.thread.step()
        self.successResultOf(dropped)
        big = self.commits.of(insert=[version(C, 1, "big", value=b"1" * 2**22)])
        with self.file_size_limit(self.storage.wal_bytes + 2**21):
            failed = self.storage.commit(big)
            self.thread.answer()
            self.failureResultOf(failed, DiskFull)
        again = self.commits.of(insert=[version(C, 1, "small")])
        self.successResultOf(self.give(again))
        self.assertEqual(self.held("small"), [(C, 1)])
        self.restart()
        self.assertEqual(self.held("small"), [(C, 1)])

    def test_commit_leaves_other_keys_as_they_are(self) -> None:
        """Folding and writing under way change nothing at keys they do not touch."""
        self.put(version(A, 1), version(A, 2, "other"))
        self.stage(1, version(B, 1, past={A: 1}), version(B, 2, "other"))
        self.finish(self.commits.validate(1, {B: 2}))
        seen = [self.held(key) for key in ("k", "other")]
        done = self.storage.commit(self.commits.of(insert=[version(C, 1, "z")], fold=9))
        self.thread.work()
        self.assertNoResult(done)
        self.assertEqual([self.held(key) for key in ("k", "other")], seen)
        self.thread.answer()
        self.assertEqual([self.held(key) for key in ("k", "other")], seen)

    def test_snapshot_of_an_unpublished_commit_is_whole(self) -> None:
        """A snapshot shows one commit, be it durable and not yet published."""
        self.put(version(A, 1))
        commit = self.commits.of(insert=[version(A, 2, past={A: 1})], remove=[(A, 1)])
        done = self.storage.commit(commit)
        before = self.storage.snapshot()
        self.thread.work()
        after = self.storage.snapshot()
        self.assertEqual(dots(listed(before)), [(A, 1)])
        self.assertEqual(dots(listed(after)), [(A, 2)])
        self.assertEqual(after.state, commit.state)
        self.assertEqual(after.result.live_hash, hash_of(listed(after)))
        self.assertEqual(after.age_commits, 0)
        self.thread.answer()
        self.successResultOf(done)
        self.assertEqual((before.age_commits, after.age_commits), (1, 0))

    def test_cancelled_commit_is_published(self) -> None:
        """Whoever stops waiting for a commit does not undo it."""
        self.put(version(A, 1))
        done = self.storage.commit(self.commits.of(insert=[version(B, 1, "other")]))
        done.cancel()
        self.failureResultOf(done, CancelledError)
        self.thread.answer()
        self.assertEqual(self.storage.count(), 2)
        self.assertEqual(self.storage.result.live_hash, hash_of(self.visible()))

    def test_closing_finishes_the_commit_under_way(self) -> None:
        """A store that is closed has stored what it was given."""
        done = self.storage.commit(self.commits.of(insert=[version(A, 1)]))
        closed = self.storage.close()
        self.assertNoResult(closed)
        self.thread.answer()
        self.successResultOf(done)
        self.successResultOf(closed)
        self.storage = self.in_directory(self.thread)
        self.storage.open()
        self.assertEqual(self.held(), [(A, 1)])

    def test_dropped_stage_goes_between_commits(self) -> None:
        """A client's write does not wait until a big dropped stage is gone."""
        self.stage(1, *run_of(B, range(1, 5001)))
        dropped = self.storage.commit(self.commits.drop(1))
        written = self.storage.commit(self.commits.of(insert=[version(A, 1)]))
        turns = 0
        while not written.called:
            self.thread.work()
            self.thread._answers.pop(0)()
            turns += 1
        self.successResultOf(dropped)
        self.assertLess(turns, 4)


class FullDiskTests(SqliteCase):
    """A disk that takes no more."""

    def test_commit_that_does_not_fit_fails_and_nothing_else_does(self) -> None:
        """A full disk fails the write with a reason; reads and later writes go on."""
        self.put(version(A, 1))
        before = self.storage.result
        big = self.commits.of(
            insert=[version(B, 1, "big", value=b"1" * 2**20), version(C, 1)]
        )
        with self.file_size_limit(self.storage.wal_bytes + 2**19):
            self.failureResultOf(self.storage.commit(big), DiskFull)
            self.assertEqual(self.storage.result, before)
            self.assertEqual((self.held(), self.held("big")), ([(A, 1)], []))
            self.assertEqual(dots(self.visible()), [(A, 1)])
        # The same again, actors that were new in what failed included.
        self.finish(big)
        self.assertEqual(self.held("big"), [(B, 1)])
        self.restart()
        self.assertEqual(dots(self.visible()), [(A, 1), (B, 1), (C, 1)])
        self.assertEqual(self.storage.result.live_hash, hash_of(self.visible()))

    def test_stage_that_does_not_fit_can_be_dropped(self) -> None:
        """A delta that found no room leaves a store that can go on with another."""
        self.put(version(A, 1))
        self.stage(1, version(B, 1))
        part = self.commits.part(1, [version(B, 2, "big", value=b"1" * 2**20)])
        with self.file_size_limit(self.storage.wal_bytes + 2**19):
            self.failureResultOf(self.storage.commit(part), DiskFull)
            self.finish(self.commits.drop(1))
        self.stage(2, version(B, 1), version(B, 2, "other"))
        self.assertEqual(self.finish(self.commits.validate(2, {B: 2})).unfolded, 2)
        self.assertEqual(self.storage.result.live_hash, hash_of(self.visible()))

    def test_log_that_cannot_be_worked_off_waits(self) -> None:
        """A full disk stops the log from being worked off, and commits go on in it."""
        self.put(version(A, 1))
        size = (self.path / "kvs.sqlite").stat().st_size
        value = b"1" * 2**20
        for n in range(2, 12):
            self.put(version(A, n, "big", past={A: n - 1}, value=value))
        with self.file_size_limit(size):
            # Nothing can be written, so nothing is lost and nothing else breaks.
            self.failureResultOf(
                self.storage.commit(self.commits.of(insert=[version(B, 1)])), DiskFull
            )
        self.put(version(B, 1))
        self.restart()
        self.assertEqual(len(self.visible()), 12)


class LogTests(SqliteCase):
    """The log that snapshots keep from being cut."""

    def grow(self, mebibytes: int) -> None:
        """Overwrite one big value so often that the log grows by so much."""
        for _ in range(mebibytes):
            last = self.held("big")
            n = last[0][1] + 1 if last else 1
            self.put(
                version(
                    A, n, "big", past={A: n - 1} if n > 1 else {}, value=b"1" * 2**20
                ),
                remove=last,
            )

    def test_log_does_not_grow_without_snapshots(self) -> None:
        """Any number of commits leaves a log of a few dozen megabytes."""
        self.grow(80)
        self.assertLess(self.storage.wal_bytes, 40 * 2**20)

    def test_snapshots_are_lost_when_the_log_grows_too_long(self) -> None:
        """A delta that is fetched too slowly breaks off before the disk is full."""
        self.close()
        self.storage = self.in_directory(CallersThread(), wal_bytes_max=20 * 2**20)
        self.storage.open()
        self.put(*run_of(B, range(1, 100)))
        snapshots = [self.storage.snapshot() for _ in range(6)]
        self.grow(10)
        self.assertEqual(len(listed(snapshots[0])), 99)
        self.grow(30)
        for snapshot in snapshots:
            with self.assertRaises(SnapshotLost):
                snapshot.missing({}, START, versions_max=1, bytes_max=1)
            snapshot.close()
        held = self.storage.wal_bytes
        self.grow(60)
        self.assertLess(self.storage.wal_bytes, held + 20 * 2**20)
        self.assertEqual(len(self.visible()), 100)


@implementer(IReactorFromThreads)
class _CalledReactor:
    """Takes calls from a thread, and runs them when the test waits for them."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()

    def callFromThread(self, callable: Any, *args: object, **kwargs: object) -> None:  # noqa: A002  # the interface's name
        self._calls.put(lambda: callable(*args, **kwargs))

    def wait_for(self, done: Deferred[T]) -> Deferred[T]:
        """Run calls until ``done`` has fired."""
        fired: list[None] = []

        def fire(result: T) -> T:
            fired.append(None)
            return result

        done.addBoth(fire)
        while not fired:
            self._calls.get(timeout=WAIT_S)()
        return done


class ThreadTests(SqliteCase):
    """The store with a thread of its own."""

    def setUp(self) -> None:
        self.threads = threading.active_count()
        super().setUp()

    def make(self) -> Storage:
        self.reactor = _CalledReactor()
        return self.in_directory(StoreThread(self.reactor))

    def close(self) -> None:
        self.successResultOf(self.reactor.wait_for(self.storage.close()))

    def give(self, commit: Commit) -> Deferred[CommitResult]:
        return self.reactor.wait_for(self.storage.commit(commit))

    def test_thread_lives_as_long_as_the_store_is_open(self) -> None:
        """A thread is started by the first commit, and ended by closing."""
        self.assertEqual(threading.active_count(), self.threads)
        self.put(version(A, 1))
        self.assertEqual(threading.active_count(), self.threads + 1)
        self.close()
        self.assertEqual(threading.active_count(), self.threads)
        self.successResultOf(self.storage.close())
        self.storage.open()
        self.assertEqual(self.held(), [(A, 1)])
        self.put(version(A, 2, "other"))
        self.assertEqual(self.held("other"), [(A, 2)])

    def test_reads_go_on_while_a_commit_is_written(self) -> None:
        """Reads and snapshots see whole commits while others are being written."""
        self.put(version(A, 1))
        for n in range(2, 50):
            done = self.storage.commit(
                self.commits.of(
                    insert=[version(A, n, past={A: n - 1})], remove=[(A, n - 1)]
                )
            )
            self.assertIn(self.held(), [[(A, n - 1)], [(A, n)]])
            snapshot = self.storage.snapshot()
            (found,) = listed(snapshot)
            self.assertEqual(snapshot.state.vv, {A: found.counter})
            snapshot.close()
            self.successResultOf(self.reactor.wait_for(done))
            self.assertEqual(self.held(), [(A, n)])

    def test_long_work_is_done_beside_commits(self) -> None:
        """What may take long does not hold up what is written in turn."""
        thread = StoreThread(self.reactor)
        go_on = threading.Event()
        beside = thread.run_beside(lambda: go_on.wait(WAIT_S))
        self.assertEqual(self.successResultOf(self.turn(thread, lambda: 1)), 1)
        self.assertNoResult(beside)
        go_on.set()
        self.assertTrue(self.successResultOf(self.reactor.wait_for(beside)))
        self.successResultOf(self.reactor.wait_for(thread.stop()))

    def turn(self, thread: StoreThread, call: Callable[[], T]) -> Deferred[T]:
        """Let a thread run a call."""
        return self.reactor.wait_for(thread.run(call))

    def test_errors_come_back_to_the_caller(self) -> None:
        """What fails on the thread fails the commit, and the thread goes on."""
        above = version(C, 2**50)
        self.failureResultOf(self.give(self.commits.of(insert=[above])), ValueError)
        self.put(version(A, 1))
        self.assertEqual(self.held(), [(A, 1)])
