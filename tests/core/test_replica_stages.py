"""One replica: deltas in parts, failed commits, and data that is dropped (R6, R7)."""

from __future__ import annotations

import random

from twisted.internet.defer import Deferred

from tests.core.replica_case import ReplicaCase
from twisted_kvs.core.causality import leq
from twisted_kvs.core.errors import BadPeerMessage, DiskFull
from twisted_kvs.core.messages import CommitResult
from twisted_kvs.core.payload import before


class StageTests(ReplicaCase):
    """Deltas in parts (R7)."""

    def test_nothing_of_a_stage_is_seen_before_all_of_it_is(self) -> None:
        """Parts are invisible; the commit after the last shows all at once."""
        a, b = self.stations(2)
        x, k = a.put("x").version, a.put("k").version
        stage = b.stage(a.delta(session=1), [x], [k])
        self.assertEqual([b.value("x"), b.value("k"), b.vv], [None, None, {}])
        commit = b.do(b.replica.finish_stage, stage)
        self.assertEqual(b.vv, a.vv)
        self.assertEqual([b.value("x"), b.value("k")], [None, None])
        b.commit()
        self.assertEqual(commit, b.replica.durable_commit)
        self.assertEqual([b.value("x"), b.value("k")], [b'"v"', b'"v"'])
        self.assertEqual(stage.versions, 2)
        self.assertEqual(b.fold(), 2)
        self.assertEqual(a.storage.result, b.storage.result)

    def test_the_clock_moves_with_the_stage(self) -> None:
        """A write after a stage follows all that its versions follow."""
        a, b, c = self.stations(3)
        unseen = c.put("x")
        version = a.put("k", payload=unseen.payload).version
        stage = b.stage(a.delta(session=1), [version])
        self.assertFalse(leq(unseen.version.upto, b.put("y").version.past))
        b.do(b.replica.finish_stage, stage)
        self.assertTrue(leq(unseen.version.upto, b.put("z").version.past))

    def test_writes_meanwhile_are_merged(self) -> None:
        """What is written while a stage comes in stands beside it or above it."""
        a, b = self.stations(2)
        first = a.put("x", b"1", at=5)
        k = a.put("k", b"1", at=5).version
        stage = b.stage(a.delta(session=1), [first.version], [k])
        b.put("x", b"2", payload=first.payload)
        b.put("k", b"older", at=1)
        b.do(b.replica.finish_stage, stage)
        late = b.put("k", b"3", durable=False)
        self.assertTrue(leq(k.upto, late.version.past))
        b.commit()
        self.assertEqual([b.value("x"), b.value("k")], [b"2", b"3"])
        b.fold()
        self.assertEqual([b.value("x"), b.value("k")], [b"2", b"3"])
        a.pull(b)
        self.assertEqual(a.storage.result.live_hash, b.storage.result.live_hash)

    def test_pushes_meanwhile_count_once(self) -> None:
        """What was pushed while a stage came in is not taken from the stage again."""
        a, b = self.stations(2)
        first, second = a.put("x").version, a.put("k", b"1").version
        stage = b.stage(a.delta(session=1), [first, second])
        b.push(first, second)
        newer = a.put("k", b"2").version
        b.push(newer)
        b.do(b.replica.finish_stage, stage)
        b.commit()
        b.fold()
        self.assertEqual(b.value("k"), b"2")
        self.assertEqual(a.storage.result, b.storage.result)

    def test_keys_under_way_see_the_stage(self) -> None:
        """A key that is being written while a stage becomes valid holds both."""
        a, b = self.stations(2)
        version = a.put("k", b"1", at=5).version
        stage = b.stage(a.delta(session=1), [version])
        b.put("k", b"2", at=1, durable=False)
        b.put("y", durable=False)
        b.do(b.replica.finish_stage, stage)
        b.commit()
        self.assertEqual(b.value("k"), b"1")
        self.assertEqual(len(b.storage.versions("k")), 2)

    def test_a_stage_whose_base_was_lost_is_dropped(self) -> None:
        """The base counts when the stage would become valid, not when it began."""
        a, b = self.stations(2)
        first = a.put("x")
        k = a.put("k").version
        stage = b.stage(a.delta(first.version.upto, session=1), [k])
        self.assertIsNone(b.do(b.replica.finish_stage, stage))
        b.commit()
        self.assertEqual([b.vv, b.value("k")], [{}, None])
        self.assertEqual(b.storage.size_bytes, 0)

    def test_a_proxy_makes_no_stage_valid(self) -> None:
        """Who was demoted while a delta came in drops it."""
        a, b = self.stations(2)
        x = a.put("x").version
        stage = b.stage(a.delta(session=1), [x])
        b.replica.set_holds_all(False)
        self.assertIsNone(b.do(b.replica.finish_stage, stage))

    def test_a_part_above_the_claim_is_refused(self) -> None:
        """A part that lists more than the delta claims is not stored."""
        a, b = self.stations(2)
        a.put("x")
        delta = a.delta(session=1)
        late = a.put("k").version
        stage = b.replica.begin_stage(delta)
        self.assertRaises(BadPeerMessage, b.do, b.replica.add_part, stage, [late])
        b.do(b.replica.drop_stage, stage)
        b.commit()
        self.assertEqual(b.storage.size_bytes, 0)

    def test_a_dropped_stage_frees_its_room(self) -> None:
        """A delta that broke off leaves nothing behind, many of them neither."""
        a, b = self.stations(2)
        x = a.put("x").version
        stages = [b.stage(a.delta(session=n), [x]) for n in (1, 2)]
        for stage in stages:
            b.do(b.replica.drop_stage, stage)
        commits = b.commit()
        self.assertEqual([c.drop_stage for c in commits], [s.number for s in stages])
        self.assertEqual((b.storage.size_bytes, b.value("x")), (0, None))

    def test_a_stage_that_ends_with_a_part_keeps_order(self) -> None:
        """A part of one stage and the end of another go in commits of their own."""
        a, b = self.stations(2)
        x = a.put("x").version
        first = b.replica.begin_stage(a.delta(session=1))
        b.replica.add_part(first, [x])
        b.do(b.replica.drop_stage, first)
        parts = [(c.stage is not None, c.drop_stage) for c in b.commit()]
        self.assertEqual(parts, [(True, None), (False, first.number)])

    def test_folding_goes_on_after_a_restart(self) -> None:
        """A valid stage survives a crash, and another may follow it."""
        a, b = self.stations(2)
        x, k = a.put("x").version, a.put("k", b"1").version
        stage = b.stage(a.delta(session=1), [x, k])
        b.do(b.replica.finish_stage, stage)
        b.commit()
        b.replica.fold(1)
        b.commit()
        again = b.restart(9)
        self.assertEqual([again.value("x"), again.value("k")], [b'"v"', b"1"])
        newer = a.put("k", b"2").version
        second = again.stage(a.delta(again.vv, session=2), [newer])
        again.do(again.replica.finish_stage, second)
        again.commit()
        again.fold()
        self.assertEqual(again.value("k"), b"2")
        self.assertEqual(a.storage.result, again.storage.result)

    def test_a_stage_that_was_not_valid_does_not_survive_a_crash(self) -> None:
        """A half-received delta is as if it had never come."""
        a, b = self.stations(2)
        x = a.put("x").version
        b.stage(a.delta(session=1), [x])
        again = b.restart(9)
        self.assertEqual([again.value("x"), again.vv], [None, {}])
        self.assertEqual(again.storage.size_bytes, 0)
        again.pull(a)
        self.assertEqual(again.value("x"), b'"v"')


