"""
What is left of replicas after keys were written and deleted again and again.

Compared with a cluster of the same program to which only what is live was ever written;
the worst of the one with the best of the other, both at rest: nothing is left to be
forgotten, and the files do not change any more.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .processes import Node, RunFailed, Sandbox, status
from .report import Row, row
from .wire import delete_request, key_path, put_request

NODES = 3
CONNECTIONS = 16
RATIO_TARGET = 1.1
WITHIN_S = 300.0
REST_S = 5.0
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to measure."""

    keys: int = 2_000
    times: int = 10
    live: int = 1_000
    """Keys that stay, written before."""


def measure(sandbox: Sandbox, plan: Plan) -> Iterator[Row]:
    """Churn one cluster, spare the other."""
    churned, spared = _cluster(sandbox), _cluster(sandbox)
    for cluster in (churned, spared):
        _each(cluster, "live", plan.live, delete=False)
    began = time.monotonic()
    most = 0
    for _ in range(plan.times):
        _each(churned, "churn", plan.keys, delete=False)
        _each(churned, "churn", plan.keys, delete=True)
        most = max(most, *(node.rss_bytes() for node in churned))
    ended = time.monotonic()
    for node in (*churned, *spared):
        _until_at_rest(node, plan.live)
    rested_s = time.monotonic() - ended
    files = max(map(_files, churned))
    rss = max(node.rss_bytes() for node in churned)
    files_spared = min(map(_files, spared))
    rss_spared = min(node.rss_bytes() for node in spared)
    for node in (*churned, *spared):
        node.stop()
    what = f"{plan.keys} keys written and deleted {plan.times} times"
    live = f"{plan.live} live keys"
    yield row(
        f"churn.{plan.keys}.files",
        f"files after {what}, the greatest of {NODES} replicas",
        files / files_spared,
        unit=" x spared",
        at_most=RATIO_TARGET,
        besides=f"{files / 1024:.0f} against {files_spared / 1024:.0f} KiB, {live}; "
        f"at rest {rested_s:.0f} s after {ended - began:.0f} s of churn",
    )
    yield row(
        f"churn.{plan.keys}.rss",
        f"memory after {what}, the greatest of {NODES} replicas",
        rss / rss_spared,
        unit=" x spared",
        at_most=RATIO_TARGET,
        besides=f"{rss / MIB:.1f} against {rss_spared / MIB:.1f} MiB; "
        f"meanwhile {most / MIB:.1f} at most",
    )


def _cluster(sandbox: Sandbox) -> list[Node]:
    addresses = sandbox.addresses(NODES)
    nodes = [
        Node(
            sandbox,
            address,
            sandbox.directory / f"churn-{address.port}",
            view=addresses,
            replicas=NODES,
        ).start()
        for address in addresses
    ]
    for node in nodes:
        node.until_serving()
    return nodes


def _each(nodes: list[Node], prefix: str, keys: int, *, delete: bool) -> None:
    """Write or delete every key, each at a node of its own, over many connections."""

    def part(first: int) -> None:
        with nodes[first % NODES].client() as client:
            for number in range(first, keys, CONNECTIONS):
                path = key_path(f"{prefix}-{number:06d}")
                if delete:
                    answer, right = client.ask(delete_request(path)), 200
                else:
                    answer, right = client.ask(put_request(path, "x" * 100)), 201
                if answer.status != right:
                    raise RunFailed(f"{path}: want {right}, got {answer}")

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        list(threads.map(part, range(CONNECTIONS)))


def _until_at_rest(node: Node, live: int) -> None:
    since, known = time.monotonic(), -1
    with node.client() as client:

        def at_rest() -> bool | None:
            nonlocal since, known
            files = _files(node)
            found = status(client)
            if files != known or found["versions"] != live:
                since, known = time.monotonic(), files
            return time.monotonic() - since > REST_S or None

        node.until("rest", at_rest, within_s=WITHIN_S, every_s=0.2)


def _files(node: Node) -> int:
    assert node.directory is not None
    return directory_bytes(node.directory)


def directory_bytes(directory: Path) -> int:
    """Tell the size of all files of a store."""
    return sum(path.stat().st_size for path in directory.iterdir() if path.is_file())
