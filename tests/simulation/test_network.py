"""The simulated network and disk do what they are asked to, and say so."""

from __future__ import annotations

import random

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests import strategies as kvs
from twisted_kvs.core.causality import Name
from twisted_kvs.core.errors import (
    BadPeerMessage,
    DiskFull,
    PeerTimedOut,
    PeerUnreachable,
)
from twisted_kvs.core.messages import Commit, NextPart, PeerAnswer, PeerRequest, Refused
from twisted_kvs.core.replica import Replica
from twisted_kvs.core.view import ReplicaCount, View
from twisted_kvs.operations import Reply
from twisted_kvs.simulation.disk import SimulatedDisk
from twisted_kvs.simulation.network import PROGRESS_S, Network

ME, PEER, OTHER = kvs.NAMES[:3]
QUESTION = NextPart(session=1, index=2)


class NetworkTests(SynchronousTestCase):
    """``Network`` and its transports."""

    def setUp(self) -> None:
        """Let a peer listen that answers at once, or never."""
        self.clock = Clock()
        self.network = Network(self.clock, random.Random(1))
        self.network.faults.delay_s = (0.01, 0.01)
        self.asked: list[tuple[Name, int, PeerRequest]] = []
        self.silent = False
        self.network.listen(PEER, 77, self.answer)
        self.transport = self.network.transport(ME, 5)

    def answer(
        self, sender: Name, boot_id: int, request: PeerRequest
    ) -> Deferred[PeerAnswer]:
        """Answer with a refusal that counts the questions."""
        self.asked.append((sender, boot_id, request))
        if self.silent:
            return Deferred()
        return succeed(Refused(400, str(len(self.asked))))

    def ask(self, connect_s: float = 0.15, total_s: float = 0.4) -> Deferred[Reply]:
        """Ask the peer."""
        return self.transport.ask(PEER, QUESTION, connect_s=connect_s, total_s=total_s)

    def advance(self, seconds: float) -> None:
        """Let time pass in small steps."""
        self.clock.pump([0.005] * round(seconds / 0.005))

    def test_a_question_is_answered_after_two_ways(self) -> None:
        """Both directions take their time; the answer names the process it is from."""
        asking = self.ask()
        self.advance(0.01)
        self.assertEqual(self.asked, [(ME, 5, QUESTION)])
        self.assertNoResult(asking)
        self.advance(0.015)
        reply = self.successResultOf(asking)
        self.assertEqual(reply, Reply(77, Refused(400, "1")))
        self.assertIsNot(self.asked[0][2], QUESTION, "messages cross as bytes")
        self.assertEqual(self.network.traffic.messages, 2)
        self.assertGreater(self.network.traffic.bytes_carried, 4)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_cut_link_looks_like_a_host_that_is_gone(self) -> None:
        """Nothing arrives, and connecting takes as long as it may."""
        self.network.cut(ME, PEER)
        asking = self.ask()
        self.advance(0.145)
        self.assertNoResult(asking)
        self.advance(0.01)
        self.failureResultOf(asking, PeerUnreachable)
        self.assertEqual((self.asked, self.network.traffic.cut), ([], 1))

    def test_an_answer_may_be_cut_off_alone(self) -> None:
        """A link can be broken in one direction: the question arrives."""
        self.network.faults.cuts.add((PEER, ME))
        asking = self.ask()
        self.advance(0.395)
        self.assertNoResult(asking)
        self.advance(0.01)
        self.failureResultOf(asking, PeerTimedOut)
        self.assertEqual(len(self.asked), 1)

    def test_partitions_cut_between_groups_only(self) -> None:
        """Members of one group reach each other, and after the heal all do."""
        self.network.partition([ME, PEER], [OTHER])
        pairs = [(ME, PEER), (PEER, ME), (ME, OTHER), (OTHER, PEER)]
        carried = [self.network.carries(*pair) for pair in pairs]
        self.assertEqual(carried, [True, True, False, False])
        self.network.heal()
        self.assertTrue(all(self.network.carries(*pair) for pair in pairs))

    def test_nobody_who_listens_refuses_at_once(self) -> None:
        """A machine without the process says so; no time is lost."""
        self.network.silence(PEER, 77)
        asking = self.ask()
        self.advance(0.03)
        self.failureResultOf(asking, PeerUnreachable)
        self.network.faults.cuts.add((PEER, ME))
        asking = self.ask()
        self.advance(0.3)
        self.assertNoResult(asking)
        self.advance(0.2)
        self.failureResultOf(asking, PeerTimedOut)

    def test_who_dies_before_the_answer_gives_none(self) -> None:
        """What a killed process would have answered is not sent."""
        answering: Deferred[PeerAnswer] = Deferred()
        self.network.listen(PEER, 78, lambda *_: answering)
        asking = self.ask()
        self.advance(0.02)
        self.network.listen(PEER, 79, self.answer)
        answering.callback(Refused(400, "too late"))
        self.advance(0.3)
        self.assertNoResult(asking)
        self.advance(0.2)
        self.failureResultOf(asking, PeerTimedOut)

    def test_what_an_unplugged_machine_had_sent_is_lost(self) -> None:
        """Questions and answers that are under way go with it."""
        asking = self.ask()
        self.advance(0.015)
        self.network.unplug(PEER, 77)
        self.advance(0.1)
        self.assertNoResult(asking)
        self.network.listen(ME, 5, self.answer)
        self.network.listen(PEER, 78, self.answer)
        self.ask().addErrback(lambda _: None)
        self.network.unplug(ME, 5)
        self.advance(0.5)
        self.assertEqual(len(self.asked), 1)
        self.assertEqual(self.network.traffic.unplugged, 2)
        self.failureResultOf(asking, PeerTimedOut)

    def test_a_silent_peer_is_given_up_without_progress(self) -> None:
        """However long an exchange may take in all, it must go on."""
        self.silent = True
        asking = self.ask(total_s=30)
        self.advance(PROGRESS_S - 0.01)
        self.assertNoResult(asking)
        self.advance(0.02)
        self.failureResultOf(asking, PeerTimedOut)

    def test_messages_are_lost_as_often_as_asked(self) -> None:
        """Half of the messages, in both directions, and each is counted."""
        self.network.faults.loss = 0.5
        asking = [self.ask() for _ in range(400)]
        self.advance(0.5)
        answered = sum(not isinstance(self.outcome(a), str) for a in asking)
        self.assertTrue(60 < answered < 140, answered)
        self.assertEqual(answered + self.network.traffic.lost, 400)

    def outcome(self, asking: Deferred[Reply]) -> Reply | str:
        """Tell an answer, or that there was none."""
        asking.addErrback(lambda failure: str(failure.trap(PeerTimedOut)))
        return self.successResultOf(asking)

    def test_questions_arrive_twice_and_are_answered_once(self) -> None:
        """A doubled request is processed twice; the asker sees one answer."""
        self.network.faults.duplicate = 1.0
        asking = self.ask()
        self.advance(0.05)
        self.assertEqual(len(self.asked), 2)
        self.successResultOf(asking)
        self.assertEqual(self.network.traffic.duplicated, 1)

    def test_unequal_delays_reorder(self) -> None:
        """What is sent later may arrive earlier."""
        self.network.faults.delay_s = (0.001, 0.2)
        for index in range(20):
            question = NextPart(session=1, index=index)
            asking = self.transport.ask(PEER, question, connect_s=1, total_s=1)
            asking.addErrback(lambda _: None)
        self.advance(0.25)
        order = [r.index for _, _, r in self.asked if isinstance(r, NextPart)]
        self.assertNotEqual(order, sorted(order))
        self.assertEqual(sorted(order), list(range(20)))

    def test_an_answer_that_cannot_be_read_is_the_peers_fault(self) -> None:
        """Garbage is an error of its own kind."""
        garbage = NextPart(session=1, index=1)
        self.network.listen(PEER, 1, lambda *_: succeed(garbage))
        asking = self.ask()
        self.advance(0.05)
        self.failureResultOf(asking, BadPeerMessage)

    def test_who_stopped_asks_nobody(self) -> None:
        """After the close every question fails at once."""
        self.successResultOf(self.transport.close())
        self.failureResultOf(self.ask(), PeerUnreachable)
        self.assertEqual(self.network.traffic.messages, 0)

    def test_an_asker_may_give_up(self) -> None:
        """Cancelled, a question leaves no timer and nothing fires later."""
        asking = self.ask()
        asking.addErrback(lambda _: None)
        self.advance(0.015)
        asking.cancel()
        self.advance(0.1)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class DiskTests(SynchronousTestCase):
    """``SimulatedDisk``."""

    def setUp(self) -> None:
        """Make a disk that takes ten milliseconds."""
        self.clock = Clock()
        self.given: list[int] = []
        self.disk = SimulatedDisk(
            self.clock,
            random.Random(1),
            delay_s=(0.01, 0.01),
            given=lambda commit: self.given.append(commit.number),
        )

    def commit(self, number: int = 1) -> Commit:
        """Make a commit."""
        state = Replica.fresh_state(View(), ReplicaCount(0, 3))
        return Commit(number=number, state=state)

    def test_a_commit_is_durable_after_its_time(self) -> None:
        """Not before; but who watches hears of it at once."""
        done = self.disk.commit(self.commit())
        self.assertEqual(self.given, [1])
        self.clock.advance(0.009)
        self.assertNoResult(done)
        self.assertIsNone(self.disk.open())
        self.clock.advance(0.002)
        self.successResultOf(done)
        self.assertIsNotNone(self.disk.open())

    def test_a_full_disk_stores_nothing(self) -> None:
        """A commit for which there is no room leaves no trace."""
        self.disk.full = True
        done = self.disk.commit(self.commit())
        self.clock.advance(0.01)
        self.failureResultOf(done, DiskFull)
        self.assertEqual((self.disk.open(), self.disk.refused), (None, 1))

    def test_a_crash_takes_the_commit_under_way(self) -> None:
        """It never ends, and the next one has its own time."""
        done = self.disk.commit(self.commit())
        self.disk.crash()
        later = self.disk.commit(self.commit(2))
        self.clock.advance(0.01)
        self.assertNoResult(done)
        self.successResultOf(later)
