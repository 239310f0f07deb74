"""Clients that roam: sessions that carry their payload from node to node."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from threading import Event, Thread

from tests.process.asking import Answer

from .history import Answered, Asked, History, Phase, Unanswered
from .network import Access

PAUSE_S = 0.02
"""Between two requests of a client, on average."""
WRITES = 0.4
"""Of its requests."""
DELETES = 0.1
"""Of those about a key that is deleted at all."""
AFRESH = 0.02
"""How often it forgets what it has seen."""
AGAIN = 0.5
"""How often it repeats a write that was not answered."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a node can be asked at the moment."""

    node: str
    access: Access
    within: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client wants."""

    key: str
    value: str | None
    payload: str
    session: str
    phase: Phase
    deletes: bool = False


def ask(history: History, way: Way, request: Request) -> Answered | None:
    """
    Ask a node and note it.

    :returns: None if there was no answer.
    """
    number = history.next_number()
    history.add(
        Asked(
            at=history.now(),
            number=number,
            session=request.session,
            node=way.node,
            within=way.within,
            phase=request.phase,
            key=request.key,
            value=request.value,
            payload=request.payload,
            deletes=request.deletes,
        )
    )
    try:
        answer = send(way.access, request)
    # An answer that was cut short is no JSON.
    except (OSError, HTTPException, ValueError) as error:
        history.add(Unanswered(at=history.now(), number=number, error=repr(error)))
        return None
    answered = note(history.now(), number, answer)
    history.add(answered)
    return answered


def send(access: Access, request: Request) -> Answer:
    """Read, write or delete."""
    if request.deletes:
        return access.delete(request.key, request.payload)
    if request.value is None:
        return access.get(request.key, request.payload)
    return access.put(request.key, request.value, request.payload)


def note(at: float, number: int, answer: Answer) -> Answered:
    """Say what was answered as it stands in a history."""
    fields = answer.fields
    return Answered(
        at=at,
        number=number,
        status=answer.status,
        value=fields.get("value"),
        timestamp=fields.get("timestamp"),
        node_id=fields.get("node_id"),
        payload=answer.headers.get("kvs-causal-payload", "")
        or fields.get("causal_payload", ""),
        dot=answer.headers.get("kvs-dot"),
        stale=answer.stale,
        message=fields.get("msg"),
    )


class Client:
    """One client, in a thread of its own while it is let."""

    def __init__(
        self,
        name: str,
        history: History,
        choose: Callable[[random.Random], Way],
        *,
        keys: Sequence[str],
        deleted: Sequence[str] = (),
        seed: str,
    ) -> None:
        """
        Have read nothing yet.

        :param choose: draws the node to ask next.
        :param deleted: those of the keys that are deleted now and then.
        :param seed: decides what it does, though not what comes of it.
        """
        self._name = name
        self._history = history
        self._choose = choose
        self._keys = keys
        self._deleted = deleted
        self._rng = random.Random(seed)
        self._sessions = 0
        self._writes = 0
        self._payload = ""
        self._stop = Event()
        self._thread: Thread | None = None

    def start(self, phase: Phase) -> None:
        """Begin to ask; return at once."""
        self._stop.clear()
        self._thread = Thread(target=self._run, args=(phase,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask no more; ``wait`` returns when the last answer has come."""
        self._stop.set()

    def wait(self) -> None:
        """Wait for the last answer."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def forget(self) -> None:
        """Be a client that has read nothing."""
        self._sessions += 1
        self._payload = ""

    def _run(self, phase: Phase) -> None:
        value = None
        while not self._stop.wait(self._rng.random() * 2 * PAUSE_S):
            if self._rng.random() < AFRESH:
                self.forget()
            key = self._rng.choice(self._keys)
            if value is None and self._rng.random() < WRITES:
                self._writes += 1
                value = f"{self._name}-{self._writes}"
            wished = value is None and key in self._deleted
            request = Request(
                key=value_key(value, self._keys) or key,
                value=value,
                deletes=wished and self._rng.random() < DELETES,
                payload=self._payload,
                session=f"{self._name}.{self._sessions}",
                phase=phase,
            )
            answer = ask(self._history, self._choose(self._rng), request)
            again = answer is None and self._rng.random() < AGAIN
            value = value if again else None
            if answer is not None and answer.payload:
                self._payload = answer.payload


def value_key(value: str | None, keys: Sequence[str]) -> str | None:
    """Give the key that a value is written to: the same when it is written again."""
    if value is None:
        return None
    return keys[sum(value.encode()) % len(keys)]
