"""The port: what is in flight, who may send, time; and that nothing is left over."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.memory_network import MemoryTransport
from tests.web.server_case import (
    BODY_MAX,
    CHUNKED,
    GET,
    KEY,
    ME,
    PEER,
    Answer,
    Client,
    ServerCase,
    put,
)
from twisted_kvs.core.messages import Refused
from twisted_kvs.core.settings import Settings
from twisted_kvs.signing import PEER_HEADER, PEER_PATH, Signer
from twisted_kvs.web.admission import PEER_REQUESTS_MAX
from twisted_kvs.web.channel import (
    CLOSE_S,
    IDLE_S,
    LINGER_IDLE_S,
    REQUEST_S,
)
from twisted_kvs.web.seats import Seats


class OverloadTests(ServerCase):
    """Limits of what is in flight."""

    settings = Settings(
        value_bytes_max=1024, requests_in_flight_max=3, body_bytes_in_flight_max=300_000
    )

    def test_requests_over_the_limit_are_refused_at_once(self) -> None:
        """Too many requests: 503 and when to come back, before any body."""
        self.resource.keep = True
        for _ in range(3):
            self.send(GET)
        self.assertEqual(self.site.admission.clients.requests, 3)
        waiting = self.send(put(10))
        for answer in (self.ask(GET), Answer(waiting.heard)):
            self.assertEqual((answer.status, answer.headers["retry-after"]), (503, "1"))
            self.assertTrue(answer.is_error)
        self.assertEqual(len(self.resource.kept), 3)

    def test_refused_request_without_a_body_keeps_its_connection(self) -> None:
        """A client that is told to come back need not connect again."""
        self.resource.keep = True
        kept = [self.send(GET) for _ in range(3)]
        client, transport = self.connect()
        transport.write(GET)
        self.net.flush()
        self.assertEqual(Answer(client.heard).status, 503)
        for request in self.resource.kept:
            request.finish()
        self.resource.keep = False
        transport.write(GET)
        self.net.flush()
        self.assertEqual(Answer(Answer(client.heard).rest).status, 200)
        self.assertEqual([Answer(one.heard).status for one in kept], [200] * 3)

    def test_request_counts_from_the_end_of_its_headers(self) -> None:
        """A connection counts only while a request is under way on it."""
        client, transport = self.connect()
        for piece, count in (
            (b"PUT /k HTTP/1.1\r\n", 0),
            (b"Content-Length: 2\r\n", 0),
            (b"\r\n", 1),
            (b"a", 1),
            (b"b", 0),
        ):
            transport.write(piece)
            self.net.flush()
            self.assertEqual(self.site.admission.clients.requests, count, piece)
        self.assertEqual(Answer(client.heard).status, 200)

    def test_hung_up_request_counts_no_longer(self) -> None:
        """A client that leaves makes room, wherever its request stood."""
        self.resource.keep = True
        for pieces in (
            (GET,),
            (put(10), b"abc"),
            (put(3) + b"abc",),
            (CHUNKED, b"3\r\nabc"),
        ):
            self.send(*pieces)
            self.assertEqual(self.site.admission.clients.requests, 1)
            self.net.connections[-1][0].abortConnection()
            self.net.flush()
            self.assertEqual(self.site.admission.clients.requests, 0)
            self.assertEqual(self.site.admission.clients.body_bytes, 0)
        self.assertEqual(len(self.resource.hung_up), 2)

    def test_answer_after_the_client_left_is_dropped(self) -> None:
        """Routes need not know whether anybody is still listening."""
        self.resource.keep = True
        self.send(GET)
        self.net.connections[-1][0].abortConnection()
        self.net.flush()
        request = self.resource.kept[0]
        request.write(b"too late")
        request.finish()
        self.net.flush()

    def test_bytes_of_bodies_over_the_limit_are_refused(self) -> None:
        """Too many bytes of bodies: 503 from the length, before they are sent."""
        self.send(put(130_000))
        self.send(put(130_000))
        answer = self.ask(put(130_000))
        self.assertEqual((answer.status, answer.headers["retry-after"]), (503, "1"))
        self.assertEqual(self.ask(GET).status, 200)
        self.assertEqual(self.site.admission.clients.body_bytes, 260_000)

    def test_bytes_of_chunked_bodies_count_as_they_come(self) -> None:
        """A body without a length cannot pass the limit either."""
        self.send(put(130_000))
        self.send(put(130_000))
        client = self.send(CHUNKED, b"9c40\r\n" + b"x" * 40_000 + b"\r\n")
        self.assertEqual(client.heard, b"")
        self.assertEqual(self.site.admission.clients.body_bytes, 300_000)
        self.net.connections[-1][0].write(b"1\r\nx\r\n")
        self.net.flush()
        self.assertEqual(Answer(client.heard).status, 503)
        self.assertEqual(self.site.admission.clients.body_bytes, 260_000)

    @given(st.data())
    def test_counters_return_to_zero(self, data: st.DataObject) -> None:
        """Whatever clients do, in whatever order: in the end nothing counts."""
        self.resource.keep = data.draw(st.booleans())
        clients: list[MemoryTransport] = []
        pieces = st.sampled_from(
            [
                GET,
                put(5),
                put(100_000),
                put(BODY_MAX + 1),
                b"abcde",
                b"x" * 50_000,
                CHUNKED,
                b"5\r\nabcde\r\n",
                b"0\r\n\r\n",
                b"garbage\r\n\r\n",
            ]
        )
        for action in data.draw(
            st.lists(
                st.sampled_from(["connect", "send", "abort", "lose", "answer", "time"]),
                min_size=10,
                max_size=40,
            )
        ):
            if action == "connect":
                clients.append(self.connect()[1])
            elif action == "answer":
                if self.resource.kept:
                    self.resource.kept.pop().finish()
            elif action == "time":
                self.net.advance(data.draw(st.sampled_from([0.1, 3.0, 31.0])))
            elif clients:
                transport = data.draw(st.sampled_from(clients))
                if action == "send":
                    transport.write(data.draw(pieces))
                elif action == "abort":
                    transport.abortConnection()
                else:
                    transport.loseConnection()
            self.net.flush()
            lane = self.site.admission.clients
            self.assertTrue(0 <= lane.requests <= 3 and lane.body_bytes <= 300_000)
        self.resource.kept.clear()
        self.assert_nothing_left()
        self.assertEqual(self.flushLoggedErrors(), [])


class TimeTests(ServerCase):
    """Connections that do nothing, or too slowly."""

    def test_idle_connection_is_closed(self) -> None:
        """A connection is kept for a minute without a request, and no longer."""
        client = self.send(GET)
        self.net.advance(IDLE_S - 2)
        self.assertFalse(client.lost)
        self.net.advance(4)
        self.assertTrue(client.lost)

    def test_connection_that_never_says_anything_is_closed(self) -> None:
        """Connecting alone holds nothing for long."""
        client, _ = self.connect()
        self.net.advance(IDLE_S + 2)
        self.assertTrue(client.lost)

    def test_requests_keep_a_connection_alive(self) -> None:
        """A connection that is used now and then is kept."""
        client, transport = self.connect()
        for _ in range(4):
            transport.write(GET)
            self.net.advance(IDLE_S - 10)
        self.assertFalse(client.lost)

    def test_slow_requests_are_cut_off(self) -> None:
        """Who sends a byte now and then is cut off, in the head and in the body."""
        for head in (b"GET /k HT", b"GET /k HTTP/1.1\r\nX: y", put(100), CHUNKED):
            client, transport = self.connect()
            transport.write(head)
            for _ in range(int(REQUEST_S) - 2):
                self.net.advance(1)
                transport.write(b"1")
            self.assertFalse(client.lost)
            self.net.advance(4)
            self.assertFalse(client.lost)
            self.assertEqual(self.site.admission.clients.requests, 0)
            self.net.advance(LINGER_IDLE_S + 2)
            self.assertTrue(client.lost)
            answer = Answer(client.heard)
            self.assertEqual(answer.status, 408)
            self.assertTrue(answer.is_error)
            self.assertEqual(self.site.admission.clients.requests, 0)

    def test_answer_may_take_its_time(self) -> None:
        """Only clients are timed; routes have deadlines of their own."""
        self.resource.keep = True
        client = self.send(GET)
        self.net.advance(REQUEST_S + IDLE_S)
        self.resource.kept[0].finish()
        self.net.flush()
        self.assertEqual(Answer(client.heard).status, 200)
        self.assertFalse(client.lost)

    def test_client_that_does_not_read_is_cut_off(self) -> None:
        """Nobody holds an answer in our memory for ever."""
        self.resource.size = 10_000_000
        for head in (GET, b"GET /k HTTP/1.0\r\n\r\n"):
            _, transport = self.connect()
            transport.pauseProducing()
            transport.write(head)
            self.net.advance(IDLE_S + CLOSE_S + 4)
            self.assertEqual(self.site.connections, 0)

    def test_close_waits_for_answers(self) -> None:
        """Shutting down answers what was asked and closes all else at once."""
        idle = self.send(GET)
        self.resource.keep = True
        asked = self.send(GET)
        sending, transport = self.connect()
        transport.write(put(3) + b"ab")
        self.net.flush()
        done = self.site.close(grace_s=5)
        self.net.flush()
        self.assertTrue(idle.lost)
        self.assertNoResult(done)
        transport.write(b"c")
        self.net.flush()
        for request in self.resource.kept:
            request.finish()
        self.net.flush()
        self.successResultOf(done)
        for client in (asked, sending):
            answer = Answer(client.heard)
            self.assertEqual(
                (answer.status, answer.headers["connection"]), (200, "close")
            )

    def test_close_does_not_wait_for_ever(self) -> None:
        """Shutting down takes no longer than it was given."""
        self.resource.keep = True
        self.send(GET)
        done = self.site.close(grace_s=5)
        self.net.advance(4.9)
        self.assertNoResult(done)
        self.net.advance(0.2)
        self.successResultOf(done)
        self.successResultOf(self.site.close(grace_s=5))


class PeerGateTests(ServerCase):
    """Bodies of peers."""

    def setUp(self) -> None:
        """Be a peer."""
        super().setUp()
        self.peer = Signer(me=PEER, boot_id=2, keys=[KEY])

    def head(
        self, body: bytes, *, header: bytes | None = None, length: int = -1
    ) -> bytes:
        """Write the head of a peer's request."""
        self.envelope, signed = self.peer.sign_request(ME, body, nonce=b"n" * 16)
        return b"POST %b HTTP/1.1\r\n%b: %b\r\nContent-Length: %d\r\n\r\n" % (
            PEER_PATH.encode(),
            PEER_HEADER.encode(),
            signed if header is None else header,
            len(body) if length < 0 else length,
        )

    def refusal(self, client: Client) -> Refused:
        """Verify and open a signed refusal."""
        answer = Answer(client.heard)
        header = answer.headers[PEER_HEADER.lower()].encode()
        self.assertEqual(answer.status, 200)
        self.peer.verify_answer([header], self.envelope)
        said = self.codec.decode_answer(answer.body)
        assert isinstance(said, Refused)
        return said

    def test_signed_body_reaches_the_peers_resource(self) -> None:
        """What a peer signed is read whole, beyond the limits that clients have."""
        body = b"x" * (BODY_MAX + 100)
        self.assertEqual(self.ask(self.head(body), body[:7], body[7:]).body, body)
        self.assertEqual(self.resource.seen, [])
        self.assertEqual(self.peer_resource.seen[0][1], body)

    def test_peers_get_in_beyond_the_limit_of_connections(self) -> None:
        """Where clients have all the room, a peer is answered, and stays."""
        self.site.seats = Seats(1)
        self.send(put(5))
        body = b"from a peer"
        asking = self.send(self.head(body), body)
        self.assertEqual(Answer(asking.heard).body, body)
        self.assertFalse(asking.lost)
        self.assertEqual((self.site.seats.clients, self.site.seats.peers), (1, 1))
        self.assertEqual(self.ask(GET).status, 503)

    def test_unsigned_body_is_not_read(self) -> None:
        """Without a good header not one byte of a peer's body is kept."""
        body = b"x" * 1000
        for head in (
            self.head(body, header=b"garbage"),
            self.head(body, length=999),
            self.head(body, length=0),
            put(1000, path=PEER_PATH.encode()),
            b"GET %b HTTP/1.1\r\n\r\n" % PEER_PATH.encode(),
            b"GET /kvs-peer/ HTTP/1.1\r\n\r\n",
        ):
            client, transport = self.connect()
            transport.write(head)
            self.net.flush()
            answer = Answer(client.heard)
            self.assertEqual(answer.status, 400)
            self.assertTrue(answer.is_error)
            self.assertEqual(self.site.admission.peers.requests, 0)
            self.assertEqual(self.site.admission.peers.body_bytes, 0)
        self.assertEqual(self.peer_resource.seen, [])

    def test_peers_and_clients_do_not_take_each_others_room(self) -> None:
        """Overloaded by peers a node still serves clients, and the other way round."""
        limit = self.settings.body_bytes_in_flight_max
        place = self.site.admission.peers.enter(limit)
        self.assertEqual(self.ask(put(3) + b"abc").status, 200)
        refused = self.refusal(self.send(self.head(b"body")))
        self.assertEqual(refused.status, 503)
        place.leave()
        place = self.site.admission.clients.enter(limit)
        self.assertEqual(self.ask(self.head(b"body") + b"body").status, 200)
        place.leave()

    def test_too_many_requests_of_peers_are_refused_signed(self) -> None:
        """A peer that is refused for load knows that we said so."""
        places = [self.site.admission.peers.enter(0) for _ in range(PEER_REQUESTS_MAX)]
        for head in (self.head(b"body"), self.head(b"")):
            self.assertEqual(self.refusal(self.send(head)).status, 503)
        for place in places:
            place.leave()

    def test_bug_in_the_peers_resource_is_answered_signed(self) -> None:
        """A peer learns that the answer is not what it wants, and no more."""
        self.peer_resource.failure = ZeroDivisionError("secret detail")
        refused = self.refusal(self.send(self.head(b"body") + b"body"))
        self.assertEqual(refused.status, 500)
        self.assertNotIn("secret", refused.message)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
