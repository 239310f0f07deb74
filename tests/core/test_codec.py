"""Peer messages as bytes: what is decoded was checked (R18)."""

from __future__ import annotations

import msgspec
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from twisted.trial.unittest import SynchronousTestCase

from tests import strategies as kvs
from tests.core import peer_messages
from tests.laws import CodecLaws
from twisted_kvs.core.causality import COUNTER_MAX, DOT_COUNTER_MAX, Actor
from twisted_kvs.core.codec import COMPRESS_ABOVE_BYTES, Codec
from twisted_kvs.core.errors import BadPeerMessage
from twisted_kvs.core.messages import (
    Hello,
    NextPart,
    PartAnswer,
    PeerAnswer,
    PeerRequest,
    Push,
    PushAnswer,
    Refused,
)
from twisted_kvs.core.versions import Version

ACTOR = kvs.ACTORS[0]
PLAIN, PACKED = b"\0", b"\1"
Fields = tuple[object, ...]


class Comparable:
    """A message, equal to another with the same content."""

    def __init__(self, message: PeerRequest | PeerAnswer) -> None:
        self.message = message

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Comparable) and self._plain() == other._plain()

    def __hash__(self) -> int:
        return hash(type(self.message))

    def __repr__(self) -> str:
        return repr(self.message)

    def _plain(self) -> object:
        return msgspec.to_builtins(self.message)


def encoded(message: PeerRequest | PeerAnswer) -> bytes:
    """Write a message."""
    return Codec().encode(message)


def mangled(valid: SearchStrategy[bytes]) -> SearchStrategy[bytes]:
    """Draw bytes that look like messages, and bytes that do not."""
    forms = st.sampled_from([PLAIN, PACKED, b"", b"\2"])
    changed = st.tuples(valid, st.integers(0, 400), st.binary(max_size=2)).map(
        lambda x: x[0][: x[1] % (len(x[0]) + 1)] + x[2] + x[0][x[1] + 1 :]
    )
    return st.builds(bytes.__add__, forms, st.binary(max_size=40)) | changed


class _Laws(CodecLaws[Comparable, bytes]):
    codec = Codec()

    def encode(self, value: Comparable) -> bytes:
        """Write a message."""
        return self.codec.encode(value.message)

    def test_garbage_is_refused_as_somebody_elses_fault(self) -> None:
        """Garbage is refused, or means the same after it is written anew."""

        @given(self.garbage)
        def law(body: bytes) -> None:
            try:
                value = self.decode(body)
            except BadPeerMessage:
                return
            # MessagePack has several forms of one number.
            assert self.decode(self.encode(value)) == value

        law()


class RequestLawTests(_Laws, SynchronousTestCase):
    """What nodes ask each other."""

    values = peer_messages.requests().map(Comparable)
    garbage = mangled(peer_messages.requests().map(encoded))

    def decode(self, encoded: bytes) -> Comparable:
        """Read a request."""
        return Comparable(self.codec.decode_request(encoded))


class AnswerLawTests(_Laws, SynchronousTestCase):
    """What nodes answer each other."""

    values = peer_messages.answers().map(Comparable)
    garbage = mangled(peer_messages.answers().map(encoded))

    def decode(self, encoded: bytes) -> Comparable:
        """Read an answer."""
        return Comparable(self.codec.decode_answer(encoded))


