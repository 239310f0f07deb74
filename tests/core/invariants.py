"""
What always holds at a replica and its storage (R3, R6); checked after every step.

* Closed: a vector that covers a write covers its past.
* Closure: what VV covers is live here, or dominated by something live here.
* Nothing early: nothing live here is above VV.
* Antichain: the live versions of a key are pairwise concurrent.
* Equal VV means equal live versions, at whatever node and time.

Each holds twice: of the applied state, with commits that are under way, and of the
durable one, which is what others are shown.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

from tests.model import Oracle, Write, after, covered, joined
from twisted_kvs.core.causality import Dot, VersionVector
from twisted_kvs.core.replica import Replica
from twisted_kvs.core.versions import Antichain, Version

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
        self._last: dict[int, tuple[object, ...]] = {}
        self._seen: dict[frozenset[Dot], frozenset[Dot]] = {}
        self._closed: set[frozenset[Dot]] = set()

    def check(self, replica: Replica) -> None:
        """
        Check all of them now.

        :raises AssertionError: if one does not hold.
        """
        # Vectors and frontiers are never changed in place; what is live changes only
        # together with VV, or with a commit.
        now = (replica, replica._vv, replica._clock, replica.durable)
        last = self._last.get(id(replica), now[:1])
        if len(last) > 1 and all(map(operator.is_, last, now)):
            return
        self._last[id(replica)] = now
        self.checks += 1
        pending = replica._pending
        self._check_state(replica.applied.vv, pending.applied)
        self._check_state(replica.durable.vv, pending.durable)
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

    def _check_state(self, vv: VersionVector, read: ReadKey) -> None:
        live: set[Dot] = set()
        for key, writes in self.oracle.by_key.items():
            chain = [self._as_minted(version) for version in read(key)]
            for write in chain:
                assert write.key == key
                assert covered(write, vv), f"early: {write} is live and not in {vv}"
                assert not any(after(x, write) for x in chain), f"no antichain: {chain}"
            dots = {write.dot for write in chain}
            assert len(dots) == len(chain), f"twice the same: {chain}"
            for write in writes:
                if covered(write, vv) and write.dot not in dots:
                    assert any(after(x, write) for x in chain), (
                        f"{dict(vv)} covers {write}, which is not there"
                    )
            live |= dots
        known = self._seen.setdefault(frozenset(vv.items()), frozenset(live))
        assert known == live, f"equal knowledge {dict(vv)}, different versions"

    def _as_minted(self, version: Version) -> Write:
        write = self.oracle.writes[version.dot]
        same = (version.value, version.ts, dict(version.past))
        assert same == (write.value, write.ts, dict(write.past)), "changed on its way"
        return write
