"""
How long a node takes from its start to its first answer, with and without keys; and
how much memory it has then, and after it was read for a while.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .load import Order, key_name
from .observing import median
from .preload import Contents, make_stores
from .processes import Node, Sandbox
from .report import Row, row
from .wire import get_request, key_path

MIB = 2**20
READ_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to measure."""

    turns: int = 5
    keys: int = 100_000


def measure(sandbox: Sandbox, plan: Plan) -> Iterator[Row]:
    """Start both in turns."""
    address = sandbox.address()
    contents = Contents(keys=plan.keys)
    (full,) = make_stores(sandbox.directory, [address], contents, holders=1)
    request = get_request(key_path(key_name(plan.keys - 1)))
    times: dict[int, list[float]] = {0: [], plan.keys: []}
    memory: dict[int, list[float]] = {0: [], plan.keys: []}
    stops: list[float] = []
    after_reading = 0.0
    for turn in range(plan.turns):
        for keys, seconds in times.items():
            directory = full if keys else sandbox.directory / f"empty-{turn}"
            node = Node(sandbox, address, directory).start()
            seconds.append(node.ready(request=request, every_s=0.002) - node.started_at)
            memory[keys].append(node.rss_bytes() / MIB)
            if keys and turn == plan.turns - 1:
                sandbox.load(
                    Order(
                        address=address,
                        pids=[node.pid],
                        kind="GET",
                        keys=keys,
                        seconds=READ_S,
                    )
                )()
                after_reading = node.rss_bytes() / MIB
            stops.append(node.stop())
    few, many = median(times[0]), median(times[plan.keys])
    yield row(
        "start.empty",
        "start with an empty store until the first answer",
        few,
        unit=" s",
        besides=f"{max(times[0]):.2f} s at most in {plan.turns}",
        samples={"seconds": times[0]},
    )
    yield row(
        f"start.{plan.keys}",
        f"start with {plan.keys} keys until the first answer",
        many,
        unit=" s",
        besides=f"{max(times[plan.keys]):.2f} s at most in {plan.turns}; "
        f"{many / few:.2f} x an empty one; stops within {max(stops):.2f} s",
        samples={"seconds": times[plan.keys]},
    )
    yield row(
        f"memory.{plan.keys}",
        f"memory of a node with {plan.keys} keys, after reading them",
        after_reading,
        unit=" MiB",
        besides=f"just started {median(memory[plan.keys]):.0f} MiB, "
        f"with an empty store {median(memory[0]):.0f} MiB",
    )
