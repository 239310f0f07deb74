"""
Writers that know what each key must at least show.

Each key belongs to one writer, who writes greater and greater numbers to it, one after
the other.  So after any fault a key must show the last number that was acknowledged, or
a later one that was tried; and its whole value follows from key and number.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from threading import Event, Thread
from typing import TypeVar
from urllib.parse import urlencode

KEYS_EACH = 61
"""Odd, so that each key is written at both of two nodes."""
VALUE_BYTES = 4096
PATIENCE_S = 5.0
PAUSE_S = 0.01

_T = TypeVar("_T")


def value_of(key: str, number: int) -> str:
    """Make the one value that a key has with a number."""
    seed = hashlib.sha256(f"{key} {number}".encode()).digest()
    length = (VALUE_BYTES - 9) // 2
    return f"{number:08d} {random.Random(seed).randbytes(length).hex()}"


def number_of(key: str, value: str) -> int:
    """
    Tell the number of a value.

    :raises AssertionError: if it is not as it was written.
    """
    number = int(value[:8])
    assert value == value_of(key, number), f"{key}: a damaged value"
    return number


@dataclass
class _Writer:
    """One client: a key after the other, at one node after the other."""

    number: int
    nodes: Sequence[str]
    stop: Event
    tried: dict[str, int] = field(default_factory=dict)
    acknowledged: dict[str, int] = field(default_factory=dict)
    dots: dict[str, tuple[str, int]] = field(default_factory=dict)
    statuses: dict[int, int] = field(default_factory=dict)
    connections: dict[str, HTTPConnection] = field(default_factory=dict)
    payload: str = ""

    def run(self) -> None:
        turn = 0
        while not self.stop.is_set():
            turn += 1
            node = self.nodes[turn % len(self.nodes)]
            try:
                self._write(f"w{self.number}k{turn % KEYS_EACH}", node)
            # The node is gone; an answer that was cut short is no JSON.
            except (OSError, HTTPException, ValueError):
                self._leave(node)
                time.sleep(PAUSE_S)
        for node in list(self.connections):
            self._leave(node)

    def _write(self, key: str, node: str) -> None:
        number = self.tried[key] = self.tried.get(key, 0) + 1
        connection = self.connections.get(node)
        if connection is None:
            connection = HTTPConnection(node, timeout=PATIENCE_S)
            self.connections[node] = connection
        form = {"val": value_of(key, number), "causal_payload": self.payload}
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        path = f"/kv-store/{key}"
        connection.request("PUT", path, urlencode(form).encode(), kind)
        response = connection.getresponse()
        fields = json.loads(response.read())
        self.statuses[response.status] = self.statuses.get(response.status, 0) + 1
        if response.status in (200, 201):
            self.payload = fields["causal_payload"]
            self.acknowledged[key] = number
            self.dots[response.headers["KVS-Dot"]] = key, number
        elif response.status == 507:
            time.sleep(PAUSE_S)

    def _leave(self, node: str) -> None:
        if (connection := self.connections.pop(node, None)) is not None:
            connection.close()


class Registers:
    """Writers on threads of their own."""

    def __init__(self, nodes: Sequence[str], *, writers: int) -> None:
        """Write to these nodes, in turn."""
        self._stop = Event()
        self._writers = [_Writer(n, list(nodes), self._stop) for n in range(writers)]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Write as long as this lasts."""
        self._stop.clear()
        threads = [Thread(target=writer.run) for writer in self._writers]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(2 * PATIENCE_S)

    def acknowledged(self) -> dict[str, int]:
        """Tell the number that each key must show at least."""
        return _joined(writer.acknowledged for writer in self._writers)

    def acknowledged_by(self, node: str) -> dict[str, int]:
        """Tell those that this node minted, and so had on its own disk."""
        least: dict[str, int] = {}
        for dot, (key, number) in self.dots().items():
            if dot.startswith(f"{node}#"):
                least[key] = max(number, least.get(key, 0))
        return least

    def dots(self) -> dict[str, tuple[str, int]]:
        """Tell key and number of each acknowledged write."""
        return _joined(writer.dots for writer in self._writers)

    def tried(self) -> dict[str, int]:
        """Tell the greatest number that was sent for each key."""
        return _joined(writer.tried for writer in self._writers)

    @property
    def statuses(self) -> dict[int, int]:
        """Count the answers."""
        counted: dict[int, int] = {}
        for writer in self._writers:
            for status, count in list(writer.statuses.items()):
                counted[status] = counted.get(status, 0) + count
        return counted


def _joined(parts: Iterator[dict[str, _T]]) -> dict[str, _T]:
    joined: dict[str, _T] = {}
    for part in parts:
        # A copy of a dict is made in one step, whatever its writer does.
        joined.update(part.copy())
    return joined