class FailedCommitTests(ReplicaCase):
    """``reload`` and ``try_space`` (R6)."""

    def failing(self, done: Deferred[CommitResult]) -> None:
        """Expect that a commit found no room."""
        self.failureResultOf(done, DiskFull)

    def test_a_failed_commit_takes_back_what_it_held(self) -> None:
        """What could not be stored was never there, nor what was applied after it."""
        (a,) = self.stations(1)
        kept = a.put(value=b"1")
        failed = a.put(value=b"2", durable=False)
        given = a.give()
        assert given is not None
        a.put("x", durable=False)
        actor = a.actor
        a.storage.fail_next(DiskFull("no room"))
        a.storage.flush()
        self.failing(given[1])
        a.do(a.replica.reload, a.stored, random.Random(5))
        self.assertEqual([a.value(), a.value("x")], [b"1", None])
        self.assertEqual(a.vv, kept.payload.vector)
        self.assertTrue(a.replica.idle)
        self.assertNotEqual(a.actor, actor)
        self.assertLess(failed.commit, a.replica.last_commit + 1)
        later = a.put(value=b"3")
        self.assertGreater(later.commit, failed.commit)
        self.assertEqual((later.version.counter, a.value()), (1, b"3"))

    def test_who_minted_nothing_keeps_its_incarnation(self) -> None:
        """A reader's disk that is full does not make vectors grow."""
        a, b = self.stations(2)
        a.put()
        b.take(a.delta())
        actor = b.actor
        b.do(b.replica.reload, b.stored, random.Random(5))
        self.assertEqual((b.actor, b.vv), (actor, {}))

    def test_what_was_answered_outlives_a_failed_commit(self) -> None:
        """Writes of a node stay ordered, even if the clock was not yet logged."""
        a, b = self.stations(2)
        answered = a.put()
        b.replica.answered(answered.payload.vector)
        b.replica.hear_clock(answered.payload.vector)
        b.do(b.replica.reload, b.stored, random.Random(5))
        self.assertTrue(before(answered.payload, b.put("x").payload))

    def test_a_node_that_tries_for_room_keeps_parts_that_wait(self) -> None:
        """The try does not take the place of a part of a delta."""
        a, b = self.stations(2)
        x = a.put("x").version
        stage = b.replica.begin_stage(a.delta(session=1))
        b.replica.add_part(stage, [x])
        number = b.do(b.replica.try_space, 10)
        b.commit()
        self.assertEqual(number, b.replica.durable_commit)
        b.do(b.replica.finish_stage, stage)
        b.commit()
        b.fold()
        self.assertEqual(a.storage.result, b.storage.result)

    def test_what_could_not_be_dropped_is_dropped_later(self) -> None:
        """A stage whose drop found no room goes when there is some again."""
        a, b = self.stations(2)
        x, k = a.put("x").version, a.put("k").version
        stages = [b.stage(a.delta(session=n), [v]) for n, v in ((1, x), (2, k))]
        going_on = b.stage(a.delta(session=3), [])
        for stage in stages:
            b.do(b.replica.drop_stage, stage)
        self.assertIsNotNone(b.replica.take_commit())
        b.do(b.replica.reload, b.stored, random.Random(5))
        self.assertGreater(b.storage.size_bytes, 0)
        b.do(b.replica.drop_leftovers)
        b.commit()
        self.assertEqual(b.storage.size_bytes, 0)
        b.do(b.replica.add_part, going_on, [x, k])
        b.commit()
        b.do(b.replica.finish_stage, going_on)
        b.commit()
        self.assertEqual(b.vv, a.vv)
        b.do(b.replica.drop_leftovers)
        self.assertIsNone(b.give())

    def test_a_try_for_room_leaves_nothing(self) -> None:
        """What was stored to see whether there is room is dropped at once."""
        (a,) = self.stations(1)
        sizes = []
        a.do(a.replica.try_space, 100)
        while (given := a.give()) is not None:
            a.land(given)
            sizes.append(a.storage.size_bytes)
        self.assertEqual(sizes, [105, 0])
        self.assertEqual(a.storage.count(), 0)


