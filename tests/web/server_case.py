"""A port on a network in memory, and a client of raw bytes."""

from __future__ import annotations

import json

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.iweb import IRequest
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from tests.memory_network import MemoryNetwork, MemoryTransport
from twisted_kvs.core.causality import Name
from twisted_kvs.core.codec import Codec
from twisted_kvs.core.settings import Settings
from twisted_kvs.signing import Signer
from twisted_kvs.web.channel import (
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


@implementer(IHalfCloseableProtocol)
class Client(Protocol):
    """Keeps what the server says; as most clients do, it sends on after the end."""

    def __init__(self) -> None:
        """Hear nothing yet."""
        self.heard = b""
        self.lost = False
        self.ended = False

    def readConnectionLost(self) -> None:
        """Remember that the server says no more."""
        self.ended = True

    def writeConnectionLost(self) -> None:
        """Do nothing."""

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
        # Ends the turn of the reactor.
        self.net.advance(0)
        admission = self.site.admission
        self.assertEqual((admission.heads.bytes, admission.answers.bytes), (0, 0))
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
