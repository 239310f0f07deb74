"""
What clients send, from bytes to checked values: pure functions, for any lane in.

Invariant: nothing is guessed.  What can be read in two ways (a broken escape, bytes
that are no UTF-8, a field given twice with different values) is refused, and a value
leaves here as the JSON text in which every client will get it back.

Decisions where the contract is silent: an empty body has no fields, whatever its type;
``val`` counts in a body only, never in a query, since URLs end up in logs; a body or a
query has at most ``FIELDS_MAX`` fields; an object names each of its members once.
"""

from __future__ import annotations

import re
from binascii import a2b_qp
from collections.abc import Iterable, Mapping
from itertools import accumulate, count
from operator import sub
from typing import TypeAlias

import msgspec

from twisted_kvs.core.errors import (
    BadRequest,
    MethodNotAllowed,
    NotFound,
    TooLarge,
    UnsupportedBody,
)
from twisted_kvs.core.versions import KEY_CODE_POINTS_MAX, VALUE_BYTES_MAX

FIELDS_MAX = 100
"""Of a form, a query or the object of a body."""
JSON_DEPTH_MAX = 100
"""Arrays and objects within each other, the body's own object not counted."""

RESERVED = {
    "get_node_details": "GET",
    "get_all_replicas": "GET",
    "update_view": "PUT",
    "update-view": "PUT",
}
"""Names that are no keys, and the one method of each."""
KEY_METHODS = ("GET", "PUT", "DELETE")
_METHODS_OF_KEYS = frozenset(method.encode() for method in KEY_METHODS)

Fields: TypeAlias = Mapping[str, str | msgspec.Raw]
"""What a body holds by name: text of a form, or JSON text as it was received."""

_ROOT = b"/kv-store/"
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
# All of Unicode's category Cc.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_UTF_8 = frozenset({b"utf-8", b"utf8"})

_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TEXT = msgspec.json.Decoder(str)
_TEXT_OR_NULL = msgspec.json.Decoder(str | None)
_MEMBER = re.compile(rb'\s*[{,]\s*("(?:[^"\\]|\\.)*+")\s*:\s*')
_OBJECT_END = re.compile(rb"\s*(?:\{\s*)?\}\s*\Z")
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'"[]{}'))
# Bytes are never negative, so a step is one more than what it does to the depth.
_STEPS = bytes.maketrans(b"[{]}", b"\2\2\0\0")
_STEPS_AT_ONCE = 2**16


class WrongMethod(MethodNotAllowed):
    """Carries the methods that the path has."""

    def __init__(self, allow: str) -> None:
        """
        Say what is allowed instead.

        :param allow: for the ``Allow`` header.
        """
        super().__init__(f"this path allows {allow} only")
        self.allow = allow


def parse_path(path: bytes) -> str:
    """
    Find the key in the raw path of a request, or the reserved name.

    Percent-decoded once; slashes, dots and empty segments are characters like others.

    :param path: as received, without the query.
    :raises NotFound: if it is not below ``/kv-store/``.
    :raises BadRequest: if the key is empty, no UTF-8, wrongly escaped or has control
        characters.
    :raises TooLarge: if it has too many code points.
    """
    if not path.startswith(_ROOT):
        raise NotFound("there is nothing at this path; keys are below /kv-store/")
    try:
        key = percent_decoded(path[len(_ROOT) :]).decode()
    except UnicodeDecodeError:
        raise BadRequest("the key is not UTF-8") from None
    if not key:
        raise BadRequest("the key is empty")
    if _CONTROL.search(key):
        raise BadRequest("the key has control characters")
    if len(key) > KEY_CODE_POINTS_MAX:
        raise TooLarge(
            f"the key has {len(key)} characters, "
            f"at most {KEY_CODE_POINTS_MAX} are taken"
        )
    return key


