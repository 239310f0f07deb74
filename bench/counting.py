"""
What counting costs a request, in this process: no sockets, no other processes.

A whole port with a node in memory behind it is asked for one key again and again,
through a transport that throws away what it gets.  Short turns with and without the
counting come in pairs, and of the ratios of their CPU times the median counts: nothing
else tells one per cent from none.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from twisted_kvs.core.causality import Name
from twisted_kvs.core.codec import Codec
from twisted_kvs.core.payload import EMPTY_PAYLOAD, PayloadCodec
from twisted_kvs.core.secrets import DEFAULT_SECRET, Secrets
from twisted_kvs.core.settings import Settings
from twisted_kvs.core.view import View
from twisted_kvs.metrics import Traffic, TurnProbe
from twisted_kvs.node import Node
from twisted_kvs.signing import Signer
from twisted_kvs.simulation.network import Network
from twisted_kvs.storage.memory import MemoryStorage
from twisted_kvs.web.channel import Channel, Request
from twisted_kvs.web.peer_gate import PeerGate
from twisted_kvs.web.root import make_port
from twisted_kvs.web.server import Site

from .observing import median
from .processes import RunFailed, Sandbox
from .report import Row, row

ME = Name("127.0.0.1:8080")
GET = b"GET /kv-store/k HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n"
METRICS = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n"
SLOWER_MAX = 1.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long to measure."""

    pairs: int = 60
    requests: int = 1000
    """In a turn."""


class _RunningClock(Clock):
    """Tells the time that it really is; nothing is ever due on it."""

    def seconds(self) -> float:
        return time.monotonic()


class _Sink(StringTransport):
    """Counts what is written and forgets it."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = 0
        self.statuses: set[bytes] = set()

    def writeSequence(self, data: list[bytes]) -> None:
        self.answers += 1
        self.statuses.add(b"".join(data[:4])[:12])

    def write(self, data: bytes) -> None:
        """Drop a body."""


def measure(sandbox: Sandbox, plan: Plan) -> Iterator[Row]:
    """Measure a GET with and without the counting, and a scrape."""
    port = _port()
    ratios, counted_us, plain_us = [], [], []
    _turn(port, GET, plan.requests)
    for _ in range(plan.pairs):
        port.requestFactory = Request
        counted = _turn(port, GET, plan.requests)
        port.requestFactory = _Uncounted
        plain = _turn(port, GET, plan.requests)
        ratios.append(counted / plain)
        counted_us.append(counted)
        plain_us.append(plain)
    yield row(
        "counting.get",
        "GET with its metrics, against the same without",
        median(ratios),
        unit=" x CPU",
        at_most=SLOWER_MAX,
        besides=f"{median(counted_us):.1f} us against {median(plain_us):.1f} us",
        samples={"ratios": ratios},
    )
    scrapes = [_turn(port, METRICS, 20) for _ in range(5)]
    yield row(
        "counting.scrape",
        "one GET of all metrics",
        median(scrapes) / 1000,
        unit=" ms CPU",
        samples={"us": scrapes},
    )


class _Uncounted(Request):
    """A request that nobody counts."""

    def _count(self) -> None:
        pass


def _port() -> Site:
    clock, rng = _RunningClock(), random.Random(1)
    payloads = PayloadCodec(Secrets([DEFAULT_SECRET]))
    settings, storage = Settings(), MemoryStorage()

    def fatal(failure: object) -> None:
        raise RunFailed(f"the node ended: {failure}")

    node = Node(
        me=ME,
        settings=settings,
        storage=storage,
        transport=Network(clock, rng).transport(ME, 1),
        payloads=payloads,
        clock=clock,
        wall_us=lambda: 1,
        rng=rng,
        boot_id=1,
        first_view=View(),
        replica_count=None,
        fatal=fatal,
    )
    node.start(storage.open())
    node.put("k", b'"%b"' % (b"x" * 100), EMPTY_PAYLOAD)
    signer = Signer(me=ME, boot_id=1, keys=[b"key"])
    gate = PeerGate(signer=signer, codec=Codec(), clock=clock)
    traffic = (Traffic(), gate.traffic)
    return make_port(
        node, gate=gate, traffic=traffic, turns=TurnProbe(clock), reactor=clock
    )


def _turn(port: Site, request: bytes, count: int) -> float:
    """Ask so often over one connection; give the CPU time of each, microseconds."""
    channel, sink = port.buildProtocol(None), _Sink()
    assert isinstance(channel, Channel)
    channel.makeConnection(sink)
    began = time.process_time()
    for _ in range(count):
        channel.dataReceived(request)
    spent = time.process_time() - began
    if sink.answers != count or sink.statuses != {b"HTTP/1.1 200"}:
        raise RunFailed(f"{sink.answers} answers to {count} requests: {sink.statuses}")
    return spent / count * 1e6
