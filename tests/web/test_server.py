"""The port: limits, refusals, time, and that nothing is ever left over."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.iweb import IRequest
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from tests.memory_network import MemoryNetwork, MemoryTransport
from twisted_kvs.core.causality import Name
from twisted_kvs.core.codec import Codec
from twisted_kvs.core.errors import BadRequest
from twisted_kvs.core.messages import Refused
from twisted_kvs.core.settings import Settings
from twisted_kvs.signing import PEER_HEADER, PEER_PATH, Signer
from twisted_kvs.web.admission import PEER_REQUESTS_MAX
from twisted_kvs.web.channel import (
    CLOSE_S,
    HEAD_BYTES_MAX,
    IDLE_S,
    LINGER_IDLE_S,
    LINGER_S,
    REQUEST_S,
    Request,
)
from twisted_kvs.web.peer_gate import PeerGate
from twisted_kvs.web.server import Root, Site, make_site

ME, PEER = Name("127.0.0.1:80"), Name("10.0.0.2:80")
KEY = b"k" * 32
SETTINGS = Settings(value_bytes_max=1024)
BODY_MAX = SETTINGS.body_bytes_max
FORM = b"Content-Type: application/x-www-form-urlencoded\r\n"


class Echo(Resource):
    """Answers with what it got, or keeps requests, or fails."""

    isLeaf = True

    def __init__(self) -> None:
        """Answer at once."""
        super().__init__()
        self.seen: list[tuple[bytes, bytes]] = []
        self.kept: list[IRequest] = []
        self.hung_up: list[Failure] = []
        self.keep = False
        self.failure: Exception | None = None
        self.size = 0

    def render(self, request: Request) -> bytes | int:
        """Answer, keep or fail."""
        self.seen.append((request.path, request.content.getvalue()))
        if self.failure is not None:
            raise self.failure
        if self.keep:
            self.kept.append(request)
            request.notifyFinish().addErrback(self.hung_up.append)
            return NOT_DONE_YET
        request.setHeader(b"Content-Type", b"application/json")
        return b"x" * self.size or request.content.getvalue() or b"{}"


class Client(Protocol):
    """Keeps what the server says."""

    def __init__(self) -> None:
        """Hear nothing yet."""
        self.heard = b""
        self.lost = False

    def dataReceived(self, data: bytes) -> None:
        """Keep it."""
        self.heard += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Remember it."""
        self.lost = True


class Answer:
    """One answer, taken apart."""

    def __init__(self, raw: bytes) -> None:
        """Take the first answer of what a server said."""
        head, _, rest = raw.partition(b"\r\n\r\n")
        status, *lines = head.split(b"\r\n")
        self.status = int(status.split(b" ")[1])
        self.headers = {
            name.lower().decode(): value.strip().decode()
            for name, _, value in (line.partition(b":") for line in lines)
        }
        length = int(self.headers.get("content-length", 0))
        self.body, self.rest = rest[:length], rest[length:]

    @property
    def is_error(self) -> bool:
        """Tell whether it is an error as the contract wants it, and nothing else."""
        said = json.loads(self.body)
        return (
            set(said) == {"result", "msg"}
            and said["result"] == "error"
            and bool(said["msg"])
            and self.headers["content-type"] == "application/json"
        )


class ServerCase(SynchronousTestCase):
    """A site on a network in memory."""

    settings = SETTINGS

    def setUp(self) -> None:
        """Listen."""
        self.net = MemoryNetwork()
        self.resource, self.peer_resource = Echo(), Echo()
        self.codec = Codec()
        gate = PeerGate(
            signer=Signer(me=ME, boot_id=1, keys=[KEY]),
            codec=self.codec,
            clock=self.net,
        )
        self.site: Site = make_site(
            Root(clients=self.resource, peers=self.peer_resource),
            settings=self.settings,
            gate=gate,
            reactor=self.net,
        )
        self.net.listen("127.0.0.1", 80, self.site)

    def connect(self) -> tuple[Client, MemoryTransport]:
        """Connect a client."""
        client = Client()
        return client, self.net.connect("127.0.0.1", 80, client)

    def send(self, *pieces: bytes) -> Client:
        """Send from a new client, piece by piece."""
        client, transport = self.connect()
        for piece in pieces:
            transport.write(piece)
            self.net.flush()
        return client

    def ask(self, *pieces: bytes) -> Answer:
        """Send, and take the answer."""
        return Answer(self.send(*pieces).heard)

    def assert_nothing_left(self) -> None:
        """Once all is over no request, byte, connection or timer may be left."""
        for near, _ in self.net.connections:
            near.abortConnection()
        self.net.flush()
        admission = self.site.admission
        for lane in (admission.clients, admission.peers):
            self.assertEqual((lane.requests, lane.body_bytes), (0, 0))
        self.assertEqual(self.site.connections, 0)
        self.assertEqual(self.net.open_connections, 0)
        self.assertEqual(self.net.getDelayedCalls(), [])

    def tearDown(self) -> None:
        """Check that nothing is left and nothing was logged as a bug."""
        self.assert_nothing_left()
        self.assertEqual(self.flushLoggedErrors(), [])


