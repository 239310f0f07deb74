"""
The route for peers: check the body, decode, let the node answer, sign.

Invariants: a body that is not the one that was signed touches nothing; what a peer has
asked for ends even if the peer does not wait for it; and nothing that a peer sends is
ever a traceback in the log.
"""

from __future__ import annotations

from klein import Klein
from klein.resource import KleinResource
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from werkzeug.exceptions import HTTPException

from twisted_kvs.core.errors import (
    BadPeerMessage,
    BadRequest,
    KVSError,
    NotFound,
    Overloaded,
)
from twisted_kvs.core.messages import Forward, Operation, PeerAnswer, PeerRequest
from twisted_kvs.operations import Operations
from twisted_kvs.signing import PEER_PATH, Envelope

from .admission import PEER_REQUESTS_MAX
from .channel import Request
from .errors import answer_error
from .peer_gate import PeerGate


class PeerApi:
    """The routes of a node for its peers."""

    app = Klein()
    _log = Logger()

    def __init__(self, operations: Operations, *, gate: PeerGate) -> None:
        """
        Serve a node.

        :param gate: the one that the port's connections go by, too.
        """
        self._operations = operations
        self._gate = gate
        self._answering = 0
        self.resource: KleinResource = self.app.resource()

    @property
    def answering(self) -> int:
        """Requests being answered, those of askers that hung up included."""
        return self._answering

    @app.route(PEER_PATH, methods=["POST"])
    def answer(self, request: Request) -> bytes | Deferred[bytes]:
        """Answer one message of a peer."""
        envelope = request.envelope
        if envelope is None:
            return answer_error(request, BadPeerMessage("the request is not signed"))
        body = request.content.getvalue()
        try:
            envelope.check_body(request.body_digest(), len(body))
        except BadPeerMessage as error:
            # What says so is not signed either: nobody knows who sent this body.
            self._gate.complain(request.asker(), error)
            return answer_error(request, error)
        self._gate.traffic.received += len(body)
        try:
            self._check(envelope)
            message = self._gate.codec.decode_request(body)
        except KVSError as error:
            self._gate.complain(envelope.sender, error)
            return self._gate.refuse(request, envelope, error)
        if _is_write(message) and request.asker_left():
            # It was done elsewhere by now.  Done here as well, it would come after what
            # has replaced it meanwhile.
            late = Overloaded("the asker does not wait for this write any more")
            return self._gate.refuse(request, envelope, late)
        operation = self._operations.answer_peer(
            envelope.sender, envelope.boot_id, message
        )
        return self._shielded(request, envelope, operation=operation)

    def _check(self, envelope: Envelope) -> None:
        if envelope.receiver != self._gate.me:
            raise BadRequest(
                f"message is for {envelope.receiver}, this node is {self._gate.me}"
            )
        if self._answering >= PEER_REQUESTS_MAX:
            raise Overloaded(f"over {PEER_REQUESTS_MAX} requests are being answered")

    def _shielded(
        self,
        request: Request,
        envelope: Envelope,
        *,
        operation: Deferred[PeerAnswer],
    ) -> Deferred[bytes]:
        """Let the operation end whether or not the asker waits for it."""
        self._answering += 1
        # Klein cancels this one when the asker hangs up; it is not chained to the
        # operation, and what that fires with later goes nowhere.
        answered: Deferred[bytes] = Deferred()

        def over(body: bytes) -> None:
            self._answering -= 1
            # A Deferred that was cancelled ignores this.
            answered.callback(body)

        signed = operation.addCallback(
            lambda message: self._gate.answer(request, envelope, message)
        )
        signed.addErrback(lambda failure: self._failed(request, envelope, failure))
        signed.addCallback(over)
        return answered

    def _failed(self, request: Request, envelope: Envelope, failure: Failure) -> bytes:
        error = failure.value
        if not isinstance(error, KVSError):
            self._log.failure(
                "cannot answer {sender}", failure=failure, sender=envelope.sender
            )
            error = KVSError("internal error")
        return self._gate.refuse(request, envelope, error)

    @app.handle_errors(HTTPException)
    def no_route(self, request: IRequest, failure: Failure) -> bytes:
        """Answer what no route takes."""
        error = NotFound(f"peers POST to {PEER_PATH}")
        envelope = getattr(request, "envelope", None)
        if envelope is None:
            return answer_error(request, error)
        return self._gate.refuse(request, envelope, error)


def _is_write(message: PeerRequest) -> bool:
    return isinstance(message, Forward) and message.operation is not Operation.GET
