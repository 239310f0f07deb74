"""
Refusing a request without having taken it apart: for a node that has no time.

To parse, route and answer takes four times as long as to refuse what is seen to be a
whole request of a client about a key.  Everything else goes the ordinary way, and is
refused or answered there.
"""

from __future__ import annotations

import re

from twisted_kvs.core.errors import Overloaded

from .admission import TOO_LATE
from .errors import error_body, error_headers

_FIRST_LINE = re.compile(rb"(GET|PUT|DELETE) (/kv-store/[^ \r\n]*) HTTP/1\.1\r\n")
_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*(?=\r)")
_UNUSUAL = re.compile(
    rb"(?i)\r\n(?:transfer-encoding|expect|connection:(?![ \t]*keep-alive[ \t]*\r))"
)


def whole_request(piece: bytes) -> tuple[bytes, bytes] | None:
    """
    Tell method and path, if this is one whole request about a key and nothing else.

    :param piece: what came on a connection that had nothing under way.
    """
    first = _FIRST_LINE.match(piece)
    end = piece.find(b"\r\n\r\n")
    if first is None or end < 0:
        return None
    head = piece[: end + 3]
    lengths = _LENGTH.findall(head)
    length = int(lengths[0]) if lengths else 0
    if len(lengths) > 1 or len(piece) != end + 4 + length or _UNUSUAL.search(head):
        return None
    return first[1], first[2]


def refusal() -> bytes:
    """Write the whole answer; the connection stays."""
    error = Overloaded(TOO_LATE)
    body = error_body(str(error))
    headers = "".join(f"{name}: {value}\r\n" for name, value in error_headers(error))
    head = f"HTTP/1.1 {error.status} Service Unavailable\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


REFUSAL = refusal()
