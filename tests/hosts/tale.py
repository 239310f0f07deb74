"""Histories that are made up, for tests of what checks them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from twisted_kvs.core.causality import Actor
from twisted_kvs.core.payload import Payload, PayloadCodec
from twisted_kvs.core.retiring import NOBODY
from twisted_kvs.core.secrets import DEFAULT_SECRET, Secrets

from .checks import Check
from .history import (
    Agreed,
    Answered,
    Asked,
    Began,
    Done,
    Generations,
    Late,
    Phase,
    Record,
    Unanswered,
)

NODES = ["10.0.0.1:8080", "10.0.0.2:8080"]
FIRST, SECOND = (Actor(f"{name}#00000000000000{n:02x}") for n, name in enumerate(NODES))
EPOCH_S = 1_700_000_000
KEY = "key"


@dataclass(frozen=True, slots=True)
class Told:
    """A write or a read as it was answered."""

    value: str | None
    vector: Mapping[Actor, int]
    token: str
    stamp: str
    place: int


NOTHING = Told(None, {}, "", "", 0)
"""What a client knows that has read nothing."""


class Tale:
    """A history of two replicas, told line by line; a second passes with each."""

    def __init__(self) -> None:
        """Begin."""
        self.records: list[Record] = [Began(at=0, seed=0, nodes=NODES, replicas=2)]
        self._codec = PayloadCodec(Secrets([DEFAULT_SECRET]))
        self.phase: Phase = "storm"
        """Of what is read."""
        self.through: int | None = None
        """The node that is asked to write, if not the one that mints it."""
        self._retired = NOBODY
        self._now = 0.0
        self._answers = 0

    def put(
        self,
        actor: Actor,
        counter: int,
        value: str,
        *,
        given: Told = NOTHING,
        past: Mapping[Actor, int] | None = None,
    ) -> Told:
        """
        Have a write acknowledged.

        :param past: what it comes after; absent: what its client knows.
        """
        vector = {**(given.vector if past is None else past), actor: counter}
        told = self._tell(value, vector, actor)
        at = told.place if self.through is None else self.through
        asked = self._ask(value, at, given, phase="quiet")
        self._answer(asked, told, 0.01, dot=f"{actor}:{counter}")
        return told

    def delete(self, actor: Actor, counter: int, *, given: Told) -> Told:
        """Have a delete acknowledged that comes after what its client knows."""
        vector = {**given.vector, actor: counter}
        told = self._tell(None, vector, actor)
        stamp = f"{EPOCH_S + int(self._now)}.500000"
        told = Told(None, vector, told.token, stamp, told.place)
        asked = self._ask(None, told.place, given, phase="quiet", deletes=True)
        self._answer(asked, told, 0.01, dot=f"{actor}:{counter}")
        return told

    def lose(self, value: str, *, given: Told = NOTHING) -> None:
        """Have a write to the first node not answered."""
        asked = self._ask(value, 0, given, phase="storm")
        self.records.append(
            Unanswered(at=asked.at + 0.01, number=asked.number, error="none")
        )

    def get(
        self,
        shown: Told,
        *,
        at: int = 0,
        given: Told = NOTHING,
        stale: bool = False,
        seconds: float = 0.01,
    ) -> Told:
        """Have a write (or nothing) shown to a reader."""
        vector = {**given.vector}
        for actor, counter in shown.vector.items():
            vector[actor] = max(counter, vector.get(actor, 0))
        asked = self._ask(None, at, given, phase=self.phase)
        told = self._tell(shown.value, vector, FIRST)
        read = Told(shown.value, vector, told.token, shown.stamp, shown.place)
        self._answer(asked, read, seconds, stale=stale)
        return read

    def done(self, what: str, *nodes: str, at: float = 0.0) -> None:
        """Have something done to nodes, ``at`` seconds after the last line."""
        self.records.append(Done(at=self._now + at, what=what, nodes=[*nodes]))

    def late(self, seconds: float) -> None:
        """Have the machine itself late, from the last line on."""
        self.records.append(
            Late(at=self._now, began=self._now, ended=self._now + seconds)
        )

    def retire(self, actor: Actor, counter: int) -> None:
        """Have tokens name an actor by a marker from now on."""
        self._retired = self._retired.retire({actor: counter})

    def tell_retired(self) -> None:
        """Have a node's disk say what markers mean."""
        known = self._retired.encode()
        self.records.append(Generations(at=self._now, node=NODES[0], known=known))

    def settle(self, first: Told, second: Told | None = None) -> None:
        """Have all faults end, and both nodes show these in the last readings."""
        self.done("calm")
        self.phase = "sweep"
        for at, shown in enumerate((first, second or first)):
            self.get(shown, at=at)
        self.phase = "storm"
        self.records.append(Agreed(at=self._now, sweep="sweep"))

    def pass_by(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds

    def broken(self) -> list[str]:
        """List the promises that were broken."""
        return [violation.promise for violation in Check(self.records).violations]

    def loose(self, value: str, actor: Actor, counter: int) -> Told:
        """Make up what a write that was not answered has left."""
        return self._tell(value, {actor: counter}, actor)

    def _tell(
        self, value: str | None, vector: Mapping[Actor, int], actor: Actor
    ) -> Told:
        self._answers += 1
        packed = self._retired.pack(vector, self._retired.head)
        token = self._codec.encode(Payload(dict(packed), self._answers))
        stamp = f"{EPOCH_S + int(self._now)}.000000" if value is not None else ""
        return Told(value, vector, token, stamp, NODES.index(actor.partition("#")[0]))

    def _ask(
        self,
        value: str | None,
        at: int,
        given: Told,
        *,
        phase: Phase,
        deletes: bool = False,
    ) -> Asked:
        self._now += 1
        asked = Asked(
            at=self._now,
            number=len(self.records),
            session=phase,
            node=NODES[at],
            within=False,
            phase=phase,
            key=KEY,
            value=value,
            payload=given.token,
            deletes=deletes,
        )
        self.records.append(asked)
        return asked

    def _answer(
        self,
        asked: Asked,
        told: Told,
        seconds: float,
        *,
        dot: str | None = None,
        stale: bool = False,
    ) -> None:
        found = told.value is not None or dot is not None
        self.records.append(
            Answered(
                at=asked.at + seconds,
                number=asked.number,
                status=200 if found else 404,
                value=told.value if dot is None else None,
                timestamp=told.stamp or None,
                node_id=told.place if found else None,
                payload=told.token,
                dot=dot,
                stale=stale,
            )
        )