def check_method(method: bytes, key: str) -> None:
    """
    Refuse methods that a key or a reserved name does not have.

    :param method: as received.
    :raises BadRequest: if a reserved name is used like a key.
    :raises WrongMethod: for any other method.
    """
    own = RESERVED.get(key)
    allowed = KEY_METHODS if own is None else (own,)
    if method not in _METHODS_OF_KEYS:
        raise WrongMethod(", ".join(allowed))
    if method.decode() not in allowed:
        raise BadRequest(f"{key} is reserved and can only be asked with {own}")


def percent_decoded(text: bytes) -> bytes:
    """
    Undo percent-encoding, once.

    :raises BadRequest: if a ``%`` is not followed by two hexadecimal digits.
    """
    if b"%" not in text:
        return text
    if _BAD_ESCAPE.search(text):
        raise BadRequest("a % is not followed by two hexadecimal digits")
    # Quoted-printable differs in its escape character only, and is decoded in C: a MiB
    # in milliseconds, where urllib blocks the process for a third of a second.
    return a2b_qp(text.replace(b"=", b"%3D").replace(b"%", b"="))


def parse_form(text: bytes) -> dict[str, str]:
    """
    Read ``application/x-www-form-urlencoded`` text, of a body or a query.

    :returns: the fields by name; a field without ``=`` is empty.
    :raises BadRequest: if it is wrongly escaped, no UTF-8, has too many fields, or one
        twice with different values.
    """
    if text.count(b"&") >= FIELDS_MAX:
        raise BadRequest(f"there are more than {FIELDS_MAX} fields")
    fields: dict[str, str] = {}
    for pair in text.split(b"&"):
        name, _, value = pair.replace(b"+", b" ").partition(b"=")
        try:
            decoded = percent_decoded(value).decode()
            known = fields.setdefault(percent_decoded(name).decode(), decoded)
        except UnicodeDecodeError:
            raise BadRequest("a field is not UTF-8") from None
        if known != decoded:
            raise BadRequest("a field is given twice with different values")
    return fields


def parse_json(text: bytes) -> dict[str, msgspec.Raw]:
    """
    Read the members of a JSON object, each as the JSON text that was received.

    :returns: members by name; their text is valid JSON in UTF-8, without lone
        surrogates, and not nested deeper than ``JSON_DEPTH_MAX``.
    :raises BadRequest: if it is anything else, or names a member twice.
    """
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError:
            raise BadRequest("the body is not UTF-8") from None
    # Ahead of the decoder, which would recurse.
    if _nested_deeper(text, JSON_DEPTH_MAX + 1):
        raise BadRequest(f"the JSON is nested deeper than {JSON_DEPTH_MAX}")
    try:
        members = _MEMBERS.decode(text)
    except msgspec.DecodeError as error:
        raise BadRequest(f"the body is no JSON object: {error}") from None
    if len(members) > FIELDS_MAX:
        raise BadRequest(f"there are more than {FIELDS_MAX} fields")
    if not _all_different(text, members):
        raise BadRequest("the JSON object names a member twice")
    return members


def parse_body(
    text: bytes, *, content_type: bytes | None, content_encoding: bytes | None
) -> Fields:
    """
    Read the fields of a request's body.

    :param content_type: the header, None where there is none: a form.
    :param content_encoding: the header; only ``identity`` is understood.
    :raises UnsupportedBody: for another type, another charset or compressed bodies.
    :raises BadRequest: if the body is not what its type says.
    """
    if not text:
        return {}
    if content_encoding and content_encoding.strip().lower() != b"identity":
        raise UnsupportedBody("the body is compressed, want it as it is")
    if not content_type or content_type == b"application/x-www-form-urlencoded":
        return parse_form(text)
    kind, _, parameters = content_type.partition(b";")
    for parameter in parameters.split(b";"):
        name, _, charset = parameter.partition(b"=")
        charset = charset.strip().strip(b'"').lower()
        if name.strip().lower() == b"charset" and charset not in _UTF_8:
            raise UnsupportedBody("the body is in another charset, want UTF-8")
    kind = kind.strip().lower()
    if kind == b"application/x-www-form-urlencoded":
        return parse_form(text)
    if kind == b"application/json":
        return parse_json(text)
    raise UnsupportedBody(
        "want a body of application/x-www-form-urlencoded or application/json"
    )


