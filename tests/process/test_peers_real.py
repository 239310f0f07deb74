"""Asking peers over real sockets: what no network in memory can show."""

from __future__ import annotations

import socket
import time
from typing import Any

from twisted.internet import reactor as any_reactor
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from tests.peer_case import ANSWER, ASK, KEY, FakeNode, version
from twisted_kvs.core.causality import Name
from twisted_kvs.core.codec import Codec
from twisted_kvs.core.errors import PeerTimedOut, PeerUnreachable
from twisted_kvs.core.messages import PartAnswer, Push
from twisted_kvs.core.settings import Settings
from twisted_kvs.peers import TreqTransport
from twisted_kvs.signing import Signer
from twisted_kvs.web.channel import LINGER_IDLE_S
from twisted_kvs.web.peer_api import PeerApi
from twisted_kvs.web.peer_gate import PeerGate
from twisted_kvs.web.server import Root, make_site

reactor: Any = any_reactor
SETTINGS = Settings(gossip_progress_s=0.5)


class Hello(Resource):
    """Answers clients."""

    isLeaf = True

    def render(self, request: Any) -> bytes | int:
        """Answer small, or keep the client waiting."""
        if request.path == b"/wait":
            return NOT_DONE_YET
        return b'{"hello": "world"}'


class Raw(Protocol):
    """A client that sends bytes and notes what comes when."""

    def __init__(self) -> None:
        """Hear nothing yet."""
        self.pieces: list[bytes] = []
        self.ended: Deferred[Failure] = Deferred()
        self.first: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        """Keep a piece."""
        self.pieces.append(data)
        if not self.first.called:
            self.first.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell how it ended."""
        self.ended.callback(reason.value)  # type: ignore[arg-type]  # an exception


class RealCase(TestCase):
    """A port on the loopback interface, and a transport."""

    timeout = 60

    def setUp(self) -> None:
        """Listen."""
        self.node = FakeNode()
        self.codec = Codec()
        # The name of a node has its port in it, so the port comes first.
        self.port = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
        self.name = Name(f"127.0.0.1:{self.port.getHost().port}")
        signer = Signer(me=self.name, boot_id=9, keys=[KEY])
        gate = PeerGate(signer=signer, codec=self.codec, clock=reactor)
        operations: Any = self.node
        api = PeerApi(operations, gate=gate)
        self.site = make_site(
            Root(clients=Hello(), peers=api.resource),
            settings=SETTINGS,
            gate=gate,
            reactor=reactor,
        )
        self.port.factory = self.site
        self.transport = TreqTransport(
            reactor,
            signer=Signer(me=Name("10.0.0.1:80"), boot_id=7, keys=[KEY]),
            codec=self.codec,
            settings=SETTINGS,
        )

        self.addCleanup(self.check_end)

    async def check_end(self) -> None:
        """Check that closing ends everything."""
        await self.transport.close()
        await self.port.stopListening()
        await self.site.close(grace_s=0.1)
        for lane in (self.site.admission.peers, self.site.admission.clients):
            self.assertEqual((lane.requests, lane.body_bytes), (0, 0))

    async def raw(self) -> Raw:
        """Connect a client of raw bytes."""
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port.getHost().port)
        client: Raw = await connectProtocol(endpoint, Raw())
        return client


class PeerTests(RealCase):
    """Questions and answers."""

    async def test_questions_are_answered_without_delay(self) -> None:
        """No question waits for an acknowledgement, which would take 40 ms each."""
        await self.transport.ask(self.name, ASK, connect_s=1, total_s=5)
        began = time.monotonic()
        for _ in range(20):
            reply = await self.transport.ask(self.name, ASK, connect_s=1, total_s=5)
            self.assertEqual(reply.answer, ANSWER)
        self.assertLess(time.monotonic() - began, 0.7)
        self.assertEqual(self.site.connections, 1)

    async def test_many_questions_at_once_are_answered(self) -> None:
        """Questions beside each other do not get mixed up."""

        def answer(request: Any) -> Deferred[Any]:
            return succeed(PartAnswer(versions=[version(request.index)], more=False))

        self.node.answer = answer
        asked = [
            self.transport.ask(
                self.name,
                type(ASK)(session=1, index=index + 1),
                connect_s=2,
                total_s=20,
            )
            for index in range(50)
        ]
        replies: Any = await gatherResults(asked)
        self.assertEqual(
            [reply.answer.versions[0].counter for reply in replies],
            list(range(1, 51)),
        )

    async def test_largest_messages_travel_both_ways(self) -> None:
        """16 MiB there and back."""
        large = version(1, size=16 * 2**20)
        self.node.answer = lambda _: succeed(PartAnswer(versions=[large], more=False))
        reply: Any = await self.transport.ask(
            self.name, Push(lamport=0, versions=[large]), connect_s=1, total_s=30
        )
        self.assertEqual(reply.answer.versions[0].value, large.value)

    async def test_host_name_is_looked_up(self) -> None:
        """A peer may be known by a name of the operating system's."""
        name = Name(f"localhost:{self.port.getHost().port}")
        # The node there goes by its address, and says so: it was reached.
        error = await self.assertFailure(
            self.transport.ask(name, ASK, connect_s=5, total_s=5), Exception
        )
        self.assertIn(self.name, str(error))

    async def test_refused_connection_is_told_at_once(self) -> None:
        """Nobody listening is known within milliseconds."""
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            name = Name(f"127.0.0.1:{unused.getsockname()[1]}")
            began = time.monotonic()
            await self.assertFailure(
                self.transport.ask(name, ASK, connect_s=1, total_s=5), PeerUnreachable
            )
            self.assertLess(time.monotonic() - began, 0.9)

    async def test_silent_peer_is_given_up(self) -> None:
        """A peer that accepts and says nothing costs the limit, no more."""
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            name = Name(f"127.0.0.1:{silent.getsockname()[1]}")
            began = time.monotonic()
            large = Push(lamport=0, versions=[version(1, size=16 * 2**20)])
            for request in (ASK, large):
                await self.assertFailure(
                    self.transport.ask(name, request, connect_s=1, total_s=5),
                    PeerTimedOut,
                )
            self.assertLess(time.monotonic() - began, 4)

    async def test_restarted_peer_is_asked_again(self) -> None:
        """Connections that a restart has closed are not taken for the peer."""
        await self.transport.ask(self.name, ASK, connect_s=1, total_s=5)
        address = self.port.getHost()
        await self.port.stopListening()
        await self.site.close(grace_s=0)
        self.site.closing = False
        self.port = reactor.listenTCP(address.port, self.site, interface=address.host)
        await self.transport.ask(self.name, ASK, connect_s=1, total_s=5)