def put(length: int, *headers: bytes, path: bytes = b"/kv-store/k") -> bytes:
    """Write the head of a PUT."""
    lines = b"".join(header + b"\r\n" for header in headers)
    return b"PUT %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (path, lines, length)


GET = b"GET /kv-store/k HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"PUT /k HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


class PlainTests(ServerCase):
    """Requests that are all right."""

    def test_body_reaches_the_route_and_the_answer_the_client(self) -> None:
        """A request is answered, with a length, and the connection is kept."""
        client = self.send(put(5) + b"he", b"llo")
        answer = Answer(client.heard)
        self.assertEqual((answer.status, answer.body), (200, b"hello"))
        self.assertNotIn("transfer-encoding", answer.headers)
        self.assertIn("date", answer.headers)
        self.assertFalse(client.lost)
        self.assertEqual(self.site.admission.clients.requests, 0)

    def test_answer_leaves_in_one_piece(self) -> None:
        """Status, headers and body of an answer travel together."""
        self.send(put(3) + b"abc")
        _, far = self.net.connections[0]
        self.assertEqual(len(far.deliveries), 1)

    def test_accepted_connections_send_small_answers_at_once(self) -> None:
        """No answer waits for the acknowledgement of the one before."""
        self.connect()
        self.assertTrue(self.net.connections[0][1].no_delay)

    def test_get_has_a_body_too(self) -> None:
        """Clients of this API send the payload in the body of a GET."""
        answer = self.ask(b"GET /k HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc")
        self.assertEqual(answer.body, b"abc")

    def test_form_body_is_left_to_the_route(self) -> None:
        """A form reaches the route as it was sent, whatever the method."""
        head = b"POST /k HTTP/1.1\r\n" + FORM + b"Content-Length: 5\r\n\r\n"
        self.assertEqual(self.ask(head + b"a=b&c").body, b"a=b&c")

    def test_chunked_body_is_taken(self) -> None:
        """A body may come in chunks."""
        answer = self.ask(CHUNKED, b"3\r\nabc\r\n", b"2\r\nde\r\n0\r\n\r\n")
        self.assertEqual(answer.body, b"abcde")

    def test_pipelined_requests_are_answered_in_order(self) -> None:
        """Requests sent without waiting get their answers one after another."""
        client = self.send(put(1) + b"a" + put(1) + b"b" + GET)
        first = Answer(client.heard)
        second = Answer(first.rest)
        third = Answer(second.rest)
        self.assertEqual([first.body, second.body, third.body], [b"a", b"b", b"{}"])

    def test_absolute_form_is_understood(self) -> None:
        """A client that names the whole URL is served."""
        self.ask(b"GET HTTP://h:1/a/b?c=d HTTP/1.1\r\nHost: h\r\n\r\n")
        self.ask(b"GET http://h HTTP/1.1\r\nHost: h\r\n\r\n")
        self.assertEqual([path for path, _ in self.resource.seen], [b"/a/b", b"/"])

    def test_old_and_closing_clients_are_hung_up_on(self) -> None:
        """Clients that want the connection closed see it closed after the answer."""
        for head in (
            b"GET /k HTTP/1.0\r\n\r\n",
            b"GET /k HTTP/1.1\r\nConnection: close\r\n\r\n",
        ):
            client = self.send(head)
            answer = Answer(client.heard)
            self.assertEqual(
                (answer.status, answer.headers["connection"]), (200, "close")
            )
            self.assertTrue(client.lost)

    def test_head_gets_no_body(self) -> None:
        """The answer to HEAD ends with its headers."""
        answer = self.ask(b"HEAD /k HTTP/1.1\r\n\r\n")
        self.assertEqual((answer.status, answer.body), (200, b""))

    def test_waiting_client_is_invited_to_send_its_body(self) -> None:
        """100-continue is said before a body that will be read."""
        client = self.send(put(3, b"Expect: 100-continue"), b"abc")
        invited = Answer(client.heard)
        self.assertEqual(invited.status, 100)
        self.assertEqual(Answer(invited.rest).body, b"abc")


