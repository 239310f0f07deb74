"""Asking peers: the real client, with the real server and with all others."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import ConnectError, ConnectionDone
from twisted.python.failure import Failure

from tests.peer_case import (
    ANSWER,
    ASK,
    ME,
    PEER,
    Peer,
    PeerCase,
    Silent,
    answer_to,
    version,
)
from twisted_kvs.core.causality import Name
from twisted_kvs.core.codec import Codec
from twisted_kvs.core.errors import BadPeerMessage, PeerTimedOut, PeerUnreachable
from twisted_kvs.core.messages import (
    NextPart,
    PartAnswer,
    PeerAnswer,
    PeerRequest,
    Push,
    Refused,
)
from twisted_kvs.peers import (
    CONNECTION_IDLE_S,
    CONNECTIONS_KEPT_MAX,
    PEERS_MAX,
    QUESTIONS_MAX,
)

PROGRESS_S = 2.0
MAKING_S = 1.0


class GoodPeerTests(PeerCase):
    """A peer as it should be."""

    def test_question_is_answered(self) -> None:
        """The peer gets the question, the asker the answer and who gave it."""
        reply = self.successResultOf(self.ask())
        self.assertEqual((reply.boot_id, reply.answer), (9, ANSWER))
        self.assertEqual(self.peer.node.asked, [(ME, 7, ASK)])

    def test_refusal_is_an_answer(self) -> None:
        """A signed no reaches who asked."""
        self.peer.node.answer = lambda _: succeed(Refused(410, "removed"))
        reply = self.successResultOf(self.ask())
        self.assertEqual(reply.answer, Refused(410, "removed"))

    def test_large_messages_travel_both_ways(self) -> None:
        """A version of the largest size crosses whole, there and back."""
        large = version(1, size=16 * 2**20)
        self.peer.node.answer = lambda _: succeed(
            PartAnswer(versions=[large], more=False)
        )
        asked = self.ask(Push(lamport=0, versions=[large]))
        answer: Any = self.successResultOf(asked).answer
        request: Any = self.peer.node.asked[0][2]
        self.assertEqual(request.versions[0].value, large.value)
        self.assertEqual(answer.versions[0].value, large.value)

    def test_connection_is_kept_and_used_again(self) -> None:
        """Questions one after another take one connection."""
        for _ in range(5):
            self.successResultOf(self.ask())
        self.assertEqual(len(self.net.connections), 1)

    def test_small_message_leaves_at_once_and_in_one_piece(self) -> None:
        """Neither side waits for an acknowledgement before it sends."""
        self.successResultOf(self.ask())
        for end in self.net.connections[0]:
            self.assertTrue(end.no_delay)
            self.assertEqual(len(end.deliveries), 1)

    def test_kept_connections_are_few_and_not_for_ever(self) -> None:
        """After a burst some connections are kept, and after a while none."""
        held: list[Deferred[PeerAnswer]] = []

        def hold(_: PeerRequest) -> Deferred[PeerAnswer]:
            held.append(Deferred())
            return held[-1]

        self.peer.node.answer = hold
        asked = [self.ask() for _ in range(CONNECTIONS_KEPT_MAX + 5)]
        self.assertEqual(self.net.open_connections, CONNECTIONS_KEPT_MAX + 5)
        for deferred in held:
            deferred.callback(ANSWER)
        self.net.flush()
        for question in asked:
            self.successResultOf(question)
        self.assertEqual(self.net.open_connections, CONNECTIONS_KEPT_MAX)
        self.net.advance(CONNECTION_IDLE_S + 1)
        self.assertEqual(self.net.open_connections, 0)

    def test_questions_under_way_are_limited(self) -> None:
        """A peer that does not answer is not asked more and more."""
        self.peer.node.answer = lambda _: Deferred()
        asked = [self.ask() for _ in range(QUESTIONS_MAX)]
        late = self.ask(connect_s=0.15)
        self.assertEqual(self.net.open_connections, QUESTIONS_MAX)
        self.net.advance(0.2)
        error = self.failureResultOf(late, PeerUnreachable)
        self.assertIn("under way", str(error.value))
        self.net.advance(PROGRESS_S + 0.1)
        for question in asked:
            self.failureResultOf(question, PeerTimedOut)

    def test_burst_of_questions_is_answered_in_turn(self) -> None:
        """More questions than may be under way wait for each other, and none fails."""
        held: list[Deferred[PeerAnswer]] = []

        def hold(_: PeerRequest) -> Deferred[PeerAnswer]:
            held.append(Deferred())
            return held[-1]

        self.peer.node.answer = hold
        asked = [self.ask() for _ in range(3 * QUESTIONS_MAX)]
        asked[-1].addErrback(lambda failure: failure.trap(CancelledError))
        asked[-1].cancel()
        while held:
            self.assertLessEqual(len(held), QUESTIONS_MAX)
            held.pop(0).callback(ANSWER)
            self.net.flush()
        for question in asked:
            self.successResultOf(question)

    def test_who_comes_later_does_not_overtake(self) -> None:
        """A place that is free goes to the question that has waited longest."""
        self.peer.node.answer = lambda _: Deferred()
        asked = [self.ask() for _ in range(QUESTIONS_MAX)]
        waiting = self.ask(NextPart(session=1, index=2))
        asked[0].cancel()
        self.failureResultOf(asked.pop(0), CancelledError)
        late = self.ask(NextPart(session=1, index=3))
        self.assertEqual(
            [request for _, _, request in self.peer.node.asked[QUESTIONS_MAX:]],
            [NextPart(session=1, index=2)],
        )
        self.net.advance(PROGRESS_S + 0.1)
        for question in (*asked, waiting):
            self.failureResultOf(question, PeerTimedOut)
        self.failureResultOf(late, PeerUnreachable)

    def test_a_burst_that_fails_fails_as_one(self) -> None:
        """Where all questions end at once the next may, too; no place is lost."""
        found: Deferred[list[str]] = Deferred()
        self.transport._wiring.addresses._lookup = lambda _: found
        name = Name("box:80")
        asked = [self.ask(peer=name, connect_s=1) for _ in range(10 * QUESTIONS_MAX)]
        self.net.advance(0.9)
        found.errback(OSError("no such name"))
        self.net.advance(1)
        for question in asked:
            self.failureResultOf(question, PeerUnreachable)
        # All places are free again.
        self.transport._wiring.addresses._lookup = lambda _: succeed(["10.0.0.2"])
        self.net.advance(1)
        named = Peer(self.net, name)
        self.net.listen("10.0.0.2", 80, named.site)
        named.node.answer = lambda _: Deferred()
        asked = [self.ask(peer=name) for _ in range(QUESTIONS_MAX)]
        self.net.advance(0.1)
        self.assertEqual(len(named.node.asked), QUESTIONS_MAX)
        self.net.advance(PROGRESS_S)
        for question in asked:
            self.failureResultOf(question, PeerTimedOut)

    def test_questions_in_the_queue_end_when_the_node_stops(self) -> None:
        """A node that stops keeps nobody waiting for a turn."""
        self.peer.node.answer = lambda _: Deferred()
        asked = [self.ask() for _ in range(QUESTIONS_MAX + 1)]
        self.transport.close()
        self.failureResultOf(asked[-1], PeerUnreachable)
        for question in asked[:-1]:
            self.failureResultOf(question, PeerTimedOut)

    def test_many_peers_do_not_keep_many_connections(self) -> None:
        """Whoever names addresses cannot make a node keep connections to all."""
        for number in range(PEERS_MAX + 10):
            name = Name(f"10.0.1.{number}:80")
            self.net.listen(f"10.0.1.{number}", 80, Peer(self.net, name).site)
            self.successResultOf(self.ask(peer=name))
        self.net.flush()
        self.assertEqual(self.net.open_connections, PEERS_MAX)

    def test_connections_to_many_peers_are_not_being_made_at_once(self) -> None:
        """Nor goes a node on for peers of which it will remember nothing."""
        for number in range(PEERS_MAX + 10):
            self.net.dropped.add((f"10.0.1.{number}", 80))
            asked = self.ask(peer=Name(f"10.0.1.{number}:80"))
            asked.cancel()
            self.failureResultOf(asked, CancelledError)
        making = [c for c in self.net.connecting if not c.given_up]
        self.assertEqual(len(making), PEERS_MAX)

    def test_ipv6_peers_are_reached(self) -> None:
        """A peer may have an IPv6 address."""
        name = Name("[fd00::2]:81")
        self.net.listen("fd00::2", 81, Peer(self.net, name).site)
        self.assertEqual(self.successResultOf(self.ask(peer=name)).answer, ANSWER)


class AbsentPeerTests(PeerCase):
    """Nobody, or nobody in time: certainly not sent."""

    def test_refused_connection_is_unreachable(self) -> None:
        """Where nobody listens is said at once."""
        self.net.stop("10.0.0.2", 80)
        self.failureResultOf(self.ask(), PeerUnreachable)

    def test_why_there_is_no_connection_is_told_in_words(self) -> None:
        """Also where Twisted quotes the failure that its error comes from."""
        self.net.dropped.add(("10.0.0.2", 80))
        asked = self.ask()
        [connecting] = self.net.connecting
        connecting.refuse(Failure(ConnectError(string=Failure(ConnectionDone()))))
        self.net.flush()
        said = str(self.failureResultOf(asked, PeerUnreachable).value)
        self.assertTrue(said.startswith("cannot connect to 10.0.0.2:80: 10.0.0.2: "))
        self.assertNotIn("Failure", said)

    def test_connecting_has_a_limit(self) -> None:
        """A question for which no connection is made in time is given up."""
        self.net.dropped.add(("10.0.0.2", 80))
        asked = self.ask(connect_s=0.3)
        self.net.advance(0.2)
        self.assertNoResult(asked)
        self.net.advance(0.2)
        error = self.failureResultOf(asked, PeerUnreachable)
        self.assertIn("0.3 s", str(error.value))

    def test_total_limit_holds_while_connecting_too(self) -> None:
        """A question whose time is over while it connects was not sent."""
        self.net.dropped.add(("10.0.0.2", 80))
        asked = self.ask(connect_s=5, total_s=0.3)
        self.net.advance(0.4)
        self.failureResultOf(asked, PeerUnreachable)

    def test_a_connection_is_not_made_for_ever(self) -> None:
        """After a second nobody waits for a connection that nobody asks for."""
        self.net.dropped.add(("10.0.0.2", 80))
        asked = self.ask()
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        self.net.advance(MAKING_S + 0.1)
        self.net.dropped.clear()
        self.net.flush()
        self.assertEqual(self.net.connections, [])


class SlowPeerTests(PeerCase):
    """A peer that stalls, wherever it does: perhaps sent."""

    def test_no_answer_is_given_up(self) -> None:
        """Without progress a question is given up, and its connection closed."""
        self.peer.node.answer = lambda _: Deferred()
        asked = self.ask()
        self.net.advance(PROGRESS_S - 0.1)
        self.assertNoResult(asked)
        self.net.advance(0.2)
        self.failureResultOf(asked, PeerTimedOut)
        self.assertEqual(self.net.open_connections, 0)

    def test_total_limit_is_kept(self) -> None:
        """A shorter limit of the whole counts first."""
        self.peer.node.answer = lambda _: Deferred()
        asked = self.ask(total_s=0.4)
        self.net.advance(0.5)
        self.failureResultOf(asked, PeerTimedOut)

    def test_body_that_stalls_is_given_up(self) -> None:
        """Headers alone are no answer: the rest must come, too."""
        large = PartAnswer(versions=[version(1, size=2**20)], more=False)
        self.peer.node.answer = lambda _: succeed(large)
        self.net.flush()
        asked = self.transport.ask(PEER, ASK, connect_s=1, total_s=30)
        while not self.net.connections or not self.net.connections[0][1].deliveries:
            self.net.step()
        with self.net.frozen():
            self.net.advance(PROGRESS_S - 0.1)
            self.assertNoResult(asked)
            self.net.advance(0.3)
        self.failureResultOf(asked, PeerTimedOut)

    def test_trickling_body_is_cut_at_the_total(self) -> None:
        """Progress does not help beyond the limit of the whole."""
        made = self.serve(lambda: Silent(b"HTTP/1.1 200 OK\r\n"))
        asked = self.ask(total_s=5)
        for _ in range(4):
            self.net.advance(1)
            made[0].transport.write(b"X: y\r\n")
        self.assertNoResult(asked)
        self.net.advance(1.1)
        self.failureResultOf(asked, PeerTimedOut)
        self.assertTrue(made[0].lost)

    def test_slow_upload_is_progress(self) -> None:
        """A large request may take longer than the limit without progress."""
        asked = self.transport.ask(
            PEER,
            Push(lamport=0, versions=[version(1, size=4 * 2**20)]),
            connect_s=1,
            total_s=30,
        )
        self.net.slow = True
        self.net.advance(PROGRESS_S * 2)
        self.assertNoResult(asked)
        self.net.slow = False
        self.net.flush()
        self.successResultOf(asked)

    def test_upload_that_stalls_is_given_up(self) -> None:
        """A peer that takes only a part of a request is given up."""
        asked = self.transport.ask(
            PEER,
            Push(lamport=0, versions=[version(1, size=2**20)]),
            connect_s=1,
            total_s=30,
        )
        while not self.net.connections or not self.net.connections[0][0].deliveries:
            self.net.step()
        with self.net.frozen():
            self.net.advance(PROGRESS_S + 0.2)
        self.failureResultOf(asked, PeerTimedOut)
        self.net.flush()
        self.assertEqual(self.net.open_connections, 0)

    def test_connections_beside_a_silent_one_are_not_used_again(self) -> None:
        """After a time-out the next question does not wait on a dead connection."""
        first, second = self.ask(), self.ask()
        self.successResultOf(first)
        self.successResultOf(second)
        held = self.transport.ask(PEER, ASK, connect_s=1, total_s=30)
        with self.net.frozen():
            self.net.advance(PROGRESS_S + 0.2)
            self.failureResultOf(held, PeerTimedOut)
            self.successResultOf(self.ask())

    def test_cancelled_question_closes_its_connection(self) -> None:
        """A question that is called off leaves nothing behind, wherever it stands."""
        held: Deferred[PeerAnswer] = Deferred()
        self.peer.node.answer = lambda _: held
        asked = self.ask()
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        self.net.flush()
        self.assertEqual(self.net.open_connections, 0)
        held.callback(ANSWER)

    def test_question_called_off_on_a_kept_connection_is_not_repeated(self) -> None:
        """Calling off is no lost connection."""
        self.successResultOf(self.ask())
        self.peer.node.answer = lambda _: Deferred()
        asked = self.ask()
        asked.cancel()
        self.net.flush()
        self.failureResultOf(asked, CancelledError)
        self.assertEqual(len(self.peer.node.asked), 2)

    def test_question_called_off_within_the_answer(self) -> None:
        """Also while the answer's body is coming."""
        made = self.serve(Silent)
        asked = self.ask()
        signed = answer_to(made[0].heard, b"x" * 100)
        made[0].transport.write(signed[:-50])
        self.net.flush()
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        self.net.flush()
        self.assertTrue(made[0].lost)

    def test_close_ends_everything(self) -> None:
        """Closing breaks off what is under way and refuses what comes later."""
        self.peer.node.answer = lambda _: Deferred()
        waiting = self.ask()
        self.net.dropped.add(("10.0.0.9", 80))
        connecting = self.ask(peer=Name("10.0.0.9:80"))
        closed = self.transport.close()
        self.failureResultOf(waiting, PeerTimedOut)
        self.failureResultOf(connecting, PeerUnreachable)
        self.net.flush()
        self.successResultOf(closed)
        self.failureResultOf(self.ask(), PeerUnreachable)


