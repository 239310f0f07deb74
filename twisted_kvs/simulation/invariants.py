"""
What always holds at a replica and its storage (R3, R6); checked after every step.

* Closed: a vector that covers a write covers its past.
* Closure: what VV covers is live here, or dominated by something live here, or was
  reaped: its key's history ended in a seal below the floor.
* Nothing early: nothing live here is above VV.
* Antichain: the live versions of a key are pairwise concurrent.
* Equal VV means equal live versions, seals aside, at whatever node and time.
* A past that is not as it was minted was forgotten, and the floor covers it.

Each holds twice: of the applied state, with commits that are under way, and of the
durable one, which is what others are shown.
"""

from __future__ import annotations

from collections.abc import Callable

from ..core.causality import Dot, VersionVector, leq
from ..core.outcomes import Frontier
from ..core.replica import Replica
from ..core.versions import Antichain, Version
from .oracle import Oracle, Write, after, covered, joined, reaped

ReadKey = Callable[[str], Antichain]


def minted(version: Version) -> Write:
    """Describe a version to the oracle."""
    return Write(
        actor=version.actor,
        counter=version.counter,
        key=version.key,
        value=version.value,
        ts=version.ts,
        past=dict(version.past),
    )


class Invariants:
    """Checks the replicas of one cluster, which share a history."""

    def __init__(self, oracle: Oracle) -> None:
        """
        Check against what ``oracle`` has seen.

        :param oracle: is told of every write in the step that mints it.
        """
        self.oracle = oracle
        self.checks = 0
        """How often something had changed and was checked."""
        self._last: dict[
            int, tuple[Replica, VersionVector, VersionVector, VersionVector, Frontier]
        ] = {}
        self._seen: dict[frozenset[Dot], frozenset[Dot]] = {}
        self._closed: set[frozenset[Dot]] = set()

    def check(self, replica: Replica) -> None:
        """
        Check all of them now.

        :raises AssertionError: if one does not hold.
        """
        # Vectors and frontiers are never changed in place; what is live changes only
        # together with VV, or with a commit.
        last = self._last.get(id(replica))
        if (
            last is not None
            and last[1] is replica._vv
            and last[2] is replica._clock
            and last[3] is replica._floor
            and last[4] is replica.durable
            and last[0] is replica
        ):
            return
        self._last[id(replica)] = (
            replica,
            replica._vv,
            replica._clock,
            replica._floor,
            replica.durable,
        )
        self.checks += 1
        pending = replica._pending
        self._check_state(replica.applied, pending.applied)
        self._check_state(replica.durable, pending.durable)
        self.demand_closed(joined(replica.applied.clock, replica.applied.vv))
        self.demand_closed(replica.durable.clock)
        for actor, counter in replica.durable.vv.items():
            assert replica.applied.vv.get(actor, 0) >= counter or not replica.idle

    def demand_closed(self, vector: VersionVector) -> None:
        """Check a vector that was handed out or logged."""
        frozen = frozenset(vector.items())
        if frozen not in self._closed:
            # A write that is minted later is in no vector of today.
            self.oracle.demand_closed(vector)
            self._closed.add(frozen)

    def _check_state(self, state: Frontier, read: ReadKey) -> None:
        live: set[Dot] = set()
        vv, floor = state.vv, state.floor
        assert leq(floor, vv), f"the floor {floor} is above {vv}"
        self.demand_closed(floor)
        for key, writes in self.oracle.by_key.items():
            chain = [self._as_minted(version, floor) for version in read(key)]
            for write in chain:
                assert write.key == key
                assert covered(write, vv), f"early: {write} is live and not in {vv}"
                assert not any(after(x, write) for x in chain), f"no antichain: {chain}"
            dots = {write.dot for write in chain}
            assert len(dots) == len(chain), f"twice the same: {chain}"
            for write in writes:
                if covered(write, vv) and write.dot not in dots:
                    gone = any(after(x, write) for x in chain)
                    assert gone or reaped(write, writes, floor), (
                        f"{dict(vv)} covers {write}, which is not there"
                    )
            live |= {write.dot for write in chain if write.ts >= 0}
        known = self._seen.setdefault(frozenset(vv.items()), frozenset(live))
        assert known == live, f"equal knowledge {dict(vv)}, different versions"

    def _as_minted(self, version: Version, floor: VersionVector) -> Write:
        write = self.oracle.writes[version.dot]
        same = (version.value, version.ts) == (write.value, write.ts)
        forgotten = not version.past and leq({**write.past, **dict([write.dot])}, floor)
        assert same and (forgotten or dict(version.past) == dict(write.past)), (
            f"{version} was minted as {write}"
        )
        return write
