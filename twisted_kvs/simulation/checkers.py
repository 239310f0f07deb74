"""
What is promised, checked by somebody who sees everything; knows nothing of faults.

Each checker has a name, which a violation carries:

* ``identity``: no dot is minted twice; pasts are closed; a timestamp is the wall clock
  of its node.
* ``invariants``: those of the design, after every step.
* ``stability``: what is stable anywhere is before all that is not there; seals hide
  nothing; who serves has what all had who served.
* ``durability``: what is answered or shown is on a disk, and no acknowledged write is
  lost, unless all who had it on disk lost their disks.
* ``sessions``: payloads grow; every answer without the stale mark shows what its client
  has written and read, or something later; a write comes after what its client knows;
  writes through one node are ordered.
* ``answers``: every live node answers within a second.
* ``staleness``: no stale mark where nothing is cut and gossip had its time; and none is
  missing at a node that has heard of nobody since its start.
* ``queues``: what waits is bounded.
* ``convergence``: ten seconds after the end of all faults all know and show the same,
  and the right winner; nothing is left over.
* ``errors``: nothing failed in a way that a node could only log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec

from ..core.causality import (
    Actor,
    Dot,
    Name,
    VersionVector,
    actor_name,
    leq,
)
from ..core.messages import Commit, Operation
from ..core.payload import EMPTY_PAYLOAD, Payload, PayloadCodec, before
from ..core.retiring import NOBODY, Retired, has_marker
from ..core.settings import Settings
from ..core.versions import Version
from ..node import Node
from ..operations import Answer
from ..reading import LOST_ACTORS_MAX
from .cluster import SimulatedCluster
from .disk import SimulatedDisk
from .invariants import Invariants, minted
from .oracle import Oracle, Write, covered, joined
from .stability import Stability

CHECKERS = (
    "identity",
    "invariants",
    "stability",
    "durability",
    "sessions",
    "answers",
    "staleness",
    "queues",
    "convergence",
    "errors",
)
ANSWER_S = 1.0
SLACK_S = 0.002
"""The simulation moves time in steps of a millisecond."""
MEMBERS_MAX = 16
"""A cluster is meant for so many."""
PUSHES = 100
"""A queue of fewer may be dropped for want of room, and with it the second copy."""
QUEUES_EVERY = 16
"""Steps between two looks at all queues."""


INEXACT = (
    "disk lost",
    "recruited",
    "restored",
    "twin",
    "view change asked",
)
"""Nodes lose state by these, or others do without their reports."""


class Violation(AssertionError):
    """A promise was broken."""

    def __init__(self, checker: str, what: str) -> None:
        """
        Say what happened.

        :param checker: the name of the checker that saw it.
        """
        super().__init__(f"{checker}: {what}")
        self.checker = checker


@contextmanager
def checking(checker: str) -> Iterator[None]:
    """
    Give the assertions of a checker its name.

    :raises Violation: for each that fails.
    """
    try:
        yield
    except Violation:
        raise
    except AssertionError as error:
        raise Violation(checker, str(error) or repr(error)) from error


@dataclass(slots=True)
class Session:
    """A client, and what it has a right to."""

    payload: Payload = EMPTY_PAYLOAD
    token: str = ""
    """The same as it was given, with markers of retired actors (R20)."""
    knows: VersionVector = field(default_factory=dict)
    """All that it has written and been shown, with their pasts."""
    asking: Asking | None = None


@dataclass(slots=True, eq=False)
class Asking:
    """A request that was not answered yet."""

    session: Session
    node: Node
    key: str
    operation: Operation
    value: bytes | None
    """Of a PUT."""
    since: float
    given: Payload
    token: str
    """The same, as its client gives it."""
    comes_after: Payload
    """What the last write that this node has answered gave."""
    must_be_fresh: bool
    """Nothing is cut, and gossip had its time."""
    forwards: int | None
    """How often its node had handed requests on when this came; None: this, too."""


@dataclass(frozen=True, slots=True)
class Queue:
    """Something that waits in a node, and how much of it at most."""

    name: str
    length: Callable[[Node], int]
    bound: Callable[[Settings], int]


QUEUES = (
    Queue(
        "versions to be pushed to a peer",
        lambda n: max((len(q.versions) for q in n.pushes._queues.values()), default=0),
        lambda s: s.push_queue_versions_max,
    ),
    Queue(
        "bytes to be pushed to a peer",
        lambda n: max((q.size_bytes for q in n.pushes._queues.values()), default=0),
        lambda s: s.push_queue_bytes_max,
    ),
    Queue(
        "bytes that wait for the disk",
        lambda n: n.cluster.committer.waiting_bytes,
        lambda s: s.commit_bytes_max,
    ),
    Queue(
        "deltas in parts that are sent",
        lambda n: n.sender.sending,
        lambda s: s.delta_sessions_max,
    ),
    Queue(
        "snapshots that are held",
        lambda n: len(getattr(n._storage, "_snapshots", ())),
        lambda s: s.delta_sessions_max,
    ),
    Queue(
        "dots that nobody could give",
        lambda n: len(n.fetch._lost),
        lambda s: LOST_ACTORS_MAX,
    ),
    Queue(
        "requests at work",
        lambda n: n._working,
        lambda s: s.requests_in_flight_max,
    ),
    Queue(
        "pulls under way",
        lambda n: len(n.pulls._running),
        lambda s: MEMBERS_MAX,
    ),
)


class Witness:
    """Sees every write, every commit and every answer of one cluster."""

    def __init__(self, cluster: SimulatedCluster, events: Counter[str]) -> None:
        """
        Watch ``cluster`` from its beginning.

        :param events: counts what has happened.
        """
        self.cluster = cluster
        self.events = events
        self.oracle = Oracle()
        self.invariants = Invariants(self.oracle)
        self.stability = Stability(cluster, self.oracle, self._exists)
        self.acknowledged: set[Dot] = set()
        self.lost: set[Dot] = set()
        """Writes that were only on disks that are gone."""
        self.skewed: set[Name] = set()
        """Whose wall clock was set."""
        self.values: dict[bytes, list[Dot]] = {}
        """What was minted with a value: more than once where it was tried again."""
        self.tokens: dict[Dot, Payload] = {}
        self.slowest_s = 0.0
        self._versions: dict[Dot, Version] = {}
        self._stamps: dict[Actor, int] = {}
        self._last_write: dict[int, Payload] = {}
        self._retired = NOBODY
        self._could_read: dict[Dot, Retired] = {}
        """What the node of a write knew of retired actors just before it made it."""
        self._known_retired: dict[int, Retired] = {}
        """By boot id, at the end of the last step."""
        self._looked_at = 0.0
        self._steps = 0
        cluster.committing = self._committing

    @property
    def exact(self) -> bool:
        """Whether seals must not have changed any outcome (R9)."""
        return not any(self.events[event] for event in INEXACT)

    def _committing(self, name: Name, commit: Commit) -> None:
        try:
            for version in commit.minted:
                self._mint(version)
                if version.is_seal:
                    with checking("stability"):
                        self.stability.sealed(name, version)
        except Violation as violation:
            # The node that commits would take it for a failure of its own.
            self.cluster.deaths.append(violation)
        self.events["delta in parts"] += commit.validate is not None
        fenced = commit.validate is not None and commit.validate.fence is not None
        self.events["full join"] += fenced
        self.events["past forgotten"] += len(commit.forget_pasts)
        self.events["dropped all data"] += commit.forget_all

    def _mint(self, version: Version) -> None:
        known = self._versions.get(version.dot)
        if known is version:
            return
        for process in self.cluster.processes:
            if process.node.replica.actor == version.actor:
                retired = self._known_retired.get(process.boot_id, NOBODY)
                self._could_read[version.dot] = retired
        with checking("identity"):
            assert known is None, f"{version.dot} was minted twice"
            self._versions[version.dot] = version
            self.oracle.mint(minted(version))
            if version.value is not None:
                self.values.setdefault(version.value, []).append(version.dot)
            self.events["sealed"] += version.is_seal
            if not version.is_seal:
                self._check_stamp(version)
        if self.exact:
            with checking("stability"):
                self.stability.minted(version)

    def _exists(self, dot: Dot) -> bool:
        """Tell whether a write has not been lost with its process."""
        running = (p.node.replica.applied.vv for p in self.cluster.processes)
        return self.on_disk(dot) or any(vv.get(dot[0], 0) >= dot[1] for vv in running)

    def _check_stamp(self, version: Version) -> None:
        now = self.cluster.wall_us(version.origin)
        passed = (self.cluster.clock.seconds() - self._looked_at) * 1_000_000
        assert now - passed - 2 <= version.ts <= now, (
            f"{version.dot} says {version.ts}, the clock of its node {now}"
        )
        self.events["written with a wrong clock"] += version.origin in self.skewed
        last = self._stamps.get(version.actor, 0)
        self.events["written before the last write"] += version.ts < last
        self._stamps[version.actor] = version.ts

    def note(self) -> None:
        """Take note of all that was minted by now."""
        for process in self.cluster.processes:
            replica = process.node.replica
            for version in replica.uncommitted():
                self._mint(version)
            self._known_retired[process.boot_id] = replica.durable.retired
        self._looked_at = self.cluster.clock.seconds()

    def look(self) -> None:
        """Check what holds after every step."""
        self.note()
        try:
            for process in self.cluster.processes:
                self.invariants.check(process.node.replica)
        except AssertionError as error:
            raise Violation("invariants", str(error)) from error
        if self.exact:
            with checking("stability"):
                self.stability.look()
                if not self.events["killed"]:
                    self.stability.look_who_serves()
        self._steps += 1
        if self._steps % QUEUES_EVERY == 0:
            for process in self.cluster.processes:
                check_queues(process.node, self.cluster.settings)

    def check_waiting(self, asking: Asking) -> None:
        """Check that a request to a live node has not waited for too long."""
        waited = self.cluster.clock.seconds() - asking.since
        if waited > ANSWER_S + SLACK_S:
            raise Violation("answers", f"{asking.node.me} is silent for {waited:.3f} s")

    # Disks.

    def on_disk(self, dot: Dot) -> bool:
        """Tell whether a write, or what has replaced it, is durable somewhere."""
        return any(_covers(disk, dot) for disk in self._disks())

    def _disks(self) -> list[SimulatedDisk]:
        twins = [twin.disk for twin in self.cluster.twins.values()]
        return [*self.cluster.disks.values(), *twins]

    def disk_lost(self) -> None:
        """A disk is gone: so is what was nowhere else."""
        # Who is dropping all that he has, since another had it, is not stopped by this.
        dropping = [
            process.disk
            for process in self.cluster.processes
            if not leq(process.node.replica.durable.vv, process.node.replica.applied.vv)
        ]
        disks = [disk for disk in self._disks() if disk not in dropping]
        for dot in self.oracle.writes:
            if dot not in self.lost and not any(_covers(disk, dot) for disk in disks):
                self.lost.add(dot)

    # Clients.

    def last_write(self, boot_id: int) -> Payload:
        """Tell the payload of the last write that a process has answered."""
        return self._last_write.get(boot_id, EMPTY_PAYLOAD)

    def answered(self, asking: Asking, answer: Answer) -> None:
        """
        Check an answer, and let its client know what it says.

        :raises Violation: if its client has a right to another one.
        """
        session, headers = asking.session, dict(answer.headers)
        stale = "KVS-Stale" in headers
        payload = self._payload(asking.node.payloads, headers["KVS-Causal-Payload"])
        wrote = "KVS-Dot" in headers
        kind = "write" if wrote else "read"
        self.events["deleted"] += wrote and asking.operation is Operation.DELETE
        self.events[f"{kind} {'stale' if stale else 'fresh'}"] += 1
        waited = self.cluster.clock.seconds() - asking.since
        self.slowest_s = max(self.slowest_s, waited)
        if stale and asking.must_be_fresh:
            raise Violation(
                "staleness", f"{asking.node.me} is unsure and nothing is wrong"
            )
        if not stale:
            self._check_sure(asking.node)
        with checking("sessions"):
            assert before(asking.given, payload), "a payload must grow"
            assert leq(session.knows, payload.vector), "a payload must grow"
        with checking("invariants"):
            self.invariants.demand_closed(payload.vector)
        session.payload, session.token = payload, headers["KVS-Causal-Payload"]
        if wrote:
            self._wrote(asking, headers["KVS-Dot"], payload, stale=stale)
        else:
            self._read(asking, answer, stale=stale)
        check_queues(asking.node, self.cluster.settings)

    def _payload(self, payloads: PayloadCodec, token: str) -> Payload:
        """Read a token; who handed an answer on may not know who is retired in it."""
        payload = payloads.decode(token)
        if not has_marker(payload.vector):
            return payload
        for process in self.cluster.processes:
            self._retired = self._retired.join(process.node.replica.applied.retired)
        return Payload(self._retired.unpack(payload.vector), payload.lamport)

    def _check_sure(self, node: Node) -> None:
        """Who has heard of nobody since its start cannot be sure of anything."""
        process, cluster = self.cluster.process(node), node.cluster
        only = cluster.alone or cluster.first_members == (node.me,)
        if process is None or only or process.boot_id in self.cluster.network.heard:
            return
        raise Violation("staleness", f"{node.me} is sure and has heard of nobody")

    def _check_copies(self, asking: Asking, dot: Dot) -> None:
        """In health a write is on two disks, or its node has waited for that (R3)."""
        cluster, settings = asking.node.cluster, self.cluster.settings
        others = [r for r in cluster.replicas() if r != actor_name(dot[0])]
        waited = self.cluster.clock.seconds() - asking.since
        forgoes = settings.push_queue_versions_max < PUSHES
        if not others or forgoes or waited >= settings.push_ack_s:
            return
        copies = sum(_covers(disk, dot) for disk in self._disks())
        with checking("durability"):
            assert copies > 1, f"{dot} was acknowledged, and is on one disk only"

    def _is_unread(self, asking: Asking, write: Write) -> bool:
        """Tell whether who minted a write could not read its payload in full then."""
        given = asking.node.payloads.decode(asking.token).vector
        return has_marker(self._could_read[write.dot].unpack(given))

    def _wrote(
        self, asking: Asking, named: str, payload: Payload, *, stale: bool
    ) -> None:
        self.note()
        actor, _, counter = named.rpartition(":")
        dot = (Actor(actor), int(counter))
        with checking("durability"):
            assert self.on_disk(dot) or dot in self.lost, (
                f"{dot} was acknowledged and is on no disk"
            )
        session = asking.session
        with checking("sessions"):
            write = self.oracle.writes[dot]
            wanted = own = self.oracle.upto([dot])
            if not leq(asking.given.vector, write.past):
                # What its node cannot read it cannot come after, and says so; its
                # client gets it back, and nobody else (R20).
                assert stale and self._is_unread(asking, write), "writes follow reads"
                self.events["written with an unread payload"] += 1
                wanted = joined(own, asking.given.vector)
            assert payload.vector == wanted, "payload of a write"
            of_write = Payload(own, payload.lamport)
            assert before(asking.comes_after, of_write), (
                f"two writes through {asking.node.me} are not ordered"
            )
            self.tokens[dot] = of_write
        if asking.must_be_fresh:
            self._check_copies(asking, dot)
        session.knows = joined(session.knows, payload.vector)
        self.acknowledged.add(dot)
        process = self.cluster.process(asking.node)
        if process is not None:
            self._last_write[process.boot_id] = of_write

    def _read(self, asking: Asking, answer: Answer, *, stale: bool) -> None:
        session = asking.session
        shown = []
        if answer.status == 200:
            shown = self._shown(answer, session.payload)
        else:
            assert answer.status == 404, answer
        if len(shown) == 1:
            wrote = self.tokens.get(shown[0])
            with checking("sessions"):
                later = wrote is None or wrote == session.payload
                assert later or (wrote and before(wrote, session.payload)), (
                    "a read's payload must not be before that of what it shows"
                )
        # Its role may have changed since it was asked.
        if asking.forwards == self.cluster.network.forwards[asking.node.me]:
            self._check_siblings(asking)
        if stale or len(shown) > 1:
            return
        with checking("sessions"):
            dot = shown[0] if shown else None
            self.oracle.demand_shown(asking.key, session.knows, dot)
        session.knows = joined(session.knows, self.oracle.upto(shown))

    def _check_siblings(self, asking: Asking) -> None:
        """Who has read overwrites all that stood there, not only what was shown."""
        known, payload = asking.node.replica.durable.vv, asking.session.payload
        with checking("sessions"):
            for write in self.oracle.live(asking.key, known):
                assert covered(write, payload.vector), (
                    f"a read at {asking.node.me} does not name {write}"
                )

    def _shown(self, answer: Answer, payload: Payload) -> list[Dot]:
        """Find what an answer shows; several where a write was tried again."""
        fields = msgspec.json.decode(answer.body, type=dict[str, msgspec.Raw])
        stamp = msgspec.json.decode(fields["timestamp"], type=str)
        dots = [
            dot
            for dot in self.values[bytes(fields["value"])]
            if stamp_of(self.oracle.writes[dot].ts) == stamp
        ]
        with checking("sessions"):
            assert dots, f"no write of {bytes(fields['value'])!r} has the stamp {stamp}"
            named = [d for d in dots if leq(self.oracle.upto([d]), payload.vector)]
            assert named, "a payload must name what was shown"
        with checking("durability"):
            assert any(self.on_disk(d) or d in self.lost for d in named), (
                f"{named} is shown and on no disk"
            )
        return named


def check_queues(node: Node, settings: Settings) -> None:
    """
    Check that what waits in a node is bounded.

    :raises Violation: it names the queue.
    """
    for queue in QUEUES:
        length, bound = queue.length(node), queue.bound(settings)
        if length > bound:
            raise Violation("queues", f"{length} {queue.name} at {node.me}")


def _covers(disk: SimulatedDisk, dot: Dot) -> bool:
    state = disk._state
    return state is not None and state.vv.get(dot[0], 0) >= dot[1]


def stamp_of(ts: int) -> str:
    """Write a timestamp as clients are shown it."""
    return f"{ts // 1_000_000}.{ts % 1_000_000:06d}"
