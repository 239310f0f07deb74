"""More connections, unfinished heads, untaken answers and requests than have room."""

from __future__ import annotations

import itertools
from dataclasses import replace

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twisted_kvs.web import admission
from twisted_kvs.web.channel import HEAD_BYTES_MAX, SURPLUS_S
from twisted_kvs.web.seats import SURPLUS_MAX
from twisted_kvs.web.shedding import whole_request

from .server_case import CHUNKED, GET, SETTINGS, Answer, Client, ServerCase, put

CONNECTIONS_MAX = 4


class CrowdCase(ServerCase):
    """A port that may have to refuse."""

    def assert_refused(self, answer: Answer) -> None:
        """It is told to come back."""
        self.assertEqual((answer.status, answer.is_error), (503, True))
        self.assertEqual(answer.headers["retry-after"], "1")


class ConnectionTests(CrowdCase):
    """A port with few seats."""

    settings = replace(SETTINGS, connections_max=CONNECTIONS_MAX)

    def clients(self, count: int, sent: bytes = b"") -> list[Client]:
        """Connect clients, and let each send something."""
        return [self.send(*([sent] if sent else [])) for _ in range(count)]

    def test_the_longest_idle_connection_gives_way(self) -> None:
        """Whoever does nothing for longest makes room; the newcomer is answered."""
        idle = self.clients(CONNECTIONS_MAX)
        newcomer = self.send(GET)
        self.assertEqual(Answer(newcomer.heard).status, 200)
        self.assertEqual([bool(c.lost) for c in idle], [True, False, False, False])

    def test_busy_connections_stay(self) -> None:
        """Where nobody is idle a newcomer gets 503 at once, and the others go on."""
        busy = self.clients(CONNECTIONS_MAX, put(5))
        for request in (GET, put(3) + b"abc"):
            answer = self.ask(request)
            self.assert_refused(answer)
            self.assertEqual(answer.headers["connection"], "close")
        self.assertFalse(any(c.lost for c in busy))

    def test_room_that_is_free_again_is_used(self) -> None:
        """When a connection has closed the next one is answered."""
        connections = [self.connect() for _ in range(CONNECTIONS_MAX)]
        for _, transport in connections:
            transport.write(put(5))
        self.net.flush()
        self.assert_refused(self.ask(GET))
        connections[0][1].loseConnection()
        self.net.flush()
        self.assertEqual(self.ask(GET).status, 200)

    def test_silence_beyond_the_limit_is_short(self) -> None:
        """A connection beyond the limit that says nothing is closed in seconds."""
        self.clients(CONNECTIONS_MAX, put(5))
        silent = self.send()
        self.net.advance(SURPLUS_S / 2)
        self.assertFalse(silent.lost)
        for _ in range(3):
            self.net.advance(SURPLUS_S / 2)
            self.net.flush()
        self.assertTrue(silent.lost)

    def test_even_those_beyond_the_limit_have_one(self) -> None:
        """However many come, only so many are open."""
        self.clients(CONNECTIONS_MAX, put(5))
        beyond = self.clients(SURPLUS_MAX + 10)
        self.net.flush()
        self.assertEqual(self.site.connections, CONNECTIONS_MAX + SURPLUS_MAX)
        self.assertTrue(all(c.lost for c in beyond[:10]))
        self.assertFalse(any(c.lost for c in beyond[10:]))


