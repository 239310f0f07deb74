"""
The causal payload: what a client read, as a signed token that is opaque to it (R18).

Invariant: a token that decodes was issued by this cluster, byte for byte.  One made-up
counter would swallow all future writes of a node, silently and contagiously (hole H6),
so nothing is taken from a token before its signature was verified.

Form: ``v1.``, the packed payload, ``.``, 96 bits of HMAC-SHA256 over all before that;
both in base64url without padding, an alphabet that survives forms, headers and URLs.
Packed: L; then for each node name, in order, its length, the name, the number of its
incarnations, and for each of these, in order, 8 bytes and its counter.  All numbers are
LEB128 varints.
"""

from __future__ import annotations

import hashlib
import hmac
import sys
from base64 import urlsafe_b64decode, urlsafe_b64encode
from functools import lru_cache
from typing import NamedTuple

from .causality import COUNTER_MAX, EMPTY, Actor, VersionVector, leq
from .errors import BadPayload, TooLarge
from .names import is_actor
from .retiring import is_marker
from .secrets import Secrets

TOKEN_BYTES_MAX = 64 * 1024
"""Of a token from a client, unless its place has a lower limit."""
CACHED_TOKEN_BYTES = 1024
"""What a cached token counts for on average: bounds the cache in bytes."""

_PREFIX = "v1."
_MAC_BYTES = 12
_MAC_CHARACTERS = _MAC_BYTES * 4 // 3
assert _MAC_BYTES % 3 == 0, "or its base64 has slack bits, and a token several forms"
_INCARNATION_BYTES = 8
_CACHED_ACTORS_MAX = 4096
_NOT_ISSUED = "causal_payload was not issued by this store"


class Payload(NamedTuple):
    """What a client has read and written."""

    vector: VersionVector
    """Every dot that it depends on; closed."""
    lamport: int
    """L: makes each answer of a node later than the last without a new dot."""


EMPTY_PAYLOAD = Payload(EMPTY, 0)
"""Of a client that has read nothing; its token is the empty string."""


def before(x: Payload, y: Payload) -> bool:
    """
    Tell whether ``x`` is strictly before ``y``.

    A strict partial order: neither of two payloads is before the other where they are
    equal or concurrent.
    """
    if not leq(x.vector, y.vector):
        return False
    return x.lamport < y.lamport or not leq(y.vector, x.vector)


class PayloadCodec:
    """Writes and verifies tokens; remembers the recent ones, within a limit."""

    def __init__(self, secrets: Secrets, cache_size: int = 1024) -> None:
        """
        Make a codec.

        :param secrets: the first one signs, all verify.
        :param cache_size: about so many tokens are remembered, > 1; also bounded in
            bytes, at ``CACHED_TOKEN_BYTES`` each.
        """
        assert cache_size > 1
        self._macs = [_Mac(key) for key in secrets.token_keys]
        # Two generations are a cheap form of "least recently used": when the young one
        # is full it becomes the old one, and what was not asked for since then goes.
        self._young: dict[str, Payload] = {}
        self._old: dict[str, Payload] = {}
        self._generation_max = cache_size // 2
        self._young_bytes = 0

    def encode(self, payload: Payload) -> str:
        """
        Write a payload as a token.

        :param payload: its vector must not change afterwards.
        :returns: ASCII letters, digits, ``.``, ``_`` and ``-``; "" for the empty one.
        :raises ValueError: if an actor is neither one nor a marker of retired ones, or
            a number is out of range.
        """
        if not payload.vector and not payload.lamport:
            return ""
        body = _PREFIX + _base64(_pack(payload))
        token = f"{body}.{self._macs[0].text(body)}"
        # The client will send it back.
        self._remember(token, payload)
        return token

    def decode(self, token: str, *, bytes_max: int = TOKEN_BYTES_MAX) -> Payload:
        """
        Verify a token and read it.

        :param token: what a client sent; "" is the empty payload.
        :raises TooLarge: if it has more than ``bytes_max`` characters.
        :raises BadPayload: if none of the secrets has signed exactly this.
        """
        if not token:
            return EMPTY_PAYLOAD
        if len(token) > bytes_max:
            raise TooLarge(
                f"causal_payload has {len(token)} characters, "
                f"at most {bytes_max} are taken"
            )
        payload = self._young.get(token)
        if payload is None:
            payload = self._old.get(token) or self._verified(token)
            self._remember(token, payload)
        return payload

    def _verified(self, token: str) -> Payload:
        body, mac = token[: -_MAC_CHARACTERS - 1], token[-_MAC_CHARACTERS - 1 :]
        if not (token.isascii() and body.startswith(_PREFIX)):
            raise BadPayload(_NOT_ISSUED)
        # Compared as text, and over text: a token has one form only.
        if not any(
            hmac.compare_digest("." + own.text(body), mac) for own in self._macs
        ):
            raise BadPayload(_NOT_ISSUED)
        return _unpack(body.removeprefix(_PREFIX))

    def _remember(self, token: str, payload: Payload) -> None:
        young_bytes = self._young_bytes + len(token)
        if (
            len(self._young) >= self._generation_max
            or young_bytes > self._generation_max * CACHED_TOKEN_BYTES
        ):
            self._old, self._young = self._young, {}
            young_bytes = len(token)
        self._young[token] = payload
        self._young_bytes = young_bytes


