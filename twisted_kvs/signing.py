"""
The signed envelope of what nodes send each other: the header ``KVS-Peer`` (R18).

Invariant: a header that verifies was made by a holder of one of the secrets, for this
path, this receiver and exactly the body that it names by length and SHA-256; and an
answer belongs to the one request whose nonce it carries.  So a node knows before it
reads a body who sends it and how long it is; the body is hashed while it streams and
compared before anything looks into it.

The MAC is HMAC-SHA-256 over every field with its length before it, so that no two
different envelopes are signed as the same bytes, and begins with what it is for, so
that no answer passes as a request.  Replays are not stopped here: what a peer may ask
is idempotent, and forwarded writes are as open as the front door.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .core.causality import Name
from .core.codec import PROTOCOL_VERSION
from .core.errors import BadPeerMessage
from .core.messages import MESSAGE_BYTES_MAX
from .core.names import is_name

PEER_HEADER = "KVS-Peer"
PEER_PREFIX = "/kvs-peer/"
PEER_PATH = f"{PEER_PREFIX}v{PROTOCOL_VERSION}"
NONCE_BYTES = 16
BODY_BYTES_MAX = MESSAGE_BYTES_MAX + 1
"""Of a body: a message and the byte that says how it is packed."""
HEADER_BYTES_MAX = 1024
BOOT_ID_BITS = 64

_REQUEST, _ANSWER = b"kvs-peer request", b"kvs-peer answer"
_FIELDS = re.compile(
    rb"v(?P<version>[0-9]{1,4})"
    rb" (?P<sender>[!-~]{1,300}) (?P<boot>[0-9a-f]{16}) (?P<receiver>[!-~]{1,300})"
    rb" (?P<nonce>[0-9a-f]{32}) (?P<length>0|[1-9][0-9]{0,9})"
    rb" (?P<digest>[0-9a-f]{64}) (?P<mac>[0-9a-f]{64})"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What a header says; verified, where it comes from a verifying function."""

    sender: Name
    boot_id: int
    """Of the sender's process (R1)."""
    receiver: Name
    """Whom it is meant for; on a request not necessarily this node."""
    nonce: bytes
    length: int
    """Bytes of the body, from 0 to ``BODY_BYTES_MAX``."""
    digest: bytes
    """SHA-256 of the body as it crosses the wire."""

    def check_body(self, digest: bytes, length: int) -> None:
        """
        Compare a body that was received with what was signed.

        :param digest: SHA-256 of all its bytes.
        :raises BadPeerMessage: if it is another one.
        """
        if length != self.length:
            raise BadPeerMessage(f"body of {length} bytes, signed were {self.length}")
        if not hmac.compare_digest(digest, self.digest):
            raise BadPeerMessage("body is not the one that was signed")


