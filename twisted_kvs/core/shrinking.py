"""
Peer messages with markers in the place of retired actors, and back (R20).

Only where the reader is known to know the generation; what comes is read back before
anybody looks at it, so nothing else knows of markers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from .causality import VersionVector
from .errors import BadPeerMessage
from .messages import Delta, PeerAnswer, PeerRequest, Vectors
from .retiring import Retired, has_marker

_Turn = Callable[[VersionVector], VersionVector]
_Message = TypeVar("_Message", bound=PeerRequest | PeerAnswer)
_OF_MESSAGE = ("base", "vector", "seen")
_OF_VECTORS = ("vv", "clock", "dropped")
_OF_DELTA = ("base", "claim", "floor")


def shrink(message: _Message, retired: Retired, generation: str) -> _Message:
    """Write a message for one who knows ``generation``."""
    if not generation or not retired.knows(generation):
        return message
    return _turned(message, lambda vector: retired.pack(vector, generation))


def grow(message: _Message, retired: Retired) -> _Message:
    """
    Read a message that may hold markers.

    :raises BadPeerMessage: if it names a generation that is not known here.
    """

    def turn(vector: VersionVector) -> VersionVector:
        full = retired.unpack(vector)
        if has_marker(full):
            raise BadPeerMessage("message names retired actors that are not known here")
        return full

    return _turned(message, turn)


def _turned(message: _Message, turn: _Turn) -> _Message:
    changed = _changes(message, _OF_MESSAGE, turn)
    vectors = getattr(message, "vectors", None)
    if isinstance(vectors, Vectors):
        _note(changed, "vectors", vectors, _changes(vectors, _OF_VECTORS, turn))
    delta = getattr(message, "delta", None)
    if isinstance(delta, Delta):
        _note(changed, "delta", delta, _changes(delta, _OF_DELTA, turn))
    if not changed:
        return message
    turned: _Message = msgspec.structs.replace(message, **changed)
    return turned


def _changes(
    part: msgspec.Struct, fields: tuple[str, ...], turn: _Turn
) -> dict[str, Any]:
    changed = {}
    for field in fields:
        vector = getattr(part, field, None)
        if vector:
            turned = turn(vector)
            if turned is not vector:
                changed[field] = turned
    return changed


def _note(
    changed: dict[str, Any], field: str, part: msgspec.Struct, changes: dict[str, Any]
) -> None:
    if changes:
        changed[field] = msgspec.structs.replace(part, **changes)
