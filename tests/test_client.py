"""The client library, against scripted nodes in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from treq.client import HTTPClient
from treq.testing import StubTreq
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, fail
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectError, ConnectionLost
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock, Cooperator
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import (
    URI,
    Agent,
    FileBodyProducer,
    HTTPConnectionPool,
    ResponseNeverReceived,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IRequest, IResponse
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from tests.memory_network import MemoryNetwork
from tests.web.fakes import FakeOperations
from twisted_kvs.client import (
    BadAnswer,
    Deleted,
    Found,
    KVSClient,
    NoNodeReached,
    ServerFailed,
    Stored,
    Unanswered,
    ViewChanged,
    base_url,
)
from twisted_kvs.core.causality import Name
from twisted_kvs.core.codec import Codec
from twisted_kvs.core.errors import (
    BadRequest,
    KVSError,
    NotFound,
    Overloaded,
    Removed,
    SlowDisk,
    StorageFull,
    TooLarge,
)
from twisted_kvs.core.secrets import DEFAULT_SECRET, Secrets
from twisted_kvs.operations import Answer
from twisted_kvs.signing import Signer
from twisted_kvs.web.client_api import ClientApi
from twisted_kvs.web.peer_gate import PeerGate
from twisted_kvs.web.server import make_site

A, B, C = "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"
WRITTEN = {"result": "success", "node_id": 2, "timestamp": "17.000001"}
_T = TypeVar("_T")


@dataclass
class Scripted(Resource):
    """A node that gives the answers it was told and keeps what it was asked."""

    answers: list[tuple[int, Any, dict[str, str]]] = field(default_factory=list)
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    isLeaf = True

    def __post_init__(self) -> None:
        super().__init__()

    def then(self, status: int, fields: Any, **headers: str) -> Scripted:
        """Answer so, after what it was told before; None: never."""
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        self.answers.append((status, fields, named))
        return self

    def render(self, request: IRequest) -> bytes | int:
        body = request.content.read()
        fields = json.loads(body) if body else None
        self.asked.append((request.method.decode(), request.uri.decode(), fields))
        status, answer, headers = self.answers.pop(0)
        if answer is None:
            return NOT_DONE_YET
        request.setResponseCode(status)
        for name, text in headers.items():
            request.setHeader(name, text)
        return answer if isinstance(answer, bytes) else json.dumps(answer).encode()


class Network:
    """Several nodes; those that are not there refuse connections."""

    def __init__(self, **nodes: Resource) -> None:
        self._nodes = {name: StubTreq(node) for name, node in nodes.items()}
        self.failures: dict[str, Exception] = {}
        self.dialled: list[str] = []

    def request(
        self,
        method: str,
        url: str,
        *,
        data: bytes | None,
        headers: Headers,
        unbuffered: bool,
    ) -> Deferred[IResponse]:
        address = urlsplit(url).netloc
        self.dialled.append(address)
        name = {A: "a", B: "b", C: "c"}[address]
        if name in self.failures:
            return fail(Failure(self.failures[name]))
        if name not in self._nodes:
            return fail(Failure(ConnectError()))
        stub = self._nodes[name]
        # StubTreq makes its methods at run time.
        request: Callable[..., Deferred[IResponse]] = vars(stub)["request"]
        return request(method, url, data=data, headers=headers, unbuffered=unbuffered)


class ClientCase(SynchronousTestCase):
    """A client of some nodes, on a clock."""

    def connect(self, *nodes: str, **resources: Resource) -> KVSClient:
        """Make a client."""
        self.clock = Clock()
        self.network = Network(**resources)
        return KVSClient(nodes or [A], self.network, clock=self.clock)

    def now(self, work: Coroutine[Deferred[Any], Any, _T]) -> _T:
        """Give what was answered at once."""
        return self.successResultOf(ensureDeferred(work))

    def fails(self, work: Coroutine[Deferred[Any], Any, object], kind: type[_T]) -> _T:
        """Give the error that came at once."""
        failure = self.failureResultOf(ensureDeferred(work))
        error = failure.value
        assert isinstance(error, kind), error
        self.assertIs(type(error), kind)
        return error


class Session(ClientCase):
    """The causal payload is carried for the caller."""

    def test_the_payload_of_each_answer_goes_with_the_next_request(self) -> None:
        """What was read and written goes with the next request, whatever it is."""
        node = Scripted()
        node.then(201, WRITTEN | {"causal_payload": "p1"})
        node.then(200, WRITTEN | {"causal_payload": "p2", "value": "v"})
        node.then(200, WRITTEN | {"causal_payload": "p3"})
        client = self.connect(a=node)
        self.now(client.put("k", "v"))
        self.now(client.get("k"))
        self.now(client.put("l", "w"))
        payloads = [fields["causal_payload"] for _, _, fields in node.asked]
        self.assertEqual(payloads, ["", "p1", "p2"])
        self.assertEqual(client.payload, "p3")

    def test_a_404_is_a_read(self) -> None:
        """Who has seen that there is nothing has read something, too."""
        node = Scripted().then(404, {"msg": "no"}, KVS_Causal_Payload="p1")
        client = self.connect(a=node)
        self.fails(client.get("k"), NotFound)
        self.assertEqual(client.payload, "p1")

    def test_one_after_the_other(self) -> None:
        """Operations that are started together wait, so that no payload is lost."""
        node = Scripted()
        for number in range(3):
            node.then(201, WRITTEN | {"causal_payload": f"p{number}"})
        client = self.connect(a=node)
        for number in range(3):
            self.now(client.put(f"k{number}", ""))
        payloads = [fields["causal_payload"] for _, _, fields in node.asked]
        self.assertEqual(payloads, ["", "p0", "p1"])

    def test_waits_for_the_answer_before(self) -> None:
        """A second operation is not sent before the first is answered."""
        silent = Scripted().then(0, None)
        client = self.connect(a=silent)
        first = ensureDeferred(client.get("k"))
        second = ensureDeferred(client.get("l"))
        self.assertEqual(len(silent.asked), 1)
        silent.then(404, {"msg": "no"})
        self.clock.advance(3)
        self.failureResultOf(first, NoNodeReached)
        self.failureResultOf(second, NotFound)


class Results(ClientCase):
    """What comes back, typed."""

    def test_get(self) -> None:
        """A read tells the value, who took the write and when, and if it may be old."""
        answer = WRITTEN | {"value": {"a": [1, None]}, "causal_payload": "p"}
        node = Scripted().then(200, answer, KVS_Stale="true").then(200, answer)
        client = self.connect(a=node)
        wanted = Found(
            value={"a": [1, None]}, node_id=2, timestamp="17.000001", stale=True
        )
        self.assertEqual(self.now(client.get("k")), wanted)
        self.assertFalse(self.now(client.get("k")).stale)
        self.assertEqual(node.asked[0][:2], ("GET", "/kv-store/k"))

    def test_put(self) -> None:
        """A write tells whether it is the first."""
        node = Scripted().then(201, WRITTEN).then(200, WRITTEN)
        client = self.connect(a=node)
        wanted = Stored(created=True, node_id=2, timestamp="17.000001")
        self.assertEqual(self.now(client.put("k", [1])), wanted)
        self.assertFalse(self.now(client.put("k", "ü")).created)
        self.assertEqual([fields["val"] for _, _, fields in node.asked], [[1], "ü"])

    def test_delete(self) -> None:
        """A delete tells who took it and when; a 404 of its own is no delete."""
        node = Scripted().then(200, WRITTEN | {"causal_payload": "p"})
        node.then(404, {"msg": "no such key"}, KVS_Causal_Payload="q")
        client = self.connect(a=node)
        client.payload = "o"
        wanted = Deleted(node_id=2, timestamp="17.000001")
        self.assertEqual(self.now(client.delete("a b")), wanted)
        error = self.fails(client.delete("k"), NotFound)
        self.assertEqual((str(error), client.payload), ("no such key", "q"))
        self.assertEqual(
            node.asked,
            [
                ("DELETE", "/kv-store/a%20b", {"causal_payload": "o"}),
                ("DELETE", "/kv-store/k", {"causal_payload": "p"}),
            ],
        )

    def test_update_view(self) -> None:
        """Adding tells the new node's number, both tell how many nodes live."""
        done = {"result": "success", "msg": "success", "number_of_nodes": 3}
        node = Scripted().then(200, done | {"node_id": 4}).then(200, done)
        client = self.connect(a=node)
        added = self.now(client.add_node("10.0.0.9:80"))
        self.assertEqual(added, ViewChanged(number_of_nodes=3, node_id=4))
        removed = self.now(client.remove_node("10.0.0.9:80"))
        self.assertEqual(removed, ViewChanged(number_of_nodes=3, node_id=None))
        wanted = {"ip_port": "10.0.0.9:80"}
        path = "/kv-store/update_view?type="
        self.assertEqual(node.asked[0], ("PUT", path + "add", wanted))
        self.assertEqual(node.asked[1], ("PUT", path + "remove", wanted))

    def test_questions(self) -> None:
        """Replicas, role and status can be asked for."""
        node = Scripted().then(200, {"replicas": [A, B]})
        node.then(200, {"replica": "No"}).then(200, {"name": A})
        client = self.connect(a=node)
        self.assertEqual(self.now(client.all_replicas()), [A, B])
        self.assertFalse(self.now(client.is_replica()))
        self.assertEqual(self.now(client.status()), {"name": A})

    def test_errors(self) -> None:
        """Every refusal is an error of its own, with the node's own words."""
        kinds: dict[int, type[KVSError]] = {
            400: BadRequest,
            404: NotFound,
            413: TooLarge,
            503: Overloaded,
            504: SlowDisk,
            507: StorageFull,
            410: Removed,
            500: ServerFailed,
        }
        for status, kind in kinds.items():
            node = Scripted().then(status, {"result": "error", "msg": "so it is"})
            error = self.fails(self.connect(a=node).get("k"), kind)
            self.assertEqual(str(error), "so it is")

    def test_answers_that_are_none(self) -> None:
        """What no node would say is an error, never a value."""
        for fields in (
            {"value": 1},
            WRITTEN,
            {"value": 1, "node_id": "x", "timestamp": "1"},
            {"value": 1, "node_id": 1, "timestamp": None},
        ):
            node = Scripted().then(200, fields)
            self.fails(self.connect(a=node).get("k"), BadAnswer)
        for body in (b"", b"<html>", b"[]", b"\xff"):
            node = Scripted().then(200, body)
            error = self.fails(self.connect(a=node).get("k"), NoNodeReached)
            self.assertIn("is no node", str(error))


