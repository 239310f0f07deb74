"""Causal payloads and their tokens (rule R18)."""

from __future__ import annotations

import hmac
import string
from base64 import urlsafe_b64decode, urlsafe_b64encode

from hypothesis import assume, example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import strategies as kvs
from tests.laws import CodecLaws, StrictOrderLaws
from twisted_kvs.core.causality import COUNTER_MAX, Actor, VersionVector, make_actor
from twisted_kvs.core.errors import BadPayload, TooLarge
from twisted_kvs.core.payload import (
    EMPTY_PAYLOAD,
    Payload,
    PayloadCodec,
    before,
)
from twisted_kvs.core.secrets import Secrets

SECRETS = Secrets([b"secret"])
ALPHABET = string.ascii_letters + string.digits + "._-"
A, B = kvs.ACTORS[:2]
GOOD = Payload({A: 7, B: 300, kvs.ACTORS[2]: 1}, 3)
JUNK = st.text() | st.text("v1.-_AZaz09=", max_size=60).map(lambda x: "v1." + x)


def codec(*secrets: bytes) -> PayloadCodec:
    """Make a codec that remembers nothing yet."""
    return PayloadCodec(Secrets(secrets or [b"secret"]))


def mac(key: bytes, body: str) -> str:
    """Sign as the contract of the token says."""
    digest = hmac.digest(key, body.encode(), "sha256")[:12]
    return urlsafe_b64encode(digest).decode()


def signed(packed: bytes, *, padding: str = "") -> str:
    """Forge a token as only somebody can who has the secret."""
    body = "v1." + urlsafe_b64encode(packed).rstrip(b"=").decode() + padding
    return f"{body}.{mac(SECRETS.token_keys[0], body)}"


def pair(incarnation: int, counter: bytes) -> bytes:
    """Pack an incarnation and its counter."""
    return incarnation.to_bytes(8, "big") + counter


def remembered(vector: VersionVector) -> int:
    """Count how many of 100 payloads a codec for 8 remembers."""
    here = PayloadCodec(SECRETS, cache_size=8)
    payloads = [Payload(vector, number) for number in range(1, 101)]
    tokens = [(here.encode(payload), payload) for payload in payloads]
    return sum(here.decode(token) is payload for token, payload in reversed(tokens))


class PayloadOrderTests(StrictOrderLaws[Payload], SynchronousTestCase):
    """``before``."""

    values = st.builds(Payload, kvs.vectors(), kvs.LAMPORTS)

    def before(self, left: Payload, right: Payload) -> bool:
        """Compare."""
        return before(left, right)

    def test_a_later_answer_is_later_without_a_new_dot(self) -> None:
        """A read gives back strictly more than what came with it."""
        self.assertTrue(before(Payload({A: 1}, 1), Payload({A: 1}, 2)))
        self.assertFalse(before(Payload({A: 1}, 2), Payload({A: 1}, 1)))
        self.assertFalse(before(Payload({A: 1}, 1), Payload({A: 1}, 1)))

    def test_a_greater_vector_is_later_whatever_the_scalar(self) -> None:
        """A write that comes after another is later, on whichever node it was made."""
        self.assertTrue(before(Payload({A: 1}, 9), Payload({A: 1, B: 1}, 2)))
        self.assertFalse(before(Payload({A: 1, B: 1}, 2), Payload({A: 1}, 9)))

    def test_concurrent_payloads_are_not_ordered_by_the_scalar(self) -> None:
        """Two clients that know nothing of each other stay concurrent."""
        self.assertFalse(before(Payload({A: 1}, 1), Payload({B: 1}, 2)))
        self.assertFalse(before(Payload({B: 1}, 2), Payload({A: 1}, 1)))

    @given(st.builds(Payload, kvs.vectors(), kvs.LAMPORTS))
    def test_nothing_is_before_having_read_nothing(self, payload: Payload) -> None:
        """Having read nothing comes before all else."""
        self.assertEqual(before(EMPTY_PAYLOAD, payload), payload != EMPTY_PAYLOAD)
        self.assertFalse(before(payload, EMPTY_PAYLOAD))


