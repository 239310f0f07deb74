"""What can be seen of a node and of an answer, in words and from outside."""

from __future__ import annotations

from collections.abc import Iterable

from twisted.python.failure import Failure

from ..core.versions import winner
from ..node import Node
from ..operations import Answer
from .cluster import SimulatedCluster


def at_ease(node: Node) -> bool:
    """Tell whether a node waits for nobody, and holds nothing against anybody."""
    cluster, records = node.cluster, node.cluster.records
    return (
        not node._working
        and node.replica.idle
        and node.receiver.receiving is None
        and not cluster.committer.result.unfolded
        and not cluster.committer.full
        and not node.pulls._running
        and not any(queue.flying for queue in node.pushes._queues.values())
        and not any(records[n].exchanging or cluster.skipped(n) for n in records)
    )


def still_kept(cluster: SimulatedCluster, keys: Iterable[str]) -> str | None:
    """Tell what a replica still keeps that nobody needs; None: nothing."""
    for node in cluster.nodes.values():
        if not node.cluster.is_replica:
            continue
        for key in keys:
            chain = cluster.disks[node.me].versions(key)
            won = winner(chain)
            if won is not None and (won.value is None or any(v.past for v in chain)):
                return f"{chain} at {node.me}"
    return None


def tell(result: Answer | Failure) -> str:
    """Write what a client was answered in one line."""
    if isinstance(result, Failure):
        return f"{type(result.value).__name__}: {result.value}"
    stale = " stale" if "KVS-Stale" in dict(result.headers) else ""
    return f"{result.status}{stale} {result.body[:60].decode(errors='replace')}"