class SeveralNodes(ClientCase):
    """When a node cannot be reached, the next is asked."""

    def test_the_next_node_answers(self) -> None:
        """A refused connection goes on to the next, for reads and for writes."""
        node = Scripted().then(201, WRITTEN).then(404, {"msg": "no"})
        client = self.connect(A, B, b=node)
        self.now(client.put("k", "v"))
        self.fails(client.get("k"), NotFound)
        # And the client stays with the one that answered.
        self.assertEqual(self.network.dialled, [A, B, B])

    def test_nobody_answers(self) -> None:
        """Without any node the error names all that were tried."""
        error = self.fails(self.connect(A, B).put("k", "v"), NoNodeReached)
        for address in (A, B):
            self.assertIn(address, str(error))

    def test_a_node_that_cannot(self) -> None:
        """A node that was removed or has too much to do has done nothing."""
        for status in (410, 503, 507):
            unable = Scripted().then(status, {"msg": "not I"})
            node = Scripted().then(201, WRITTEN)
            self.now(self.connect(A, B, a=unable, b=node).put("k", "v"))
        unable = Scripted().then(503, {"msg": "not I"})
        self.fails(self.connect(A, B, a=unable).put("k", "v"), Overloaded)

    def test_a_read_that_is_not_answered(self) -> None:
        """A read that is late, or whose connection breaks, is asked elsewhere."""
        node = Scripted().then(404, {"msg": "no"})
        client = self.connect(A, B, a=Scripted().then(0, None), b=node)
        read = ensureDeferred(client.get("k"))
        self.assertNoResult(read)
        self.clock.advance(3)
        self.failureResultOf(read, NotFound)
        node.then(404, {"msg": "no"})
        client = self.connect(A, B, b=node)
        self.network.failures["a"] = ConnectionLost()
        self.fails(client.get("k"), NotFound)

    def test_a_write_that_is_not_answered(self) -> None:
        """A write that was sent is not repeated: it may stand already."""
        node = Scripted()
        writes: list[Callable[[KVSClient], Coroutine[Deferred[Any], Any, object]]] = [
            lambda client: client.put("k", "v"),
            lambda client: client.delete("k"),
        ]
        for write in writes:
            client = self.connect(A, B, a=Scripted().then(0, None), b=node)
            written = ensureDeferred(write(client))
            self.clock.advance(3)
            self.failureResultOf(written, Unanswered)
            client = self.connect(A, B, b=node)
            self.network.failures["a"] = ConnectionLost()
            self.fails(write(client), Unanswered)
        self.assertEqual(node.asked, [])

    def test_another_program(self) -> None:
        """A web server that happens to listen there is no node; the next may be."""
        other = Scripted().then(404, b"<html>").then(502, b"<html>")
        node = Scripted().then(201, WRITTEN)
        self.now(self.connect(A, B, a=other, b=node).put("k", "v"))
        # But what stands between us and a node may have let the write through.
        error = self.fails(self.connect(A, B, a=other, b=node).put("k", "v"), BadAnswer)
        self.assertIn("502", str(error))


