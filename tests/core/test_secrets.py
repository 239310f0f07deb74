"""Secrets and what is derived from them."""

from __future__ import annotations

import hashlib
import hmac

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twisted_kvs.core.errors import BadConfiguration
from twisted_kvs.core.secrets import DEFAULT_SECRET, Secrets, parse_secret_file


def derived(secrets: Secrets) -> list[bytes]:
    """List all that was derived."""
    fingerprints = [bytes.fromhex(x) for x in secrets.fingerprints]
    return [*secrets.token_keys, *secrets.peer_keys, *fingerprints]


class SecretsTests(SynchronousTestCase):
    """``Secrets``."""

    def test_every_use_has_its_own_key(self) -> None:
        """What signs payloads signs nothing between nodes, and names no secret."""
        every = derived(Secrets([b"one", b"two"]))
        self.assertEqual(len(every), 6)
        starts = {x[:16] for x in every}
        self.assertEqual(len(starts), 6)

    def test_secrets_that_hmac_would_confuse_have_different_keys(self) -> None:
        """A secret with a zero byte more, or one that is a hash, is another secret."""
        long = b"x" * 100
        for one, other in [
            (b"a", b"a\0"),
            (long, hashlib.sha256(long).digest()),
        ]:
            # The trap: they are the same key to HMAC.
            self.assertEqual(
                hmac.digest(one, b"", "sha256"), hmac.digest(other, b"", "sha256")
            )
            self.assertEqual(
                set(derived(Secrets([one]))) & set(derived(Secrets([other]))), set()
            )

    def test_fingerprints_show_neither_secrets_nor_keys(self) -> None:
        """What stands on disk is 16 bytes in hex, and leads back to nothing."""
        secret = b"correct horse"
        secrets = Secrets([secret])
        (fingerprint,) = secrets.fingerprints
        self.assertEqual(len(bytes.fromhex(fingerprint)), 16)
        self.assertNotIn(secret.hex(), fingerprint)
        for key in (*secrets.token_keys, *secrets.peer_keys):
            self.assertNotIn(fingerprint, key.hex())
        for plain in (hashlib.sha256(secret), hashlib.md5(secret)):
            self.assertNotIn(fingerprint, plain.hexdigest())

    def test_nothing_of_a_secret_is_shown_by_its_text(self) -> None:
        """A secret does not get into a log by accident."""
        self.assertNotIn("horse", repr(Secrets([b"correct horse"])))

    def test_derivation_is_that_of_every_release(self) -> None:
        """A new release reads payloads and data directories of an older one."""
        secrets = Secrets([b"secret"])
        self.assertEqual(secrets.fingerprints, ("e2a6989b6894d09b3daea2a2cbb07c60",))
        self.assertEqual(secrets.token_keys[0].hex()[:16], "a69524ed1b9ec479")
        self.assertEqual(secrets.peer_keys[0].hex()[:16], "12e00909c3db240f")

    @given(st.lists(st.binary(min_size=1, max_size=4), min_size=1, max_size=4))
    def test_each_secret_counts_once_and_in_order(self, given_: list[bytes]) -> None:
        """The first signs; a secret given twice is as good as given once."""
        secrets = Secrets(given_)
        singles = [Secrets([x]) for x in dict.fromkeys(given_)]
        self.assertEqual(secrets.token_keys, tuple(x.token_keys[0] for x in singles))
        self.assertEqual(secrets.peer_keys, tuple(x.peer_keys[0] for x in singles))
        self.assertEqual(
            secrets.fingerprints, tuple(x.fingerprints[0] for x in singles)
        )

    def test_signing_with_the_well_known_secret_is_known(self) -> None:
        """The log can say that the cluster's secret is none."""
        self.assertTrue(Secrets([DEFAULT_SECRET]).is_default)
        self.assertTrue(Secrets([DEFAULT_SECRET, b"x"]).is_default)
        self.assertFalse(Secrets([b"x", DEFAULT_SECRET]).is_default)
        self.assertFalse(Secrets([b"x"]).is_default)

    def test_no_secret_and_the_empty_one_are_refused(self) -> None:
        """An empty variable does not make a cluster with an empty secret."""
        for secrets in ([], [b""], [b"x", b""]):
            self.assertRaises(BadConfiguration, Secrets, secrets)


class ParseSecretFileTests(SynchronousTestCase):
    """``parse_secret_file``."""

    def test_secrets_stand_one_a_line(self) -> None:
        """Blank lines, ends of lines and blanks around a secret do not count."""
        self.assertEqual(
            parse_secret_file("\ufeff first one \r\n\n \t\nzweites-ä\n"),
            (b"first one", "zweites-ä".encode()),
        )
        self.assertEqual(parse_secret_file("only"), (b"only",))

    def test_default_stands_for_the_well_known_secret(self) -> None:
        """A cluster that had no secret can be given one without a stop."""
        self.assertEqual(parse_secret_file("new\ndefault\n"), (b"new", DEFAULT_SECRET))
        self.assertEqual(parse_secret_file("defaults"), (b"defaults",))

    def test_only_a_newline_ends_a_line(self) -> None:
        """A secret may hold any other character."""
        secret = "a\x0bb\u2028c"
        self.assertEqual(parse_secret_file(f"{secret}\n"), (secret.encode(),))

    def test_an_empty_file_is_refused(self) -> None:
        """A file that was not written yet does not open the cluster to everybody."""
        for text in ["", "\n", " \r\n\t\n", "\ufeff"]:
            self.assertRaises(BadConfiguration, parse_secret_file, text)

    def test_what_cannot_be_written_is_refused_without_showing_it(self) -> None:
        """A file in another encoding is one line of error, and stays secret."""
        error = self.assertRaises(
            BadConfiguration, parse_secret_file, "hunter2\udcff\n"
        )
        self.assertNotIn("hunter", str(error))
