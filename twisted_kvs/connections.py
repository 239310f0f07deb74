"""
Connections to peers: who uses which, what goes out over them, what comes in.

Invariants: every piece that leaves or comes is told to the question whose it is; a
kept connection belongs to nobody; a body that comes is never longer than was signed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from typing import Any
from typing import Protocol as Seam

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import (
    IConsumer,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from .core.errors import BadPeerMessage, PeerTimedOut
from .signing import Envelope

UPLOAD_PIECE_BYTES = 64 * 1024
"""A body is written in such pieces; each that leaves is progress."""


class User(Seam):
    """A question, as its connection sees it; also its endpoint and endpoint factory."""

    pool: PeerPool

    def use(self, connection: Any) -> Any:
        """Note, and give back, the connection that the request takes."""

    def progress(self) -> None:
        """Note that something of the request left or something of the answer came."""

    def heard(self, length: int) -> None:
        """Note that bytes came on the connection in use."""


class Connections:
    """Those that are open, in use or kept."""

    def __init__(self) -> None:
        """Start without any."""
        self._open: set[Any] = set()
        self._waiting: list[Deferred[None]] = []

    def add(self, connection: Any) -> None:
        """Count one that was made."""
        self._open.add(connection)

    def discard(self, connection: Any) -> None:
        """Count one no longer that is gone."""
        self._open.discard(connection)
        if not self._open:
            waiting, self._waiting = self._waiting, []
            for deferred in waiting:
                deferred.callback(None)

    def __len__(self) -> int:
        """Count them."""
        return len(self._open)

    def gone(self) -> Deferred[None]:
        """Fire when there is none."""
        if not self._open:
            return succeed(None)
        self._waiting.append(Deferred())
        return self._waiting[-1]


class PeerPool(HTTPConnectionPool):
    """
    The connections to one peer; tells who uses which.

    A question for which none is kept has one made, and takes whichever is there first:
    that one, or one that nobody else needs.  So over a long line it costs a question
    its time, not its connection, if making one takes longer than it may wait: the
    connection is kept for the next.
    """

    def __init__(
        self, reactor: Any, *, kept_max: int, making_max: int, idle_s: int
    ) -> None:
        """
        Start without any.

        :param kept_max: connections that nobody uses.
        :param making_max: connections that are being made; who asks beyond them waits
            for one of those.
        :param idle_s: how long one is kept.
        """
        super().__init__(reactor, persistent=True)
        self.maxPersistentPerHost = kept_max
        self.cachedConnectionTimeout = idle_s
        # Twisted would repeat what it takes for idempotent; see Conversation.
        self.retryAutomatically = False
        self._clock: IReactorTime = reactor
        self._making_max = making_max
        self._waiting: dict[Deferred[Any], None] = {}
        """Questions without a connection, the first to come first."""
        self._making: set[Deferred[Any]] = set()
        self._era = 0
        """Connections that were freed in an earlier one are not used again."""

    def getConnection(
        self, key: Hashable, endpoint: IStreamClientEndpoint
    ) -> Deferred[Any]:
        """Give a connection to the conversation that asks for it."""
        user: Any = endpoint
        connection: Deferred[Any] = super().getConnection(key, endpoint)
        return connection.addCallback(user.use)

    def closeCachedConnections(self) -> Deferred[None]:
        """Close those that nobody uses."""
        self._era += 1
        closed: Deferred[None] = super().closeCachedConnections()
        return closed

    def close(self) -> None:
        """Close those that nobody uses, and give up those that are being made."""
        for making in list(self._making):
            making.cancel()
        self.closeCachedConnections()

    def _newConnection(
        self, key: Hashable, endpoint: IStreamClientEndpoint
    ) -> Deferred[Any]:
        waiting: Deferred[Any] = Deferred(lambda _: self._waiting.pop(waiting))
        self._waiting[waiting] = None
        if len(self._making) >= self._making_max:
            return waiting
        making: Deferred[Any] = super()._newConnection(key, endpoint)
        self._making.add(making)

        def over(made: Any) -> None:
            self._making.discard(making)
            if waiting in self._waiting:
                # Its own first: otherwise nobody makes one for it.
                del self._waiting[waiting]
                waiting.callback(made)
            elif not isinstance(made, Failure):
                self._offer(key, made)

        making.addBoth(over)
        return waiting

    def _putConnection(self, key: Hashable, connection: Any) -> None:
        # Twisted calls this at the end of every answer, also of one that has just been
        # found wanting, further down in the stack; and before it is done with it.
        if not self._waiting:
            self._keep(key, connection)
            return
        era = self._era

        def freed() -> None:
            connection.kept = True
            if era == self._era:
                self._offer(key, connection)
            else:
                connection.transport.loseConnection()

        self._clock.callLater(0, freed)

    def _offer(self, key: Hashable, connection: Any) -> None:
        """Give a connection to the question that has waited longest, or keep it."""
        if connection.state != "QUIESCENT" or not connection.usable:
            return
        if self._waiting:
            waiting = next(iter(self._waiting))
            del self._waiting[waiting]
            waiting.callback(connection)
        else:
            self._keep(key, connection)

    def _keep(self, key: Hashable, connection: Any) -> None:
        connection.kept = True
        if connection.usable:
            super()._putConnection(key, connection)


@implementer(IAgent)
class _PeerAgent:
    """Lets each request go its own user's way."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """Send a request whose body is an ``Upload``."""
        upload: Any = bodyProducer
        assert isinstance(upload, Upload)
        user = upload.user
        agent = Agent.usingEndpointFactory(self._reactor, user, pool=user.pool)
        response: Deferred[IResponse] = agent.request(method, uri, headers, upload)
        return response.addCallback(_plain)


