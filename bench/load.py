"""
The load generator: so many connections, each with its next request at once.

A process of its own (``python -m bench.load``): reads an ``Order`` as JSON, loads, and
prints an ``Outcome`` as JSON.  Sockets and a selector, nothing else: it must take less
of a processor than what it loads, or it would measure itself.
"""

from __future__ import annotations

import gc
import json
import random
import selectors
import socket
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field

from .observing import cpu_s, percentile
from .wire import (
    RECV_BYTES,
    Address,
    AnswerReader,
    BrokenAnswer,
    get_request,
    key_path,
    put_request,
)

STUCK_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to load, and how."""

    address: Address
    pids: list[int]
    """Of the servers: their CPU time is counted."""
    kind: str
    """GET, PUT (form body), or PATH for another path without a body."""
    path: str = "/"
    keys: int = 10_000
    value_bytes: int = 100
    payload: str = ""
    """Sent along with each GET and PUT."""
    connections: int = 32
    warm_s: float = 0.3
    """Loaded for so long before anything counts."""
    seconds: float = 2.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the servers did in the time that counts."""

    requests: int
    seconds: float
    server_cpu_s: float
    own_cpu_s: float
    p50_ms: float
    p99_ms: float
    most_ms: float
    statuses: dict[str, int]

    @property
    def per_s(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    @property
    def cpu_us(self) -> float:
        """Microseconds of the servers' CPU time for one request."""
        return self.server_cpu_s / max(self.requests, 1) * 1e6


def key_name(number: int) -> str:
    """Name a key: 20 characters."""
    return f"bench-key-{number:010d}"


def value_text(rng: random.Random, length: int) -> str:
    """Draw a value of so many bytes that need no escape."""
    return rng.randbytes((length + 1) // 2).hex()[:length]


def _requests(order: Order, rng: random.Random) -> list[bytes]:
    if order.kind == "PATH":
        return [get_request(order.path)]
    paths = [key_path(key_name(number)) for number in range(order.keys)]
    if order.kind == "GET":
        return [get_request(path, order.payload) for path in paths]
    assert order.kind == "PUT"
    return [
        put_request(path, value_text(rng, order.value_bytes), order.payload)
        for path in paths
    ]


@dataclass(slots=True)
class _Connection:
    """One closed loop."""

    socket: socket.socket
    reader: AnswerReader = field(default_factory=AnswerReader)
    began: float = 0.0


def _connect(address: Address) -> _Connection:
    made = socket.create_connection(address, STUCK_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return _Connection(made)


class _Load:
    """All connections, and what they count."""

    def __init__(self, order: Order) -> None:
        self._rng = random.Random(order.seed)
        self._requests = _requests(order, self._rng)
        self._selector = selectors.DefaultSelector()
        self._connections = [_connect(order.address) for _ in range(order.connections)]
        for connection in self._connections:
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        self.waits: list[float] = []
        self.statuses: Counter[str] = Counter()

    def begin(self) -> None:
        for connection in self._connections:
            self._send(connection)

    def reset(self) -> None:
        self.waits.clear()
        self.statuses.clear()

    def run(self, seconds: float) -> None:
        """Go on for so long."""
        select, now = self._selector.select, time.perf_counter
        heard = now()
        until = heard + seconds
        while (at := now()) < until:
            events = select(min(until - at, 0.5))
            if events:
                heard = now()
            elif at - heard > STUCK_S:
                raise BrokenAnswer(f"no answer for {STUCK_S:g} s")
            for key, _ in events:
                self._receive(key.data)

    def _send(self, connection: _Connection) -> None:
        connection.began = time.perf_counter()
        # A request is far below what a socket takes at once.
        connection.socket.sendall(
            self._requests[int(self._rng.random() * len(self._requests))]
        )

    def _receive(self, connection: _Connection) -> None:
        piece = connection.socket.recv(RECV_BYTES)
        if not piece:
            raise BrokenAnswer("the server closed a connection")
        answer = connection.reader.feed(piece)
        if answer is None:
            return
        self.waits.append(time.perf_counter() - connection.began)
        self.statuses[str(answer.status)] += 1
        self._send(connection)

    def close(self) -> None:
        self._selector.close()
        for connection in self._connections:
            connection.socket.close()


def run(order: Order) -> Outcome:
    """
    Load.

    :raises BrokenAnswer: if a server breaks off or says nothing.
    """
    load = _Load(order)
    try:
        gc.disable()
        load.begin()
        load.run(order.warm_s)
        load.reset()
        began, own, servers = time.perf_counter(), time.process_time(), _cpu(order)
        load.run(order.seconds)
        seconds = time.perf_counter() - began
        spent, own = _cpu(order) - servers, time.process_time() - own
    finally:
        load.close()
    waits = sorted(load.waits)
    return Outcome(
        requests=len(waits),
        seconds=seconds,
        server_cpu_s=spent,
        own_cpu_s=own,
        p50_ms=percentile(waits, 50) * 1e3,
        p99_ms=percentile(waits, 99) * 1e3,
        most_ms=(waits[-1] if waits else 0.0) * 1e3,
        statuses=dict(load.statuses),
    )


def _cpu(order: Order) -> float:
    return sum(cpu_s(pid) for pid in order.pids)


def main() -> None:
    """Read an order, print what came of it."""
    given = json.loads(sys.stdin.readline())
    order = Order(**{**given, "address": Address(*given["address"])})
    print(json.dumps(asdict(run(order))))


if __name__ == "__main__":
    main()