class Signer:
    """Signs as one process of one node, and verifies what others signed."""

    def __init__(self, *, me: Name, boot_id: int, keys: Sequence[bytes]) -> None:
        """
        Take the identity and the keys.

        :param boot_id: 64 random bits, drawn at every start.
        :param keys: the first signs, all verify.
        """
        assert keys and all(keys) and 0 <= boot_id < 2**BOOT_ID_BITS and is_name(me)
        self.me = me
        self.boot_id = boot_id
        self._keys = tuple(keys)

    def sign_request(
        self, receiver: Name, body: bytes, *, nonce: bytes
    ) -> tuple[Envelope, bytes]:
        """
        Sign a request to ``PEER_PATH``.

        :param nonce: fresh random bytes, ``NONCE_BYTES`` of them.
        :returns: what the answer will be held against, and the header.
        """
        assert len(nonce) == NONCE_BYTES
        envelope = self._envelope(receiver, body, nonce)
        return envelope, self._seal(_REQUEST, PEER_PATH.encode(), envelope)

    def sign_answer(self, request: Envelope, body: bytes) -> bytes:
        """
        Sign the answer to a request, whoever that was meant for.

        :returns: the header.
        """
        envelope = self._envelope(request.sender, body, request.nonce)
        return self._seal(_ANSWER, PEER_PATH.encode(), envelope)

    def verify_request(self, headers: Sequence[bytes], path: bytes) -> Envelope:
        """
        Verify the header of a request before its body is read.

        The receiver is not compared: who gets another one's request can say so, signed.

        :param headers: all values of ``KVS-Peer`` that the request has.
        :param path: of the request, as sent, with its query.
        :raises BadPeerMessage: if there is not one such header, or it was not signed
            with one of the keys for this path.
        """
        return self._open(_REQUEST, path, headers)

    def verify_answer(self, headers: Sequence[bytes], request: Envelope) -> Envelope:
        """
        Verify the header of an answer before its body is read.

        :param request: that it must be the answer to.
        :raises BadPeerMessage: if it is not the signed answer of that receiver to that
            request.
        """
        answer = self._open(_ANSWER, PEER_PATH.encode(), headers)
        if answer.nonce != request.nonce or answer.receiver != request.sender:
            raise BadPeerMessage("answer belongs to another request")
        if answer.sender != request.receiver:
            raise BadPeerMessage(
                f"asked {request.receiver}, who answered calls itself {answer.sender}"
            )
        return answer

    def _envelope(self, receiver: Name, body: bytes, nonce: bytes) -> Envelope:
        return Envelope(
            sender=self.me,
            boot_id=self.boot_id,
            receiver=receiver,
            nonce=nonce,
            length=len(body),
            digest=hashlib.sha256(body).digest(),
        )

    def _seal(self, use: bytes, path: bytes, envelope: Envelope) -> bytes:
        fields = (
            b"%d" % PROTOCOL_VERSION,
            envelope.sender.encode(),
            b"%016x" % envelope.boot_id,
            envelope.receiver.encode(),
            envelope.nonce.hex().encode(),
            b"%d" % envelope.length,
            envelope.digest.hex().encode(),
        )
        mac = _mac(self._keys[0], use, path, *fields)
        return b"v" + b" ".join((*fields, mac.hex().encode()))

    def _open(self, use: bytes, path: bytes, headers: Sequence[bytes]) -> Envelope:
        if len(headers) != 1:
            raise BadPeerMessage(f"{len(headers)} headers {PEER_HEADER}, want one")
        match = _FIELDS.fullmatch(headers[0])
        if match is None:
            raise BadPeerMessage(f"header {PEER_HEADER} is not understood")
        *fields, mac_hex = match.groups()
        mac = bytes.fromhex(mac_hex.decode())
        # Every key is tried, so that the time taken says nothing about which one fits.
        verified = [
            hmac.compare_digest(mac, _mac(key, use, path, *fields))
            for key in self._keys
        ]
        if not any(verified):
            raise BadPeerMessage("signature is wrong: another secret, path or sender")
        return _envelope_of(match)


def _envelope_of(match: re.Match[bytes]) -> Envelope:
    sender, receiver = match["sender"].decode(), match["receiver"].decode()
    length = int(match["length"])
    if int(match["version"]) != PROTOCOL_VERSION:
        raise BadPeerMessage(f"protocol version is not {PROTOCOL_VERSION}")
    if not (is_name(sender) and is_name(receiver)):
        raise BadPeerMessage("sender or receiver is not a node's name")
    if length > BODY_BYTES_MAX:
        raise BadPeerMessage(
            f"body of {length} bytes announced, at most {BODY_BYTES_MAX} are taken"
        )
    return Envelope(
        sender=Name(sender),
        boot_id=int(match["boot"], 16),
        receiver=Name(receiver),
        nonce=bytes.fromhex(match["nonce"].decode()),
        length=length,
        digest=bytes.fromhex(match["digest"].decode()),
    )


def _mac(key: bytes, use: bytes, path: bytes, *fields: bytes) -> bytes:
    signed = b"".join(
        len(field).to_bytes(4, "big") + field for field in (use, path, *fields)
    )
    return hmac.digest(key, signed, "sha256")