class RefusalTests(ServerCase):
    """Requests that are not let in."""

    def test_announced_oversized_body_is_refused_at_once(self) -> None:
        """A body over the limit is refused from its length, before it is sent."""
        client = self.send(put(BODY_MAX + 1))
        answer = Answer(client.heard)
        self.assertEqual(answer.status, 413)
        self.assertTrue(answer.is_error)
        self.assertEqual(answer.headers["connection"], "close")
        self.assertEqual(self.resource.seen, [])
        self.assertEqual(self.ask(put(BODY_MAX) + b"x" * BODY_MAX).status, 200)

    def test_waiting_client_is_not_invited_to_send_what_is_refused(self) -> None:
        """A body that will not be read is not asked for."""
        self.assertEqual(
            self.ask(put(BODY_MAX + 1, b"Expect: 100-continue")).status, 413
        )

    def test_length_beyond_all_numbers_is_refused(self) -> None:
        """A length of thousands of digits is one over the limit."""
        for digits in (b"9" * 19, b"9" * 5000):
            head = b"PUT /k HTTP/1.1\r\nContent-Length: " + digits + b"\r\n\r\n"
            answer = self.ask(head)
            self.assertEqual(answer.status, 413)
            self.assertTrue(answer.is_error)

    def test_chunked_body_is_refused_while_it_streams(self) -> None:
        """A body without a length is refused when it passes the limit."""
        piece = b"400\r\n" + b"x" * 1024 + b"\r\n"
        client, transport = self.connect()
        transport.write(CHUNKED)
        sent = 0
        while not client.heard:
            transport.write(piece)
            self.net.flush()
            sent += 1024
            self.assertLessEqual(self.site.admission.clients.body_bytes, BODY_MAX)
        self.assertLessEqual(sent, BODY_MAX + 1024)
        self.assertEqual(self.site.admission.clients.body_bytes, 0)
        answer = Answer(client.heard)
        self.assertEqual(answer.status, 413)
        self.assertTrue(answer.is_error)
        self.assertEqual(answer.rest, b"")

    def test_client_that_sends_all_first_gets_the_refusal(self) -> None:
        """What comes after a refusal is dropped, so that the answer is not lost."""
        client, transport = self.connect()
        transport.write(put(10 * 2**20))
        for _ in range(100):
            transport.write(b"x" * 100_000)
            self.net.flush()
        self.assertEqual(Answer(client.heard).status, 413)
        self.assertEqual(Answer(client.heard).rest, b"")
        self.assertEqual(self.resource.seen, [])

    def test_body_of_a_refused_request_is_no_request(self) -> None:
        """Nothing that follows a refused request is taken for another one."""
        client = self.send(put(BODY_MAX + 1) + GET + GET, GET)
        self.assertEqual(Answer(client.heard).rest, b"")
        self.assertEqual(self.resource.seen, [])

    def test_refused_connection_is_closed_soon(self) -> None:
        """A refused client cannot hold its connection by doing nothing."""
        client = self.send(put(BODY_MAX + 1))
        self.net.advance(LINGER_IDLE_S + 2)
        self.assertTrue(client.lost)
        self.assertEqual(self.site.connections, 0)

    def test_refused_connection_is_closed_however_much_is_sent(self) -> None:
        """A refused client cannot hold its connection by sending on."""
        _, transport = self.connect()
        transport.write(put(2**40))
        for _ in range(int(LINGER_S) + 3):
            transport.write(b"x")
            self.net.advance(1)
        self.assertEqual(self.site.connections, 0)

    def test_endless_heads_are_refused(self) -> None:
        """Request lines and headers have a limit, together and each."""
        for head in (
            b"GET /" + b"a" * HEAD_BYTES_MAX,
            b"GET /k HTTP/1.1\r\nX: " + b"a" * HEAD_BYTES_MAX,
            b"GET /k HTTP/1.1\r\n" + b"X: " + b"a\r\n" * HEAD_BYTES_MAX,
            b"GET /k HTTP/1.1\r\n" + b"X: %b\r\n" % (b"a" * 1000) * 70 + b"\r\n",
        ):
            client = self.send(head)
            answer = Answer(client.heard)
            self.assertIn(answer.status, (400, 413))
            self.assertTrue(answer.is_error)
            self.assertEqual(answer.rest, b"")

    def test_long_payloads_reach_the_route(self) -> None:
        """A payload over its limit is the route's to refuse, in header and in query."""
        payload = b"p" * 20_000
        head = b"GET /k?q=%b HTTP/1.1\r\nKVS-Causal-Payload: %b\r\n\r\n"
        self.assertEqual(self.ask(head % (payload, payload)).status, 200)

    def test_what_is_no_http_is_refused_as_json(self) -> None:
        """Whatever a client sends, it gets an error in the one shape."""
        for garbage in (
            b"\x16\x03\x01\x02\x00\r\n\r\n",
            b"GET /k\r\n\r\n",
            b"GET /k HTTP/2.0\r\n\r\n",
            b"GET  /k HTTP/1.1\r\n\r\n",
            b"G\xffT /k HTTP/1.1\r\n\r\n",
            b"GET /k HTTP/1.1\r\nno colon\r\nHost: x\r\n\r\n",
            b"GET /k HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
            b"GET /k HTTP/1.1\r\nbad name: x\r\n\r\n",
            b"PUT /k HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"PUT /k HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"PUT /k HTTP/1.1\r\nContent-Length: 1\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n",
            b"PUT /k HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
            CHUNKED + b"zz\r\n",
            CHUNKED + b"3\r\nabcde\r\n",
        ):
            client = self.send(garbage)
            answer = Answer(client.heard)
            self.assertEqual(answer.status, 400, garbage)
            self.assertTrue(answer.is_error)
            self.assertEqual(answer.rest, b"", garbage)
        self.assertEqual(self.resource.seen, [])

    def test_path_that_is_no_text_is_refused(self) -> None:
        """Paths are UTF-8, escaped or not."""
        for path in (b"/kv-store/%ff", b"/%c3", b"/kv-store/\x80"):
            answer = self.ask(b"GET " + path + b" HTTP/1.1\r\n\r\n")
            self.assertEqual(answer.status, 400)
            self.assertTrue(answer.is_error)

    def test_paths_that_are_none_do_not_exist(self) -> None:
        """What does not begin with a slash is not found."""
        for path in (b"*", b"host:80"):
            answer = self.ask(b"OPTIONS " + path + b" HTTP/1.1\r\n\r\n")
            self.assertEqual(answer.status, 404)
            self.assertTrue(answer.is_error)

    @given(
        st.lists(
            st.binary(max_size=40)
            | st.sampled_from(
                [
                    GET,
                    CHUNKED,
                    put(3),
                    put(BODY_MAX + 1),
                    b"\r\n",
                    b"\r\n\r\n",
                    b"0\r\n\r\n",
                    b"Host: x\r\n",
                    b"Content-Length: 2\r\n",
                    b"PUT /k HTTP/1.1\r\n",
                    b"3\r\nabc\r\n",
                ]
            ),
            max_size=12,
        )
    )
    def test_no_bytes_break_the_server(self, pieces: list[bytes]) -> None:
        """Whatever comes in whatever pieces: no traceback, nothing left over."""
        client, transport = self.connect()
        for piece in pieces:
            transport.write(piece)
            self.net.flush()
        self.assertEqual(self.flushLoggedErrors(), [])
        self.net.advance(REQUEST_S + LINGER_S + IDLE_S + CLOSE_S + 5)
        self.assertTrue(client.lost)
        self.assert_nothing_left()
        rest = client.heard
        while rest:
            answer = Answer(rest)
            rest = answer.rest


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