def _pack(payload: Payload) -> bytes:
    vector = payload.vector
    incarnations: dict[bytes, list[bytes]] = {}
    for actor in sorted(vector):
        name, incarnation = _split(actor)
        counter = vector[actor]
        if not counter:
            raise ValueError(f"{actor} has counter 0, which names no write")
        pair = incarnation + _varint(counter)
        incarnations.setdefault(name, []).append(pair)
    out = [_varint(payload.lamport)]
    for name, pairs in incarnations.items():
        out += (name, _varint(len(pairs)), *pairs)
    return b"".join(out)


def _unpack(text: str) -> Payload:
    try:
        packed = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        payload = _Unpacker(packed).payload()
        # One payload has one form; and what could not be written is none.
        canonical = payload != EMPTY_PAYLOAD and _base64(_pack(payload)) == text
    except (IndexError, ValueError):
        raise BadPayload(_NOT_ISSUED) from None
    if not canonical:
        raise BadPayload(_NOT_ISSUED)
    return payload


def _base64(packed: bytes) -> str:
    return urlsafe_b64encode(packed).rstrip(b"=").decode()


class _Mac:
    """HMAC-SHA-256 under one key, cut; hashes the key once (RFC 2104, section 4)."""

    def __init__(self, key: bytes) -> None:
        block = hashlib.sha256().block_size
        assert len(key) <= block
        padded = key.ljust(block, b"\0")
        self._inner = hashlib.sha256(bytes(x ^ 0x36 for x in padded))
        self._outer = hashlib.sha256(bytes(x ^ 0x5C for x in padded))

    def text(self, body: str) -> str:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(body.encode())
        outer.update(inner.digest())
        return urlsafe_b64encode(outer.digest()[:_MAC_BYTES]).decode()


@lru_cache(maxsize=_CACHED_ACTORS_MAX)
def _split(actor: Actor) -> tuple[bytes, bytes]:
    """Pack the name (with its length) and the incarnation of an actor."""
    if not (is_actor(actor) or is_marker(actor)):
        raise ValueError(f"{actor!r} is no actor")
    name, _, incarnation = actor.rpartition("#")
    return _varint(len(name)) + name.encode(), bytes.fromhex(incarnation)


def _varint(number: int) -> bytes:
    if not 0 <= number <= COUNTER_MAX:
        raise ValueError(f"{number} is outside 0..2^63-1")
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


class _Unpacker:
    """Reads what ``_pack`` wrote; raises IndexError or ValueError for anything else."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed
        self._at = 0

    def payload(self) -> Payload:
        lamport = self._number()
        vector: dict[Actor, int] = {}
        while self._at < len(self._packed):
            name = self._bytes(self._number()).decode("ascii")
            for _ in range(self._number()):
                incarnation = self._bytes(_INCARNATION_BYTES).hex()
                actor = Actor(sys.intern(f"{name}#{incarnation}"))
                vector[actor] = self._number()
        return Payload(vector, lamport)

    def _bytes(self, length: int) -> bytes:
        taken = self._packed[self._at : self._at + length]
        self._at += length
        return taken

    def _number(self) -> int:
        number = shift = 0
        while True:
            byte = self._packed[self._at]
            self._at += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7
