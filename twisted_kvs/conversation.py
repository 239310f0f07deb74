"""
One question to a peer: connect, send, wait, verify, all within its limits.

Invariant: it ends once, and when it has ended its timer is stopped and its connection
is either back in the pool, whole, or closed.  One that is still being made for it goes
to the pool.

A client's own time-outs end where the headers of an answer begin, and some clients
repeat what was not answered; so time, size and repetition are counted here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    ConnectionClosed,
)
from twisted.internet.interfaces import (
    IDelayedCall,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import (
    URI,
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import (
    UNKNOWN_LENGTH,
    IAgentEndpointFactory,
)
from zope.interface import implementer

from .addresses import AddressBook
from .connections import Connections, Download, PeerPool, Upload, WatchedFactory
from .core.causality import Name
from .core.codec import Codec
from .core.errors import BadPeerMessage, PeerError, PeerTimedOut, PeerUnreachable
from .core.names import split_name
from .metrics import Traffic
from .operations import Reply
from .signing import PEER_HEADER, PEER_PATH, Signer

URL = f"http://peer{PEER_PATH}"
"""The same for all peers: who is asked is not for the client to find out."""
HEAD_BYTES_MAX = 256 * 1024
"""Of an answer, counted in pieces as they come: a head is far below this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """What all conversations of a node share."""

    reactor: Any
    """Makes connections and times everything."""
    client: HTTPClient
    """Its agent is a ``peer_agent``."""
    signer: Signer
    codec: Codec
    addresses: AddressBook
    making_s: float
    """To make a connection, also where the question for it waits no more."""
    progress_s: float
    new_nonce: Callable[[], bytes]
    connections: Connections
    traffic: Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of whom, and within which limits."""

    peer: Name
    body: bytes
    repeatable: bool
    """Whether it may be processed twice."""
    connect_s: float
    total_s: float


class Deadlines:
    """
    The three limits of a conversation, and one timer for them.

    To connect; without progress, once connected; in all.
    """

    def __init__(
        self,
        clock: IReactorTime,
        *,
        total_s: float,
        progress_s: float,
        expired: Callable[[PeerError], None],
    ) -> None:
        """
        Start the clock.

        :param expired: called once at most, with what a limit means.
        """
        self._clock = clock
        self._total_s = total_s
        self._progress_s = progress_s
        self._expired = expired
        self._total_at = clock.seconds() + total_s
        self._connect_at: float | None = None
        self._connect_s = 0.0
        self._progress_at = 0.0
        self._call: IDelayedCall | None = None

    def connecting(self, connect_s: float) -> None:
        """Count the time to connect from now on."""
        self._connect_s = connect_s
        self._connect_at = self._clock.seconds() + connect_s
        self._arm()

    def connected(self) -> None:
        """Count the time without progress from now on."""
        self._connect_at = None
        self.progress()
        self._arm()

    def progress(self) -> None:
        """Count the time without progress from now on."""
        self._progress_at = self._clock.seconds() + self._progress_s

    def stop(self) -> None:
        """Count nothing any more."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _arm(self) -> None:
        self.stop()
        pending = self._progress_at if self._connect_at is None else self._connect_at
        delay = min(pending, self._total_at) - self._clock.seconds()
        self._call = self._clock.callLater(max(delay, 0), self._check)

    def _check(self) -> None:
        self._call = None
        now = self._clock.seconds()
        if self._connect_at is not None and now >= min(
            self._connect_at, self._total_at
        ):
            limit_s = min(self._connect_s, self._total_s)
            self._expired(PeerUnreachable(f"not connected within {limit_s:g} s"))
        elif now >= self._total_at:
            self._expired(PeerTimedOut(f"no whole answer within {self._total_s:g} s"))
        elif self._connect_at is None and now >= self._progress_at:
            self._expired(PeerTimedOut(f"no progress for {self._progress_s:g} s"))
        else:
            # Progress moves its deadline and leaves the timer alone.
            self._arm()


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
class Conversation:
    """One question; also the endpoint that makes its connection, if one is needed."""

    _log = Logger()

    def __init__(self, question: Question, *, pool: PeerPool, wiring: Wiring) -> None:
        """Prepare; nothing happens before ``start``."""
        self.pool = pool
        self._question = question
        self._wiring = wiring
        self._deadlines = Deadlines(
            wiring.reactor,
            total_s=question.total_s,
            progress_s=wiring.progress_s,
            expired=self.stop,
        )
        self._upload = Upload(question.body, self)
        self._connection: Any = None
        self._fresh = False
        self._head_bytes: int | None = 0
        self._verdict: PeerError | None = None
        self._running: Deferred[Reply] | None = None

    def start(self) -> Deferred[Reply]:
        """
        Ask.

        :returns: as ``PeerTransport.ask``.
        """
        self._running = ensureDeferred(self._ask())
        return self._running.addBoth(self._ended)

    def stop(self, error: PeerError) -> None:
        """Break it off; it fails with ``error``."""
        if self._verdict is None and self._running is not None:
            self._verdict = error
            self._running.cancel()

    @property
    def connected(self) -> bool:
        """Tell whether the question may have been sent."""
        return self._connection is not None

    # What happens on the way.

    async def _ask(self) -> Reply:
        while True:
            try:
                return await self._attempt()
            except PeerTimedOut as error:
                # A kept connection may have been closed at the other end just now.  One
                # that was made for this question, or answered in part, is another
                # matter.
                lost_unanswered = isinstance(error.__cause__, _UNANSWERED)
                if self._fresh or not lost_unanswered or not self._question.repeatable:
                    raise
            # The others are of the same age.
            self.pool.closeCachedConnections()

    async def _attempt(self) -> Reply:
        question, signer = self._question, self._wiring.signer
        envelope, header = signer.sign_request(
            question.peer, question.body, nonce=self._wiring.new_nonce()
        )
        self._connection, self._head_bytes = None, 0
        self._upload = Upload(question.body, self)
        self._deadlines.connecting(question.connect_s)
        try:
            response = await self._response(header)
        finally:
            if self._upload.sent:
                self._wiring.traffic.sent += len(question.body)
        self._head_bytes = None
        if response.code != 200:
            raise BadPeerMessage(
                f"answered with status {response.code}, unsigned: another secret there?"
            )
        seals = response.headers.getRawHeaders(PEER_HEADER.encode()) or []
        answer = signer.verify_answer(seals, envelope)
        if response.length not in (UNKNOWN_LENGTH, answer.length):
            raise BadPeerMessage("answer has another length than was signed")
        download = Download(answer)
        response.deliverBody(download)
        body = await download.done
        self._wiring.traffic.received += len(body)
        return Reply(answer.boot_id, self._wiring.codec.decode_answer(body))

    async def _response(self, header: bytes) -> Any:
        try:
            return await self._wiring.client.request(
                "POST",
                URL,
                headers=Headers(
                    {
                        b"Host": [self._question.peer.encode()],
                        b"Content-Type": [b"application/octet-stream"],
                        PEER_HEADER.encode(): [header],
                    }
                ),
                data=self._upload,
                allow_redirects=False,
                unbuffered=True,
                reactor=self._wiring.reactor,
            )
        except (*_UNANSWERED, ResponseFailed, RequestGenerationFailed) as error:
            if _was_cancelled(error):
                raise CancelledError from error
            if isinstance(error, _UNANSWERED):
                raise PeerTimedOut("connection was lost unanswered") from error
            if isinstance(error, RequestGenerationFailed):
                raise
            if all(reason.check(ConnectionClosed) for reason in error.reasons):
                raise PeerTimedOut("connection was lost within the answer") from error
            raise BadPeerMessage("what answered does not speak HTTP") from error

    def progress(self) -> None:
        """Note that something of the request left or something of the answer came."""
        self._deadlines.progress()

    def heard(self, length: int) -> None:
        """Note that bytes came on the connection in use."""
        self.progress()
        if self._head_bytes is not None:
            self._head_bytes += length
            if self._head_bytes > HEAD_BYTES_MAX:
                self.stop(BadPeerMessage("the head of the answer does not end"))

    # The connection.

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """Be the endpoint of the request, whatever the URL says."""
        return self

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Make a connection to the peer; called where none was kept."""
        limit_s = max(self._question.connect_s, self._wiring.making_s)

        def too_late(result: object, limit_s: float) -> Failure:
            return Failure(PeerUnreachable(f"not connected within {limit_s:g} s"))

        return ensureDeferred(self._connect(protocolFactory, limit_s)).addTimeout(
            limit_s, self._wiring.reactor, too_late
        )

    async def _connect(self, factory: IProtocolFactory, limit_s: float) -> IProtocol:
        host, port = split_name(self._question.peer)
        addresses = self._wiring.addresses
        problem = "it has no address"
        watched = WatchedFactory(factory, self._wiring.connections)
        for address in await addresses.find(host):
            kind = TCP6ClientEndpoint if ":" in address else TCP4ClientEndpoint
            endpoint = kind(self._wiring.reactor, address, port, timeout=limit_s)
            try:
                protocol: Any = await endpoint.connect(watched)
            except (CancelledError, ConnectingCancelledError) as error:
                addresses.failed(host, address)
                raise CancelledError from error
            except (ConnectError, OSError) as error:
                addresses.failed(host, address)
                # Some of Twisted's errors quote the failure that they come from.
                problem = f"{address}: {str(error).partition(': [Failure')[0]}"
                continue
            addresses.worked(host, address)
            if ITCPTransport.providedBy(protocol.transport):
                protocol.transport.setTcpNoDelay(True)
            return protocol  # type: ignore[no-any-return]  # made by the pool
        raise PeerUnreachable(f"cannot connect to {self._question.peer}: {problem}")

    def use(self, connection: Any) -> Any:
        """Note the connection that the request will take, kept or new."""
        self._connection, self._fresh = connection, not connection.kept
        connection.user = self
        self._deadlines.connected()
        return connection

    # The end.

    def _ended(self, result: Reply | Failure) -> Reply | Failure:
        self._deadlines.stop()
        connection, failed = self._connection, isinstance(result, Failure)
        if connection is not None:
            connection.user = None
            if failed or not self._upload.sent:
                connection.usable = False
                connection.transport.abortConnection()
        if not isinstance(result, Failure):
            return result
        cancelled = self._verdict is None and result.check(CancelledError)
        if connection is not None and not cancelled:
            # Those beside it lead to the same process, or to where it was.
            self.pool.closeCachedConnections()
            # Another node may have the peer's old address by now.
            self._wiring.addresses.failed(split_name(self._question.peer)[0])
        if self._verdict is not None:
            return Failure(self._verdict)
        if not cancelled and not result.check(PeerError):
            self._log.failure("cannot ask {peer}", result, peer=self._question.peer)
            return Failure(PeerTimedOut("the question failed on this side"))
        return result


_UNANSWERED = (ResponseNeverReceived, RequestTransmissionFailed)


def _was_cancelled(error: Exception) -> bool:
    # Twisted tells by which of its steps a request was cancelled.
    reasons: list[Failure] = getattr(error, "reasons", [])
    return any(reason.check(CancelledError) for reason in reasons)
