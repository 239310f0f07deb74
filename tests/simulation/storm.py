"""
A cluster in a storm: real nodes, clients, every fault, and who sees all of it.

First the storm, in which only safety is asked for: what a client is told without
``KVS-Stale`` is never older than what it knows, and every live node answers within a
second.  Then the calm, in which all must come together within ten seconds.

A history is a list of small tuples, so that Hypothesis shrinks it well; all numbers in
it are taken modulo what exists.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import msgspec
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tests.core.invariants import Invariants, minted
from tests.model import Oracle, joined
from twisted_kvs.core.causality import Actor, Dot, Name, VersionVector, leq
from twisted_kvs.core.errors import (
    BadRequest,
    DiskFull,
    Overloaded,
    Removed,
    StorageFull,
)
from twisted_kvs.core.messages import Commit
from twisted_kvs.core.names import parse_name
from twisted_kvs.core.payload import EMPTY_PAYLOAD, Payload, before
from twisted_kvs.core.settings import Settings
from twisted_kvs.core.versions import Version
from twisted_kvs.node import Node
from twisted_kvs.operations import Answer
from twisted_kvs.simulation.cluster import SimulatedCluster

Op = tuple[object, ...]
ANSWER_S = 1.0
CONVERGE_S = 10.0
SLACK_S = 0.002
"""The simulation moves time in steps of a millisecond."""


@dataclass(slots=True)
class Session:
    """A client, and what it has a right to."""

    payload: Payload = EMPTY_PAYLOAD
    knows: VersionVector = field(default_factory=dict)
    asking: Asking | None = None


@dataclass(slots=True)
class Asking:
    """A request that was not answered yet."""

    session: Session
    node: Node
    key: str
    writing: bool
    since: float
    given: Payload


class Storm:
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
        self.cluster = SimulatedCluster(seed, k=k, settings=settings)
        self.oracle = Oracle()
        self.invariants = Invariants(self.oracle)
        self.events: Counter[str] = Counter()
        self.names = [parse_name(f"10.0.0.{i + 9}:8080") for i in range(nodes)]
        self.keys = [f"k{i}" for i in range(keys)]
        self.sessions = [Session() for _ in range(clients)]
        self.acknowledged: dict[Dot, Name] = {}
        self.wiped: set[Name] = set()
        self.values: dict[bytes, list[Dot]] = {}
        self._removed: set[Name] = set()
        self.slowest_s = 0.0
        self._serial = 0
        self.cluster.committing = self._committing
        self.cluster.after_step = self._check
        self.cluster.start(self.names)
        self.cluster.advance(0.4)

    def run(self, history: list[Op]) -> Storm:
        """Do all of it, then calm down and demand that all come together."""
        for op in history:
            self.step(op)
        self.calm()
        return self

    def step(self, op: Op) -> None:
        """Do one operation."""
        name, *arguments = op
        getattr(self, f"do_{name}")(*arguments)

    def at(self, index: int) -> Name:
        """Choose a node."""
        return self.names[index % len(self.names)]

    # Who sees everything.

    def _committing(self, _: Name, commit: Commit) -> None:
        for version in commit.minted:
            self._mint(version)
        self.events["delta in parts"] += commit.validate is not None
        self.events["dropped all data"] += commit.forget_all

    def _mint(self, version: Version) -> None:
        if version.dot not in self.oracle.writes:
            self.oracle.mint(minted(version))
            self.values.setdefault(version.value, []).append(version.dot)

    def _check(self) -> None:
        for node in self.cluster.nodes.values():
            for version in node.replica._minted:
                self._mint(version)
            for commit in node.replica._ready:
                for version in commit.minted:
                    self._mint(version)
        for node in self.cluster.nodes.values():
            self.invariants.check(node.replica)
        now = self.cluster.clock.seconds()
        for session in self.sessions:
            asking = session.asking
            if asking is not None and asking.node in self.cluster.nodes.values():
                waited = now - asking.since
                assert waited <= ANSWER_S + SLACK_S, f"no answer within {waited} s"

    # Clients.

    def do_put(self, client: int, node: int, key: int) -> None:
        """A client writes."""
        self._serial += 1
        self._ask(client, self.at(node), key, value=f'"{self._serial}"'.encode())

    def do_burst(self, client: int, node: int, key: int) -> None:
        """Several clients write and read here and next door, almost at once."""
        for offset in range(2):
            self.do_put(client + offset, node + offset, key)
            self.do_advance(2)
            self.do_get(client + offset, node + 1 - offset, key)

    def do_get(self, client: int, node: int, key: int) -> None:
        """A client reads."""
        self._ask(client, self.at(node), key, value=None)

    def do_forget(self, client: int) -> None:
        """A client without history comes."""
        index = client % len(self.sessions)
        if self.sessions[index].asking is None:
            self.sessions[index] = Session()

    def _ask(self, client: int, at: Name, key: int, *, value: bytes | None) -> None:
        node = self.cluster.nodes.get(at)
        free = [s for s in self.sessions if s.asking is None]
        if node is None or not free:
            return
        session = free[client % len(free)]
        asking = Asking(
            session=session,
            node=node,
            key=self.keys[key % len(self.keys)],
            writing=value is not None,
            since=self.cluster.clock.seconds(),
            given=session.payload,
        )
        session.asking = asking
        waiting: Deferred[Answer]
        if value is None:
            waiting = node.get(asking.key, session.payload)
        else:
            waiting = node.put(asking.key, value, session.payload)
        waiting.addBoth(self._answered, asking).addErrback(self._failed)

    def _answered(self, result: Answer | Failure, asking: Asking) -> None:
        session = asking.session
        if session.asking is not asking:
            return  # It died, and its client noticed.
        session.asking = None
        waited = self.cluster.clock.seconds() - asking.since
        self.slowest_s = max(self.slowest_s, waited)
        if isinstance(result, Failure):
            result.trap(StorageFull, Overloaded, Removed)
            self.events[f"answered {type(result.value).__name__}"] += 1
            return
        headers = dict(result.headers)
        stale = "KVS-Stale" in headers
        payload = asking.node.payloads.decode(headers["KVS-Causal-Payload"])
        kind = "write" if asking.writing else "read"
        self.events[f"{kind} {'stale' if stale else 'fresh'}"] += 1
        assert before(asking.given, payload), "a payload must grow"
        assert leq(session.knows, payload.vector)
        self.invariants.demand_closed(payload.vector)
        session.payload = payload
        if asking.writing:
            self._wrote(asking, headers["KVS-Dot"], payload)
        else:
            self._read(asking, result, stale=stale)

    def _wrote(self, asking: Asking, named: str, payload: Payload) -> None:
        actor, _, counter = named.rpartition(":")
        dot = (Actor(actor), int(counter))
        write = self.oracle.writes[dot]
        session = asking.session
        assert leq(session.knows, write.past), "writes follow reads"
        assert payload.vector == self.oracle.upto([dot])
        session.knows = joined(session.knows, payload.vector)
        self.acknowledged[dot] = Name(actor.partition("#")[0])

    def _read(self, asking: Asking, answer: Answer, *, stale: bool) -> None:
        session = asking.session
        dots: list[Dot] = []
        if answer.status == 200:
            fields = msgspec.json.decode(answer.body, type=dict[str, msgspec.Raw])
            # A write that was tried twice has two dots: at least one of them fits.
            dots = self.values[bytes(fields["value"])]
        else:
            assert answer.status == 404, answer
        shown = [d for d in dots if leq(self.oracle.upto([d]), session.payload.vector)]
        assert len(shown) > 0 or not dots, "a payload must name what was shown"
        if stale:
            return
        if len(shown) < 2:
            dot = shown[0] if shown else None
            self.oracle.demand_shown(asking.key, session.knows, dot)
            session.knows = joined(session.knows, self.oracle.upto(shown))

    def _failed(self, failure: Failure) -> None:
        self.cluster._deaths.append(failure.getTraceback())

    # Faults.

    def do_advance(self, milliseconds: int) -> None:
        """Time passes."""
        self.cluster.advance(milliseconds / 1000)

    def do_cut(self, one: int, other: int, both: bool = True) -> None:
        """A link breaks, perhaps in one direction only."""
        network = self.cluster.network
        network.faults.cuts.add((self.at(one), self.at(other)))
        if both:
            network.faults.cuts.add((self.at(other), self.at(one)))

    def do_partition(self, members: int) -> None:
        """The network falls into two; bits say who is on which side."""
        sides: tuple[list[Name], list[Name]] = ([], [])
        for index, name in enumerate(self.names):
            sides[members >> index & 1].append(name)
        self.cluster.network.partition(*sides)

    def do_heal(self) -> None:
        """All links carry everything."""
        self.cluster.network.heal()

    def do_noise(
        self, loss: int, duplicate: int, delay_ms: int, garbage: int = 0
    ) -> None:
        """The network loses, repeats, delays (up to so long) and spoils messages."""
        faults = self.cluster.network.faults
        faults.loss, faults.duplicate = loss / 100, duplicate / 100
        faults.garbage = garbage / 100
        faults.delay_s = (0.0002, 0.0002 + delay_ms / 1000)

    def do_kill(self, node: int, keep_disk: bool = True) -> None:
        """A process is killed."""
        name = self.at(node)
        if name not in self.cluster.nodes:
            return
        gone = self.cluster.nodes[name]
        self.cluster.kill(name, keep_disk=keep_disk)
        for session in self.sessions:
            if session.asking is not None and session.asking.node is gone:
                session.asking = None
                self.events["request lost with its node"] += 1
        self.events["killed"] += 1
        if not keep_disk:
            self.wiped.add(name)
            self.events["disk lost"] += 1

    def do_start(self, node: int) -> None:
        """A process is started again."""
        name = self.at(node)
        if name not in self.cluster.nodes:
            self.cluster.start([name], view=self.names)

    def do_skew(self, node: int, seconds: int) -> None:
        """A wall clock is set, perhaps back."""
        self.cluster.skew_us[self.at(node)] = seconds * 1_000_000

    def do_full(self, node: int, full: bool) -> None:
        """A disk fills up, or has room again."""
        if self.at(node) in self.cluster.disks:
            self.cluster.disks[self.at(node)].full = full

    def do_slow(self, node: int, delay_ms: int) -> None:
        """Commits of a node take up to so long."""
        if self.at(node) in self.cluster.disks:
            self.cluster.disks[self.at(node)].delay_s = (
                0.0002,
                0.0003 + delay_ms / 1000,
            )

    def do_stop(self, node: int) -> None:
        """A process is stopped in order: it answers all that it took."""
        name = self.at(node)
        if name not in self.cluster.nodes:
            return
        stopping = self.cluster.nodes[name].stop()
        self.cluster.wait(stopping, limit_s=2.0)
        asked = [s.asking for s in self.sessions if s.asking is not None]
        assert self.cluster.nodes[name] not in [asking.node for asking in asked]
        self.events["stopped"] += 1
        self.do_kill(node)

    def do_view(self, at: int, target: int, *, add: bool = False) -> None:
        """An operator adds or removes a member, at some node."""
        node = self.cluster.nodes.get(self.at(at))
        if node is None or node.cluster.removed:
            return
        if not add and not set(self.names) - self._removed - {self.at(target)}:
            return  # Two operators could remove everybody, each on his own side.
        self._removed |= set() if add else {self.at(target)}
        self.events["view change asked"] += 1
        kind = "add" if add else "remove"
        changing = node.update_view(kind, self.at(target))
        changing.addCallbacks(self._changed, self._refused).addErrback(self._failed)

    def do_join(self, at: int, target: int) -> None:
        """An operator adds a member."""
        self.do_view(at, target, add=True)

    def _changed(self, answer: Answer) -> None:
        self.events["view changed"] += answer.status == 200

    def _refused(self, failure: Failure) -> None:
        failure.trap(BadRequest, Overloaded, DiskFull)
        self.events["view change refused"] += 1

    # The calm.

    def calm(self) -> None:
        """End all faults; within ten seconds all replicas show the right winners."""
        self.do_heal()
        traffic = self.cluster.network.traffic
        for kind in ("lost", "duplicated", "garbage", "cut"):
            self.events[kind] += getattr(traffic, kind)
        self.do_noise(0, 0, 2)
        for index in range(len(self.names)):
            self.do_full(index, False)
            self.do_slow(index, 2)
            self.do_start(index)
        self._restore_view()
        self.events["commits refused"] += sum(
            disk.refused for disk in self.cluster.disks.values()
        )
        self.cluster.advance(CONVERGE_S)
        self.demand_converged()

    def _restore_view(self) -> None:
        """Add all who were removed, once everybody knows of it."""
        if not self.events["view change asked"]:
            return
        self.cluster.advance(5)
        # Twice: who was removed may come back with removals that nobody else knew of.
        for name in (*self.names, *self.names):
            nodes = self.cluster.nodes.values()
            member = next(n for n in nodes if not n.cluster.removed)
            self.cluster.wait(member.update_view("add", name))
            self.cluster.advance(1)

    def demand_converged(self) -> None:
        """Same knowledge, same data, the right winner; nothing acknowledged is lost."""
        nodes = self.cluster.nodes
        order = nodes[self.names[0]].cluster.view.order
        assert sorted(order) == sorted(self.names)
        replicas = [nodes[n] for n in order if nodes[n].cluster.is_replica]
        wanted = min(self.cluster.k, len(self.names))
        assert tuple(n.me for n in replicas) == order[:wanted], "roles"
        known = joined(*(n.replica.durable.vv for n in nodes.values()))
        shown = {}
        for node in replicas:
            assert node.replica.durable.vv == known, f"{node.me} lacks something"
            assert node.replica.idle
            for key in self.keys:
                version = node.replica.read(key, EMPTY_PAYLOAD).version
                right = self.oracle.winner(key, known)
                assert (version and version.dot) == (right and right.dot), (
                    f"{node.me} shows {version}, wanted {right}"
                )
                shown[key] = None if right is None else right.value
        assert len({self.cluster.disks[n.me].result for n in replicas}) == 1
        for dot, name in self.acknowledged.items():
            assert name in self.wiped or known.get(dot[0], 0) >= dot[1], (
                f"{dot} was acknowledged and is lost"
            )
        self._ask_all(shown)
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

    def _ask_all(self, shown: dict[str, bytes | None]) -> None:
        """Any node, proxies too, tells any client the same, and is sure of it."""
        for name in self.names:
            for key, value in shown.items():
                node = self.cluster.nodes[name]
                answer = self.cluster.wait(node.get(key, EMPTY_PAYLOAD))
                assert "KVS-Stale" not in dict(answer.headers), f"{name} is unsure"
                assert (answer.status == 404) == (value is None)
                if value is not None:
                    assert value in answer.body
