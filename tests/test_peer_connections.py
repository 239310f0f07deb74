"""Connections to peers: kept, shared, made too late, and closed by the other end."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed

from tests.peer_case import ANSWER, ASK, PeerCase, Silent, answer_to, forward
from twisted_kvs.core.errors import BadPeerMessage, PeerTimedOut, PeerUnreachable
from twisted_kvs.core.messages import Operation, PeerAnswer, PeerRequest, Push
from twisted_kvs.peers import CONNECTIONS_KEPT_MAX, QUESTIONS_MAX


class FarPeerTests(PeerCase):
    """A peer to which connecting takes longer than a client can wait."""

    def setUp(self) -> None:
        """Begin with one question that is not answered yet, over one connection."""
        super().setUp()
        self.held: Deferred[PeerAnswer] = Deferred()
        self.peer.node.answer = lambda _: self.held
        self.first = self.ask()
        self.peer.node.answer = lambda _: succeed(ANSWER)
        self.net.dropped.add(("10.0.0.2", 80))

    def test_a_connection_that_is_made_too_late_is_kept(self) -> None:
        """A question that could not wait for it leaves it to the next."""
        late = self.ask(connect_s=0.15)
        self.net.advance(0.2)
        self.failureResultOf(late, PeerUnreachable)
        self.net.dropped.clear()
        self.net.flush()
        self.net.dropped.add(("10.0.0.2", 80))
        self.successResultOf(self.ask(forward(Operation.PUT), connect_s=0.15))
        self.assertEqual(len(self.net.connections), 2)
        self.held.callback(ANSWER)
        self.net.flush()
        self.successResultOf(self.first)

    def test_a_question_takes_what_another_needs_no_more(self) -> None:
        """Those that wait for a connection take the first that is free, in turn."""
        second, third = self.ask(connect_s=0.15), self.ask(connect_s=0.15)
        self.net.advance(0.1)
        self.held.callback(ANSWER)
        while not second.called:
            self.assertFalse(third.called)
            self.assertTrue(self.net.step())
        self.net.flush()
        for asked in (self.first, second, third):
            self.successResultOf(asked)
        self.assertEqual(len(self.net.connections), 1)
        # Theirs are kept, too.
        self.net.dropped.clear()
        self.net.flush()
        self.assertEqual(self.net.open_connections, 3)

    def test_a_refused_connection_fails_only_its_question(self) -> None:
        """Another that waits, for longer even, may still get one."""
        second, third = self.ask(connect_s=0.9), self.ask(connect_s=0.9)
        self.net.connecting[1].refuse()
        self.net.flush()
        self.failureResultOf(third, PeerUnreachable)
        self.assertNoResult(second)
        self.held.callback(ANSWER)
        self.net.flush()
        self.successResultOf(self.first)
        self.successResultOf(second)

    def test_a_question_is_not_left_without_a_connection(self) -> None:
        """What is made for one is not taken by another that may wait in vain then."""
        second, third = self.ask(connect_s=0.9), self.ask(connect_s=0.9)
        self.net.connecting[1].succeed()
        self.net.connecting[0].refuse()
        self.net.flush()
        self.successResultOf(third)
        self.failureResultOf(second, PeerUnreachable)
        self.held.callback(ANSWER)
        self.net.flush()
        self.successResultOf(self.first)

    def test_connections_that_are_being_made_are_limited(self) -> None:
        """However many questions come and go while a peer is silent."""
        for _ in range(3 * QUESTIONS_MAX):
            asked = self.ask(connect_s=0.15)
            asked.cancel()
            self.failureResultOf(asked, CancelledError)
        making = [c for c in self.net.connecting if not c.given_up]
        self.assertEqual(len(making), QUESTIONS_MAX)
        # Who asks beyond them shares what comes of them.
        asked = self.ask(connect_s=0.15)
        self.net.dropped.clear()
        self.net.flush()
        self.successResultOf(asked)
        self.assertEqual(self.net.open_connections, 1 + CONNECTIONS_KEPT_MAX)
        self.held.callback(ANSWER)
        self.net.flush()
        self.successResultOf(self.first)

    def test_a_patient_question_has_its_connection_made_for_longer(self) -> None:
        """What may wait for more than a second is waited for."""
        asked = self.ask(connect_s=3)
        self.net.advance(1.5)
        self.net.dropped.clear()
        self.net.flush()
        self.successResultOf(asked)
        self.held.callback(ANSWER)
        self.net.flush()
        self.successResultOf(self.first)

    def test_what_is_found_wanting_is_given_to_nobody(self) -> None:
        """Over a connection with a wrong answer no other question is asked."""
        second = self.ask(forward(Operation.PUT), connect_s=0.15)
        near, far = self.net.connections[0]
        good = answer_to(near.deliveries[0], b"x")
        far.write(good.removesuffix(b"x") + b"y")
        self.net.flush()
        self.failureResultOf(self.first, BadPeerMessage)
        self.net.advance(0.2)
        self.failureResultOf(second, PeerUnreachable)
        self.assertEqual(self.net.open_connections, 0)

    def test_one_that_ended_within_a_wrong_answer_is_given_to_nobody(self) -> None:
        """Also where head and body came in one piece."""
        second = self.ask(forward(Operation.PUT), connect_s=0.15)
        near, far = self.net.connections[0]
        good = answer_to(near.deliveries[0], b"x")
        far.write(good.replace(b"200 OK", b"503 Busy"))
        self.net.flush()
        self.failureResultOf(self.first, BadPeerMessage)
        self.assertNoResult(second)
        self.net.advance(0.2)
        self.failureResultOf(second, PeerUnreachable)

    def test_one_that_was_lost_meanwhile_is_not_kept(self) -> None:
        """Nor given to a question: another is made for that."""
        second = self.ask(forward(Operation.PUT), connect_s=0.9)
        self.held.callback(ANSWER)
        while not self.first.called:
            self.assertTrue(self.net.step())
        near, far = self.net.connections[0]
        far.abortConnection()
        near.step()
        self.net.dropped.clear()
        self.net.flush()
        self.successResultOf(self.first)
        self.successResultOf(second)

    def test_a_kept_connection_may_prove_to_be_closed(self) -> None:
        """Who got one that another needed no more may ask again."""
        second = self.ask(connect_s=0.9)
        self.held.callback(ANSWER)
        while not self.first.called:
            self.assertTrue(self.net.step())
        self.net.connections[0][1].abortConnection()
        self.net.dropped.clear()
        self.net.flush()
        self.successResultOf(self.first)
        self.successResultOf(second)

    def test_one_that_is_freed_while_the_node_stops_is_closed(self) -> None:
        """Nothing is kept, and no connection is made, after the end."""
        second = self.ask(connect_s=0.9)
        self.held.callback(ANSWER)
        while not self.first.called:
            self.assertTrue(self.net.step())
        closed = self.transport.close()
        self.failureResultOf(second, PeerUnreachable)
        self.net.dropped.clear()
        self.net.flush()
        self.successResultOf(closed)
        self.successResultOf(self.first)
        self.assertEqual(self.net.open_connections, 0)


class KeptConnectionTests(PeerCase):
    """Kept connections that the peer has closed."""

    def close_while_asked(self, request: PeerRequest) -> Deferred[Any]:
        """Ask on a kept connection that is closed before the request arrives."""
        self.successResultOf(self.ask())
        self.net.connections[-1][1].abortConnection()
        return self.ask(request)

    def test_idempotent_question_is_asked_again(self) -> None:
        """A connection closed meanwhile is no reason to believe a peer silent."""
        for request in (ASK, forward(Operation.GET), Push(lamport=0, versions=[])):
            self.successResultOf(self.close_while_asked(request))
        self.assertEqual(len(self.peer.node.asked), 6)

    def test_one_that_is_freed_later_may_be_closed_too(self) -> None:
        """A question that lost two kept connections is asked over a new one."""
        held: list[Deferred[PeerAnswer]] = []

        def hold(_: PeerRequest) -> Deferred[PeerAnswer]:
            held.append(Deferred())
            return held[-1]

        self.peer.node.answer = hold
        warming = [self.ask(), self.ask()]
        while held:
            held.pop().callback(ANSWER)
        self.net.flush()
        for asked in warming:
            self.successResultOf(asked)
        first, second = self.ask(), self.ask()
        (near, far), (_, other) = self.net.connections
        self.peer.node.answer = lambda _: succeed(ANSWER)
        far.abortConnection()
        while near.connected:
            self.assertTrue(self.net.step())
        held[1].callback(ANSWER)
        while not second.called:
            self.assertTrue(self.net.step())
        other.abortConnection()
        self.net.flush()
        self.successResultOf(first)
        self.successResultOf(second)

    def test_all_kept_connections_may_be_closed(self) -> None:
        """After a restart of the peer none of its connections is good."""
        held: list[Deferred[PeerAnswer]] = []

        def hold(_: PeerRequest) -> Deferred[PeerAnswer]:
            held.append(Deferred())
            return held[-1]

        self.peer.node.answer = hold
        asked = [self.ask() for _ in range(3)]
        for deferred in held:
            deferred.callback(ANSWER)
        self.net.flush()
        for question in asked:
            self.successResultOf(question)
        self.peer.node.answer = lambda _: succeed(ANSWER)
        for _, far in self.net.connections:
            far.abortConnection()
        self.successResultOf(self.ask())

    def test_write_is_not_asked_again(self) -> None:
        """What may not be done twice is left to who asked."""
        for write in (forward(Operation.PUT), forward(Operation.DELETE)):
            self.failureResultOf(self.close_while_asked(write), PeerTimedOut)
        self.assertEqual([request for _, _, request in self.peer.node.asked], [ASK] * 2)

    def test_connection_closed_in_peace_is_noticed(self) -> None:
        """A connection that was closed a while ago is not used for a write."""
        self.successResultOf(self.ask())
        self.net.connections[0][1].loseConnection()
        self.net.flush()
        self.successResultOf(self.ask(forward(Operation.PUT)))

    def test_peer_that_always_hangs_up_is_asked_once(self) -> None:
        """A fresh connection that is lost is an answer of its own."""
        made = self.serve(lambda: Silent(closes=True))
        self.failureResultOf(self.ask(), PeerTimedOut)
        self.assertEqual(len(made), 1)

    def test_repeated_question_has_the_same_limit(self) -> None:
        """Asking again takes no longer than asking."""
        self.successResultOf(self.ask())
        self.net.dropped.add(("10.0.0.2", 80))
        self.net.connections[0][1].abortConnection()
        asked = self.ask(connect_s=0.5, total_s=1)
        self.net.advance(0.6)
        self.failureResultOf(asked, PeerUnreachable)
