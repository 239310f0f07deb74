"""What stands around the HTTP edge in its tests: a node, and a client of raw bytes."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import IResource

from twisted_kvs.core.causality import Actor, Name
from twisted_kvs.core.codec import Codec
from twisted_kvs.core.errors import NotFound
from twisted_kvs.core.messages import PeerAnswer, PeerRequest
from twisted_kvs.core.payload import Payload, PayloadCodec
from twisted_kvs.core.secrets import DEFAULT_SECRET, Secrets
from twisted_kvs.core.settings import Settings
from twisted_kvs.operations import Answer
from twisted_kvs.signing import Signer
from twisted_kvs.web.client_api import ClientApi
from twisted_kvs.web.peer_gate import PeerGate
from twisted_kvs.web.server import Site, make_site

ACTOR = Actor("10.0.0.21:8080#0123456789abcdef")


class FakeOperations:
    """
    A node as its edges see it: keeps values in a dict and writes down who called.

    A test may set ``failure``, with which everything fails; ``raises``, which
    everything raises at once; or ``holds``, so that it has to fire what is in ``held``.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or Settings()
        self._payloads = PayloadCodec(Secrets([DEFAULT_SECRET]))
        self.calls: list[tuple[Any, ...]] = []
        self.values: dict[str, bytes] = {}
        self.failure: Exception | None = None
        self.raises: Exception | None = None
        self.holds = False
        self.held: list[Deferred[Answer]] = []
        self.cancelled = 0

    @property
    def settings(self) -> Settings:
        return self._settings

    @property
    def payloads(self) -> PayloadCodec:
        return self._payloads

    def token(self, counter: int = 1) -> str:
        """Issue a payload, as an answer of this node would carry it."""
        return self._payloads.encode(Payload({ACTOR: counter}, 0))

    def get(self, key: str, payload: Payload) -> Deferred[Answer]:
        self.calls.append(("get", key, payload))
        value = self.values.get(key)
        if value is None:
            return self._answered(NotFound("there is no such key"))
        body = b'{"result":"success","value":%s}' % value
        return self._answered(Answer(200, body, (("KVS-Causal-Payload", "x"),)))

    def put(self, key: str, value: bytes, payload: Payload) -> Deferred[Answer]:
        self.calls.append(("put", key, value, payload))
        status = 200 if key in self.values else 201
        self.values[key] = value
        body = b'{"result":"success","node_id":0}'
        return self._answered(Answer(status, body, (("KVS-Dot", "d"),)))

    def delete(self, key: str, payload: Payload) -> Deferred[Answer]:
        self.calls.append(("delete", key, payload))
        if self.values.pop(key, None) is None:
            return self._answered(NotFound("there is no such key"))
        body = b'{"result":"success","node_id":0}'
        return self._answered(Answer(200, body, (("KVS-Dot", "d"),)))

    def node_details(self) -> Answer:
        self.calls.append(("node_details",))
        if self.raises is not None:
            raise self.raises
        return Answer(200, b'{"result":"success","replica":"Yes"}')

    def all_replicas(self) -> Answer:
        self.calls.append(("all_replicas",))
        return Answer(200, b'{"result":"success","replicas":["10.0.0.21:8080"]}')

    def update_view(self, kind: str, name: Name) -> Deferred[Answer]:
        self.calls.append(("update_view", kind, name))
        body = b'{"result":"success","msg":"success","number_of_nodes":2}'
        return self._answered(Answer(200, body))

    def answer_peer(
        self, sender: Name, boot_id: int, request: PeerRequest
    ) -> Deferred[PeerAnswer]:
        raise AssertionError("clients are no peers")

    def _answered(self, outcome: Answer | Exception) -> Deferred[Answer]:
        if self.raises is not None:
            raise self.raises
        if self.holds:
            held: Deferred[Answer] = Deferred(self._note_cancelled)
            self.held.append(held)
            return held
        if self.failure is not None:
            return fail(self.failure)
        return succeed(outcome) if isinstance(outcome, Answer) else fail(outcome)

    def _note_cancelled(self, _held: Deferred[Answer]) -> None:
        self.cancelled += 1


