"""
A cluster in a storm: real nodes, clients, every fault, and who sees all of it.

First the storm, in which only safety is asked for, and that every live node answers.
Then the calm, in which all must come together within ten seconds, and after which no
answer may be unsure.  What is asked for is in ``checkers``, what clients do in
``clients``, what goes wrong in ``weather`` and ``stories``.

A history is a list of small tuples, so that it shrinks well; all numbers in it are
taken modulo what exists.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ..core.causality import Name, VersionVector, leq
from ..core.errors import Overloaded, Removed
from ..core.messages import Standing
from ..core.payload import EMPTY_PAYLOAD
from ..core.settings import Settings
from ..node import Node
from .checkers import checking, stamp_of
from .clients import PATIENCE_S
from .cluster import Died
from .faults import FAULTS, Fault
from .looking import at_ease, still_kept
from .oracle import Write
from .stories import Stories

Op = tuple[object, ...]
PROVOKE_MS = 100
"""How often is looked whether a fault has happened that is provoked."""
START_S = 0.4
"""A healthy cluster serves after this."""
CONVERGE_S = 10.0
TIDY_LOOKS = 8
LOOK_S = 0.25
"""How often is looked whether all have come together."""
REST_BEATS = 12
"""Reports, a seal, its dropping and retired actors take some beats of compaction."""


class FaultMissing(AssertionError):
    """A run in which a planned fault did not happen proves less than it says."""


class Storm(Stories):
    """One cluster, its clients and its faults."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        seed: int = 0,
        nodes: int = 4,
        k: int = 3,
        keys: int = 2,
        clients: int = 5,
    ) -> None:
        """Start a healthy cluster of ``nodes`` nodes, the first ``k`` as replicas."""
        super().__init__(
            settings, seed=seed, nodes=nodes, k=k, keys=keys, clients=clients
        )
        self.operations = 0
        self.converged_s = 0.0
        """How long it took to come together after the end of all faults."""
        self.cluster.after_step = self._look
        self.cluster.start(self.names)
        self.cluster.advance(START_S)

    def run(self, history: Iterable[Op], planned: Iterable[str] = ()) -> Storm:
        """
        Do all of it, then calm down and demand that all come together.

        :param planned: names of faults that are to happen at least once.
        :raises Violation: if a promise was broken.
        :raises FaultMissing: if a planned fault did not happen.
        """
        for op in history:
            self.step(op)
        for name in planned:
            self._provoke(FAULTS[name])
        self.calm()
        self._go_on()
        self._rest()
        self._find_rot()
        for name in planned:
            if not self._happened(FAULTS[name]):
                raise FaultMissing(f"planned, and did not happen: {name}")
        return self

    def step(self, op: Op) -> None:
        """Do one operation."""
        name, *arguments = op
        self.operations += 1
        self._healthy = self._healthy and name in CLIENT_OPS
        if self.observe is not None:
            self.observe(f"* {spell(op)}")
        getattr(self, f"do_{name}")(*arguments)

    def _provoke(self, fault: Fault) -> None:
        """Let a fault happen that was planned and has not happened by itself."""
        if self._happened(fault):
            return
        for op in fault.provoke:
            name, *arguments = op
            if name != "advance":
                self.step(op)
                continue
            for _ in range(int(str(arguments[0])) // PROVOKE_MS):
                self.step(("advance", PROVOKE_MS))
                if self._happened(fault):
                    return
        if not (fault.at_end or self._happened(fault)):
            raise FaultMissing(f"planned, and did not happen: {fault.name}")

    def _happened(self, fault: Fault) -> bool:
        self._count_traffic()
        return self.events[fault.event] > 0

    def _count_traffic(self) -> None:
        traffic = self.cluster.network.traffic
        for kind in ("lost", "duplicated", "garbage", "cut", "delayed", "reordered"):
            self.events[kind] = getattr(traffic, kind)
        for cause, count in traffic.causes.items():
            self.events[f"lost by: {cause}"] = count
        disks = [disk for name in self.names for disk in self._disks(name)]
        for kind in ("refused", "slow"):
            seen = sum(getattr(disk, kind) for disk in disks)
            event = f"commits {kind}"
            self.events[event] = max(self.events[event], seen)

    def _look(self) -> None:
        """Check all that holds after every step, and who waits."""
        self.witness.look()
        now = self.cluster.clock.seconds()
        for session in self.sessions:
            asking = session.asking
            if asking is None:
                continue
            process = self.cluster.process(asking.node)
            if process is not None and process.paused_at is None:
                self.witness.check_waiting(asking)
            elif now - asking.since > PATIENCE_S:
                self._try_again(asking)

    # The calm.

    def calm(self) -> None:
        """End all faults; within ten seconds all replicas show the right winners."""
        self.do_heal()
        self._count_traffic()
        self.do_quiet()
        self.do_revive()
        began = self.cluster.clock.seconds()
        if self.do_regroup():
            # The last member was added just now.
            began = self.cluster.clock.seconds()
        left = CONVERGE_S
        while left > LOOK_S / 2 and not self._together():
            self.cluster.advance(LOOK_S)
            left = CONVERGE_S - (self.cluster.clock.seconds() - began)
        self.converged_s = self.cluster.clock.seconds() - began
        if not self._sure():
            self.cluster.advance(max(left, LOOK_S))
        self._let_commits_end()
        with checking("convergence"):
            self.demand_converged()
        self._healthy = True

    def _let_commits_end(self) -> None:
        """Wait for what compaction may just have begun: commits, and a seal's push."""
        for _ in range(100):
            nodes, known = list(self.cluster.nodes.values()), self._known()
            if all(node.replica.idle for node in nodes) and all(
                self._has_all(node, known) for node in nodes if node.cluster.is_replica
            ):
                break
            self.cluster.advance(0.01)

    def _together(self) -> bool:
        """Tell whether it looks as if all had come together."""
        nodes = list(self.cluster.nodes.values())
        view, known = nodes[0].cluster.view, self._known()
        if view.members != set(self.names):
            return False
        replicas = nodes[0].cluster.replicas()
        return all(
            node.cluster.view == view
            and node.cluster.replicas() == replicas
            and node.cluster.k == nodes[0].cluster.k
            and at_ease(node)
            and (node.me not in replicas or self._has_all(node, known))
            for node in nodes
        )

    def _has_all(self, node: Node, known: VersionVector) -> bool:
        serves = node.cluster.standing is Standing.SERVING
        return serves and node.replica.durable.vv == known

    def _sure(self) -> bool:
        """Tell whether every node answers without the stale mark."""
        for node in list(self.cluster.nodes.values()):
            try:
                answer = self.cluster.wait(node.get(self.keys[0], EMPTY_PAYLOAD))
            except (Died, Overloaded, Removed):
                return False
            if "KVS-Stale" in dict(answer.headers):
                return False
        return True

    def demand_converged(self) -> None:
        """
        Same knowledge, same data, the right winner; nothing acknowledged is lost.

        :raises AssertionError: that says what is wrong.
        """
        nodes = self.cluster.nodes
        view = nodes[self.names[0]].cluster.view
        for node in nodes.values():
            assert node.cluster.view == view, f"{node.me} has another view"
        order = view.order
        assert sorted(order) == sorted(self.names), f"members {order}"
        replicas = [nodes[n] for n in order if nodes[n].cluster.is_replica]
        counts = {node.replica.replica_count for node in nodes.values()}
        assert len(counts) == 1, f"K: {counts}"
        wanted = min(counts.pop().k, len(self.names))
        roles = tuple(n.me for n in replicas)
        assert roles == order[:wanted], f"replicas {roles} of {order}"
        known = self._known()
        shown: dict[str, Write | None] = {}
        for node in replicas:
            assert node.replica.durable.vv == known, f"{node.me} lacks something"
            assert node.replica.idle
            for key in self.keys:
                version = node.replica.read(key, EMPTY_PAYLOAD).version
                right = self.oracle.winner(key, known)
                if self.witness.exact:
                    asif = self.oracle.winner(key, known, seals=False)
                    assert right is asif, f"a seal changed {key}: {right}, not {asif}"
                assert (version and version.dot) == (right and right.dot), (
                    f"{node.me} shows {version}, wanted {right}"
                )
                shown[key] = right
        hashes = {self.cluster.disks[n.me].result for n in replicas}
        assert len(hashes) == 1, "equal knowledge, different check sums"
        with checking("durability"):
            for dot in self.witness.acknowledged - self.witness.lost:
                assert known.get(dot[0], 0) >= dot[1], (
                    f"{dot} was acknowledged and is lost"
                )
        self._ask_all(shown)
        # A former replica that still pulls may have begun to, just now.
        for _ in range(TIDY_LOOKS):
            if all(at_ease(n) for n in nodes.values()):
                break
            self.cluster.advance(LOOK_S)
        self._demand_tidy()

    def _demand_tidy(self) -> None:
        """Nothing is left of the storm: no request, no half delta, no bytes counted."""
        for name, node in self.cluster.nodes.items():
            assert not node.cluster.hash_mismatches, "equal VV, different data (R17)"
            assert node._working == 0
            assert node.receiver.receiving is None
            assert node.cluster.committer.waiting_bytes == 0
            assert not node.cluster.committer.full
            disk = self.cluster.disks[name]
            assert disk.result.unfolded == 0
            assert not disk._tally.filling, "a stage that nobody will ever finish"

    def _ask_all(self, shown: dict[str, Write | None]) -> None:
        """Any node, proxies too, tells any client the same, and is sure of it."""
        for name in self.names:
            for key, right in shown.items():
                node = self.cluster.nodes[name]
                answer = self.cluster.wait(node.get(key, EMPTY_PAYLOAD))
                with checking("staleness"):
                    stale = "KVS-Stale" in dict(answer.headers)
                    assert not stale, f"{name} is unsure"
                if right is None:
                    assert answer.status == 404
                    continue
                assert right.value is not None
                fields = msgspec.json.decode(answer.body)
                origin = Name(right.actor.partition("#")[0])
                told = (fields["value"], fields["node_id"], fields["timestamp"])
                assert told == (
                    msgspec.json.decode(right.value),
                    node.cluster.view.numbers.get(origin, 0),
                    stamp_of(right.ts),
                ), f"{name} tells {told} of {right}"

    def _go_on(self) -> None:
        """Clients of the storm go on; nothing that they could be told is unsure."""
        self.cluster.advance(0.01)
        for client in range(len(self.sessions)):
            for offset in range(2):
                self.do_get(client, client + offset, client + offset)
                self.cluster.advance(0.05)
        for client in range(2):
            self.do_roam(client, self._serial, client)
        self.cluster.advance(0.3)

    def _rest(self) -> None:
        """
        A cluster at rest forgets what nobody needs, and shows what it showed.

        Not where the clock of a node names a write that is lost for good (hole H12).
        """
        nodes = list(self.cluster.nodes.values())
        if not self.events["deleted"] and not self.events["sealed"]:
            return
        interval_s = self.cluster.settings.compact_interval_s
        known = self._known()
        whole = all(leq(node.replica.durable.clock, known) for node in nodes)
        for _ in range(REST_BEATS):
            self.cluster.advance(2 * interval_s + 0.6)
            if still_kept(self.cluster, self.keys) is None:
                break
        self._let_commits_end()
        with checking("convergence"):
            self.demand_converged()
            left = still_kept(self.cluster, self.keys)
            assert not whole or left is None, f"not forgotten: {left}"
        self.events["rested"] += 1

    def _find_rot(self) -> None:
        """Damage that a disk does not notice is noticed by gossip (R17)."""
        replicas = [n for n in self.cluster.nodes.values() if n.cluster.is_replica]
        if not self.rots or len(replicas) < 2:
            return
        rotten = [n for n in replicas if n.me in self.rotten] or replicas
        tally = self.cluster.disks[rotten[0].me]._tally
        tally.live_hash ^= 1
        self.events["disk damaged"] += 1
        self.do_everywhere(0)
        self.cluster.advance(4)
        told = sum(n.cluster.hash_mismatches for n in replicas)
        with checking("convergence"):
            assert told, f"nobody noticed the damage at {rotten[0].me} (R17)"
        tally.live_hash ^= 1


CLIENT_OPS = frozenset(
    {
        "advance",
        "burst",
        "delete",
        "erase",
        "everywhere",
        "forget",
        "get",
        "put",
        "roam",
        "tie",
    }
)
"""Operations that are no faults."""


def spell(op: Op) -> str:
    """Write an operation so that somebody who did not draw it can read it."""
    name, *arguments = op
    method = getattr(Storm, f"do_{name}")
    code = method.__code__
    names = code.co_varnames[1 : code.co_argcount]
    pairs = zip(names, arguments, strict=False)
    return " ".join([str(name), *(f"{n}={a}" for n, a in pairs)])
