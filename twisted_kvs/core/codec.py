"""
Peer messages <-> bytes.

A message is one byte that says how the rest is packed (0: MessagePack, 1: MessagePack
in zstd), then the message.  Everything is checked on the way in: packed and unpacked
size, types, ranges; what is wrong raises ``BadPeerMessage`` and has touched nothing.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import zstandard

from .errors import BadPeerMessage
from .messages import (
    MESSAGE_BYTES_MAX,
    Delta,
    Header,
    PeerAnswer,
    PeerRequest,
    Vectors,
)
from .names import is_actor
from .retiring import is_marker
from .versions import Version

PROTOCOL_VERSION = 1
"""Part of the path and of every signature; raised when old nodes cannot follow."""
COMPRESS_ABOVE_BYTES = 1024
_PLAIN, _ZSTD = b"\0", b"\1"
# Text that is no UTF-8 is a ValueError.
_NOT_UNDERSTOOD = (msgspec.DecodeError, ValueError, OverflowError, RecursionError)

_T = TypeVar("_T")


class Codec:
    """Encodes and decodes; keeps its (not thread-safe) compressors."""

    def __init__(self, *, bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        """
        Make a codec for one thread.

        :param bytes_max: of a message, packed or not.
        """
        self._bytes_max = bytes_max
        self._encoder = msgspec.msgpack.Encoder()
        self._requests: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(
            PeerRequest
        )
        self._answers: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(
            PeerAnswer
        )
        self._compressor = zstandard.ZstdCompressor(level=1)
        self._decompressor = zstandard.ZstdDecompressor()

    def encode(self, message: PeerRequest | PeerAnswer) -> bytes:
        """Pack a message; long ones are compressed."""
        packed = self._encoder.encode(message)
        if len(packed) <= COMPRESS_ABOVE_BYTES:
            return _PLAIN + packed
        return _ZSTD + self._compressor.compress(packed)

    def decode_request(self, body: bytes) -> PeerRequest:
        """
        Unpack a request.

        :raises BadPeerMessage: if it is anything else.
        """
        request: PeerRequest = self._decode(self._requests, body)
        return request

    def decode_answer(self, body: bytes) -> PeerAnswer:
        """
        Unpack an answer.

        :raises BadPeerMessage: if it is anything else.
        """
        answer: PeerAnswer = self._decode(self._answers, body)
        return answer

    def _decode(self, decoder: msgspec.msgpack.Decoder[_T], body: bytes) -> _T:
        if len(body) > self._bytes_max + 1:
            raise BadPeerMessage(
                f"message of {len(body)} bytes, at most {self._bytes_max} are taken"
            )
        form, packed = body[:1], body[1:]
        if form == _ZSTD:
            packed = self._unpack(packed)
        elif form != _PLAIN:
            raise BadPeerMessage("message is packed in an unknown way or empty")
        try:
            message = decoder.decode(packed)
        except _NOT_UNDERSTOOD as error:
            raise BadPeerMessage(f"message is not understood: {error}") from None
        for version in _versions(message):
            if version.is_seal and version.value is not None:
                raise BadPeerMessage(f"a seal by {version.actor[:80]!r} has a value")
        for actor in _actors(message):
            # One that is none would come back as an error of a client's request later.
            if not is_actor(actor) and not is_marker(actor):
                raise BadPeerMessage(f"message names no actor: {actor[:80]!r}")
        return message

    def _unpack(self, packed: bytes) -> bytes:
        try:
            size = zstandard.frame_content_size(packed)
            if not 0 <= size <= self._bytes_max:
                raise BadPeerMessage(
                    f"message unpacks to {size} bytes (-1: not said), at most "
                    f"{self._bytes_max} are taken"
                )
            # The content size was checked, and a frame cannot exceed what it states.
            return self._decompressor.decompress(packed, max_output_size=size)
        except zstandard.ZstdError as error:
            raise BadPeerMessage(f"message cannot be unpacked: {error}") from None


def _versions(message: object) -> list[Version]:
    found: list[Version] = getattr(
        getattr(message, "delta", None) or message, "versions", []
    )
    return found


def _actors(message: object) -> set[str]:
    """Collect every actor that a message names."""
    found: set[str] = set()
    for field in ("vv", "base", "vector", "seen", "live"):
        found.update(getattr(message, field, ()))
    header = getattr(message, "header", None)
    if isinstance(header, Header):
        found.add(header.actor)
    vectors = getattr(message, "vectors", None)
    if isinstance(vectors, Vectors):
        found.update(vectors.vv, vectors.clock)
    delta = getattr(message, "delta", None)
    if isinstance(delta, Delta):
        found.update(delta.base, delta.claim, delta.floor)
    for version in _versions(message):
        found.add(version.actor)
        found.update(version.past)
    return found
