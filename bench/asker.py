"""
The light client: asks each of some nodes every 10 ms and notes how long it waited.

A process of its own (``python -m bench.asker``), so that nothing else delays it: reads
a ``Task`` as JSON, asks until its input ends, prints ``Wait``s as JSON.  A node that
does not listen is tried again; from then on every wait counts.
"""

from __future__ import annotations

import json
import os
import random
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from .load import key_name, value_text
from .wire import (
    RECV_BYTES,
    Address,
    AnswerReader,
    BrokenAnswer,
    get_request,
    key_path,
    put_request,
)

NEVER = 0
"""Status of what was not answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Whom to ask what."""

    nodes: list[Address]
    keys: int
    """Reads draw one of so many."""
    every_s: float = 0.01
    put_every: int = 10
    """Each so-manieth request is a write, to one of a few keys of its own."""
    most_s: float = 120.0
    """Ends by itself after so long."""


class Wait(NamedTuple):
    """One request."""

    node: int
    """Which of the task's."""
    at: float
    """When it was sent, monotonic seconds."""
    seconds: float
    """Until it was answered, or broke off."""
    put: bool
    status: int
    stale: bool


@dataclass(slots=True, eq=False)
class _Line:
    """One node's connection."""

    node: int
    address: Address
    next_at: float
    socket: socket.socket | None = None
    reader: AnswerReader = field(default_factory=AnswerReader)
    sent_at: float = 0.0
    """0: nothing is under way."""
    put: bool = False
    asked: int = 0


class Asker:
    """Asks all nodes, each at its own pace."""

    def __init__(self, task: Task) -> None:
        """Prepare; nothing is connected."""
        self._task = task
        self._rng = random.Random(1)
        self._selector = selectors.DefaultSelector()
        self.waits: list[Wait] = []
        now = time.monotonic()
        step = task.every_s / len(task.nodes)
        self._lines = [
            _Line(i, node, now + i * step) for i, node in enumerate(task.nodes)
        ]

    def run(self, stop: int) -> None:
        """Ask until there is something to read, or an end, at a file descriptor."""
        self._selector.register(stop, selectors.EVENT_READ, None)
        until = time.monotonic() + self._task.most_s
        while (now := time.monotonic()) < until:
            for line in self._lines:
                if not line.sent_at and line.next_at <= now:
                    self._ask(line)
            next_at = min(
                (x.next_at for x in self._lines if not x.sent_at), default=1e9
            )
            pause = min(max(next_at - time.monotonic(), 0), 0.1)
            for key, _ in self._selector.select(pause):
                if key.data is None:
                    self._end()
                    return
                self._hear(key.data)
        self._end()

    def _end(self) -> None:
        for line in self._lines:
            if line.sent_at:
                self._note(line, NEVER)

    def _ask(self, line: _Line) -> None:
        now = time.monotonic()
        # What could not be asked in time is not asked later all at once.
        line.next_at = max(line.next_at + self._task.every_s, now)
        if line.socket is None:
            try:
                line.socket = socket.create_connection(line.address, 0.2)
            except OSError:
                return
            line.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line.reader = AnswerReader()
            self._selector.register(line.socket, selectors.EVENT_READ, line)
        line.asked += 1
        line.put = line.asked % self._task.put_every == 0
        line.sent_at = now
        try:
            line.socket.sendall(self._request(line))
        except OSError:
            self._break(line)

    def _request(self, line: _Line) -> bytes:
        if line.put:
            path = key_path(f"light-{line.node}-{line.asked % 50}")
            return put_request(path, value_text(self._rng, 100))
        return get_request(key_path(key_name(self._rng.randrange(self._task.keys))))

    def _hear(self, line: _Line) -> None:
        assert line.socket is not None
        try:
            piece = line.socket.recv(RECV_BYTES)
            answer = line.reader.feed(piece) if piece else None
        except (OSError, BrokenAnswer):
            piece, answer = b"", None
        if not piece:
            self._break(line)
        elif answer is not None:
            stale = b"kvs-stale" in answer.head.lower()
            self._note(line, answer.status, stale=stale)

    def _break(self, line: _Line) -> None:
        if line.sent_at:
            self._note(line, NEVER)
        assert line.socket is not None
        self._selector.unregister(line.socket)
        line.socket.close()
        line.socket = None

    def _note(self, line: _Line, status: int, *, stale: bool = False) -> None:
        waited = time.monotonic() - line.sent_at
        self.waits.append(
            Wait(line.node, line.sent_at, waited, line.put, status, stale)
        )
        line.sent_at = 0.0


def main() -> None:
    """Read a task, ask until the input ends, print what was seen."""
    line = b""
    while not line.endswith(b"\n"):
        # Not through a buffer, which would hide from the selector that the end came.
        piece = os.read(0, 2**16)
        if not piece:
            return
        line += piece
    given = json.loads(line)
    nodes = [Address(*node) for node in given["nodes"]]
    asker = Asker(Task(**{**given, "nodes": nodes}))
    asker.run(0)
    json.dump(asker.waits, sys.stdout)


if __name__ == "__main__":
    main()
