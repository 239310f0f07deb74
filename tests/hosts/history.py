"""
What clients asked, what they were answered, and what was done to nodes meanwhile.

A history is a file with one JSON object per line, in the order of happening, so that it
can be read, searched with grep, and checked again.  Times are seconds since it began.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from typing import Literal

import msgspec

Phase = Literal["storm", "quiet", "sweep"]
"""Under faults; under load when all is well; the readings in between."""


class Asked(msgspec.Struct, frozen=True, kw_only=True, tag="asked"):
    """A client has sent a request."""

    at: float
    number: int
    session: str
    node: str
    within: bool
    """From the node's own host, not over the network."""
    phase: Phase
    key: str
    value: str | None
    """What is to be written; None: it reads, or deletes."""
    payload: str
    deletes: bool = False


class Answered(msgspec.Struct, frozen=True, kw_only=True, tag="answered"):
    """A node has answered it."""

    at: float
    number: int
    status: int
    value: str | None = None
    timestamp: str | None = None
    node_id: int | None = None
    payload: str = ""
    dot: str | None = None
    stale: bool = False
    message: str | None = None


class Unanswered(msgspec.Struct, frozen=True, kw_only=True, tag="unanswered"):
    """There was no answer; a write may or may not have happened."""

    at: float
    number: int
    error: str


class Began(msgspec.Struct, frozen=True, kw_only=True, tag="began"):
    """The first line."""

    at: float
    seed: int
    nodes: list[str]
    """In the order of the view: a node's number is its place."""
    replicas: int


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """
    Something was done to nodes.

    What makes a node unreachable is noted before it is done, and what ends that after.
    """

    at: float
    what: str
    nodes: list[str]
    detail: str = ""


class Agreed(msgspec.Struct, frozen=True, kw_only=True, tag="agreed"):
    """All nodes were seen to show the same: in the readings of this session."""

    at: float
    sweep: str


class Late(msgspec.Struct, frozen=True, kw_only=True, tag="late"):
    """The machine itself was late, which nodes are not to blame for."""

    at: float
    began: float
    ended: float


class Generations(msgspec.Struct, frozen=True, kw_only=True, tag="generations"):
    """What a node's disk says of retired actors (R20): tokens name them by markers."""

    at: float
    node: str
    known: bytes
    """As ``Retired.encode`` packs it."""


Record = Asked | Answered | Unanswered | Began | Done | Agreed | Late | Generations


class History:
    """A history that is being written, by several threads."""

    def __init__(self, path: Path) -> None:
        """Begin a new file."""
        self.path = path
        self._began = time.monotonic()
        self._lock = Lock()
        self._number = 0
        self._file = path.open("wb")

    def now(self) -> float:
        """Tell the seconds since it began."""
        return self.at(time.monotonic())

    def at(self, moment: float) -> float:
        """Give a moment of the monotonic clock as seconds since it began."""
        return round(moment - self._began, 6)

    def next_number(self) -> int:
        """Give the next request its number."""
        with self._lock:
            self._number += 1
            return self._number

    def add(self, record: Record) -> None:
        """
        Write a line; it is in the file when this returns, even if we are killed.

        What is noted after the end is left out.
        """
        with self._lock:
            if not self._file.closed:
                self._file.write(msgspec.json.encode(record) + b"\n")
                self._file.flush()

    def close(self) -> None:
        """Write no more."""
        with self._lock:
            self._file.close()


def read_history(lines: Iterable[bytes]) -> list[Record]:
    """Read a file's lines; the last may be cut short, as by a kill."""
    records: list[Record] = []
    for line in lines:
        if line.endswith(b"\n"):
            records.append(msgspec.json.decode(line, type=Record))
    return records
