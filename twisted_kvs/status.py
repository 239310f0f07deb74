"""What a node tells its operator about itself; the source of ``kvs status``."""

from __future__ import annotations

from .cluster import Cluster
from .compacting import Compacting
from .core.causality import Name, leq


def describe(cluster: Cluster, compacting: Compacting) -> dict[str, object]:
    """
    Describe a node and what it knows of its peers; JSON-able, keys are stable.

    Seconds are monotonic differences; ``lag_s`` is the age of the oldest write of this
    node that a peer is not known to have (0 if there is none, null if it is a proxy).
    ``compaction.held_up_s`` names the members that hold it up, and for how long;
    ``compaction.missing`` writes that others come after and that nobody has brought.
    """
    replica, committer = cluster.replica, cluster.committer
    durable = replica.durable
    result = committer.result
    return {
        "name": cluster.me,
        "actor": replica.actor,
        "boot_id": f"{cluster.boot_id:016x}",
        "role": "replica" if cluster.is_replica else "proxy",
        "removed": cluster.removed,
        "standing": cluster.standing.name.lower(),
        "replica_count": cluster.k,
        "replicas": list(cluster.replicas()),
        "view": list(cluster.view.order) or [cluster.me],
        "numbers": dict(cluster.view.numbers) or {cluster.me: 0},
        "alive": sorted(cluster.alive()),
        "version_vector": dict(durable.vv),
        "clock": dict(durable.clock),
        "lamport": durable.lamport,
        "versions": cluster.storage.count(),
        "size_bytes": cluster.storage.size_bytes,
        "unfolded": result.unfolded,
        "floor": dict(durable.floor),
        "compaction": {
            "stable": dict(compacting.stable),
            "passes": compacting.passes,
            "compacted": compacting.compacted,
            "seals": compacting.seals,
            "held_up_s": {
                name: round(seconds, 1)
                for name, seconds in compacting.held_up().items()
            },
            "missing": compacting.missing(),
        },
        "commits": committer.commits,
        "disk_full": committer.full,
        "hash_mismatches": cluster.hash_mismatches,
        "peers": {peer: _peer(cluster, peer) for peer in sorted(cluster.peers)},
    }


def _peer(cluster: Cluster, peer: Name) -> dict[str, object]:
    record, now = cluster.record(peer), cluster.now()
    heard = cluster.liveness.last_heard_s(peer, now)
    durable = cluster.replica.durable.vv
    behind = cluster.lag_s(peer)
    return {
        "alive": peer in cluster.alive(),
        "heard_s_ago": None if heard is None else round(heard, 3),
        "standing": record.standing.name.lower(),
        "lag_s": None if behind is None else round(behind, 3),
        "writes_behind": _writes_behind(durable, record.vv)
        if record.holds_all
        else None,
        "equal": leq(durable, record.vv) and leq(record.vv, durable),
    }


def _writes_behind(mine: object, theirs: object) -> int:
    assert isinstance(mine, dict) and isinstance(theirs, dict)
    return sum(max(0, n - theirs.get(a, 0)) for a, n in mine.items())
