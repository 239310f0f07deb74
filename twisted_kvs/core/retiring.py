"""
Actors that write no more (R20): kept for good, carried along no more.

Every start of a process that writes makes an actor, and to forget one would bring its
writes back as new ones.  So nothing is forgotten.  Actors whose last write every member
has are *retired*: a set of (actor, last counter) that all members know under one short
name, its *generation*.  A vector that covers all of a generation is written with one
*marker* in their place, by whoever knows that the reader knows it, and read back as it
was.  A wrong decision to retire costs a few bytes: an actor that writes after all
stands in vectors again.

Invariant: a generation's name is made of the hashes of all its entries, so it means the
same everywhere and for good; a node never forgets one that it has known, since clients'
payloads may name it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import msgspec

from .causality import EMPTY, Actor, VersionVector, join, leq
from .errors import BadPeerMessage
from .names import is_actor
from .versions import WireVector

GENERATION_BYTES = 8
NOTHING = ""
"""The generation in which nobody is retired."""
MARKER = "retired#"
"""No node is named so: it has no port."""
_REMEMBERED_MAX = 8
_encoder = msgspec.msgpack.Encoder(order="sorted")


class Generation(NamedTuple):
    """What one generation retired beside those of its parent."""

    name: str
    parent: str
    added: WireVector


class _Log(msgspec.Struct, frozen=True, array_like=True):
    head: str
    generations: list[Generation]
    """Parents before their children."""


_decoder = msgspec.msgpack.Decoder(_Log)


class Retired:
    """The generations that a node knows, and the one that it goes by; immutable."""

    def __init__(
        self, generations: Mapping[str, Generation] | None = None, head: str = NOTHING
    ) -> None:
        """
        Know these.

        :param generations: by name, parents before their children.
        :param head: the one to go by: the join of all.
        """
        self._generations = dict(generations or {})
        self.head = head
        self._entries: dict[str, VersionVector] = {}
        self._encoded: bytes | None = None

    def knows(self, generation: str) -> bool:
        """Tell whether a marker of this generation can be read."""
        return generation == NOTHING or generation in self._generations

    def entries(self, generation: str) -> VersionVector:
        """List who is retired in a known generation, and their last counters."""
        if generation == NOTHING:
            return EMPTY
        found = self._entries.get(generation)
        if found is None:
            added = []
            at = generation
            while at != NOTHING:
                added.append(self._generations[at].added)
                at = self._generations[at].parent
            found = join({}, *added)
            if len(self._entries) >= _REMEMBERED_MAX:
                self._entries.clear()
            self._entries[generation] = found
        return found

    def retire(self, more: VersionVector) -> Retired:
        """
        Retire actors.

        :returns: itself if all of them are.
        """
        before = self.entries(self.head)
        after = join(before, more)
        if after is before:
            return self
        added = {a: n for a, n in after.items() if before.get(a, 0) < n}
        name = _name(self.head, before, added)
        if self.knows(name):
            return Retired(self._generations, name)
        generation = Generation(name, self.head, added)
        return Retired({**self._generations, name: generation}, name)

    def join(self, other: Retired) -> Retired:
        """Know what both know, and go by what either has retired."""
        if other.head == self.head and other._generations.keys() <= (
            self._generations.keys()
        ):
            return self
        known = {**self._generations}
        for name, generation in other._generations.items():
            known.setdefault(name, generation)
        both = Retired(known, self.head)
        theirs = other.entries(other.head)
        if leq(self.entries(self.head), theirs):
            return Retired(known, other.head)
        return both.retire(theirs)

    def pack(self, vector: VersionVector, generation: str) -> VersionVector:
        """Write a vector with a marker, if it covers all of a generation."""
        entries = self.entries(generation)
        if not entries or not leq(entries, vector):
            return vector
        packed = {a: n for a, n in vector.items() if entries.get(a) != n}
        packed[Actor(MARKER + generation)] = 1
        return packed

    def unpack(self, vector: VersionVector) -> VersionVector:
        """
        Read a vector as it was before ``pack``.

        A marker of a generation that is not known stays: nothing covers it.
        """
        for actor in vector:
            if actor.startswith(MARKER):
                break
        else:
            return vector
        found = dict(vector)
        for actor in vector:
            generation = actor.removeprefix(MARKER)
            if generation != actor and self.knows(generation):
                del found[actor]
                found = dict(join(found, self.entries(generation)))
        return found

    def encode(self) -> bytes:
        """Pack all that is known, for the disk and for peers; empty for nothing."""
        if self._encoded is None:
            log = _Log(self.head, list(self._generations.values()))
            self._encoded = _encoder.encode(log) if self._generations else b""
        return self._encoded

    @classmethod
    def decode(cls, encoded: bytes, *, known: Retired | None = None) -> Retired:
        """
        Unpack what ``encode`` packed.

        :param known: generations that need no second look: the others' names are
            checked, which takes a hash of all entries for each.
        :returns: what was packed, and what is known.
        :raises BadPeerMessage: if it is anything else.
        """
        if not encoded:
            return cls()
        try:
            log = _decoder.decode(encoded)
        except (msgspec.DecodeError, ValueError) as error:
            raise BadPeerMessage(
                f"retired actors are not understood: {error}"
            ) from None
        generations = {} if known is None else dict(known._generations)
        at, entries = NOTHING, dict[Actor, int]()
        for generation in log.generations:
            if generation.name in generations:
                continue
            if generation.parent != NOTHING and generation.parent not in generations:
                raise BadPeerMessage("a generation comes before its parent")
            if not all(map(is_actor, generation.added)):
                raise BadPeerMessage("a generation retires what is no actor")
            if generation.parent != at:
                entries = dict(cls(generations).entries(generation.parent))
            if any(n <= entries.get(a, 0) for a, n in generation.added.items()):
                raise BadPeerMessage("a generation retires what its parent has")
            # A name means its entries: the one thing that everybody relies on.
            if _name(generation.parent, entries, generation.added) != generation.name:
                raise BadPeerMessage("a generation's name is not that of its entries")
            # Most often each is the child of the one before it: nothing is copied.
            entries |= generation.added
            at = generation.name
            generations[at] = generation
        if log.head not in generations:
            raise BadPeerMessage("retired actors lack their last generation")
        return cls(generations, log.head)


NOBODY = Retired()


def is_marker(actor: str) -> bool:
    """Tell whether this stands for a whole generation."""
    return actor.startswith(MARKER)


def has_marker(vector: Iterable[Actor]) -> bool:
    """Tell whether a vector names a generation that could not be read."""
    return any(map(is_marker, vector))


def may_retire(
    vv: VersionVector,
    *,
    clock: VersionVector,
    stable: VersionVector,
    writing: Collection[Actor],
) -> WireVector:
    """
    List the actors of whom every member has all, and who write no more (R20).

    :param writing: the actors that members write under now.
    """
    return {
        actor: counter
        for actor, counter in vv.items()
        if stable.get(actor, 0) == counter
        and clock.get(actor, 0) <= counter
        and actor not in writing
    }


def _name(parent: str, entries: VersionVector, added: VersionVector) -> str:
    """
    Name a generation: the sum of the hashes of all its entries.

    So equal sets have equal names, however they came about; and a name takes no longer
    the more there are already.

    :param parent: its name, which has all of ``entries``.
    :param added: entries that are new, or greater than there.
    """
    total = int(parent or "0", 16)
    for actor, counter in added.items():
        total += _entry_hash(actor, counter)
        if actor in entries:
            total -= _entry_hash(actor, entries[actor])
    return f"{total % 2 ** (8 * GENERATION_BYTES):0{2 * GENERATION_BYTES}x}"


def _entry_hash(actor: Actor, counter: int) -> int:
    entry = f"{actor}:{counter}".encode()
    digest = hashlib.blake2b(entry, digest_size=GENERATION_BYTES).digest()
    return int.from_bytes(digest, "big")
