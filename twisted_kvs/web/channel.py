"""
One connection and its requests: HTTP as Twisted speaks it, with limits on everything.

Invariants.  A body is held in memory only, and only after it was let in: clients by its
length or while it streams, peers after their envelope was verified.  A request counts
from the end of its headers until it is answered or its connection is lost, whichever
comes first.  Every answer has a length and leaves in one piece, and every error is
JSON.  No connection lasts for ever without doing anything.

A refusal that comes before its body is followed by a while of reading and dropping
("lingering close", RFC 9112 section 9.6): a connection that is closed with bytes unread
is reset, and the client would lose the answer.
"""

from __future__ import annotations

import hashlib
import socket
from io import BytesIO
from typing import Protocol
from urllib.parse import unquote_to_bytes

from twisted.internet.interfaces import (
    IReactorTime,
    ISystemHandle,
    ITCPTransport,
)
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http, server
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource

from twisted_kvs.core.errors import (
    BadPeerMessage,
    BadRequest,
    KVSError,
    NotFound,
    Overloaded,
    TooLarge,
)
from twisted_kvs.core.settings import Settings
from twisted_kvs.metrics import Kind, RequestMetrics
from twisted_kvs.signing import PEER_HEADER, PEER_PREFIX, Envelope

from .admission import Admission, Place
from .errors import answer_error, error_body, error_headers
from .paths import ALWAYS_ADMITTED, kind_of, origin_form
from .peer_gate import PeerGate
from .seats import Seats, Stage
from .shedding import REFUSAL, whole_request

HEAD_BYTES_MAX = 64 * 1024
"""Of a request line and its headers; a payload in each of them fits."""
REQUEST_S = 30.0
"""A request must be complete so long after its first byte ..."""
BODY_BYTES_PER_S_MIN = 64 * 1024
"""... and a second for so many bytes of it."""
IDLE_S = 60.0
"""A connection without a request is kept for so long; peers drop theirs earlier."""
LINGER_IDLE_S = 2.0
LINGER_S = 30.0
"""After a refusal unread input is dropped for so long, if there is any."""
CLOSE_S = 15.0
"""A client takes its answer within this time, and a second more for every
``BODY_BYTES_PER_S_MIN`` of it, or loses it."""
SURPLUS_S = 2.0
"""A connection beyond the limit says within this time that it is a peer's."""
_UNTOLD = frozenset({Kind.PEER, Kind.HEALTH, Kind.METRICS})
"""Asked again and again by machines."""
_PEER_HEADER = PEER_HEADER.encode()
_PEER_PREFIX = PEER_PREFIX.encode()

assert LINGER_IDLE_S < LINGER_S


class Port(Protocol):
    """What the connections of a port share; a ``Site`` is one."""

    settings: Settings
    gate: PeerGate
    admission: Admission
    requests: RequestMetrics
    seats: Seats
    closing: bool
    """True: every connection is closed as soon as it may."""
    tells_requests: bool
    """True: each request of a client is told in the log."""
    draining: bool
    """True: clients are told with their answers to come back to another node."""
    reactor: IReactorTime

    def getResourceFor(self, request: IRequest) -> IResource:
        """Find who answers a request."""

    def connection_made(self, channel: Channel) -> None:
        """Watch a connection."""

    def connection_lost(self, channel: Channel) -> None:
        """Watch a connection no longer."""


class RequestTimedOut(KVSError):
    """A request that did not come to its end in time."""

    code = "request_timed_out"
    status = 408


