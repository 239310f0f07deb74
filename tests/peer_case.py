"""A node that asks and a peer that is asked, on a network in memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource

from tests.memory_network import MemoryNetwork
from twisted_kvs.core.causality import Actor, Name
from twisted_kvs.core.codec import Codec
from twisted_kvs.core.messages import (
    Forward,
    NextPart,
    Operation,
    PartAnswer,
    PeerAnswer,
    PeerRequest,
)
from twisted_kvs.core.settings import Settings
from twisted_kvs.core.versions import Version
from twisted_kvs.operations import Reply
from twisted_kvs.peers import TreqTransport
from twisted_kvs.signing import PEER_HEADER, Signer
from twisted_kvs.web.peer_api import PeerApi
from twisted_kvs.web.peer_gate import PeerGate
from twisted_kvs.web.server import Root, Site, make_site

ME, PEER = Name("10.0.0.1:80"), Name("10.0.0.2:80")
KEY = b"k" * 32
SETTINGS = Settings()
ASK = NextPart(session=1, index=1)
ANSWER = PartAnswer(versions=[], more=False)


def version(counter: int, *, size: int = 100) -> Version:
    """Make a version whose value cannot be compressed."""
    return Version(
        actor=Actor(f"{ME}#0123456789abcdef"),
        counter=counter,
        key="k",
        value=random.Random(counter).randbytes(size),
        ts=1,
        past={},
    )


def forward(operation: Operation) -> Forward:
    """Make a forwarded request."""
    return Forward(
        operation=operation, key="k", vector={}, lamport=0, seen={}, budget_ms=400
    )


class FakeNode:
    """Answers peers as a test wants it, and remembers what they asked."""

    def __init__(self) -> None:
        """Answer at once."""
        self.asked: list[tuple[Name, int, PeerRequest]] = []
        self.answer: Callable[[PeerRequest], Deferred[PeerAnswer]] = lambda _: succeed(
            ANSWER
        )

    def answer_peer(
        self, sender: Name, boot_id: int, request: PeerRequest
    ) -> Deferred[PeerAnswer]:
        """Answer."""
        self.asked.append((sender, boot_id, request))
        return self.answer(request)


class Peer:
    """One node's port, and the node behind it."""

    def __init__(self, net: MemoryNetwork, name: Name, *keys: bytes) -> None:
        """Listen at the address of its name."""
        self.node = FakeNode()
        self.signer = Signer(me=name, boot_id=9, keys=keys or [KEY])
        self.gate = PeerGate(signer=self.signer, codec=Codec(), clock=net)
        operations: Any = self.node
        self.api = PeerApi(operations, gate=self.gate)
        self.site: Site = make_site(
            Root(clients=Resource(), peers=self.api.resource),
            settings=SETTINGS,
            gate=self.gate,
            reactor=net,
        )


class Silent(Protocol):
    """A server that says what a test tells it, and hears everything."""

    def __init__(self, says: bytes = b"", *, closes: bool = False) -> None:
        """Say something at the first piece that comes."""
        self.heard = b""
        self.lost = False
        self._says, self._closes = says, closes

    def dataReceived(self, data: bytes) -> None:
        """Say it."""
        self.heard += data
        assert self.transport is not None
        if self._says:
            self.transport.write(self._says)
            self._says = b""
        if self._closes:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Remember it."""
        self.lost = True


class PeerCase(SynchronousTestCase):
    """A transport that asks, and room for peers."""

    def setUp(self) -> None:
        """Begin with a peer that answers."""
        self.net = MemoryNetwork()
        self.names: dict[str, list[str]] = {}
        self.transport = TreqTransport(
            self.net,
            signer=Signer(me=ME, boot_id=7, keys=[KEY]),
            codec=Codec(),
            settings=SETTINGS,
            lookup=self.look_up,
        )
        self.peer = Peer(self.net, PEER)
        self.net.listen("10.0.0.2", 80, self.peer.site)

    def look_up(self, host: str) -> Deferred[list[str]]:
        """Be the operating system."""
        if host in self.names:
            return succeed(self.names[host])
        return fail(OSError("no such name"))

    def ask(
        self,
        request: PeerRequest = ASK,
        *,
        peer: Name = PEER,
        connect_s: float = 1.0,
        total_s: float = 30.0,
    ) -> Deferred[Reply]:
        """Ask, and let everything happen that needs no time."""
        asked = self.transport.ask(peer, request, connect_s=connect_s, total_s=total_s)
        self.net.flush()
        return asked

    def serve(self, make: Callable[[], Protocol]) -> list[Any]:
        """Put another server at the peer's address; list its protocols as they come."""
        made: list[Any] = []

        class Server(Factory):
            noisy = False

            def buildProtocol(self, addr: Any) -> Protocol:
                made.append(make())
                return made[-1]  # type: ignore[no-any-return]  # what was appended

        self.net.listen("10.0.0.2", 80, Server())
        return made

    def tearDown(self) -> None:
        """Check that nothing is left and nothing was logged as a bug."""
        closed = self.transport.close()
        self.net.flush()
        self.successResultOf(closed)
        for near, _ in self.net.connections:
            near.abortConnection()
        self.net.flush()
        for lane in (self.peer.site.admission.peers, self.peer.site.admission.clients):
            self.assertEqual((lane.requests, lane.body_bytes), (0, 0))
        self.assertEqual(self.net.getDelayedCalls(), [])
        self.assertEqual(self.flushLoggedErrors(), [])


def answer_to(request: bytes, body: bytes, *, key: bytes = KEY) -> bytes:
    """Write the signed answer of the peer, whatever its body."""
    signer_there = Peer(MemoryNetwork(), PEER, key).signer
    head = request.split(b"\r\n\r\n")[0].decode()
    headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
    lower = {name.lower(): value for name, value in headers.items()}
    verifier = Peer(MemoryNetwork(), PEER).signer
    envelope = verifier.verify_request(
        [lower[PEER_HEADER.lower()].encode()], head.split(" ")[1].encode()
    )
    return b"HTTP/1.1 200 OK\r\n%b: %b\r\nContent-Length: %d\r\n\r\n%b" % (
        PEER_HEADER.encode(),
        signer_there.sign_answer(envelope, body),
        len(body),
        body,
    )