class ForgetTests(ReplicaCase):
    """``forget_all`` (R13, R15)."""

    def test_a_demoted_node_keeps_its_clock_and_nothing_else(self) -> None:
        """Who drops its data still writes after all that it had seen."""
        a, b = self.stations(2)
        a.put("x")
        b.pull(a)
        own = b.put()
        a.pull(b)
        actor = b.actor
        b.do(b.replica.forget_all, random.Random(7))
        self.assertEqual(b.value("x"), b'"v"')
        b.commit()
        self.assertEqual([b.value("x"), b.vv, b.storage.count()], [None, {}, 0])
        self.assertFalse(b.replica.holds_all)
        self.assertNotEqual(b.actor, actor)
        later = b.put("k", b"later")
        self.assertTrue(leq(own.payload.vector, later.version.past))
        a.pull(b)
        self.assertEqual(a.value(), b"later")

    def test_nothing_is_merged_into_what_is_being_dropped(self) -> None:
        """What comes while the drop is under way is stored whole."""
        a, b = self.stations(2)
        first = a.put("x", b"1")
        delta = a.delta()
        b.take(delta)
        b.commit()
        b.do(b.replica.forget_all, random.Random(7))
        given = b.give()
        assert given is not None
        b.replica.set_holds_all(True)
        self.assertIsNotNone(b.take(delta))
        b.land(given)
        b.commit()
        self.assertEqual((b.value("x"), b.vv), (b"1", first.payload.vector))
        self.assertEqual(b.storage.versions("x")[0].dot, first.version.dot)

    def test_a_failed_drop_drops_nothing(self) -> None:
        """If the drop could not be stored, the data is still there."""
        a, b = self.stations(2)
        a.put("x")
        b.pull(a)
        b.do(b.replica.forget_all, random.Random(7))
        self.assertIsNotNone(b.replica.take_commit())
        b.do(b.replica.reload, b.stored, random.Random(8))
        self.assertEqual((b.value("x"), b.vv), (b'"v"', a.vv))
        b.put("x", b"2")
        self.assertEqual(b.value("x"), b"2")

    def test_parts_from_before_the_drop_are_void(self) -> None:
        """A stage that lost its parts with all else never becomes valid."""
        a, b = self.stations(2)
        x = a.put("x").version
        stage = b.stage(a.delta(session=1), [x])
        b.do(b.replica.forget_all, random.Random(7))
        b.commit()
        b.replica.set_holds_all(True)
        self.assertIsNone(b.do(b.replica.finish_stage, stage))
        b.commit()
        self.assertEqual(b.vv, {})