class Request(server.Request):
    """
    One request; its whole body is in ``content``, a ``BytesIO``, when a route sees it.

    What a route writes is sent when it finishes, with its length, in one piece.
    """

    _log = Logger()
    defaultContentType = b"application/json"
    channel: Channel
    content: BytesIO
    path: bytes
    envelope: Envelope | None = None
    """Verified, on requests of peers; None on all others."""
    _place: Place | None = None
    _refusal: KVSError | None = None
    _announced: int | None = None
    _received = 0

    def begin(self, method: bytes, uri: bytes, *, version: bytes) -> None:
        """Take over the request line; called at the end of the headers."""
        self.method, self.clientproto = method, version
        self.uri = origin_form(uri)
        self.path, _, query = self.uri.partition(b"?")
        self.args = http.parse_qs(query, True) if query else {}
        self.content = BytesIO()
        self._answer: list[bytes] = []

    def admit(self, length: int | None) -> None:
        """
        Decide whether the body is read.

        :param length: that the headers announce; None: it comes in chunks.
        :raises KVSError: if it is not.
        """
        site = self.channel.site
        self._announced = length
        if self.path.startswith(_PEER_PREFIX):
            headers = self.requestHeaders.getRawHeaders(_PEER_HEADER) or []
            try:
                self.envelope = site.gate.open(headers, self.uri, length)
            except BadPeerMessage as error:
                site.gate.complain(self.asker(), error)
                raise
            site.seats.seat_peer(self.channel)
            self._hash = hashlib.sha256()
            self._place = site.admission.peers.enter(length or 0)
            return
        # What follows would come out as a traceback deep in the routing of a framework.
        try:
            unquote_to_bytes(self.path).decode()
        except UnicodeDecodeError:
            raise BadRequest("the path is not UTF-8") from None
        if length is not None and length > site.settings.body_bytes_max:
            raise TooLarge(_body_too_large(site.settings))
        if length == 0 and self.path in ALWAYS_ADMITTED:
            return
        site.seats.check(self.channel)
        site.admission.turn.check()
        self._place = site.admission.clients.enter(length or 0)

    def asker(self) -> str:
        """Tell the address that the request came from."""
        return str(getattr(self.client, "host", "unknown address"))

    def asker_left(self) -> bool:
        """
        Tell whether the other end has closed the connection.

        A process that stood still finds what it was asked meanwhile, and sees only
        later that the asker has given up; so this looks behind what is unread.
        """
        transport = self.channel.transport
        if self._disconnected or not ISystemHandle.providedBy(transport):
            return bool(self._disconnected)
        handle = transport.getHandle()
        assert isinstance(handle, socket.socket)
        try:
            return not handle.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def handleContentChunk(self, data: bytes) -> None:
        """Keep a piece of the body, or refuse the request because of it."""
        if self._refusal is not None:
            return
        self._received += len(data)
        if self._announced is None:
            try:
                self._grow(len(data))
            except KVSError as error:
                self.channel.refuse(self, error)
                return
        if self.envelope is not None:
            self._hash.update(data)
        self.content.write(data)

    def _grow(self, more: int) -> None:
        settings = self.channel.site.settings
        if self._received > settings.body_bytes_max:
            raise TooLarge(_body_too_large(settings))
        assert self._place is not None
        self._place.grow(more)

    def body_digest(self) -> bytes:
        """Tell the SHA-256 of a peer's body; hashed while it came."""
        assert self.envelope is not None
        return self._hash.digest()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Answer; called at the end of the body.  Forms are left to the routes."""
        if self._refusal is not None:
            self.answer_with(self._refusal)
        else:
            self.process()

    def process(self) -> None:
        """Find the resource and let it answer."""
        self.prepath = []
        self.postpath = [unquote_to_bytes(part) for part in self.path[1:].split(b"/")]
        try:
            if not self.path.startswith(b"/"):
                raise NotFound("no such path")
            self.render(self.channel.site.getResourceFor(self))
        except Exception:
            self.processingFailed(Failure())

    def processingFailed(self, reason: Failure) -> Failure:
        """Answer what no route has caught; only bugs are logged with a traceback."""
        error = reason.value
        if not isinstance(error, KVSError):
            self._log.failure("request failed: {uri}", reason, uri=self.uri)
            error = KVSError("internal error")
        self.answer_with(error)
        return reason

    def refuse_later(self, error: KVSError) -> None:
        """Note that the request is not processed, for there is no body to wait for."""
        self._refusal = error

    def answer_with(self, error: KVSError) -> None:
        """Answer with an error, in place of all that was written; signed for peers."""
        self._refusal = error
        if self._disconnected or self.finished:
            return
        self._answer.clear()
        if self.envelope is not None:
            body = self.channel.site.gate.refuse(self, self.envelope, error)
        else:
            body = answer_error(self, error)
        self.write(body)
        self.finish()

    def getRequestHostname(self) -> bytes:
        """Tell a fixed name: no route depends on it, and clients may send anything."""
        return b"kvs"

    def write(self, data: bytes) -> None:
        """Keep a part of the answer until it is finished."""
        assert not self.finished
        self._answer.append(data)

    def finish(self) -> None:
        """Send the answer; to nobody, and without an error, where the client left."""
        if self._disconnected:
            return
        if self.finished:
            raise RuntimeError("request was finished before")
        self.leave()
        body = b"".join(self._answer)
        if self.envelope is None:
            try:
                self.channel.owe(len(body))
            except Overloaded as error:
                body = answer_error(self, error)
        self._count()
        set_header = self.responseHeaders.setRawHeaders
        set_header(b"Date", [http.datetimeToString()])
        if self.code not in http.NO_BODY_CODES:
            set_header(b"Content-Length", [b"%d" % len(body)])
        if self.channel.site.closing or (
            self.channel.site.draining and self.envelope is None
        ):
            self.channel.persistent = False
        if self.channel.site.seats.is_surplus(self.channel):
            self.channel.persistent = False
        if not self.channel.persistent:
            set_header(b"Connection", [b"close"])
        super().write(body)
        self.channel.answered()
        super().finish()

    def _count(self) -> None:
        kind = Kind.PEER if self.envelope else kind_of(self.method, self.path)
        seconds, site = self.channel.answering_s, self.channel.site
        # What was refused at once would hide how slow the rest is.
        refused = isinstance(self._refusal, Overloaded)
        site.requests.answered(kind, self.code, None if refused else seconds)
        if site.tells_requests and kind not in _UNTOLD:
            self._log.info(
                "{asker} {method} {path}: {status} in {ms} ms",
                asker=self.asker(),
                method=self.method.decode("latin-1"),
                # Without the query, which may hold a payload.
                path=self.path.decode("latin-1"),
                status=self.code,
                ms=round((seconds or 0.0) * 1000, 1),
            )

    def leave(self) -> None:
        """Count this request no longer."""
        if self._place is not None:
            self._place.leave()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell the route that there is nobody left to answer."""
        self.leave()
        super().connectionLost(reason)