class ClientTests(RealCase):
    """Clients of raw bytes."""

    async def test_answer_comes_in_one_piece(self) -> None:
        """Status, headers and body leave in one segment."""
        client = await self.raw()
        transport: Any = client.transport
        transport.write(b"GET / HTTP/1.1\r\n\r\n")
        await client.first
        self.assertEqual(len(client.pieces), 1)
        self.assertTrue(client.pieces[0].endswith(b'{"hello": "world"}'))
        transport.loseConnection()
        await client.ended

    async def test_refused_upload_gets_its_answer(self) -> None:
        """A client that sends a large body first and reads then still reads 413."""
        client = await self.raw()
        size = 64 * 2**20
        transport: Any = client.transport
        transport.write(b"PUT /k HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(64):
            transport.write(bytes(2**20))
        began = time.monotonic()
        ended = await client.ended
        self.assertTrue(b"".join(client.pieces).startswith(b"HTTP/1.1 413 "))
        # In peace: a reset could have taken the answer away.
        self.assertIsInstance(ended, ConnectionDone)
        self.assertLess(time.monotonic() - began, LINGER_IDLE_S + 20)

    async def test_hung_up_clients_leave_nothing(self) -> None:
        """A hundred clients that leave in the middle are forgotten."""
        # However busy the machine is, none of them is refused.
        self.site.admission.turn._budget_s = 60.0
        clients = [await self.raw() for _ in range(100)]
        for number, client in enumerate(clients):
            transport: Any = client.transport
            transport.write(
                b"GET /wait HTTP/1.1\r\n\r\n"
                if number % 2
                else b"PUT /k HTTP/1.1\r\nContent-Length: 9999\r\n\r\nabc"
            )
        lane = self.site.admission.clients
        while lane.requests < 100:
            await _pause()
        self.assertEqual(lane.body_bytes, 50 * 9999)
        for client in clients:
            aborted: Any = client.transport
            aborted.abortConnection()
            await client.ended
        while lane.requests:
            await _pause()
        self.assertEqual(lane.body_bytes, 0)


def _pause() -> Deferred[None]:
    paused: Deferred[None] = Deferred()
    reactor.callLater(0.01, paused.callback, None)
    return paused
