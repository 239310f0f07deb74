"""
What an exchange of gossip costs when there is nothing to exchange.

Two replicas with the same keys, a relay in front of each; so everything that they say
to each other is counted, HTTP included.  The interval is a tenth of a second, to see
many exchanges; it does not change them.  Few keys were written as often as many, since
a count of writes, which is in every message, takes more bytes the greater it is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass

from .observing import median
from .preload import Contents, make_stores
from .processes import Node, RunFailed, Sandbox
from .relay import Relay
from .report import Row, row, shown

SETTLED_S = 1.0
EXCHANGES_MIN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to measure."""

    sizes: tuple[int, int] = (10, 100_000)
    """Keys in the store: two numbers that should make no difference."""
    seconds: float = 5.0


def measure(sandbox: Sandbox, plan: Plan) -> Iterator[Row]:
    """Measure with each number of keys, then compare."""
    writes = max(plan.sizes)
    few, many = (
        _bytes(sandbox, Contents(keys=n, writes_each=writes // n), plan.seconds)
        for n in plan.sizes
    )
    for keys, found in zip(plan.sizes, (few, many), strict=True):
        yield row(
            f"idle.{keys}",
            f"idle gossip exchange, {keys} keys",
            median(found),
            unit=" bytes",
            besides=f"both directions, HTTP headers included; {min(found)} to "
            f"{max(found)} in {len(found)} exchanges",
            samples={"bytes": found},
        )
    difference = median(many) - median(few)
    yield row(
        "idle.difference",
        f"{plan.sizes[1]} keys take more than {plan.sizes[0]} by",
        difference,
        unit=" bytes",
        at_most=0,
        besides=f"{shown(difference / max(median(few), 1) * 100)} %",
    )


def _bytes(sandbox: Sandbox, contents: Contents, seconds: float) -> list[int]:
    names, real = sandbox.addresses(2), sandbox.addresses(2)
    parent = sandbox.directory / f"idle-{contents.keys}"
    parent.mkdir()
    directories = make_stores(parent, names, contents, holders=2)
    nodes = [
        Node(
            sandbox,
            name,
            directory,
            view=names,
            replicas=2,
            listens=listens,
            settings={"KVS_GOSSIP_INTERVAL_S": "0.1"},
        )
        for name, directory, listens in zip(names, directories, real, strict=True)
    ]
    with ExitStack() as stack:
        relays = [
            stack.enter_context(closing(Relay(name, listens)))
            for name, listens in zip(names, real, strict=True)
        ]
        for node in nodes:
            node.start()
        for node in nodes:
            node.until_serving()
        time.sleep(SETTLED_S)
        for relay in relays:
            relay.reset()
        time.sleep(seconds)
        counted = [x for relay in relays for x in relay.whole()]
        for node in nodes:
            node.stop()
    if len(counted) < EXCHANGES_MIN:
        raise RunFailed(f"only {len(counted)} exchanges in {seconds:g} s")
    return [x.asked_bytes + x.answered_bytes for x in counted]
