"""Peer messages with markers in the place of retired actors (R20)."""

from __future__ import annotations

import msgspec
from hypothesis import given
from twisted.trial.unittest import SynchronousTestCase

from tests import strategies as kvs
from tests.core.peer_messages import answers, requests
from twisted_kvs.core.errors import BadPeerMessage
from twisted_kvs.core.messages import Forward, Operation, PeerAnswer, PeerRequest
from twisted_kvs.core.retiring import NOBODY, NOTHING
from twisted_kvs.core.shrinking import grow, shrink

A, B, C = kvs.ACTORS[:3]
RETIRED = NOBODY.retire({A: 1, B: 1})
_encode = msgspec.msgpack.Encoder(order="sorted").encode


class ShrinkTests(SynchronousTestCase):
    """``shrink`` and ``grow``."""

    @given(requests() | answers())
    def test_what_was_shrunk_grows_back(
        self, message: PeerRequest | PeerAnswer
    ) -> None:
        """And who knows of nobody that is retired changes nothing."""
        shrunk = shrink(message, RETIRED, RETIRED.head)
        self.assertEqual(_encode(grow(shrunk, RETIRED)), _encode(message))
        self.assertIs(shrink(message, RETIRED, NOTHING), message)
        self.assertIs(grow(message, RETIRED), message)

    @given(requests() | answers())
    def test_a_generation_that_is_not_known_is_refused(
        self, message: PeerRequest | PeerAnswer
    ) -> None:
        """Rather than read as less than it is."""
        shrunk = shrink(message, RETIRED, RETIRED.head)
        if shrunk is message:
            self.assertIs(grow(shrunk, NOBODY), message)
        else:
            self.assertRaises(BadPeerMessage, grow, shrunk, NOBODY)

    def test_vectors_get_shorter(self) -> None:
        """That is what it is for."""
        message = Forward(
            operation=Operation.GET,
            key="k",
            vector={A: 1, B: 1, C: 7},
            lamport=0,
            seen={A: 1},
            budget_ms=1,
        )
        shrunk = shrink(message, RETIRED, RETIRED.head)
        self.assertEqual(len(shrunk.vector), 2)
        self.assertEqual(shrunk.seen, {A: 1})
