"""
What compaction gives back, and what it costs those who are served meanwhile.

A replica and a proxy.  While the proxy is away nothing is stable and nothing can be
forgotten, however much there is: that is the state before.  The proxy is started, says
what it has, and the replica compacts all that its store holds (see ``preload``).
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import catch_up, churn, slices
from .asker import NEVER, Task
from .load import Order, Outcome
from .observing import median, percentile
from .preload import Contents, make_stores
from .processes import Node, RunFailed, Sandbox, status
from .report import Row, row, shown
from .wire import Address, get_request

CONNECTIONS = 32
TURN_TARGET_MS = 20.0
WITHIN_S = 900.0
LOOK_S = 0.5
RESTED_S = 20.0
"""The last reports come and are compacted; ten seconds later the log is cut."""
METRIC = b"\nkvs_reactor_turn_longest_seconds "
MIB = 2**20
# A process that is stopped while the other is measured is not to be taken for dead.
PATIENT = {"KVS_DEAD_AFTER_S": "60"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to measure."""

    keys: int = 100_000
    """Whose bytes are counted."""
    before_s: float = 62.0
    """The metric of turns looks back a minute: that long nothing but gossip, or less
    where the start may be seen in it.
    """
    load_keys: int = 100_000
    """In the stores that are loaded; they must not be done before the load."""
    turns: int = 5
    seconds: float = 1.0
    slice_keys: int = 50_000
    churn: churn.Plan = field(default_factory=churn.Plan)
    join: catch_up.Plan = field(
        default_factory=lambda: catch_up.Plan(turns=2, sizes=(100_000,), forgotten=True)
    )


def measure(sandbox: Sandbox, plan: Plan) -> Iterator[Row]:
    """Measure all of it."""
    yield from slices.measure(sandbox, plan.slice_keys)
    yield from _room(sandbox, plan)
    yield from _beside(sandbox, plan)
    yield from churn.measure(sandbox, plan.churn)
    yield from catch_up.measure(sandbox, plan.join)


@dataclass(frozen=True, slots=True)
class _Pair:
    """The replica and the proxy of a cluster, and the replica's store before."""

    replica: Address
    proxy: Address
    prepared: Path

    def nodes(self, sandbox: Sandbox, used: Path) -> tuple[Node, Node]:
        """Make the nodes, with a store that may be changed; none is started."""
        view = [self.replica, self.proxy]
        replica, proxy = (
            Node(
                sandbox,
                address,
                used / str(address.port),
                view=view,
                replicas=1,
                settings=PATIENT,
            )
            for address in view
        )
        return replica, proxy


def _prepared(sandbox: Sandbox, name: str, keys: int) -> _Pair:
    replica, proxy = sandbox.addresses(2)
    parent = sandbox.directory / name
    parent.mkdir()
    contents = Contents(keys=keys, actors=3)
    make_stores(parent, [replica], contents, holders=1, others=[proxy])
    return _Pair(replica, proxy, parent)


@dataclass(frozen=True, slots=True)
class _Room:
    """What a node takes."""

    file_bytes: int
    """Of the database."""
    log_bytes: int
    """Of the log beside it, which is cut to a fixed size now and then."""
    rss_bytes: int


def _room_of(node: Node) -> _Room:
    assert node.directory is not None
    log_bytes = sum(path.stat().st_size for path in node.directory.glob("*-wal"))
    file_bytes = churn.directory_bytes(node.directory) - log_bytes
    return _Room(file_bytes, log_bytes, node.rss_bytes())


def _room(sandbox: Sandbox, plan: Plan) -> Iterator[Row]:
    empty_pair = _prepared(sandbox, "none", 0)
    empty, _ = empty_pair.nodes(sandbox, empty_pair.prepared)
    empty.start().until_serving()
    time.sleep(RESTED_S)
    nothing = _room_of(empty)
    empty.stop()
    pair = _prepared(sandbox, "room", plan.keys)
    replica, proxy = pair.nodes(sandbox, pair.prepared)
    replica.start().until_serving()
    time.sleep(max(plan.before_s, RESTED_S))
    before = _room_of(replica)
    began = time.monotonic()
    most = before.rss_bytes
    turn_s = 0.0
    proxy.start()
    task = Task(nodes=[pair.replica], keys=plan.keys, put_every=20, most_s=WITHIN_S)
    with catch_up.AskerProcess(sandbox, task) as asker, replica.client() as client:

        def compacted() -> bool | None:
            nonlocal most, turn_s
            most = max(most, replica.rss_bytes())
            if time.monotonic() - replica.started_at > 60:
                turn_s = max(turn_s, _longest_turn_s(replica))
            return _compacted(status(client)) >= plan.keys - 1 or None

        ended, _ = replica.until(
            "end of compaction", compacted, within_s=WITHIN_S, every_s=LOOK_S
        )
        turn_s = max(turn_s, _longest_turn_s(replica))
        waits = asker.stop()
    time.sleep(RESTED_S)
    after = _room_of(replica)
    replica.stop()
    again, _ = pair.nodes(sandbox, pair.prepared)
    again.start().until_serving()
    time.sleep(RESTED_S)
    restarted = _room_of(again)
    again.stop()
    proxy.stop()
    shutil.rmtree(pair.prepared)
    yield _bytes_row(plan.keys, "before", "with their pasts", before, nothing)
    yield _bytes_row(plan.keys, "after", "pasts forgotten", after, nothing)
    yield row(
        f"compaction.{plan.keys}.rss",
        f"memory that compaction of {plan.keys} keys takes, at most",
        (most - before.rss_bytes) / MIB,
        unit=" MiB",
        besides=(
            f"from {before.rss_bytes / MIB:.0f} to {most / MIB:.0f} MiB, "
            f"{after.rss_bytes / MIB:.0f} at rest afterwards, "
            f"{restarted.rss_bytes / MIB:.0f} started anew, "
            f"with an empty store {nothing.rss_bytes / MIB:.0f}"
        ),
    )
    meanwhile = [wait for wait in waits if began < wait.at < ended]
    seconds = sorted(wait.seconds * 1e3 for wait in meanwhile)
    failed = sum(w.status in (NEVER, 404) or w.status >= 500 for w in meanwhile)
    yield row(
        f"compaction.{plan.keys}.turn",
        f"longest reactor turn while {plan.keys} keys are compacted, by the metric",
        turn_s * 1e3,
        unit=" ms",
        at_most=TURN_TARGET_MS,
        judged=plan.before_s > 60,
        besides=(
            f"in {ended - began:.0f} s; a light client waits "
            f"p50 {percentile(seconds, 50):.1f}, p99 {percentile(seconds, 99):.1f}, "
            f"most {percentile(seconds, 100):.0f} ms; {failed} requests failed"
        ),
        samples={"waits_ms": seconds},
    )


