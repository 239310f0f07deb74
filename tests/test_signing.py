"""The signed envelope: what verifies, and that nothing else does."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twisted_kvs.core.causality import Name
from twisted_kvs.core.errors import BadPeerMessage
from twisted_kvs.signing import (
    BODY_BYTES_MAX,
    HEADER_BYTES_MAX,
    NONCE_BYTES,
    PEER_PATH,
    Envelope,
    Signer,
)

PATH = PEER_PATH.encode()
NONCE = b"n" * NONCE_BYTES
HERE, THERE, ELSEWHERE = Name("10.0.0.1:8080"), Name("[::1]:8080"), Name("host:81")


def signer(name: Name = HERE, *keys: bytes, boot_id: int = 7) -> Signer:
    """Make the signer of a process."""
    return Signer(me=name, boot_id=boot_id, keys=keys or (b"k" * 32,))


class RequestTests(SynchronousTestCase):
    """Headers of requests."""

    def test_request_verifies_with_all_it_says(self) -> None:
        """Whoever shares the secret learns sender, process, length and hash."""
        body = b"some body"
        sent, header = signer().sign_request(THERE, body, nonce=NONCE)
        seen = signer(THERE).verify_request([header], PATH)
        self.assertEqual(seen, sent)
        self.assertEqual(
            (seen.sender, seen.boot_id, seen.receiver, seen.nonce, seen.length),
            (HERE, 7, THERE, NONCE, len(body)),
        )
        seen.check_body(hashlib.sha256(body).digest(), len(body))

    def test_longest_names_fit_into_the_header(self) -> None:
        """Host names as long as they may be make no header that is too long."""
        label = "a" * 63
        longest = Name(".".join([label] * 3 + ["b" * 61]) + ":65535")
        other = Name("c" + longest[1:])
        one = signer(longest, boot_id=2**64 - 1)
        _, header = one.sign_request(other, b"", nonce=NONCE)
        self.assertLessEqual(len(header), HEADER_BYTES_MAX)
        self.assertEqual(one.verify_request([header], PATH).sender, longest)

    def test_another_secret_does_not_verify(self) -> None:
        """A node with another secret is refused."""
        _, header = signer().sign_request(THERE, b"", nonce=NONCE)
        with self.assertRaises(BadPeerMessage):
            signer(THERE, b"x" * 32).verify_request([header], PATH)

    def test_every_key_verifies_and_the_first_signs(self) -> None:
        """Secrets can be changed one node at a time."""
        old, new = b"o" * 32, b"n" * 32
        _, by_old = signer(HERE, old, new).sign_request(THERE, b"", nonce=NONCE)
        _, by_new = signer(HERE, new, old).sign_request(THERE, b"", nonce=NONCE)
        self.assertEqual(signer(THERE, old).verify_request([by_old], PATH).sender, HERE)
        self.assertEqual(signer(THERE, new).verify_request([by_new], PATH).sender, HERE)
        signer(THERE, new, old).verify_request([by_old], PATH)
        with self.assertRaises(BadPeerMessage):
            signer(THERE, new).verify_request([by_old], PATH)

    def test_missing_or_doubled_header_is_refused(self) -> None:
        """There is one header, or the request is not read."""
        _, header = signer().sign_request(THERE, b"", nonce=NONCE)
        for headers in ([], [header, header]):
            with self.assertRaises(BadPeerMessage):
                signer(THERE).verify_request(headers, PATH)

    def test_another_path_does_not_verify(self) -> None:
        """What was signed for one route cannot be sent to another."""
        _, header = signer().sign_request(THERE, b"", nonce=NONCE)
        for path in (PATH + b"?x", b"/kvs-peer/v2", b""):
            with self.assertRaises(BadPeerMessage):
                signer(THERE).verify_request([header], path)

    def test_oversized_body_is_refused_by_its_announced_length(self) -> None:
        """Even a holder of the secret cannot announce a body over the limit."""
        one = signer()
        for length, good in ((BODY_BYTES_MAX, True), (BODY_BYTES_MAX + 1, False)):
            envelope = Envelope(
                sender=HERE,
                boot_id=1,
                receiver=THERE,
                nonce=NONCE,
                length=length,
                digest=bytes(32),
            )
            header = one._seal(b"kvs-peer request", PATH, envelope)
            if good:
                self.assertEqual(one.verify_request([header], PATH).length, length)
            else:
                with self.assertRaises(BadPeerMessage):
                    one.verify_request([header], PATH)

    def test_changed_body_is_found(self) -> None:
        """Neither another body nor a shorter one passes for what was signed."""
        envelope, _ = signer().sign_request(THERE, b"body", nonce=NONCE)
        with self.assertRaises(BadPeerMessage):
            envelope.check_body(hashlib.sha256(b"Body").digest(), 4)
        with self.assertRaises(BadPeerMessage):
            envelope.check_body(hashlib.sha256(b"body").digest(), 3)

    @given(st.data())
    def test_any_changed_byte_is_refused(self, data: st.DataObject) -> None:
        """No header verifies that differs from the signed one in a single byte."""
        _, header = signer().sign_request(THERE, b"body", nonce=NONCE)
        at = data.draw(st.integers(0, len(header) - 1))
        byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != header[at]))
        changed = header[:at] + bytes([byte]) + header[at + 1 :]
        with self.assertRaises(BadPeerMessage):
            signer(THERE).verify_request([changed], PATH)

    @given(st.binary(max_size=600) | st.text(max_size=300).map(str.encode))
    def test_garbage_is_refused(self, garbage: bytes) -> None:
        """Whatever stands in the header, the only error is the one callers know."""
        with self.assertRaises(BadPeerMessage):
            signer(THERE).verify_request([garbage], PATH)


class AnswerTests(SynchronousTestCase):
    """Headers of answers."""

    def setUp(self) -> None:
        """Let one node ask another."""
        self.asker, self.answerer = signer(), signer(THERE, boot_id=9)
        self.request, header = self.asker.sign_request(THERE, b"q", nonce=NONCE)
        self.seen = self.answerer.verify_request([header], PATH)

    def test_answer_verifies_and_names_its_process(self) -> None:
        """The asker learns which process answered."""
        header = self.answerer.sign_answer(self.seen, b"answer")
        answer = self.asker.verify_answer([header], self.request)
        self.assertEqual((answer.sender, answer.boot_id), (THERE, 9))
        answer.check_body(hashlib.sha256(b"answer").digest(), 6)

    def test_answer_to_another_request_is_refused(self) -> None:
        """An old answer cannot be given again."""
        header = self.answerer.sign_answer(self.seen, b"answer")
        other, _ = self.asker.sign_request(THERE, b"q", nonce=b"m" * NONCE_BYTES)
        with self.assertRaises(BadPeerMessage):
            self.asker.verify_answer([header], other)

    def test_answer_to_another_asker_is_refused(self) -> None:
        """An answer is good for the node that asked only."""
        header = self.answerer.sign_answer(self.seen, b"answer")
        other, _ = signer(ELSEWHERE).sign_request(THERE, b"q", nonce=NONCE)
        with self.assertRaises(BadPeerMessage):
            signer(ELSEWHERE).verify_answer([header], other)

    def test_answer_of_another_node_is_refused_by_name(self) -> None:
        """Who asks an address learns that the node there goes by another name."""
        header = signer(ELSEWHERE).sign_answer(self.seen, b"answer")
        with self.assertRaisesRegex(BadPeerMessage, "host:81"):
            self.asker.verify_answer([header], self.request)

    def test_request_is_no_answer_and_answer_no_request(self) -> None:
        """What a node signed in one role cannot be played back in the other."""
        _, request = self.answerer.sign_request(HERE, b"", nonce=NONCE)
        with self.assertRaises(BadPeerMessage):
            self.asker.verify_answer([request], self.request)
        answer = self.answerer.sign_answer(self.seen, b"")
        with self.assertRaises(BadPeerMessage):
            self.asker.verify_request([answer], PATH)