class CodecTests(SynchronousTestCase):
    """``Codec``."""

    def refused(self, body: bytes, *, codec: Codec | None = None) -> str:
        """Expect that a request is refused, and tell why."""
        error = self.assertRaises(
            BadPeerMessage, (codec or Codec()).decode_request, body
        )
        return str(error)

    def plain(self, *array: object) -> bytes:
        """Write an array as a message."""
        return PLAIN + msgspec.msgpack.encode(array)

    def test_long_messages_are_compressed(self) -> None:
        """A big delta takes less of the network, a small message no more."""
        short = PartAnswer(versions=[], more=False)
        value = b'"' + b"x" * COMPRESS_ABOVE_BYTES + b'"'
        version = Version(ACTOR, 1, "k", value, 1, {})
        long = PartAnswer(versions=[version], more=False)
        self.assertEqual(encoded(short)[:1], PLAIN)
        self.assertEqual(encoded(long)[:1], PACKED)
        self.assertLess(len(encoded(long)), len(value) / 4)
        self.assertEqual(
            Comparable(Codec().decode_answer(encoded(long))), Comparable(long)
        )

    def test_a_request_is_no_answer(self) -> None:
        """What was meant as one is not taken for the other."""
        self.refused(encoded(Refused(500, "no")))
        asked = encoded(NextPart(session=1, index=1))
        self.assertRaises(BadPeerMessage, Codec().decode_answer, asked)

    def test_limits_hold_before_anything_is_unpacked(self) -> None:
        """A short message that would unpack into a huge one costs nothing."""
        codec = Codec(bytes_max=1000)
        self.assertIn("at most 1000", self.refused(bytes(1002), codec=codec))
        bomb = PACKED + zstandard.ZstdCompressor().compress(bytes(10**6))
        self.assertLess(len(bomb), 1000)
        self.assertIn("unpacks to 1000000", self.refused(bomb, codec=codec))

    def test_a_size_that_is_not_said_is_refused(self) -> None:
        """A packed message says how long it will be, or it is none."""
        writer = zstandard.ZstdCompressor(write_content_size=False)
        packed = writer.compress(encoded(NextPart(session=1, index=1))[1:])
        self.assertIn("not said", self.refused(PACKED + packed))

    def test_a_packed_message_that_lies_is_refused(self) -> None:
        """Damaged and cut frames are one kind of error."""
        body = PACKED + zstandard.ZstdCompressor().compress(bytes(2000))
        self.refused(body[:-3])
        self.refused(PACKED + b"no frame")
        self.refused(PACKED)

    def test_an_unknown_form_is_refused(self) -> None:
        """So that a later form is not misread."""
        self.assertIn("unknown way", self.refused(b"\2" + encoded_next_part()[1:]))
        self.assertIn("empty", self.refused(b""))

    def test_numbers_out_of_range_are_refused(self) -> None:
        """Counters begin at 1, and nothing is above 2^63-1 or below 0 (R18)."""
        for counter in (0, -1, DOT_COUNTER_MAX + 1, "1", 1.0, True, None):
            version: Fields = (ACTOR, counter, "k", b"1", 1, {})
            self.refused(self.plain("Push", 0, [version]))
            self.refused(
                self.plain("Push", 0, [(ACTOR, 1, "k", b"1", 1, {"a": counter})])
            )
        for ts in (-1, COUNTER_MAX + 1):
            self.refused(self.plain("Push", 0, [(ACTOR, 1, "k", b"1", ts, {})]))
        self.refused(self.plain("Push", -1, []))
        self.refused(self.plain("NextPart", COUNTER_MAX + 1, 1))

    def test_wrong_types_are_refused(self) -> None:
        """Keys and values have the right type and length, also within a delta."""
        good = self.plain("Push", 0, [(ACTOR, 1, "k", b"1", 1, {})])
        self.assertIsInstance(Codec().decode_request(good), Push)
        for key in ("", "k" * 201, b"k", 1, None):
            self.refused(self.plain("Push", 0, [(ACTOR, 1, key, b"1", 1, {})]))
        self.refused(self.plain("Push", 0, [(ACTOR, 1, "k", "text", 1, {})]))
        self.refused(self.plain("Push", 0, [(ACTOR, 1, "k")]))
        self.refused(self.plain("Push", 0, {}))
        self.refused(self.plain("Push"))
        self.refused(self.plain("Unheard-of", 0, []))
        self.refused(self.plain())
        self.refused(PLAIN + msgspec.msgpack.encode({"Push": 1}))

    def test_what_names_no_actor_is_refused(self) -> None:
        """A made-up actor would come back in clients' payloads for ever."""
        for name in ("", "x", "10.0.0.1:80", "10.0.0.1:80#12", ACTOR.upper() + "z"):
            bad = Actor(name)
            version: Fields = (bad, 1, "k", b"1", 1, {})
            follower = (ACTOR, 1, "k", b"1", 1, {bad: 1})
            for versions in ([version], [follower]):
                self.assertIn("actor", self.refused(self.plain("Push", 0, versions)))
            answer = encoded(PushAnswer({bad: 1}))
            self.assertRaises(BadPeerMessage, Codec().decode_answer, answer)

    @given(peer_messages.headers())
    def test_newer_nodes_may_say_more(self, header: object) -> None:
        """Fields that are added at the end are passed over by older nodes."""
        array = msgspec.to_builtins(header, builtin_types=(bytes,))
        more = self.plain("Hello", [*array, "new"], "newer")
        read = Codec().decode_request(more)
        assert isinstance(read, Hello)
        self.assertEqual(read.header, header)

    def test_older_nodes_may_say_less(self) -> None:
        """Fields that were added have a default."""
        fields = ("Exchange", _header(), _vectors(), None)
        read = Codec().decode_request(self.plain(*fields))
        self.assertEqual(
            (getattr(read, "pull_me", None), getattr(read, "wants", None)),
            (False, True),
        )

    def test_deep_nesting_is_refused(self) -> None:
        """A message cannot exhaust the stack."""
        self.refused(PLAIN + b"\x91" * 100_000)


def encoded_next_part() -> bytes:
    """Write a small request."""
    return encoded(NextPart(session=1, index=1))


def _header() -> tuple[object, ...]:
    return (ACTOR, 0, 0, True, bytes(16), None, {})


def _vectors() -> tuple[object, ...]:
    return ({}, {}, {}, None)