class BadPeerTests(PeerCase):
    """What answers is no peer of ours, or a broken one."""

    def answered(self, change: Any) -> Deferred[Any]:
        """Ask a server that answers with what ``change`` makes of a good answer."""
        made = self.serve(Silent)
        asked = self.ask()
        good = answer_to(made[0].heard, Codec().encode(ANSWER))
        made[0].transport.write(change(good))
        self.net.flush()
        self.made = made
        return asked

    def test_unchanged_answer_is_good(self) -> None:
        """The answer that the others are made of is a good one."""
        reply = self.successResultOf(self.answered(lambda good: good))
        self.assertEqual(reply.answer, ANSWER)

    def test_changed_answers_are_refused(self) -> None:
        """One changed byte, one more or one of another length: not understood."""
        for change in (
            lambda good: good[:-1] + bytes([good[-1] ^ 1]),
            lambda good: good.replace(b"KVS-Peer", b"KVS-Pear"),
            lambda good: good.replace(b"200 OK", b"503 Busy"),
            lambda good: good.replace(b"\r\n\r\n", b"\r\nContent-Length: 99\r\n\r\n"),
            lambda good: b"garbage\r\n\r\n" + good,
            lambda good: b"HTTP/1.1 what\r\n\r\n",
            lambda good: good.replace(b"Content-Length: ", b"Content-Length: 1"),
            lambda good: good.replace(b"Content-Length: ", b"X: ") + b"more",
            lambda good: b"HTTP/1.1 204 No Content\r\n\r\n",
        ):
            self.failureResultOf(self.answered(change), BadPeerMessage)
            self.assertTrue(self.made[0].lost)
            # Nor is it kept to be used again.
            self.assertEqual(self.net.getDelayedCalls(), [])

    def test_answer_without_a_length_is_good_if_whole(self) -> None:
        """What was signed says how long it is; HTTP need not."""

        def chunked(good: bytes) -> bytes:
            head, _, body = good.partition(b"\r\n\r\n")
            head = head.rpartition(b"\r\n")[0] + b"\r\nTransfer-Encoding: chunked"
            return head + b"\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)

        self.successResultOf(self.answered(chunked))

    def test_answer_cut_short_may_have_been_processed(self) -> None:
        """A connection lost within the answer is a time-out, not garbage."""
        for cut in (1, 60):
            asked = self.answered(lambda good, cut=cut: good[:-cut])
            self.made[0].transport.loseConnection()
            self.net.flush()
            self.failureResultOf(asked, PeerTimedOut)

    def test_compressed_answer_is_not_unpacked_by_the_client(self) -> None:
        """No header makes the client unpack what nobody has verified."""
        self.successResultOf(
            self.answered(
                lambda good: good.replace(
                    b"\r\n\r\n",
                    b"\r\nContent-Encoding: gzip\r\nSet-Cookie: a=b\r\n\r\n",
                )
            )
        )
        # Nor does the peer get back what it wanted to be remembered.
        self.ask().addErrback(lambda _: None)
        self.assertEqual(self.made[0].heard.count(b"POST "), 2)
        self.assertNotIn(b"\r\ncookie:", self.made[0].heard.lower())

    def test_endless_head_is_cut_off(self) -> None:
        """A server cannot fill memory with headers."""
        asked = self.answered(lambda _: b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000)
        self.failureResultOf(asked, BadPeerMessage)

    def test_oversized_answer_is_refused_from_its_head(self) -> None:
        """An answer over the limit of a message is not read, even if it is signed."""
        made = self.serve(Silent)
        asked = self.ask()
        good = answer_to(made[0].heard, b"x" * (21 * 2**20))
        made[0].transport.write(good[:1000])
        self.net.flush()
        self.failureResultOf(asked, BadPeerMessage)

    def test_peer_with_another_secret_is_not_understood(self) -> None:
        """It refuses us, and we do not believe that it does."""
        other = Peer(self.net, PEER, b"x" * 32)
        self.net.listen("10.0.0.2", 80, other.site)
        failure = self.failureResultOf(self.ask(), BadPeerMessage)
        self.assertIn("another secret", str(failure.value))
        self.assertEqual(other.node.asked, [])

    def test_answer_signed_with_another_secret_is_not_understood(self) -> None:
        """An answer counts only if it is signed with our secret."""
        made = self.serve(Silent)
        asked = self.ask()
        made[0].transport.write(
            answer_to(made[0].heard, Codec().encode(ANSWER), key=b"x" * 32)
        )
        self.net.flush()
        self.failureResultOf(asked, BadPeerMessage)

    def test_node_of_another_name_is_not_the_one_asked(self) -> None:
        """Who answers under another name is named in the error."""
        other = Peer(self.net, Name("10.0.0.77:80"))
        self.net.listen("10.0.0.2", 80, other.site)
        error = self.failureResultOf(self.ask(), BadPeerMessage)
        self.assertIn("10.0.0.77:80", str(error.value))
        self.assertEqual(other.node.asked, [])

    def test_idle_connection_that_talks_is_dropped(self) -> None:
        """What comes unasked is no answer to the next question."""
        made = self.serve(Silent)
        asked = self.ask()
        made[0].transport.write(answer_to(made[0].heard, Codec().encode(ANSWER)))
        self.net.flush()
        self.successResultOf(asked)
        made[0].transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        self.net.flush()
        self.assertEqual(self.net.open_connections, 0)

    def test_refusal_before_the_body_is_heard(self) -> None:
        """A peer that is overloaded says so while a large request is being sent."""
        lane = self.peer.site.admission.peers
        place = lane.enter(256 * 2**20)
        asked = self.ask(Push(lamport=0, versions=[version(1, size=4 * 2**20)]))
        answer: Any = self.successResultOf(asked).answer
        self.assertEqual(answer.status, 503)
        sent = sum(map(len, self.net.connections[0][0].deliveries))
        self.assertLess(sent, 2**20)
        place.leave()
