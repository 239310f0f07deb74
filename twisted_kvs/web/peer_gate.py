"""
Who may send a peer message, and how what they get is signed.

Invariant: nothing of a peer's body is read before its envelope was verified, and
everything said to a peer whose envelope was verified is signed.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.iweb import IRequest

from twisted_kvs.core.codec import Codec
from twisted_kvs.core.errors import BadPeerMessage, KVSError
from twisted_kvs.core.messages import PeerAnswer, Refused
from twisted_kvs.metrics import Traffic
from twisted_kvs.signing import PEER_HEADER, Envelope, Signer

COMPLAINT_INTERVAL_S = 10.0
_COMPLAINTS_MAX = 1024


class Complaints:
    """
    Warnings about others, at most one for each of them and each kind in ten seconds.

    A peer with another secret gossips twice a second for ever; its first line in the
    log says all there is to know.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        """Start silent."""
        self._clock = clock
        self._silent_until: dict[tuple[str, str], float] = {}

    def warn(self, peer: str, error: KVSError) -> None:
        """Log what a peer did wrong, unless that was said a moment ago."""
        now = self._clock.seconds()
        what = (peer, error.code)
        if self._silent_until.get(what, now) > now:
            return
        if len(self._silent_until) >= _COMPLAINTS_MAX:
            self._forget(now)
        if len(self._silent_until) >= _COMPLAINTS_MAX:
            return
        self._silent_until[what] = now + COMPLAINT_INTERVAL_S
        self._log.warn(
            "bad peer message from {peer}: {reason} ({code})",
            peer=peer,
            reason=str(error),
            code=error.code,
        )

    def _forget(self, now: float) -> None:
        self._silent_until = {
            what: until for what, until in self._silent_until.items() if until > now
        }


class PeerGate:
    """Opens the envelopes of requests and seals those of answers."""

    def __init__(self, *, signer: Signer, codec: Codec, clock: IReactorTime) -> None:
        """Take what belongs to this process; all of it is shared with the transport."""
        self.codec = codec
        self.me = signer.me
        self._signer = signer
        self._complaints = Complaints(clock)
        self.traffic = Traffic()
        """Questions received, answers sent."""

    def open(
        self, headers: Sequence[bytes], path: bytes, length: int | None
    ) -> Envelope:
        """
        Verify a request before its body is read.

        :param headers: all values of ``KVS-Peer``.
        :param path: as sent, with its query.
        :param length: that its Content-Length says; None: it says none.
        :raises BadPeerMessage: if the body is not to be read.
        """
        envelope = self._signer.verify_request(headers, path)
        if length != envelope.length:
            raise BadPeerMessage(
                f"Content-Length is {length}, signed were {envelope.length}"
            )
        return envelope

    def complain(self, peer: str, error: KVSError) -> None:
        """Log a bad message once, without a traceback."""
        self._complaints.warn(peer, error)

    def answer(
        self, request: IRequest, envelope: Envelope, message: PeerAnswer
    ) -> bytes:
        """
        Set the headers of a signed answer.

        The HTTP status is 200 whatever the message: what a proxy on the way may make
        up has another one or no signature.

        :returns: its body.
        """
        body = self.codec.encode(message)
        self.traffic.sent += len(body)
        header = self._signer.sign_answer(envelope, body)
        request.responseHeaders.setRawHeaders(PEER_HEADER, [header])
        request.responseHeaders.setRawHeaders(
            "Content-Type", [b"application/octet-stream"]
        )
        return body

    def refuse(self, request: IRequest, envelope: Envelope, error: KVSError) -> bytes:
        """Sign a no to a request; see ``answer``."""
        return self.answer(request, envelope, Refused(error.status, str(error)))