class BugTests(ServerCase):
    """Exceptions in routes."""

    def test_bug_in_a_route_is_logged_and_not_shown(self) -> None:
        """The client gets an error without a traceback; the log gets the traceback."""
        self.resource.failure = ZeroDivisionError("secret detail")
        answer = self.ask(GET)
        self.assertEqual(answer.status, 500)
        self.assertTrue(answer.is_error)
        self.assertNotIn(b"secret", answer.body)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.site.admission.clients.requests, 0)

    def test_error_of_ours_keeps_its_status(self) -> None:
        """An error that no route has mapped is answered as it is, and not logged."""
        self.resource.failure = BadRequest("no good")
        answer = self.ask(GET)
        self.assertEqual(
            (answer.status, json.loads(answer.body)["msg"]), (400, "no good")
        )

    def test_half_written_answer_is_replaced_by_the_error(self) -> None:
        """A route that fails after it began to answer leaves no half answer."""

        def fail(request: Request) -> bytes:
            request.write(b"half")
            raise BadRequest("no good")

        self.resource.render = fail  # type: ignore[method-assign]  # a fake
        answer = self.ask(GET)
        self.assertTrue(answer.is_error)
        self.assertEqual(answer.rest, b"")


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
            self.net.advance(LINGER_IDLE_S + 6)
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