class Channel(http.HTTPChannel):
    """One connection: one request after another."""

    # Twisted's own limits; both are answered with 413 here.
    totalHeadersSize = HEAD_BYTES_MAX
    MAX_LENGTH = HEAD_BYTES_MAX

    site: Port
    transport: ITCPTransport
    stage = Stage.IDLE
    _since = 0.0
    _heard = 0.0
    _received = 0
    _head_open = False
    _head_bytes = 0
    """Counted, of a head that did not come in one piece."""
    _owed_bytes = 0
    """Counted, of answers that the client has not taken yet."""
    _owed_until = 0.0
    _input_ends = True
    """False while the rest of a refused request may still be coming."""

    def connectionMade(self) -> None:
        """Begin to count time."""
        super().connectionMade()
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self._enter(Stage.IDLE)
        self.site.connection_made(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Let go of everything that the connection held."""
        self._enter(Stage.CLOSING)
        self._forget_head()
        self._forget_answers()
        super().connectionLost(reason)
        self.site.connection_lost(self)

    def _enter(self, stage: Stage) -> None:
        self.stage = stage
        self._since = self._heard = self.site.reactor.seconds()
        self.site.seats.idles(self, stage is Stage.IDLE)

    @property
    def answering_s(self) -> float | None:
        """Seconds since the last byte of a request; None if it has not come yet."""
        if self.stage is not Stage.ANSWERING:
            return None
        return self.site.reactor.seconds() - self._since

    @property
    def _deaf(self) -> bool:
        return self.stage in (Stage.LINGERING, Stage.CLOSING)

    # What comes in.

    def dataReceived(self, data: bytes) -> None:
        """Take bytes, unless all was said."""
        if self._deaf:
            self._heard = self.site.reactor.seconds()
            return
        if self.stage is Stage.IDLE:
            if self.site.admission.turn.spent and self._shed(data):
                return
            self._enter(Stage.RECEIVING)
            self._received = 0
            self._head_open = True
        self._received += len(data)
        super().dataReceived(data)
        if self._head_open and not self._deaf:
            self._hold_head()

    def _shed(self, piece: bytes) -> bool:
        whole = whole_request(piece)
        if whole is None or self._owed_bytes or self.site.tells_requests:
            return False
        self.transport.write(REFUSAL)
        self._enter(Stage.IDLE)
        self.site.requests.answered(kind_of(*whole), 503, None)
        return True

    def _hold_head(self) -> None:
        more = self._received - self._head_bytes
        try:
            self.site.admission.heads.take(more)
        except Overloaded as error:
            self._refuse_unread(error)
        else:
            self._head_bytes += more

    def _forget_head(self) -> None:
        self._head_open = False
        if self._head_bytes:
            self.site.admission.heads.give_back(self._head_bytes)
            self._head_bytes = 0

    def lineReceived(self, line: bytes) -> None:
        """Take a line of a request's head."""
        if self._deaf:
            return
        if self._receivedHeaderSize + len(line) > self.totalHeadersSize:
            self._refuse_unread(TooLarge(f"head of over {HEAD_BYTES_MAX} bytes"))
            return
        super().lineReceived(line)

    def lineLengthExceeded(self, line: bytes) -> None:
        """Refuse a line that does not end."""
        self._refuse_unread(TooLarge(f"head of over {HEAD_BYTES_MAX} bytes"))

    def headerReceived(self, line: bytes) -> bool:
        """Take a header; lengths are looked at before they become numbers."""
        name, _, value = line.partition(b":")
        digits = value.strip(b" \t")
        if name.lower() == b"content-length" and digits.isdigit() and len(digits) > 18:
            self._refuse_unread(TooLarge(_body_too_large(self.site.settings)))
            return False
        return bool(super().headerReceived(line))

    def rawDataReceived(self, data: bytes) -> None:
        """Take a part of a body."""
        if not self._deaf:
            super().rawDataReceived(data)

    def allHeadersReceived(self) -> None:
        """Let the request in or refuse it, before its body is read."""
        self._forget_head()
        request: Request = self.requests[-1]
        request.begin(self._command, self._path, version=self._version)
        self.persistent = self.checkPersistence(request, self._version)
        try:
            request.admit(self.length)
        except KVSError as error:
            # A small body is there with its head: to read it is cheaper for both than
            # another connection.
            if self.length is not None and len(self._buffer) >= self.length:
                request.refuse_later(error)
            else:
                self.refuse(request, error)
            return
        expected = request.requestHeaders.getRawHeaders(b"Expect") or [b""]
        if expected[0].lower() == b"100-continue" and self._version == b"HTTP/1.1":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def allContentReceived(self) -> None:
        """Let the request be answered."""
        if not self._deaf:
            self._enter(Stage.ANSWERING)
            super().allContentReceived()

    # What goes out.

    def requestDone(self, request: Request) -> None:
        """Go on with the next request, or close."""
        if self.stage is Stage.ANSWERING:
            self._enter(Stage.IDLE)
        super().requestDone(request)

    def owe(self, length: int) -> None:
        """
        Count an answer of a client until it was taken.

        :raises Overloaded: if clients leave too much of what they asked for.
        """
        self.site.admission.answers.take(length)
        if not self._owed_bytes:
            self._owed_until = self.site.reactor.seconds() + CLOSE_S
        self._owed_until += length / BODY_BYTES_PER_S_MIN
        self._owed_bytes += length

    def answered(self) -> None:
        """Forget an answer that the transport takes as a whole."""
        if not self._waitingForTransport:
            self._forget_answers()

    def resumeProducing(self) -> None:
        """Go on; called when the client has taken all that was said."""
        self._forget_answers()
        super().resumeProducing()

    def _forget_answers(self) -> None:
        if self._owed_bytes:
            self.site.admission.answers.give_back(self._owed_bytes)
            self._owed_bytes = 0

    def refuse(self, request: Request, error: KVSError) -> None:
        """Answer a request at once whose body is not read to its end."""
        self.persistent = False
        self._input_ends = False
        request.answer_with(error)

    def _refuse_unread(self, error: KVSError) -> None:
        # What was sent is no request that could be answered.
        if self._deaf:
            return
        for request in self.requests:
            request.leave()
        self.site.requests.answered(Kind.OTHER, error.status, None)
        body = error_body(str(error))
        reason = http.RESPONSES.get(error.status, b"Refused")
        headers = [*error_headers(error), ("Connection", "close")]
        self.transport.writeSequence(
            [
                b"HTTP/1.1 %d %b\r\n" % (error.status, reason),
                *(f"{name}: {value}\r\n".encode() for name, value in headers),
                b"Content-Length: %d\r\n\r\n" % len(body),
                body,
            ]
        )
        self.persistent = False
        self._input_ends = False
        self.loseConnection()

    def _respondToBadRequestAndDisconnect(self) -> None:
        # Twisted calls this for all that is no HTTP; its own answer has no body.
        self._refuse_unread(BadRequest("the request is not understood as HTTP/1.1"))

    def loseConnection(self) -> None:
        """Close when what was said is sent; after a refusal, read on for a while."""
        if self._input_ends or self._deaf:
            self._enter(Stage.CLOSING)
            super().loseConnection()
            return
        self._enter(Stage.LINGERING)
        if ITCPTransport.providedBy(self.transport):
            self.transport.loseWriteConnection()

    # Time.

    def check(self, now: float) -> None:
        """Give up a connection that is too slow; called every second or so."""
        age = now - self._since
        if self._owed_bytes and now >= self._owed_until:
            self.transport.abortConnection()
        elif self.site.seats.is_surplus(self) and age >= SURPLUS_S:
            self.turn_away()
        elif self.stage is Stage.IDLE:
            if age >= IDLE_S:
                self.loseConnection()
        elif self.stage is Stage.RECEIVING:
            if age >= REQUEST_S + self._received / BODY_BYTES_PER_S_MIN:
                self._refuse_unread(RequestTimedOut("the request took too long"))
        elif self.stage is Stage.LINGERING:
            if age >= LINGER_S or now - self._heard >= LINGER_IDLE_S:
                self.loseConnection()
        elif self.stage is Stage.CLOSING and age >= CLOSE_S:
            self.transport.abortConnection()

    def close(self) -> None:
        """Close now, or after the answer of the request that is under way."""
        if self.stage in (Stage.IDLE, Stage.LINGERING):
            self._input_ends = True
            self.loseConnection()

    def give_way(self) -> None:
        """Close an idle connection, for another one's sake; nobody waits for it."""
        if self._owed_bytes:
            self.transport.abortConnection()
        else:
            self.loseConnection()

    def turn_away(self) -> None:
        """Close at once, in the midst of whatever it is."""
        self._refuse_unread(Overloaded("too many connections are open"))
        self.transport.abortConnection()


def _body_too_large(settings: Settings) -> str:
    return f"body of over {settings.body_bytes_max} bytes"
