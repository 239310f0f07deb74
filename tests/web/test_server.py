"""The port: requests that are answered, and those that are not let in."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from tests.web.server_case import (
    BODY_MAX,
    CHUNKED,
    FORM,
    GET,
    Answer,
    ServerCase,
    put,
)
from twisted_kvs.core.errors import BadRequest
from twisted_kvs.web.channel import (
    CLOSE_S,
    HEAD_BYTES_MAX,
    IDLE_S,
    LINGER_IDLE_S,
    LINGER_S,
    REQUEST_S,
    Request,
)


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

    def test_refused_client_may_send_on(self) -> None:
        """A client that is still sending is not cut off before it reads."""
        client, transport = self.connect()
        transport.write(put(2**40))
        for _ in range(int(LINGER_IDLE_S) * 4):
            transport.write(b"x")
            self.net.advance(1)
        self.assertTrue(client.ended)
        self.assertFalse(client.lost)

    def test_many_chunks_at_once_are_refused_once(self) -> None:
        """What comes in the same piece as the chunk that was too much is dropped."""
        piece = b"400\r\n" + b"x" * 1024 + b"\r\n"
        client = self.send(CHUNKED, piece * (BODY_MAX // 1024), piece * 50)
        answer = Answer(client.heard)
        self.assertEqual((answer.status, answer.rest), (413, b""))

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
            self.assertEqual(self.site.admission.clients.requests, 0)
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