def _compacted(found: dict[str, object]) -> int:
    told = found["compaction"]
    assert isinstance(told, dict)
    return int(told["compacted"])


def _longest_turn_s(node: Node) -> float:
    with node.client() as client:
        body = client.ask(get_request("/metrics")).body
    return float(body.partition(METRIC)[2].partition(b"\n")[0])


def _bytes_row(keys: int, name: str, what: str, found: _Room, empty: _Room) -> Row:
    files = (found.file_bytes - empty.file_bytes) / keys
    memory = (found.rss_bytes - empty.rss_bytes) / keys
    return row(
        f"compaction.{keys}.{name}",
        f"bytes on disk for a key of {keys}, {what}",
        files,
        unit=" bytes",
        besides=(
            f"keys of 20, values of 100 bytes; file {found.file_bytes / MIB:.1f} MiB, "
            f"log beside it {found.log_bytes / MIB:.1f} MiB; "
            f"in memory {memory:.1f} bytes for a key over an empty node"
        ),
        samples={"memory_bytes_per_key": memory},
    )


def _beside(sandbox: Sandbox, plan: Plan) -> Iterator[Row]:
    pairs = [_prepared(sandbox, f"load-{i}", plan.load_keys) for i in range(2)]
    ratios: dict[str, list[float]] = {"GET": [], "PUT": []}
    outcomes: dict[str, list[tuple[Outcome, Outcome]]] = {"GET": [], "PUT": []}
    rates: list[float] = []
    for turn in range(plan.turns):
        used = sandbox.directory / "used"
        used.mkdir()
        for pair in pairs:
            shutil.copytree(pair.prepared, used, dirs_exist_ok=True)
        busy, proxy = pairs[0].nodes(sandbox, used)
        quiet, _ = pairs[1].nodes(sandbox, used)
        for node in (busy, quiet):
            node.start()
        for node in (busy, quiet):
            node.until_serving()
        proxy.start()
        with busy.client() as client:
            busy.until("compaction", lambda: _compacted(status(client)) or None)
        for kind in ("GET", "PUT") if turn % 2 else ("PUT", "GET"):
            order = Order(
                address=quiet.address,
                pids=[quiet.pid],
                kind=kind,
                keys=plan.load_keys,
                connections=CONNECTIONS,
                seconds=plan.seconds,
                seed=turn,
            )
            with _stopped(busy, proxy):
                without = sandbox.load(order)()
            order = replace(order, address=busy.address, pids=[busy.pid])
            beside, rate = _while_compacting(
                busy, sandbox.load(order), plan.load_keys, plan.seconds
            )
            outcomes[kind].append((beside, without))
            ratios[kind].append(beside.per_s / without.per_s)
            rates.append(rate)
        for node in (busy, quiet, proxy):
            node.kill()
        shutil.rmtree(used)
    for kind, found in ratios.items():
        beside_s, without_s = (
            median([pair[i].per_s for pair in outcomes[kind]]) for i in (0, 1)
        )
        p99 = [median([pair[i].p99_ms for pair in outcomes[kind]]) for i in (0, 1)]
        yield row(
            f"compaction.{kind.lower()}",
            f"{kind} while it compacts, durable store, {CONNECTIONS} connections",
            median(found),
            unit=" x without",
            besides=(
                f"{min(found):.2f} to {max(found):.2f} in {len(found)} pairs; "
                f"{beside_s:.0f}/s against {without_s:.0f}/s, "
                f"p99 {p99[0]:.0f} against {p99[1]:.0f} ms; "
                f"{shown(median(rates))} keys/s compacted meanwhile"
            ),
            samples={"ratios": found},
        )


def _while_compacting(
    node: Node, outcome: Callable[[], Outcome], keys: int, seconds: float
) -> tuple[Outcome, float]:
    """
    Wait for a load.

    :returns: it, and the keys compacted a second meanwhile.
    :raises RunFailed: if compaction ended before the load.
    """
    with node.client() as client:
        before, began = _compacted(status(client)), time.monotonic()
        loaded = outcome()
        after, ended = _compacted(status(client)), time.monotonic()
    if after >= keys - 1 or set(loaded.statuses) != {"200"}:
        raise RunFailed(
            f"{after} of {keys} keys were compacted, {loaded.statuses} in {seconds} s"
        )
    return loaded, (after - before) / (ended - began)


@contextmanager
def _stopped(*nodes: Node) -> Iterator[None]:
    """Stop processes for a while."""
    for node in nodes:
        os.kill(node.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for node in nodes:
            os.kill(node.pid, signal.SIGCONT)
