"""The status of a node, and which path leads where."""

from __future__ import annotations

from prometheus_client import PlatformCollector
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.web.fakes import FakeOperations, RawClient, Received
from twisted_kvs.core.causality import Name
from twisted_kvs.core.codec import Codec
from twisted_kvs.signing import Signer
from twisted_kvs.web.peer_gate import PeerGate
from twisted_kvs.web.root import Views, make_root
from twisted_kvs.web.status_api import StatusApi


class Status(SynchronousTestCase):
    """``GET /kvs/status``."""

    def setUp(self) -> None:
        self.asked = 0

    def status(self) -> dict[str, object]:
        """Count how often it was asked for."""
        self.asked += 1
        return {"name": "a:1", "lag_s": None, "peers": {"b:1": {"alive": True}}}

    def ask(self, method: bytes, path: bytes = b"/kvs/status") -> Received:
        """Ask a fresh connection."""
        return RawClient(StatusApi(self.status)).ask(method, path)

    def test_get(self) -> None:
        """The status is JSON, and made anew for each request."""
        answer = self.ask(b"GET")
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.headers["content-type"], "application/json")
        self.assertEqual(answer.json["peers"], {"b:1": {"alive": True}})
        self.ask(b"GET")
        self.assertEqual(self.asked, 2)

    def test_other_methods(self) -> None:
        """A status can only be read."""
        for method in (b"PUT", b"POST", b"DELETE", b"PATCH"):
            answer = self.ask(method)
            self.assertEqual(answer.status, 405)
            self.assertEqual(answer.headers["allow"], "GET")
            self.assertEqual(answer.json["result"], "error")
        self.assertEqual(self.ask(b"HEAD").status, 405)
        self.assertEqual(self.asked, 0)

    def test_a_bug(self) -> None:
        """A status that cannot be made is a 500 without details, and is logged."""

        def status() -> dict[str, object]:
            return {"name": self}

        answer = RawClient(StatusApi(status)).ask(b"GET", b"/kvs/status")
        self.assertEqual(answer.status, 500)
        self.assertEqual(set(answer.json), {"result", "msg"})
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)


class Root(SynchronousTestCase):
    """Everything that a node answers on its port."""

    def setUp(self) -> None:
        signer = Signer(me=Name("a:1"), boot_id=1, keys=[b"key"])
        gate = PeerGate(signer=signer, codec=Codec(), clock=Clock())
        self.operations = FakeOperations()
        root = make_root(
            self.operations,
            views=Views(
                status=lambda: {"name": "a:1"},
                obstacle=lambda: None,
                collector=PlatformCollector(registry=None),
            ),
            gate=gate,
        )
        self.client = RawClient(root)

    def test_status(self) -> None:
        """The status is there, with a query or without."""
        for path in (b"/kvs/status", b"/kvs/status?pretty"):
            answer = self.client.ask(b"GET", path)
            self.assertEqual(answer.json, {"name": "a:1"})

    def test_health(self) -> None:
        """Both paths of health are there."""
        for path, name in ((b"/health/live", "live"), (b"/health/ready", "ready")):
            self.assertIs(self.client.ask(b"GET", path).json[name], True)

    def test_metrics(self) -> None:
        """Metrics are there, in another format than all the rest."""
        answer = self.client.ask(b"GET", b"/metrics")
        self.assertTrue(answer.headers["content-type"].startswith("text/plain;"))
        self.assertIn(b"# TYPE python_info gauge\n", answer.body)

    def test_keys(self) -> None:
        """Keys reach the routes for clients as they were written."""
        answer = self.client.ask(b"PUT", b"/kv-store/a//b%2F", b"val=1")
        self.assertEqual(answer.status, 201)
        self.assertEqual(self.operations.calls[0][1], "a//b/")

    def test_other_paths(self) -> None:
        """What is no path of ours is a 404 in JSON, near misses too."""
        for path in (
            *(b"/", b"/kvs", b"/kvs/", b"/kvs/status/", b"/kvs/status/x"),
            *(b"/KVS/status", b"/kvs%2Fstatus", b"//kvs/status", b"/favicon.ico"),
            *(b"/health", b"/health/", b"/health/live/", b"/live"),
        ):
            answer = self.client.ask(b"GET", path)
            self.assertEqual(answer.status, 404, path)
            self.assertEqual(set(answer.json), {"result", "msg"})
        self.assertEqual(self.operations.calls, [])