class Keys(ClientCase):
    """Any text can be a key."""

    def test_keys_arrive_as_they_are(self) -> None:
        """Nothing on the way decodes, joins or normalises a key."""
        keys = [
            *("k", "a b", "a+b", "a/b", "/", "//", "a//b", "a/", ".", "..", "a/../b"),
            *("%", "%2F", "%41", "?", "a?b=c", "#", "&", ";", "a=b", "\\", '"', "ü"),
            *("\u2028", "e\u0301", "\U0001f600", "a\u0085"[:1], "~", "x" * 200),
        ]
        node = FakeOperations()
        client = self.connect(a=ClientApi(node).resource)
        for key in keys:
            with self.assertRaises(BadAnswer):
                # The fake does not give all fields.
                self.now_or_raise(client.put(key, "v"))
        self.assertEqual([call[1] for call in node.calls], keys)

    def now_or_raise(self, work: Coroutine[Deferred[Any], Any, object]) -> None:
        """Raise what was raised."""
        self.failureResultOf(ensureDeferred(work)).raiseException()

    def test_keys_and_values_that_are_none(self) -> None:
        """What cannot be sent is refused before it is."""
        node = Scripted()
        client = self.connect(a=node)
        bad: list[Callable[[], Coroutine[Deferred[Any], Any, object]]] = [
            lambda: client.get(""),
            lambda: client.get("\ud800"),
            lambda: client.delete(""),
            lambda: client.put("k", "\ud800"),
            lambda: client.put("k", float("nan")),
        ]
        for work in bad:
            self.fails(work(), BadRequest)
        self.assertEqual(node.asked, [])

    def test_addresses(self) -> None:
        """A node is named by ip:port or by URL."""
        self.assertEqual(base_url("10.0.0.1:80"), "http://10.0.0.1:80")
        self.assertEqual(base_url(" https://kvs.example/ "), "https://kvs.example")
        self.assertEqual(base_url("[0::1]:80/"), "http://[::1]:80")
        self.assertEqual(base_url("http://[::1]:80"), "http://[::1]:80")
        with self.assertRaises(BadRequest):
            KVSClient([], Network(), clock=Clock())

    def test_addresses_that_are_none(self) -> None:
        """A slip in an address is told as one, not as a change that may be made."""
        for bad in ("", "here", "::1:80", "a b:80", "a:x", "a:0", "a:65536", "u@a:80"):
            self.assertRaises(BadRequest, base_url, bad)
        for bad in (
            "http://",
            "ftp://a",
            "http://a:x",
            "http://a:0",
            "http://é",
            "://a",
        ):
            self.assertRaises(BadRequest, base_url, bad)

    def test_a_node_that_is_silent(self) -> None:
        """What Twisted wraps is told in words: a node that stands still, for one."""
        client = self.connect(A)
        self.network.failures["a"] = ResponseNeverReceived([Failure(CancelledError())])
        error = self.failureResultOf(ensureDeferred(client.get("k")), NoNodeReached)
        self.assertIn(f"http://{A} (not within the time)", str(error.value))


