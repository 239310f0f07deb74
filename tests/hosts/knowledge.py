"""
What can be known of writes from outside: from the answers to them and from reads.

A write that was acknowledged is known exactly: its answer names its dot, and the
payload holds its past.  One that was not may have happened; and one that was forwarded
may have happened twice.  Such *loose* versions have no known dot; a read that shows one
tells its time.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from dataclasses import dataclass

from twisted_kvs.core.causality import Actor, Dot, VersionVector
from twisted_kvs.core.payload import EMPTY_PAYLOAD, Payload, PayloadCodec
from twisted_kvs.core.retiring import NOBODY, Retired, has_marker
from twisted_kvs.core.secrets import DEFAULT_SECRET, Secrets
from twisted_kvs.simulation.oracle import Oracle, Write, after, covered

from .history import Answered, Asked, Generations, Record, Unanswered


@dataclass(frozen=True, slots=True)
class Request:
    """A request with what came of it; None: the history ends before."""

    asked: Asked
    end: Answered | Unanswered | None
    lines: tuple[int, ...]

    @property
    def ended(self) -> float:
        """When its client knew."""
        return float("inf") if self.end is None else self.end.at

    @property
    def writes(self) -> bool:
        """Whether it has left a version, or may have; not if nothing was deleted."""
        if not self.asked.deletes:
            return self.asked.value is not None
        return self.answer is None or self.answer.dot is not None

    @property
    def answer(self) -> Answered | None:
        """The answer, if it was neither refused nor lost."""
        if isinstance(self.end, Answered) and self.end.status in (200, 201, 404):
            return self.end
        return None


class Tokens:
    """Reads payloads."""

    def __init__(self, records: Iterable[Record]) -> None:
        """
        Know the secret of the nodes, which is the default.

        :param records: of a history; what its nodes knew of retired actors (R20).
        """
        self._codec = PayloadCodec(Secrets([DEFAULT_SECRET]))
        self._retired = NOBODY
        for record in records:
            if isinstance(record, Generations):
                self._retired = self._retired.join(Retired.decode(record.known))
        self._read: dict[str, Payload] = {"": EMPTY_PAYLOAD}

    def payload(self, token: str) -> Payload:
        """Read what a token says; a marker that no node can read stays in it."""
        payload = self._read.get(token)
        if payload is None:
            vector, lamport = self._codec.decode(token)
            payload = Payload(self._retired.unpack(vector), lamport)
            self._read[token] = payload
        return payload

    def marked(self, token: str) -> bool:
        """Tell whether it names retired actors by a marker."""
        return has_marker(self._codec.decode(token).vector)


class Known(Oracle):
    """The writes that were acknowledged; quick for many."""

    def __init__(self) -> None:
        """Know of nothing yet."""
        super().__init__()
        self._counters: dict[Actor, list[int]] = {}
        self.loose: dict[str, list[Request]] = {}
        """Per key, the requests that may have left versions of which nobody told."""

    def mint(self, write: Write) -> None:
        """Take note of a write; its past is looked at when all are known."""
        assert write.dot not in self.writes, f"{write.dot} was minted twice"
        self.writes[write.dot] = write
        self.by_key.setdefault(write.key, []).append(write)
        insort(self._counters.setdefault(write.actor, []), write.counter)

    def demand_closed(self, vector: VersionVector) -> None:
        """See ``Oracle``; an actor's last write stands for those before it."""
        for actor, counter in vector.items():
            counters = self._counters.get(actor, [])
            place = bisect_right(counters, counter)
            if place:
                self._demand_past(self.writes[actor, counters[place - 1]], vector)

    def demand_all_closed(self) -> None:
        """Demand that of every write, and that an actor's pasts only grow."""
        for write in self.writes.values():
            self.demand_closed(write.past)
            counters = self._counters[write.actor]
            place = bisect_left(counters, write.counter)
            if place:
                last = self.writes[write.actor, counters[place - 1]]
                self._demand_past(last, write.past)

    @staticmethod
    def _demand_past(write: Write, vector: VersionVector) -> None:
        for actor, counter in write.past.items():
            assert vector.get(actor, 0) >= counter, (
                f"{dict(vector)} names {write} and not its past"
            )

    def must_not_be_shown(
        self, key: str, knows: VersionVector, origin: str, read: VersionVector
    ) -> Write | None:
        """
        Tell whether a loose version is older than what its reader knows.

        :param origin: name of the node that minted it.
        :param read: the payload of the read, which covers its dot.
        :returns: a write that its reader knew and that replaced it, whichever of the
            dots that are not accounted for is its own; None if there is none for sure.
        """
        dots = self._unknown(origin, read)
        for write in self.by_key.get(key, ()):
            if covered(write, knows) and all(
                write.past.get(actor, 0) >= counter for actor, counter in dots
            ):
                return write
        return None

    def _unknown(self, origin: str, read: VersionVector) -> list[Dot]:
        # Of each of its actors the last counter that nobody was told of is enough.
        dots = []
        for actor, counter in read.items():
            while counter and (actor, counter) in self.writes:
                counter -= 1
            if counter and actor.partition("#")[0] == origin:
                dots.append((actor, counter))
        return dots


def not_replaced(it: Write, knows: VersionVector, writes: list[Write]) -> bool:
    """Tell whether nothing that a client knows has replaced a write."""
    return not any(covered(w, knows) and after(w, it) for w in writes)
