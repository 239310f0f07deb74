"""
Requests a second of one node, durable and in memory, against Klein's hello world.

Short runs take turns, so that what else the machine does meets all alike; a ratio is
that of runs of the same turn, and of the ratios the median counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

from .load import Order, Outcome, key_name
from .observing import median
from .processes import Node, RunFailed, Sandbox
from .report import Row, row
from .wire import Client, get_request, key_path, put_request

CONNECTIONS = 32
GET_TARGET = 0.5
PUT_TARGET = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """How long to measure."""

    turns: int = 5
    seconds: float = 2.0
    keys: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One line of the table."""

    name: str
    what: str
    order: Order
    at_least: float | None


def measure(sandbox: Sandbox, turns: Turns) -> Iterator[Row]:
    """Measure; the rows are known at the end."""
    durable = Node(sandbox, sandbox.address(), sandbox.directory / "durable").start()
    memory = Node(sandbox, sandbox.address(), None).start()
    hello = _start_hello(sandbox, turns)
    durable.ready()
    memory.ready()
    cases = [
        _Case(name="hello", what="Klein's hello world", order=hello, at_least=None)
    ]
    for node, kind in ((durable, "durable"), (memory, "memory")):
        order = Order(
            address=node.address,
            pids=[node.pid],
            kind="GET",
            keys=turns.keys,
            connections=CONNECTIONS,
            seconds=turns.seconds,
        )
        payload = _fill(node, turns.keys)
        cases += _cases(order, kind, payload, judged=kind == "durable")
    outcomes: dict[str, list[Outcome]] = {case.name: [] for case in cases}
    for turn in range(turns.turns):
        for case in cases:
            outcome = sandbox.load(replace(case.order, seed=turn))()
            _check(case.name, outcome)
            outcomes[case.name].append(outcome)
    durable.stop()
    memory.stop()
    for case in cases:
        yield _row(case, outcomes[case.name], outcomes["hello"])


def _cases(order: Order, kind: str, payload: str, *, judged: bool) -> list[_Case]:
    connections = f"{order.connections} connections"
    put = replace(order, kind="PUT")
    cases = [
        _Case(
            name=f"get_{kind}",
            what=f"GET, {kind} store, {connections}",
            order=order,
            at_least=GET_TARGET,
        ),
        _Case(
            name=f"put_{kind}",
            what=f"PUT, {kind} store, {connections}",
            order=put,
            at_least=PUT_TARGET if judged else None,
        ),
    ]
    if judged:
        cases += [
            _Case(
                name=f"get_{kind}_payload",
                what=f"GET with causal payload, {kind} store",
                order=replace(order, payload=payload),
                at_least=None,
            ),
            _Case(
                name=f"put_{kind}_payload",
                what=f"PUT with causal payload, {kind} store",
                order=replace(put, payload=payload),
                at_least=None,
            ),
        ]
    return cases


def _start_hello(sandbox: Sandbox, turns: Turns) -> Order:
    address = sandbox.address()
    process = sandbox.spawn(["-m", "bench.hello", address.host, str(address.port)])
    # A node like any other, as far as waiting for it goes.
    watched = Node(sandbox, address, None, process=process)
    watched.ready(request=get_request("/"))
    return Order(
        address=address,
        pids=[process.pid],
        kind="PATH",
        path="/",
        connections=CONNECTIONS,
        seconds=turns.seconds,
    )


def _fill(node: Node, keys: int) -> str:
    """Write every key once; returns the payload of the last write."""
    payload = ""
    with Client(node.address) as client:
        for number in range(keys):
            path = key_path(key_name(number))
            answer = client.ask(put_request(path, "x" * 100))
            if answer.status != 201:
                raise RunFailed(f"PUT of a new key: {answer}")
            payload = json.loads(answer.body)["causal_payload"]
    return payload


def _check(name: str, outcome: Outcome) -> None:
    if set(outcome.statuses) != {"200"}:
        raise RunFailed(f"{name}: statuses {outcome.statuses}, want 200 only")


def _row(case: _Case, outcomes: list[Outcome], hello: list[Outcome]) -> Row:
    ratios = [
        mine.per_s / theirs.per_s for mine, theirs in zip(outcomes, hello, strict=True)
    ]
    by_cpu = [
        theirs.cpu_us / mine.cpu_us
        for mine, theirs in zip(outcomes, hello, strict=True)
    ]
    besides = (
        f"{median([o.per_s for o in outcomes]):.0f}/s, "
        f"by CPU {median(by_cpu):.2f} x, "
        f"p50 {median([o.p50_ms for o in outcomes]):.1f} ms, "
        f"p99 {median([o.p99_ms for o in outcomes]):.1f} ms, "
        f"CPU {median([o.cpu_us for o in outcomes]):.0f} us "
        f"(client {median([o.own_cpu_s / o.requests for o in outcomes]) * 1e6:.0f})"
    )
    return row(
        f"throughput.{case.name}",
        case.what,
        median(ratios),
        unit=" x hello",
        at_least=case.at_least,
        besides=besides,
        samples={"ratios": ratios, "per_s": [o.per_s for o in outcomes]},
    )
