"""
The cluster's shared secrets and what is derived from them (rule R18).

Invariant: keys for different uses are independent of each other, so that what one of
them has signed can never be passed off as signed by another; and none of them leads
back to its secret.  Derivation is HKDF (RFC 5869) with SHA-256 and one block of output.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from .errors import BadConfiguration

DEFAULT_SECRET = b"twisted-kvs default secret: stops accidents, not attackers"
"""The well-known secret of a cluster that was given none."""
DEFAULT_LINE = "default"
"""Stands for the well-known secret in a file of secrets."""
FINGERPRINT_BYTES = 16

_SALT = b"twisted-kvs v1"


class Secrets:
    """
    Keys and fingerprints of one or more secrets; the first signs, all verify.

    Several secrets serve to change them without a stop: every node learns to verify the
    new one before any node signs with it.
    """

    def __init__(self, secrets: Sequence[bytes]) -> None:
        """
        Derive everything once.

        :param secrets: the signing one first; repeated ones count once.
        :raises BadConfiguration: if there are none, or one is empty.
        """
        if not secrets or not all(secrets):
            raise BadConfiguration("got an empty secret or none, want one at least")
        known = tuple(dict.fromkeys(secrets))
        self.token_keys = tuple(_derive(secret, b"token") for secret in known)
        """Sign causal payloads."""
        self.peer_keys = tuple(_derive(secret, b"peer") for secret in known)
        """Sign what nodes send each other."""
        self.fingerprints = tuple(
            _derive(secret, b"fingerprint")[:FINGERPRINT_BYTES].hex()
            for secret in known
        )
        """Name the secrets where these must not stand: on disk and in logs."""
        self.is_default = hmac.compare_digest(known[0], DEFAULT_SECRET)
        """Whether everybody knows what this node signs with."""


def parse_secret_file(text: str) -> tuple[bytes, ...]:
    """
    Read secrets, one a line; blank lines and blanks around a secret do not count.

    :returns: in the order of the file; the line ``default`` gives the well-known one.
    :raises BadConfiguration: if there is none, or one cannot be written as UTF-8; the
        message shows nothing of the file.
    """
    lines = [line.strip() for line in text.removeprefix("\ufeff").split("\n")]
    try:
        secrets = tuple(
            DEFAULT_SECRET if line == DEFAULT_LINE else line.encode()
            for line in lines
            if line
        )
    except UnicodeEncodeError:
        raise BadConfiguration(
            "got a file of secrets that is not UTF-8, want one secret a line"
        ) from None
    if not secrets:
        raise BadConfiguration("got an empty file of secrets, want one secret a line")
    return secrets


def _derive(secret: bytes, use: bytes) -> bytes:
    # The secret is the message, not the key, of the first step: HMAC pads and hashes
    # its keys, so that two secrets could give one key.
    extracted = hmac.digest(_SALT, secret, hashlib.sha256)
    return hmac.digest(extracted, use + b"\x01", hashlib.sha256)
