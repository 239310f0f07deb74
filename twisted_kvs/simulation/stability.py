"""
What is stable, sealed and served, looked at from above (R9, R12, R15).

* What is stable at a replica is before all that it has not: before every write that is
  somewhere and not there, and before every write that is still to come.  This is what
  makes forgetting safe, so a report that promises too much is seen when it does that,
  and not only where it leads to a wrong winner.
* A seal comes after what its node has and nothing else, and hides no value.
* Who begins to serve has all that everybody had who served when it became a replica.

Only as long as no node has lost its state and nobody has changed the view: after that
reports may promise too much, and full joins make up for it.
"""

from __future__ import annotations

from collections.abc import Callable

from ..core.causality import Dot, Name, VersionVector, leq, meet
from ..core.messages import Standing
from ..core.versions import Version
from .cluster import Process, SimulatedCluster
from .oracle import Oracle, covered, joined


class Stability:
    """Checks all processes of a cluster, after every step."""

    def __init__(
        self, cluster: SimulatedCluster, oracle: Oracle, exists: Callable[[Dot], bool]
    ) -> None:
        """
        Watch ``cluster``.

        :param exists: whether a write has not ended, unseen, with its process.
        """
        self._cluster = cluster
        self._oracle = oracle
        self._exists = exists
        self._stable: VersionVector = {}
        """Join of all that has been stable anywhere."""
        self._stable_at: dict[int, VersionVector] = {}
        """By boot id, what was found to be so last."""
        self._seen: dict[int, tuple[VersionVector | None, ...]] = {}
        """By boot id, what was looked at last; vectors are replaced, never changed."""
        self._settled: VersionVector = {}
        """What all have had at some moment who served then."""
        self._owed: dict[int, VersionVector] = {}
        """By boot id of a replica: that, when it became one."""
        self._serving: set[int] = set()

    def minted(self, version: Version) -> None:
        """Check a write that was just made."""
        assert leq(self._stable, version.past), (
            f"{version} does not come after {self._stable}, which was stable"
        )

    def sealed(self, name: Name, seal: Version) -> None:
        """Check a seal that a node is about to store."""
        won = self._oracle.winner(seal.key, seal.past)
        assert won is None, f"{seal} hides {won}"
        for process in self._cluster.processes:
            replica = process.node.replica
            if (process.name, replica.actor) == (name, seal.actor):
                assert leq(seal.past, replica.applied.vv), (
                    f"{seal.dot} comes after what {name} does not have"
                )

    def look(self) -> None:
        """Look whether more is stable anywhere, and whether that is true."""
        for process in self._cluster.processes:
            if process.node.replica.holds_all:
                self._look_at(process)

    def _look_at(self, process: Process) -> None:
        node = process.node
        mine = node.replica.durable.vv
        reports = (node.cluster.record(peer).report for peer in node.cluster.peers)
        seen = (mine, *reports)
        last = self._seen.get(process.boot_id, ())
        if len(last) == len(seen) and all(map(_is, last, seen)):
            return
        self._seen[process.boot_id] = seen
        stable = node.compacting.stable
        if leq(stable, self._stable_at.get(process.boot_id, {})):
            return
        self._stable_at[process.boot_id] = stable
        self._stable = joined(self._stable, stable)
        for write in self._oracle.writes.values():
            before = covered(write, mine) or leq(stable, write.past)
            assert before or not self._exists(write.dot), (
                f"{stable} is stable at {node.me}, which lacks {write}"
            )

    def look_who_serves(self) -> None:
        """
        Look at who serves, as long as nobody was killed: all who had it may be.

        Who begins to has what all had who served when it became a replica.
        """
        low: VersionVector | None = None
        for process in self._cluster.processes:
            node = process.node
            # As it was settled last: what follows from who is alive changes by itself.
            if not node.membership._was_replica:
                self._owed.pop(process.boot_id, None)
                self._serving.discard(process.boot_id)
                continue
            owed = self._owed.setdefault(process.boot_id, self._settled)
            if node.cluster.standing is not Standing.SERVING:
                self._serving.discard(process.boot_id)
                continue
            vv = node.replica.durable.vv
            low = vv if low is None else meet(low, vv)
            if process.boot_id not in self._serving:
                self._serving.add(process.boot_id)
                assert leq(owed, vv), (
                    f"{process.name} serves and lacks what all had: {owed}, not {vv}"
                )
        if low is not None and not leq(low, self._settled):
            self._settled = joined(self._settled, low)


def _is(one: object, other: object) -> bool:
    return one is other