class Received(NamedTuple):
    """An answer as it came over the wire."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.body)


class RawClient:
    """
    A connection to a node's port, for requests that no HTTP library would send.

    Paths, in particular, arrive byte for byte as they are given.
    """

    def __init__(self, resource: IResource) -> None:
        settings, clock = Settings(), Clock()
        me, secrets = Name("10.0.0.21:8080"), Secrets([DEFAULT_SECRET])
        signer = Signer(me=me, boot_id=1, keys=secrets.peer_keys)
        gate = PeerGate(signer=signer, codec=Codec(), clock=clock)
        self._ask(make_site(resource, settings=settings, gate=gate, reactor=clock))

    @classmethod
    def of(cls, site: Site) -> RawClient:
        """Connect to a whole port."""
        client = cls.__new__(cls)
        client._ask(site)
        return client

    def _ask(self, site: Site) -> None:
        self._site = site
        self._connect()

    def _connect(self) -> None:
        self._transport = StringTransport()
        self._channel = self._site.buildProtocol(None)
        self._channel.makeConnection(self._transport)

    def ask(
        self,
        method: bytes,
        path: bytes,
        body: bytes | None = None,
        **headers: str | bytes | list[str],
    ) -> Received:
        """
        Send a request and give its answer, which must be there at once.

        :param headers: underscores in their names stand for hyphens.
        """
        self.send(method, path, body, **headers)
        received = self.received()
        assert received is not None, "there is no answer yet"
        return received

    def send(
        self,
        method: bytes,
        path: bytes,
        body: bytes | None = None,
        **headers: str | bytes | list[str],
    ) -> None:
        """Send a request; on a new connection, if the last answer has ended one."""
        last = self.received()
        if last is not None and last.headers.get("connection") == "close":
            self._connect()
        lines = [b"%s %s HTTP/1.1" % (method, path)]
        if "host" not in headers:
            lines.append(b"host: 10.0.0.21:8080")
        for name, value in headers.items():
            for one in value if isinstance(value, list) else [value]:
                raw = one if isinstance(one, bytes) else one.encode()
                lines.append(name.replace("_", "-").encode() + b": " + raw)
        if body is not None:
            lines.append(b"content-length: %d" % len(body))
        self._transport.clear()
        self._channel.dataReceived(b"\r\n".join([*lines, b"", body or b""]))

    def received(self) -> Received | None:
        """Give the answer to the last request, None if there is none yet."""
        head, _, body = self._transport.value().partition(b"\r\n\r\n")
        if not head:
            return None
        first, *lines = head.decode().split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        return Received(int(first.split()[1]), headers, body)

    def hang_up(self) -> None:
        """Drop the connection."""
        self._channel.connectionLost(Failure(ConnectionDone()))


class ClientApiTestCase(SynchronousTestCase):
    """A node, its API, and a connection to it."""

    def setUp(self) -> None:
        self.node = FakeOperations()
        self.api = ClientApi(self.node)
        self.client = RawClient(self.api.resource)

    def ask(
        self, method: str, path: str, body: str | bytes | None = None, **headers: Any
    ) -> Received:
        raw = body.encode() if isinstance(body, str) else body
        return self.client.ask(method.encode(), path.encode(), raw, **headers)

    def assert_refused(
        self, status: int, method: str, path: str, *body: Any, **headers: Any
    ) -> Received:
        """Demand an error as the contract words it, and that nobody was called."""
        received = self.ask(method, path, *body, **headers)
        self.assertEqual(received.status, status, received.body)
        self.assert_error(received)
        self.assertEqual(self.node.calls, [])
        return received

    def assert_error(self, received: Received) -> None:
        self.assertEqual(set(received.json), {"result", "msg"})
        self.assertEqual(received.json["result"], "error")
        self.assertTrue(received.json["msg"])
        self.assertEqual(received.headers["content-type"], "application/json")

    def sees(self, body: str | bytes | None = None, **headers: Any) -> int:
        """Read a key; return the counter in the payload that the node was given."""
        self.node.calls.clear()
        path = "/kv-store/a" + headers.pop("query", "")
        self.ask("GET", path, body, **headers)
        [(_, _, payload)] = self.node.calls
        return sum(payload.vector.values())