class TokenLawTests(CodecLaws[Payload, str], SynchronousTestCase):
    """Tokens from one node to another: nothing is remembered in between."""

    values = kvs.payloads()
    garbage = JUNK

    def encode(self, value: Payload) -> str:
        """Write a token."""
        return codec().encode(value)

    def decode(self, encoded: str) -> Payload:
        """Read it on another node."""
        return codec().decode(encoded)


class TokenTests(SynchronousTestCase):
    """``PayloadCodec``."""

    @given(kvs.payloads())
    def test_tokens_survive_forms_headers_and_urls(self, payload: Payload) -> None:
        """A client can put a token anywhere without quoting it."""
        self.assertLessEqual(set(codec().encode(payload)), set(ALPHABET))

    def test_having_read_nothing_is_the_empty_token(self) -> None:
        """No payload and an empty one mean the same."""
        self.assertEqual(codec().encode(EMPTY_PAYLOAD), "")
        self.assertEqual(codec().decode(""), EMPTY_PAYLOAD)
        self.assertEqual(codec().decode("", bytes_max=0), EMPTY_PAYLOAD)

    @given(kvs.payloads(), kvs.payloads())
    def test_equal_payloads_have_equal_tokens(self, a: Payload, b: Payload) -> None:
        """A payload has one form, whoever issues it."""
        again = Payload(dict([*a.vector.items()][::-1]), a.lamport)
        self.assertEqual(codec().encode(again), codec().encode(a))
        self.assertEqual(codec().encode(a) == codec().encode(b), a == b)

    def test_the_extreme_numbers_pass(self) -> None:
        """Counters and L go up to 2^63 - 1."""
        for number in (1, 127, 128, 2**14, COUNTER_MAX - 1, COUNTER_MAX):
            payload = Payload({A: number}, number)
            self.assertEqual(codec().decode(codec().encode(payload)), payload)

    def test_numbers_take_no_more_bytes_than_they_need(self) -> None:
        """A token is as short as its numbers allow."""
        for lamport, packed in {
            1: b"\x01",
            127: b"\x7f",
            128: b"\x80\x01",
            2**14: b"\x80\x80\x01",
            COUNTER_MAX: b"\xff" * 8 + b"\x7f",
        }.items():
            self.assertEqual(codec().encode(Payload({}, lamport)), signed(packed))

    def test_what_no_token_can_say_is_not_written(self) -> None:
        """A node issues no token that it would refuse."""
        for payload in (
            Payload({A: COUNTER_MAX + 1}, 0),
            Payload({A: 1}, COUNTER_MAX + 1),
            Payload({A: -1}, 0),
            Payload({A: 0}, 0),
            Payload({A: 1}, -1),
            Payload({Actor("nonsense"): 1}, 0),
            Payload({Actor("a:1#0000000000000001 "): 1}, 0),
        ):
            self.assertRaises(ValueError, codec().encode, payload)

    def test_the_form_is_that_of_every_release(self) -> None:
        """Clients keep their tokens over an upgrade."""
        token = (
            "v1.Aw4xMC4wLjAuMTA6ODA4MAEAAAAAAAAAAQENMTAuMC4wLjk6ODA4MAIAA"
            "AAAAAAAAQf__________6wC.IraAgX9WH1Qgk4DK"
        )
        self.assertEqual(codec().encode(GOOD), token)
        self.assertEqual(codec().decode(token), GOOD)

    def test_tokens_are_short(self) -> None:
        """The payload of a cluster of 16 nodes, all restarted thrice, fits a header."""
        payload = Payload(
            {
                make_actor(name, 2**63 + n): 10**6
                for n in range(4)
                for name in kvs.NAMES[:4]
            },
            10**6,
        )
        self.assertLess(len(codec().encode(payload)), 400)

    def test_h6_what_this_cluster_did_not_issue_is_refused(self) -> None:
        """A made-up counter never gets in, so it swallows nobody's writes."""
        token = codec().encode(GOOD)
        head, body, mac = token.split(".")
        packed = urlsafe_b64decode(body + "=" * (-len(body) % 4))
        poisoned = urlsafe_b64encode(packed[:-1] + b"\x7f").rstrip(b"=").decode()
        for forged in (
            "1.0.0.4",
            "{}",
            "null",
            ".",
            "v1",
            "v1.",
            "v1..",
            "v1." + "A" * 16,
            f"{head}.{body}",
            f"{head}.{body}.",
            f"{head}..{mac}",
            f"{head}.{poisoned}.{mac}",
            f"v2.{body}.{mac}",
            f"V1.{body}.{mac}",
            f"{body}.{mac}",
            f"{head}.{body}.{mac}=",
            f"{head}.{body}=.{mac}",
            f" {token}",
            f"{token}\n",
            f"{token} ",
            token + token,
            token.lower(),
            token.replace("v1.", "v1%2E"),
            token[:-1] + "ä",
            token[:-1] + "\udc80",
            codec(b"another cluster").encode(GOOD),
        ):
            error = self.assertRaises(BadPayload, codec().decode, forged)
            self.assertNotIn(body, str(error))

    @given(st.integers(0, 200), st.characters())
    def test_a_token_with_one_character_changed_is_refused(
        self, at: int, character: str
    ) -> None:
        """Every character of a token counts."""
        good = codec().encode(GOOD)
        at %= len(good)
        mutant = good[:at] + character + good[at + 1 :]
        assume(mutant != good)
        self.assertRaises(BadPayload, codec().decode, mutant)

    @given(st.integers(0, 200), st.integers(0, 200), st.text(ALPHABET))
    def test_a_token_cut_or_grown_anywhere_is_refused(
        self, start: int, end: int, between: str
    ) -> None:
        """Nothing can be left out of a token or put into it."""
        good = codec().encode(GOOD)
        mutant = good[: start % len(good)] + between + good[end % len(good) :]
        assume(mutant not in (good, ""))
        self.assertRaises(BadPayload, codec().decode, mutant)

    @given(kvs.payloads(), st.text(min_size=1))
    def test_a_token_of_another_cluster_is_refused(
        self, payload: Payload, secret: str
    ) -> None:
        """Clusters with different secrets do not take each other's payloads."""
        assume(secret != "secret" and payload != EMPTY_PAYLOAD)
        other = PayloadCodec(Secrets([secret.encode("utf-8", "surrogatepass")]))
        self.assertRaises(BadPayload, codec().decode, other.encode(payload))

    def test_a_signature_of_another_use_is_refused(self) -> None:
        """What a node signed for its peers cannot be passed off as a payload."""
        body = codec().encode(GOOD).rpartition(".")[0]
        forged = f"{body}.{mac(SECRETS.peer_keys[0], body)}"
        self.assertRaises(BadPayload, codec().decode, forged)

    def test_refusing_is_not_remembered_as_accepting(self) -> None:
        """A forged token is refused as often as it is tried."""
        here, forged = codec(), codec(b"other").encode(GOOD)
        for _ in range(3):
            self.assertRaises(BadPayload, here.decode, forged)

    def test_only_the_form_that_is_issued_is_read_even_if_it_is_signed(self) -> None:
        """A signature alone makes no payload out of something else."""
        name = b"\x03a:1"
        one = b"\x05" + name + b"\x01" + pair(1, b"\x07")
        actor = Actor("a:1#0000000000000001")
        self.assertEqual(codec().decode(signed(one)), Payload({actor: 7}, 5))
        for packed in (
            b"",
            b"\x00",  # the empty payload, which is the empty token
            b"\x80\x00",  # a number with a byte too many
            b"\x80",  # a number without an end
            b"\xff" * 9 + b"\x01",  # L above the limit
            b"\x05" + name,
            one[:-1],
            one[:-4],
            one + b"\x03",
            b"\x05" + name + b"\x00",  # a name without incarnations
            b"\x05" + name + b"\x01" + pair(1, b"\x00"),  # a counter of 0
            b"\x05" + name + b"\x01" + pair(1, b"\x87\x00"),
            b"\x05" + name + b"\x01" + pair(1, b"\xff" * 9 + b"\x01"),
            b"\x05" + name + b"\x02" + pair(2, b"\x07") + pair(1, b"\x07"),
            b"\x05" + name + b"\x02" + pair(1, b"\x07") + pair(1, b"\x07"),
            b"\x05" + (name + b"\x01" + pair(1, b"\x07")) * 2,
            b"\x05\x03b:1\x01" + pair(1, b"\x07") + name + b"\x01" + pair(1, b"\x07"),
            b"\x05\x03A:1\x01" + pair(1, b"\x07"),  # no canonical name
            b"\x05\x00\x01" + pair(1, b"\x07"),
            b"\x05\x03a:\xff\x01" + pair(1, b"\x07"),
            b"\x05\xff\xff\xff\xff\x0fa:1\x01" + pair(1, b"\x07"),
        ):
            self.assertRaises(BadPayload, codec().decode, signed(packed))
        for token in (
            signed(one, padding="="),
            signed(one, padding="\n"),
            signed(one, padding="A"),
            signed(one, padding="!"),
        ):
            self.assertRaises(BadPayload, codec().decode, token)

    def test_slack_bits_of_base64_make_no_second_token(self) -> None:
        """One payload has one token, down to the last bit."""
        one = b"\x85\x01\x03a:1\x01" + pair(1, b"\x07")
        body = "v1." + urlsafe_b64encode(one).rstrip(b"=").decode()
        self.assertNotEqual(len(one) % 3, 0)
        changed = body[:-1] + chr(ord(body[-1]) + 1)
        padded = changed[3:] + "=" * (-len(changed[3:]) % 4)
        self.assertEqual(urlsafe_b64decode(padded), one)
        token = f"{changed}.{mac(SECRETS.token_keys[0], changed)}"
        self.assertRaises(BadPayload, codec().decode, token)

    @given(st.binary(max_size=60))
    @example(b"\xff" * 60)
    def test_signed_garbage_is_a_payload_or_refused(self, packed: bytes) -> None:
        """Whatever is signed, no token can crash a node."""
        token = signed(packed)
        try:
            payload = codec().decode(token)
        except BadPayload:
            return
        self.assertEqual(codec().encode(payload), token)