class KeptConnections(SynchronousTestCase):
    """A client whose connections are kept, and break when they are used again."""

    def setUp(self) -> None:
        """Keep a connection to a node that has answered."""
        self.network = MemoryNetwork()
        self.turns = Cooperator(scheduler=lambda turn: self.network.callLater(0, turn))
        self.node = FakeOperations()
        self.node.values["k"] = b'"v"'
        secrets = Secrets([DEFAULT_SECRET])
        signer = Signer(me=Name(A), boot_id=1, keys=secrets.peer_keys)
        site = make_site(
            ClientApi(self.node).resource,
            settings=self.node.settings,
            gate=PeerGate(signer=signer, codec=Codec(), clock=self.network),
            reactor=self.network,
        )
        self.network.listen("10.0.0.1", 80, site)
        pool = HTTPConnectionPool(self.network, persistent=True)
        self.addCleanup(self.close, pool)
        self.requests = HTTPClient(
            Agent.usingEndpointFactory(self.network, Endpoints(self.network), pool)
        )
        self.client = KVSClient(A, self, clock=self.network)
        with self.assertRaises(NotFound):
            self.ended(self.client.get("nothing"))
        self.node.calls.clear()

    def request(
        self,
        method: str,
        url: str,
        *,
        data: bytes | None,
        headers: Headers,
        unbuffered: bool,
    ) -> Deferred[IResponse]:
        """Ask with treq, which would read bodies when the real reactor has time."""
        body = None if data is None else FileBodyProducer(BytesIO(data), self.turns)
        asked: Deferred[Any] = self.requests.request(
            method, url, data=body, headers=headers, unbuffered=unbuffered
        )
        return asked

    def close(self, pool: HTTPConnectionPool) -> None:
        pool.closeCachedConnections()
        self.flush()

    def flush(self) -> None:
        """Let everything happen that needs no time."""
        for _ in range(3):
            self.network.flush()
            self.network.advance(0)

    def ended(self, work: Coroutine[Deferred[Any], Any, _T]) -> _T:
        """Give the outcome of what needs no time."""
        running = ensureDeferred(work)
        self.flush()
        results: list[Any] = []
        running.addBoth(results.append)
        [result] = results
        if isinstance(result, Failure):
            result.raiseException()
        return cast(_T, result)

    def break_connection(self) -> None:
        """Let the node close the connection, unseen so far."""
        self.network.connections[-1][1].abortConnection()

    def test_a_delete_on_a_closed_connection_is_not_repeated(self) -> None:
        """A delete that may have been processed fails, and is not sent again."""
        self.break_connection()
        with self.assertRaises(Unanswered):
            self.ended(self.client.delete("k"))
        self.assertEqual((self.node.calls, len(self.network.connections)), ([], 1))

    def test_a_delete_that_was_done_is_not_repeated(self) -> None:
        """A node that dies between the delete and its answer has done it once."""
        self.node.holds = True
        running = ensureDeferred(self.client.delete("k"))
        self.flush()
        self.break_connection()
        self.flush()
        self.failureResultOf(running, Unanswered)
        self.assertEqual([call[:2] for call in self.node.calls], [("delete", "k")])
        self.node.held.pop().callback(Answer(200, b"{}"))

    def test_a_delete_without_a_body_would_be(self) -> None:
        """What the client's body is for: without one Twisted itself asks again."""
        self.break_connection()
        asked = self.requests.request("DELETE", f"http://{A}/kv-store/k")
        self.flush()
        self.assertEqual(self.successResultOf(asked).code, 200)
        self.assertEqual(len(self.network.connections), 2)


@implementer(IAgentEndpointFactory)
class Endpoints:
    """Finds nodes on a network in memory."""

    def __init__(self, network: MemoryNetwork) -> None:
        self._network = network

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """Connect to the address in a URL."""
        return TCP4ClientEndpoint(self._network, uri.host.decode(), uri.port)
