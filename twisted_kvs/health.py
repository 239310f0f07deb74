"""
Whether a node should be asked: alive, and ready.

Alive is a process that answers at all.  Ready is a node from which clients get as good
an answer as from any other that is known: it serves, or reaches a replica that does.
Where no live replica is known to serve, one that answers provisionally is as good as it
gets; else a part of a cluster that is cut off would have nobody to ask.

A full disk or too much load do not make a node unready: reads go on, and a 503 says
when to come back.
"""

from __future__ import annotations

from .cluster import Cluster
from .core.messages import Standing


def obstacle(cluster: Cluster) -> str | None:
    """Tell why clients should not ask a node that runs; None: it is ready."""
    if cluster.removed:
        return f"{cluster.me} was removed from the view"
    replicas = cluster.replicas()
    standings = {
        name: cluster.standing if name == cluster.me else cluster.record(name).standing
        for name in replicas
    }
    wanted = Standing.PROVISIONAL
    if Standing.SERVING in standings.values():
        wanted = Standing.SERVING
    for name, standing in standings.items():
        if standing is wanted and (name == cluster.me or not cluster.skipped(name)):
            return None
    if wanted is Standing.SERVING:
        return "no replica that serves can be reached"
    return "still looking for a replica that serves"