class RotationTests(SynchronousTestCase):
    """Secrets that change while clients hold tokens."""

    def test_all_secrets_verify_and_the_first_signs(self) -> None:
        """Clients' payloads stay good while the secret is changed."""
        old, new = codec(b"old"), codec(b"new")
        both = codec(b"new", b"old")
        self.assertEqual(both.decode(old.encode(GOOD)), GOOD)
        self.assertEqual(both.decode(new.encode(GOOD)), GOOD)
        self.assertEqual(both.encode(GOOD), new.encode(GOOD))
        self.assertRaises(BadPayload, new.decode, old.encode(GOOD))


class LimitTests(SynchronousTestCase):
    """What a client may send, and what is remembered."""

    def test_a_token_over_the_limit_is_too_large(self) -> None:
        """The limit is that of the place where the token stands."""
        here = codec()
        token = here.encode(GOOD)
        self.assertEqual(here.decode(token, bytes_max=len(token)), GOOD)
        error = self.assertRaises(
            TooLarge, here.decode, token, bytes_max=len(token) - 1
        )
        self.assertIn(str(len(token)), str(error))
        self.assertRaises(TooLarge, here.decode, "x" * 65537)
        self.assertRaises(BadPayload, here.decode, "x" * 65536)

    def test_a_payload_is_remembered_as_long_as_it_is_used(self) -> None:
        """A token that keeps coming back is not read anew."""
        here, elsewhere = PayloadCodec(SECRETS, cache_size=4), codec()
        token = elsewhere.encode(GOOD)
        first = here.decode(token)
        for number in range(1, 20):
            self.assertIs(here.decode(token), first)
            here.decode(elsewhere.encode(Payload({A: number}, number)))

    def test_an_issued_token_is_remembered(self) -> None:
        """The payload that a client sends back at once is not even verified anew."""
        here = codec()
        self.assertIs(here.decode(here.encode(GOOD)), GOOD)

    def test_memory_is_bounded_in_number(self) -> None:
        """However many tokens come, few are remembered."""
        self.assertIn(remembered({A: 1}), range(4, 9))

    def test_memory_is_bounded_in_bytes(self) -> None:
        """Long tokens are remembered in smaller numbers."""
        many = {make_actor(kvs.NAMES[0], number): 1 for number in range(300)}
        self.assertGreater(len(codec().encode(Payload(many, 1))), 2048)
        self.assertIn(remembered(many), range(1, 4))

    def test_a_memory_of_nothing_is_no_memory(self) -> None:
        """The size of the memory is a mistake where it cannot hold two tokens."""
        self.assertRaises(AssertionError, PayloadCodec, SECRETS, 1)
