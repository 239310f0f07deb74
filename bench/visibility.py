"""
How long a write takes until a read sees it on all three replicas.

Each sample is a key of its own, written at one replica; reads without a payload ask all
three for it, again and again, from the moment when the write is sent.
"""

from __future__ import annotations

import random
import selectors
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from .load import Order, value_text
from .observing import percentile
from .processes import Node, RunFailed, Sandbox
from .report import Row, row
from .wire import (
    RECV_BYTES,
    Address,
    Answer,
    AnswerReader,
    BrokenAnswer,
    get_request,
    key_path,
    put_request,
)

TARGET_MS = 100.0
PAUSE_S = 0.003
"""Between an answer "not found" and the next question: also the resolution."""
LOST_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long to measure."""

    connections: tuple[int, ...] = (1, 32)
    seconds: float = 15.0


def measure(sandbox: Sandbox, plan: Plan) -> Iterator[Row]:
    """Measure with each number of writing connections."""
    view = sandbox.addresses(3)
    nodes = [
        Node(
            sandbox,
            address,
            sandbox.directory / str(address.port),
            view=view,
            replicas=3,
        ).start()
        for address in view
    ]
    for node in nodes:
        node.ready()
    for node in nodes:
        node.until_serving()
    for connections in plan.connections:
        yield _with_load(sandbox, nodes, connections, plan.seconds)
    for node in nodes:
        node.stop()


def _with_load(
    sandbox: Sandbox, nodes: list[Node], connections: int, seconds: float
) -> Row:
    outcome = None
    if connections > 1:
        outcome = sandbox.load(
            Order(
                address=nodes[0].address,
                pids=[node.pid for node in nodes],
                kind="PUT",
                connections=connections - 1,
                warm_s=1.0,
                seconds=seconds,
            )
        )
        time.sleep(1.0)
    probe = Probe([node.address for node in nodes])
    samples = probe.run(seconds)
    loaded = outcome() if outcome is not None else None
    sent = sorted(s.seen_s * 1e3 for s in samples)
    answered = sorted((s.seen_s - s.answered_s) * 1e3 for s in samples)
    besides = (
        f"p50 {percentile(sent, 50):.1f} ms, most {percentile(sent, 100):.1f} ms; "
        f"from the answer p50 {percentile(answered, 50):.1f}, "
        f"p99 {percentile(answered, 99):.1f} ms; {len(samples)} writes"
    )
    if loaded is not None:
        besides += (
            f"; others {loaded.per_s:.0f} writes/s, p50 {loaded.p50_ms:.0f} ms, "
            f"p99 {loaded.p99_ms:.0f} ms, CPU {loaded.cpu_us:.0f} us on three nodes"
        )
    plural = "" if connections == 1 else "s"
    return row(
        f"visible.{connections}",
        f"write visible on 3 replicas, p99, {connections} writing connection{plural}",
        percentile(sent, 99),
        unit=" ms",
        at_most=TARGET_MS,
        besides=besides,
        samples={
            "seen_ms": [round(s.seen_s * 1e3, 2) for s in samples],
            "answered_ms": [round(s.answered_s * 1e3, 2) for s in samples],
        },
    )


@dataclass(frozen=True, slots=True)
class Sample:
    """One write; seconds from when it was sent."""

    answered_s: float
    seen_s: float
    """On the last of the replicas."""


@dataclass(slots=True, eq=False)
class _Line:
    """A connection of the probe."""

    socket: socket.socket
    reader: AnswerReader = field(default_factory=AnswerReader)
    request: bytes = b""
    """Asked again until it is answered with 200; empty: it rests."""
    ask_at: float = 0.0
    """When to ask again; 0 while an answer is due."""
    done_at: float = 0.0


class Probe:
    """Writes one key after the other at the first node and looks for it at all."""

    def __init__(self, nodes: list[Address]) -> None:
        """Connect."""
        self._selector = selectors.DefaultSelector()
        self._writer = self._line(nodes[0])
        self._readers = [self._line(node) for node in nodes]
        self._rng = random.Random(0)

    def _line(self, node: Address) -> _Line:
        made = socket.create_connection(node, LOST_S)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line = _Line(made)
        self._selector.register(made, selectors.EVENT_READ, line)
        return line

    def run(self, seconds: float) -> list[Sample]:
        """
        Take samples for so long.

        :raises RunFailed: if a write is not seen at all.
        """
        until = time.perf_counter() + seconds
        samples: list[Sample] = []
        while time.perf_counter() < until:
            samples.append(self._sample(f"probe-{len(samples)}-{self._rng.random()}"))
        self._selector.close()
        for line in (self._writer, *self._readers):
            line.socket.close()
        return samples

    def _sample(self, key: str) -> Sample:
        began = time.perf_counter()
        path = key_path(key)
        self._ask(self._writer, put_request(path, value_text(self._rng, 100)))
        for reader in self._readers:
            self._ask(reader, get_request(path))
        lines = (self._writer, *self._readers)
        while not all(line.done_at for line in lines):
            now = time.perf_counter()
            if now - began > LOST_S:
                raise RunFailed(f"a write was not seen everywhere within {LOST_S:g} s")
            resting = [line for line in lines if line.ask_at]
            for line in resting:
                if line.ask_at <= now:
                    self._ask(line, line.request)
            next_at = min((x.ask_at for x in resting if x.ask_at), default=now + 0.1)
            for key_, _ in self._selector.select(max(next_at - now, 0)):
                self._hear(key_.data)
        seen = max(reader.done_at for reader in self._readers)
        return Sample(self._writer.done_at - began, seen - began)

    def _ask(self, line: _Line, request: bytes) -> None:
        line.request, line.ask_at, line.done_at = request, 0.0, 0.0
        line.socket.sendall(request)

    def _hear(self, line: _Line) -> None:
        piece = line.socket.recv(RECV_BYTES)
        if not piece:
            raise BrokenAnswer("a node closed a connection")
        answer: Answer | None = line.reader.feed(piece)
        if answer is None:
            return
        now = time.perf_counter()
        if answer.status in (200, 201):
            line.done_at = now
        elif answer.status == 404:
            line.ask_at = now + PAUSE_S
        else:
            raise RunFailed(f"asked for a fresh key: {answer}")
