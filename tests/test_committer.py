"""Group commit, and what becomes of those who wait (R6)."""

from __future__ import annotations

import random

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from twisted_kvs.committer import Committer
from twisted_kvs.core.errors import DiskFull
from twisted_kvs.core.messages import Commit, CommitResult
from twisted_kvs.core.names import parse_name
from twisted_kvs.core.payload import EMPTY_PAYLOAD
from twisted_kvs.core.replica import Replica
from twisted_kvs.core.settings import Settings
from twisted_kvs.core.view import ReplicaCount, View
from twisted_kvs.storage.memory import MemoryStorage

SETTINGS = Settings(value_bytes_max=100)


class Broken(Exception):
    """A disk that does what it should not."""


class CommitterTests(SynchronousTestCase):
    """``Committer``, over a store whose commits are durable on demand."""

    def setUp(self) -> None:
        """Start a replica on an empty disk."""
        self.clock = Clock()
        self.storage = MemoryStorage(manual=True)
        self.published: list[Commit] = []
        self.deaths: list[Failure] = []
        stored = Replica.fresh_state(View(), ReplicaCount(0, 3))
        self.replica = Replica(
            name=parse_name("10.0.0.1:80"),
            reader=self.storage,
            stored=stored,
            rng=random.Random(1),
        )
        self.committer = Committer(
            self.replica,
            self.storage,
            stored=stored,
            settings=SETTINGS,
            clock=self.clock,
            rng=random.Random(2),
            published=self.publish,
            fatal=self.deaths.append,
        )

    def publish(self, commit: Commit, result: CommitResult) -> None:
        """Take note of a commit that is durable."""
        self.assertEqual(result, self.committer.result)
        self.assertEqual(commit.number, self.replica.durable_commit)
        self.published.append(commit)

    def put(self, key: str, *, ended: list[str]) -> Deferred[None]:
        """Write, and note the key when it is durable, with a ``!`` when it failed."""
        self.committer.waiting_bytes += 1
        written = self.replica.put(key, b"1", EMPTY_PAYLOAD, wall_us=1)
        waiting = self.committer.durable(written.commit)
        waiting.addCallbacks(
            lambda _: ended.append(key), lambda failure: self.full(failure, key, ended)
        )
        return waiting

    def full(self, failure: Failure, key: str, ended: list[str]) -> None:
        """Note that a write found no room."""
        failure.trap(DiskFull)
        ended.append(f"{key}!")

    def refuse(self, error: BaseException | None = None) -> None:
        """Let the commit under way fail."""
        self.storage.fail_next(error or DiskFull("no room"))
        self.storage.flush()

    def test_what_comes_while_a_commit_is_under_way_goes_into_the_next(self) -> None:
        """Many writes share one commit, and so the cost of the disk."""
        ended: list[str] = []
        for key in ("a", "b", "c", "d"):
            self.put(key, ended=ended)
        self.assertEqual(ended, [])
        self.storage.flush()
        self.assertEqual(ended, ["a"])
        self.storage.flush()
        self.assertEqual(ended, ["a", "b", "c", "d"])
        self.assertFalse(self.storage.flush())
        sizes = [len(commit.minted) for commit in self.published]
        self.assertEqual((sizes, self.committer.commits), ([1, 3], 2))

    def test_what_is_durable_is_not_waited_for(self) -> None:
        """Who asks later is told at once."""
        ended: list[str] = []
        self.put("a", ended=ended)
        self.storage.flush()
        number = self.replica.durable_commit
        self.assertIsNone(self.successResultOf(self.committer.durable(number)))

    def test_everything_is_published_before_anybody_is_answered(self) -> None:
        """When a client hears of its write, the push of it is on its way."""
        seen: list[int] = []
        written = self.replica.put("a", b"1", EMPTY_PAYLOAD, wall_us=1)
        waiting = self.committer.durable(written.commit)
        waiting.addCallback(lambda _: seen.append(len(self.published)))
        self.storage.flush()
        self.assertEqual(seen, [1])

    def test_nothing_to_store_is_nothing_to_do(self) -> None:
        """A replica at rest is committed; to drain it takes no time."""
        self.committer.kick()
        self.assertIsNone(self.storage.waiting)
        self.assertIsNone(self.successResultOf(self.committer.drained()))

    def test_bytes_that_wait_are_counted_down(self) -> None:
        """What is durable waits no more, so that the limit lets new writes in."""
        ended: list[str] = []
        for key in ("a", "b"):
            self.put(key, ended=ended)
        counts = [self.committer.waiting_bytes]
        while self.storage.flush():
            counts.append(self.committer.waiting_bytes)
        self.assertEqual(counts, [2, 1, 0])

    def test_draining_waits_for_all_that_was_applied(self) -> None:
        """A node that stops loses nothing that it took."""
        ended: list[str] = []
        self.put("a", ended=ended)
        self.put("b", ended=ended)
        drained = self.committer.drained()
        self.storage.flush()
        self.assertNoResult(drained)
        self.storage.flush()
        self.successResultOf(drained)
        self.assertEqual(ended, ["a", "b"])

    def test_draining_ends_where_the_disk_is_full(self) -> None:
        """A node whose disk is full can be stopped."""
        ended: list[str] = []
        self.put("a", ended=ended)
        drained = self.committer.drained()
        self.refuse()
        self.successResultOf(drained)
        self.assertEqual(ended, ["a!"])
        self.flushLoggedErrors()

    def test_a_full_disk_fails_all_who_wait_and_keeps_nothing(self) -> None:
        """No write is half there: those in the commit and after it are taken back."""
        ended: list[str] = []
        self.put("a", ended=ended)
        self.storage.flush()
        actor = self.replica.actor
        for key in ("b", "c"):
            self.put(key, ended=ended)
        self.refuse()
        self.assertEqual(sorted(ended), ["a", "b!", "c!"])
        self.assertTrue(self.committer.full)
        self.assertEqual(self.committer.waiting_bytes, 0)
        self.assertEqual(dict(self.replica.applied.vv), {actor: 1})
        self.assertNotEqual(self.replica.actor, actor)
        self.assertEqual(self.deaths, [])

    def test_a_full_disk_is_tried_every_second(self) -> None:
        """Once there is room for the greatest version, writes are taken again."""
        ended: list[str] = []
        self.put("a", ended=ended)
        self.refuse()
        for _ in range(3):
            self.clock.advance(SETTINGS.full_disk_retry_s - 0.01)
            self.assertIsNone(self.storage.waiting)
            self.clock.advance(0.01)
            tried = self.storage.waiting
            assert tried is not None and tried.stage is not None
            self.assertEqual(len(tried.stage.versions[0].value or b""), 100)
            self.refuse()
        self.clock.advance(SETTINGS.full_disk_retry_s)
        self.storage.flush()
        self.assertTrue(self.committer.full, "it also has to drop what it tried with")
        self.storage.flush()
        self.assertFalse(self.committer.full)
        self.assertEqual(self.storage.count(), 0)
        self.put("b", ended=ended)
        self.storage.flush()
        self.assertEqual(ended, ["a!", "b"])
        self.clock.advance(10)
        self.assertIsNone(self.storage.waiting)

    def test_one_failure_more_is_no_second_try(self) -> None:
        """However many commits fail, the disk is tried once a second."""
        for _ in range(3):
            self.put("a", ended=[])
            self.refuse()
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)

    def test_any_other_failure_is_the_end(self) -> None:
        """A node that cannot know what is on its disk must not answer."""
        ended: list[str] = []
        self.put("a", ended=ended)
        self.refuse(Broken("bad sector"))
        self.assertEqual(ended, [])
        self.assertEqual([f.type for f in self.deaths], [Broken])
        self.put("b", ended=ended)
        self.assertIsNone(self.storage.waiting)
        self.successResultOf(self.committer.drained())

    def test_nothing_happens_after_the_stop(self) -> None:
        """A node that was stopped commits nothing and tries nothing."""
        self.put("a", ended=[])
        self.refuse()
        self.committer.stop()
        self.put("b", ended=[])
        self.clock.advance(10)
        self.assertIsNone(self.storage.waiting)
        self.committer.stop()

    def test_a_node_that_must_end_tries_no_more(self) -> None:
        """A disk that was full and then fails otherwise is not written again."""
        self.put("a", ended=[])
        self.refuse()
        self.put("b", ended=[])
        self.refuse(Broken("bad sector"))
        self.clock.advance(10)
        self.assertIsNone(self.storage.waiting)
        self.assertEqual(len(self.deaths), 1)