def text_field(fields: Fields, name: str) -> str:
    """
    Give a field that must be text; empty if it is missing or null.

    :raises BadRequest: if it is another kind of JSON.
    """
    field = fields.get(name, "")
    if isinstance(field, str):
        return field
    try:
        return _TEXT_OR_NULL.decode(field) or ""
    except msgspec.ValidationError:
        raise BadRequest(f"{name} must be a string") from None


def value_field(fields: Fields, *, bytes_max: int) -> bytes:
    """
    Give ``val`` as JSON text in UTF-8.

    :param bytes_max: of a string without its quotes and escapes, of the JSON text of
        anything else.
    :raises BadRequest: if there is no ``val``.
    :raises TooLarge: if it is over the limit, or over the protocol's own.
    """
    field = fields.get("val")
    if field is None:
        raise BadRequest("val is missing")
    text = msgspec.json.encode(field) if isinstance(field, str) else bytes(field)
    length = len(text)
    if text.startswith(b'"'):
        # No escape is shorter than what it stands for, so most need no second look.
        length -= 2
        if length > bytes_max:
            length = len(_TEXT.decode(text).encode())
    if length > bytes_max:
        raise TooLarge(f"val has {length} bytes, at most {bytes_max} are taken")
    if len(text) > VALUE_BYTES_MAX:
        raise TooLarge(
            f"val has {len(text)} bytes as JSON, at most {VALUE_BYTES_MAX} are taken"
        )
    return text


def only_token(in_body: str, elsewhere: Iterable[str], *, bytes_max: int) -> str:
    """
    Find the one causal payload of a request.

    :param elsewhere: those of header and query.
    :param bytes_max: of those.
    :returns: empty if there is none.
    :raises TooLarge: if one from elsewhere is over its limit.
    :raises BadRequest: if two of them, not empty, differ.
    """
    token = in_body
    for other in elsewhere:
        if len(other) > bytes_max:
            raise TooLarge(
                f"causal_payload has {len(other)} characters, "
                f"at most {bytes_max} are taken in a header or a query"
            )
        if other and token and other != token:
            raise BadRequest("causal_payload is given twice with different values")
        token = other or token
    return token


def _nested_deeper(text: bytes, depth_max: int) -> bool:
    # Right for all valid JSON, and for what is not up to its first fault.
    if text.count(b"[") + text.count(b"{") <= depth_max:
        return False
    bare = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Two quotes in a row change nothing for what comes after them.
    bare = bare.translate(None, _NOT_STRUCTURE).replace(b'""', b"")
    steps = b"".join(bare.split(b'"')[::2]).translate(_STEPS)
    depth = 0
    # In parts, so that what is far too deep is found early, and as calls of C: some
    # hundred thousand brackets are counted while nobody else is served.
    for at in range(0, len(steps), _STEPS_AT_ONCE):
        sums = accumulate(steps[at : at + _STEPS_AT_ONCE], initial=depth)
        depths = list(map(sub, sums, count()))
        if max(depths) > depth_max:
            return True
        depth = depths[-1]
    return False


def _all_different(text: bytes, members: Mapping[str, msgspec.Raw]) -> bool:
    # The decoder keeps the last one of a name.  So walking over the text from member to
    # member by what it has kept comes out at the end only if it has kept all.
    at = 0
    seen: set[str] = set()
    while member := _MEMBER.match(text, at):
        name = _TEXT.decode(member[1])
        kept = bytes(members[name])
        if name in seen or not text.startswith(kept, member.end()):
            return False
        seen.add(name)
        at = member.end() + len(kept)
    return _OBJECT_END.match(text, at) is not None