class HeldTests(CrowdCase):
    """What clients make a node keep without finishing what they began."""

    def test_unfinished_heads_are_bounded(self) -> None:
        """Heads that do not end are counted, and refused when they are too much."""
        head = b"GET /kv-store/k HTTP/1.1\r\nX: " + b"x" * (HEAD_BYTES_MAX // 2)
        fit = admission.HEAD_BYTES_MAX // len(head)
        for _ in range(fit):
            self.assertEqual(self.send(head).heard, b"")
        self.assertGreater(self.site.admission.heads.bytes, fit * HEAD_BYTES_MAX // 2)
        self.assert_refused(self.ask(head))

    def test_a_head_counts_until_it_ends(self) -> None:
        """A head in pieces counts while it comes, and not afterwards."""
        _, transport = self.connect()
        transport.write(CHUNKED[:20])
        self.net.flush()
        self.assertEqual(self.site.admission.heads.bytes, 20)
        transport.write(CHUNKED[20:])
        self.net.flush()
        self.assertEqual(self.site.admission.heads.bytes, 0)

    def test_answers_that_nobody_takes_are_bounded(self) -> None:
        """What waits for clients to take it has a limit for all of them together."""
        held = self.site.admission.answers
        held.take(admission.ANSWER_BYTES_MAX)
        self.assert_refused(self.ask(GET))
        held.give_back(admission.ANSWER_BYTES_MAX)
        self.assertEqual(self.ask(GET).status, 200)


class TurnTests(CrowdCase):
    """More requests in one turn of the reactor than can be answered in time."""

    def setUp(self) -> None:
        """Let the turns of the reactor be those of a clock of their own."""
        super().setUp()
        self.turns = Clock()
        self.site.admission.turn = admission.Turn(self.turns)

    def test_late_requests_of_a_turn_are_refused(self) -> None:
        """After a while of answering, what is still read gets 503 at once."""
        self.assertEqual(self.ask(GET).status, 200)
        # The reactor is busy: it does not come to look for timers.
        self.turns.rightNow += admission.TURN_S / 2
        self.assertEqual(self.ask(GET).status, 200)
        self.turns.rightNow += admission.TURN_S
        self.assert_refused(self.ask(GET))
        self.turns.advance(0)
        self.assertEqual(self.ask(GET).status, 200)

    def test_a_refused_request_keeps_its_connection(self) -> None:
        """Who is told to come back may do so over the same connection."""
        self.site.admission.turn.check()
        self.turns.rightNow += 2 * admission.TURN_S
        client, transport = self.connect()
        for request in (put(3) + b"abc", GET):
            client.heard = b""
            transport.write(request)
            self.net.flush()
            self.assert_refused(Answer(client.heard))
        self.assertFalse(client.lost)
        self.turns.advance(0)

    def test_requests_are_refused_in_one_way(self) -> None:
        """Whether it was taken apart or not, a refused request is told the same."""
        self.site.admission.turn.check()
        self.turns.rightNow += 2 * admission.TURN_S
        # In one piece, and in two: what is seen at once is not parsed.
        at_once, parsed = self.ask(GET), self.ask(GET[:9], GET[9:])
        self.assertEqual((at_once.status, at_once.body), (parsed.status, parsed.body))
        self.assertLessEqual(at_once.headers.items(), parsed.headers.items())
        self.assertEqual(set(parsed.headers) - set(at_once.headers), {"date"})
        self.turns.advance(0)

    def test_a_crowd_that_goes_on_gets_short_turns(self) -> None:
        """Turns in which something was refused halve, others grow, within limits."""
        turn = self.site.admission.turn

        def length() -> float:
            turn.check()
            took = 0.0
            while not turn.spent and took < 2 * admission.TURN_S:
                took += 0.001
                self.turns.rightNow += 0.001
            self.turns.advance(0)
            return took

        lengths = [length() for _ in range(10)]
        for before, after in itertools.pairwise(lengths):
            self.assertLessEqual(after, before + 0.002)
        self.assertAlmostEqual(lengths[0], admission.TURN_S, delta=0.002)
        self.assertAlmostEqual(lengths[-1], admission.TURN_LEAST_S, delta=0.002)
        for _ in range(20):
            turn.check()
            self.turns.advance(0)
        self.assertAlmostEqual(length(), admission.TURN_S, delta=0.002)


class WholeRequestTests(SynchronousTestCase):
    """What may be refused without being taken apart."""

    def test_whole_requests_are_seen(self) -> None:
        """One whole request about a key is, whatever its headers are."""
        for piece in (
            GET,
            put(3) + b"abc",
            put(0),
            put(3, b"connection: keep-alive") + b"abc",
        ):
            self.assertIsNotNone(whole_request(piece), piece)
        self.assertEqual(whole_request(GET), (b"GET", b"/kv-store/k"))

    def test_all_else_goes_the_ordinary_way(self) -> None:
        """Parts, more than one, other paths and whatever is unusual."""
        for piece in (
            GET[:-1],
            GET + GET,
            GET.replace(b"/kv-store/", b"/health/live"),
            GET.replace(b"/kv-store/", b"/kvs/peer"),
            GET.replace(b"1.1", b"1.0"),
            put(3) + b"ab",
            put(3) + b"abcd",
            put(3, b"Content-Length: 3") + b"abc",
            put(3, b"Expect: 100-continue") + b"abc",
            put(3, b"Connection: close") + b"abc",
            CHUNKED,
            b"",
        ):
            self.assertIsNone(whole_request(piece), piece)