def peer_agent(reactor: Any) -> IAgent:
    """Make the agent of an HTTP client whose request bodies are ``Upload``s."""
    agent: IAgent = _PeerAgent(reactor)
    return agent


def _plain(response: IResponse) -> IResponse:
    # What was signed is the body as it crossed the wire, and no peer sets cookies.
    response.headers.removeHeader(b"Content-Encoding")
    response.headers.removeHeader(b"Set-Cookie")
    return response


@implementer(IBodyProducer)
class Upload:
    """A request's body: small ones leave together with their headers."""

    def __init__(self, body: bytes, user: User) -> None:
        """Take a body that is not empty."""
        assert body
        self.length = len(body)
        self.user = user
        self.sent = False
        """Everything was handed to the connection."""
        self._body = memoryview(body)
        self._at = 0
        self._paused = False
        self._consumer: IConsumer | None = None
        self._done: Deferred[None] = Deferred()

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """Write as much as the connection takes."""
        self._consumer = consumer
        self._write()
        return self._done

    def pauseProducing(self) -> None:
        """Wait until what was written has left."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Go on: what was written has left."""
        self._paused = False
        self.user.progress()
        self._write()

    def stopProducing(self) -> None:
        """Write no more."""
        self._consumer = None

    def _write(self) -> None:
        while self._consumer is not None and not self._paused:
            if self._at < self.length:
                piece = bytes(self._body[self._at : self._at + UPLOAD_PIECE_BYTES])
                self._at += len(piece)
                self._consumer.write(piece)
            else:
                self._consumer = None
                self.sent = True
                self._done.callback(None)


class Download(Protocol):
    """An answer's body: hashed while it comes, never longer than was signed."""

    def __init__(self, envelope: Envelope) -> None:
        """Expect the body that was signed."""
        self._envelope = envelope
        self._parts: list[bytes] = []
        self._length = 0
        self._hash = hashlib.sha256()
        self.done: Deferred[bytes] = Deferred()
        """Fires with the verified body."""

    def dataReceived(self, data: bytes) -> None:
        """Take a part."""
        self._length += len(data)
        if self._length <= self._envelope.length:
            self._hash.update(data)
            self._parts.append(data)
        elif not self.done.called:
            self.done.errback(BadPeerMessage("answer is longer than was signed"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Verify the whole; a missing end is found by its length."""
        if self.done.called:
            return
        if self._length < self._envelope.length and not reason.check(ResponseDone):
            self.done.errback(PeerTimedOut("connection was lost within the answer"))
            return
        try:
            self._envelope.check_body(self._hash.digest(), self._length)
        except BadPeerMessage as error:
            self.done.errback(error)
        else:
            self.done.callback(b"".join(self._parts))


class WatchedFactory(Factory):
    """Makes connections that tell what happens on them."""

    noisy = False

    def __init__(self, factory: IProtocolFactory, connections: Connections) -> None:
        """Take the factory of the pool."""
        self._factory = factory
        self._connections = connections

    def buildProtocol(self, addr: Any) -> Any:
        """Make a protocol that tells its user of every piece, and when it ends."""
        protocol: Any = self._factory.buildProtocol(addr)
        receive, lose = protocol.dataReceived, protocol.connectionLost
        protocol.user = None
        protocol.usable, protocol.kept = True, False

        def data_received(data: bytes) -> None:
            user: User | None = protocol.user
            if user is not None:
                user.heard(len(data))
            receive(data)

        def connection_lost(reason: Failure = connectionDone) -> None:
            self._connections.discard(protocol)
            lose(reason)

        protocol.dataReceived, protocol.connectionLost = data_received, connection_lost
        self._connections.add(protocol)
        return protocol
