"""
What one slice of compaction takes: the turns that hold up the event loop, one by one.

In this process, on a store as a node has it; nothing else is done, so what is left is
the slice itself, and what other processes take from it: hence CPU time besides.
"""

from __future__ import annotations

from collections.abc import Iterator

from twisted_kvs.core.payload import Payload
from twisted_kvs.core.settings import Settings

from .load import key_name
from .observing import percentile
from .preload import BATCH, Contents, Slice, Store, make_stores
from .processes import Sandbox
from .report import Row, row, shown

TARGET_MS = 20.0


def measure(sandbox: Sandbox, keys: int) -> Iterator[Row]:
    """Forget the pasts of so many keys; delete them, and seal and drop that, too."""
    address = sandbox.address()
    parent = sandbox.directory / "slices"
    parent.mkdir()
    contents = Contents(keys=keys, actors=3)
    (directory,) = make_stores(parent, [address], contents, holders=1)
    store = Store(directory, address.name, view=[address], replicas=1)
    settings = Settings()
    yield _row("pasts", "forgets pasts", list(store.compact(settings)))
    for first in range(0, keys, BATCH):
        for number in range(first, min(first + BATCH, keys)):
            store.replica.put(key_name(number), None, Payload({}, 0), wall_us=number)
        store.commit()
    yield _row("seals", "seals deletions", list(store.compact(settings)))
    yield _row("drops", "drops seals", list(store.compact(settings)))
    store.close()


def _row(name: str, what: str, slices: list[Slice]) -> Row:
    turns = sorted(part.turn_s * 1e3 for part in slices)
    cpu = sorted(part.cpu_s * 1e3 for part in slices)
    commits = sorted(part.commit_s * 1e3 for part in slices)
    keys = sum(part.keys for part in slices)
    return row(
        f"slice.{name}",
        f"longest turn of a slice that {what}, CPU time",
        cpu[-1],
        unit=" ms",
        at_most=TARGET_MS,
        besides=(
            f"p50 {shown(percentile(cpu, 50))}, p99 {shown(percentile(cpu, 99))} ms; "
            f"by the clock p50 {shown(percentile(turns, 50))}, "
            f"p99 {shown(percentile(turns, 99))}, most {shown(turns[-1])} ms; "
            f"its commit, beside, p50 {shown(percentile(commits, 50))} ms; "
            f"{keys} keys in {len(slices)} slices"
        ),
        samples={"turns_ms": turns, "cpu_ms": cpu, "commits_ms": commits},
    )
