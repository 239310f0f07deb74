"""``/health/live`` and ``/health/ready``, on a port that may be full."""

from __future__ import annotations

import json

from tests.web.server_case import Answer, ServerCase
from twisted_kvs.core.settings import Settings
from twisted_kvs.web.channel import Request
from twisted_kvs.web.health_api import HealthApi

GET = b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n"
KEY = GET % b"/kv-store/k"
LIVE, READY = b"/health/live", b"/health/ready"


class HealthCase(ServerCase):
    """A port whose health is asked for, beside requests that may be kept."""

    settings = Settings(requests_in_flight_max=2)

    def setUp(self) -> None:
        """Send what asks for health to its resource."""
        super().setUp()
        self.obstacle: str | None = None
        health, others = HealthApi(lambda: self.obstacle), self.resource.render

        def render(request: Request) -> bytes | int:
            wanted = request.path in (LIVE, READY)
            return health.render(request) if wanted else others(request)

        self.resource.render = render  # type: ignore[method-assign]  # a fake


class AnswerTests(HealthCase):
    """What is answered."""

    def test_alive(self) -> None:
        """A process that answers is alive, ready or not."""
        for self.obstacle in (None, "it stops"):
            answer = self.ask(GET % LIVE)
            self.assertEqual(answer.status, 200)
            self.assertEqual(answer.headers["content-type"], "application/json")
            self.assertEqual(
                json.loads(answer.body), {"result": "success", "live": True}
            )

    def test_ready(self) -> None:
        """A node without an obstacle is ready."""
        answer = self.ask(GET % READY)
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.headers["content-type"], "application/json")
        self.assertEqual(json.loads(answer.body), {"result": "success", "ready": True})

    def test_not_ready(self) -> None:
        """A node that should not be asked says why, and is asked again."""
        client, transport = self.connect()
        for self.obstacle, status in (("it stops", 503), (None, 200)):
            client.heard = b""
            transport.write(GET % READY)
            self.net.flush()
            self.assertEqual(Answer(client.heard).status, status)
        self.obstacle = "it stops"
        answer = self.ask(GET % READY)
        self.assertTrue(answer.is_error)
        self.assertIn("it stops", json.loads(answer.body)["msg"])
        self.assertEqual(answer.headers["retry-after"], "1")

    def test_other_methods(self) -> None:
        """Health can only be read."""
        for path in (LIVE, READY):
            for method in (b"PUT", b"POST", b"DELETE", b"HEAD"):
                line = b"%b %b HTTP/1.1\r\nContent-Length: 0\r\n\r\n" % (method, path)
                answer = self.ask(line)
                self.assertEqual((answer.status, answer.headers["allow"]), (405, "GET"))


class FullTests(HealthCase):
    """A node that is full of requests."""

    def setUp(self) -> None:
        """Fill it."""
        super().setUp()
        self.resource.keep = True
        for _ in range(2):
            self.send(KEY)
        self.assertEqual(self.ask(KEY).status, 503)

    def test_health_is_answered(self) -> None:
        """Both get through, and count for nothing."""
        for path in (LIVE, READY, LIVE + b"?verbose"):
            self.assertEqual(self.ask(GET % path).status, 200)
        self.assertEqual(self.site.admission.clients.requests, 2)

    def test_nothing_else_is(self) -> None:
        """A body, or a path that looks alike, does not get in by this door."""
        for path in (b"/health", b"/health/live/", b"/health/", b"/health%2Flive"):
            self.assertEqual(self.ask(GET % path).status, 503, path)
        for head in (b"Content-Length: 3", b"Transfer-Encoding: chunked"):
            line = b"GET %b HTTP/1.1\r\n%b\r\n\r\n" % (LIVE, head)
            self.assertEqual(self.ask(line).status, 503, head)


class DrainTests(HealthCase):
    """A node that is about to stop."""

    def test_answers_end_their_connections(self) -> None:
        """Clients get their answers, and are told to come back elsewhere."""
        kept, transport = self.connect()
        transport.write(KEY)
        self.net.flush()
        self.assertNotIn("connection", Answer(kept.heard).headers)
        self.site.drain()
        kept.heard = b""
        transport.write(KEY)
        self.net.flush()
        answer = Answer(kept.heard)
        self.assertEqual((answer.status, answer.headers["connection"]), (200, "close"))
        self.assertTrue(kept.lost)
        self.assertEqual(self.ask(KEY).status, 200)
