"""A line for each request, for who wants that."""

from __future__ import annotations

from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from zope.interface import implementer

from tests.web.server_case import ServerCase, put
from twisted_kvs.core.errors import NotFound
from twisted_kvs.logs import as_json


@implementer(ILogObserver)
class Told:
    """Keeps what ports say of requests."""

    def __init__(self) -> None:
        """Have heard nothing."""
        self.events: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        """Keep it."""
        if event["log_namespace"] == "twisted_kvs.web.channel.Request":
            self.events.append(event)


class RequestLogTests(ServerCase):
    """What is told of requests."""

    def setUp(self) -> None:
        """Listen to the log."""
        super().setUp()
        observer = Told()
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.told = observer.events

    def get(self, path: bytes) -> None:
        """Ask for something."""
        self.ask(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path)

    def test_off(self) -> None:
        """Nothing is told unless it was asked for."""
        self.get(b"/kv-store/k")
        self.assertEqual(self.told, [])

    def test_on(self) -> None:
        """One line each: who, what, and what came of it; no payload and no value."""
        self.site.tells_requests = True
        self.ask(put(9) + b"val=value")
        self.resource.failure = NotFound("no")
        self.get(b"/kv-store/a%20b?causal_payload=secret")
        said = [(one["method"], one["path"], one["status"]) for one in self.told]
        self.assertEqual(
            said, [("PUT", "/kv-store/k", 200), ("GET", "/kv-store/a%20b", 404)]
        )
        for event in self.told:
            self.assertIs(event["log_level"], LogLevel.info)
            self.assertNotIn("secret", as_json(event))

    def test_machines(self) -> None:
        """What is asked every few seconds is not told."""
        self.site.tells_requests = True
        for path in (b"/health/live", b"/health/ready", b"/metrics"):
            self.get(path)
        self.assertEqual(self.told, [])
        self.get(b"/kvs/status")
        self.assertEqual(len(self.told), 1)
