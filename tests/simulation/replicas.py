"""
Replicas without nodes: an adversary delivers, loses, repeats, commits and crashes.

Real replicas with their committer, storage, and both ends of deltas; no time, no
gossip and no roles: whatever those would ever do is a special case of what is drawn
here.  A history is a list of small tuples, so that Hypothesis shrinks it well; all
numbers in it are taken modulo what exists.  Every step ends with the invariants.
"""

from __future__ import annotations

import copy
import random
from collections import Counter

from twisted.internet.defer import ensureDeferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tests.simulation.processes import SETTINGS, Message, Process, Session
from twisted_kvs.core.causality import Dot, Name, leq
from twisted_kvs.core.compaction import stable
from twisted_kvs.core.errors import DiskFull, KVSError, PeerTimedOut
from twisted_kvs.core.messages import (
    Delta,
    NextPart,
    Push,
    Refused,
)
from twisted_kvs.core.names import parse_name
from twisted_kvs.core.outcomes import Written
from twisted_kvs.core.payload import EMPTY_PAYLOAD, Payload, before
from twisted_kvs.operations import Reply
from twisted_kvs.simulation.invariants import Invariants, minted
from twisted_kvs.simulation.oracle import Oracle, joined
from twisted_kvs.storage.api import START
from twisted_kvs.storage.memory import MemoryStorage

Op = tuple[object, ...]


class ReplicaWorld:
    """A few replicas and proxies, their clients, a network, and who sees all of it."""

    def __init__(
        self, *, nodes: int = 3, proxies: int = 0, keys: int = 2, clients: int = 2
    ) -> None:
        self.rng = random.Random(0)
        self.clock = Clock()
        self.oracle = Oracle()
        self.invariants = Invariants(self.oracle)
        self.failures: list[Failure] = []
        self.events: Counter[str] = Counter()
        self.net: list[Message] = []
        self.keys = [f"k{i}" for i in range(keys)]
        self.sessions = [Session() for _ in range(clients)]
        self.names = [parse_name(f"10.0.0.{i + 9}:80") for i in range(nodes + proxies)]
        self.skew = dict.fromkeys(self.names, 0)
        self.backups: dict[Name, MemoryStorage] = {}
        self.tokens: dict[Dot, Payload] = {}
        self.acknowledged: dict[Dot, Name] = {}
        self.lossy: set[Name] = set()
        """Names that lost durable state: what they acknowledged may be gone."""
        self.entrusted: set[Name] = set()
        """Names that dropped their data, since others had it."""
        self.absent: set[Name] = set()
        """Removed from the view and unreachable, but running."""
        self.exact = True
        """Whether no node lost state or was outside the view: then seals must not
        change any outcome (R9)."""
        self.time = 0
        self.processes = {
            name: Process(self, name, MemoryStorage(manual=True)) for name in self.names
        }
        for name in self.names[:nodes]:
            self.processes[name].replica.set_holds_all(True)

    def run(self, history: list[Op]) -> ReplicaWorld:
        """Do all of it, then let everything come together."""
        for op in history:
            self.step(op)
        self.settle()
        return self

    def step(self, op: Op) -> None:
        """Do one operation and check everything."""
        self.time += 1
        name, *arguments = op
        getattr(self, f"do_{name}")(*arguments)
        self.check()

    def check(self) -> None:
        """Check the invariants of all replicas."""
        for failure in self.failures:
            failure.raiseException()
        for process in self.processes.values():
            self.invariants.check(process.replica)

    def at(self, index: int) -> Process:
        """Choose a process."""
        return self.processes[self.names[index % len(self.names)]]

    def send(self, message: Message) -> None:
        """Put something on the network."""
        self.net.append(message)

    # Clients.

    def _write(
        self, at: Process, session: Session, key: str, *, delete: bool
    ) -> Written:
        ts = 1_000_000 + (self.time + self.skew[at.name]) // 3
        value = None if delete else f'"{self.time}"'.encode()
        written = at.replica.put(key, value, session.payload, wall_us=ts)
        self.oracle.mint(minted(written.version))
        self.tokens[written.version.dot] = written.payload
        assert leq(session.knows, written.version.past), "writes follow reads"
        assert before(session.payload, written.payload)
        self.invariants.demand_closed(written.payload.vector)
        self.events["written"] += 1
        return written

    def do_put(self, client: int, node: int, key: int) -> None:
        """A client writes, and learns of it when it is durable."""
        self._put(client, self.at(node), self.at(node), key)

    def do_delete(self, client: int, node: int, key: int) -> None:
        """A client deletes, whatever is there, and learns of it in time."""
        self._put(client, self.at(node), self.at(node), key, delete=True)
        self.do_disk(node, 2)

    def do_write(self, client: int, node: int, key: int) -> None:
        """A client writes, and the disk is quick."""
        self.do_put(client, node, key)
        self.do_disk(node, 2)

    def do_forward(self, client: int, front: int, node: int, key: int) -> None:
        """A client writes through another node (R13)."""
        self._put(client, self.at(front), self.at(node), key)

    def _put(
        self,
        client: int,
        front: Process,
        at: Process,
        key: int,
        *,
        delete: bool = False,
    ) -> None:
        session = self.sessions[client % len(self.sessions)]
        if session.waiting or at.committer.full:
            return
        earlier = list(front.answered)
        given = session.payload
        if front is not at:
            at.replica.hear_clock(front.replica.seen)
        name = self.keys[key % len(self.keys)]
        written = self._write(at, session, name, delete=delete)
        self.events["deleted"] += delete
        session.waiting = asked = (front, at)
        for payload in earlier:
            assert before(payload, written.payload), "two writes at one node"
        durable = at.committer.durable(written.commit)

        def answered(_: None) -> None:
            if session.waiting is not asked:
                return  # One of both died, and the client noticed.
            session.waiting = ()
            at.replica.answered(written.payload.vector)
            if front is not at:
                front.replica.answered(given.vector)
                front.replica.answered(written.payload.vector)
                front.replica.hear_clock(written.payload.vector)
                front.replica.hear_lamport(written.payload.lamport)
                self.events["forwarded"] += 1
            front.answered.append(written.payload)
            self.acknowledged[written.version.dot] = at.name
            session.payload = written.payload
            session.knows = joined(session.knows, written.version.upto)

        def failed(failure: Failure) -> None:
            failure.trap(DiskFull)
            if session.waiting is asked:
                session.waiting = ()

        durable.addCallbacks(answered, failed)

    def do_get(self, client: int, node: int, key: int) -> None:
        """A client reads."""
        session = self.sessions[client % len(self.sessions)]
        process = self.at(node)
        if session.waiting:
            return
        name = self.keys[key % len(self.keys)]
        lacks = process.replica.lacks(name, session.payload.vector)
        read = process.replica.read(name, session.payload)
        assert read.fresh == (not lacks)
        assert before(session.payload, read.payload), "a read's payload grows"
        self.invariants.demand_closed(read.payload.vector)
        dot = None if read.version is None else read.version.dot
        if read.fresh and process.replica.holds_all:
            self.events["read fresh"] += 1
            self.oracle.demand_shown(name, session.knows, dot)
            session.knows = joined(
                session.knows, self.oracle.upto([dot] if dot else [])
            )
        else:
            self.events["read stale"] += 1
        assert leq(session.knows, read.payload.vector)
        if dot is not None:
            wrote = self.tokens[dot]
            assert read.payload == wrote or before(wrote, read.payload), "H19"
        session.payload = read.payload

    def do_forget(self, client: int) -> None:
        """A client without history comes."""
        session = self.sessions[client % len(self.sessions)]
        if not session.waiting:
            self.sessions[client % len(self.sessions)] = Session()

    def do_nothing(self) -> None:
        """Nothing happens."""

    def do_skew(self, node: int, skew: int) -> None:
        """A wall clock jumps."""
        self.skew[self.at(node).name] = skew

    # Disks.

    def do_disk(self, node: int, commits: int = 1) -> None:
        """A commit becomes durable, perhaps the next ones, too."""
        process = self.at(node)
        process.committer.kick()
        for _ in range(commits):
            if not process.storage.flush():
                break
            self.events["committed"] += 1

    def do_full(self, node: int) -> None:
        """The next commit finds no room."""
        process = self.at(node)
        process.committer.kick()
        if process.storage.waiting is not None:
            process.storage.fail_next(DiskFull("no room"))
            process.storage.flush()
            self.events["disk full"] += 1

    def do_room(self) -> None:
        """Nodes whose disk was full try again."""
        self.clock.advance(SETTINGS.full_disk_retry_s)

    def do_backup(self, node: int) -> None:
        """Somebody copies a disk."""
        process = self.at(node)
        held = (process.storage._waiting, process.storage._snapshots)
        process.storage._waiting, process.storage._snapshots = None, {}
        self.backups[process.name] = copy.deepcopy(process.storage)
        process.storage._waiting, process.storage._snapshots = held

    def do_crash(self, node: int, how: int) -> None:
        """A process ends; its disk is kept (0), becomes a backup (1) or is lost (2)."""
        process = self.at(node)
        holds_all = process.replica.holds_all
        self._end(process)
        storage = process.storage
        if how % 3 == 1 and process.name in self.backups:
            storage = copy.deepcopy(self.backups[process.name])
        elif how % 3 == 2:
            storage = MemoryStorage(manual=True)
        if storage is not process.storage:
            self.lossy.add(process.name)
            self.exact = False
            self.events["state lost"] += 1
        self.events["crashed"] += 1
        fresh = storage.open() is None
        started = Process(self, process.name, storage)
        started.members = process.members
        if fresh:
            started.replica.set_holds_all(holds_all)
        self.processes[process.name] = started

    def _end(self, process: Process) -> None:
        for session in self.sessions:
            if process in session.waiting:
                session.waiting = ()
        process.halt()

    # The network.

    def do_push(self, source: int, target: int, first: int, count: int) -> None:
        """Some durable writes are pushed, in turn or not (R8)."""
        process, peer = self.at(source), self.at(target)
        if process is peer or not process.pushable or self.apart(process, peer):
            return
        first = len(process.pushable) - 1 - first % len(process.pushable)
        versions = process.pushable[first : first + 1 + count]
        push = Push(lamport=process.replica.durable.lamport, versions=versions)
        self.send(Message(process, peer.name, push))

    def do_ask(self, asker: int, source: int) -> None:
        """One asks for a delta; what it is told may come much later (R7)."""
        process, peer = self.at(asker), self.at(source)
        if process is peer or not process.replica.holds_all:
            return
        if self.apart(process, peer):
            return
        base = process.replica.durable.vv
        delta = peer.sender.make(process.name, base, one_part=False)
        if delta is not None:
            self.events["full join"] += delta.full
            told = peer.cluster.vectors(process.name)
            self.send(Message(peer, process.name, delta, told=told))

    def do_sync(self, asker: int, source: int) -> None:
        """One asks for a delta and gets it at once."""
        before = len(self.net)
        self.do_ask(asker, source)
        while len(self.net) > before:
            self.do_deliver(len(self.net) - 1)
            self.do_disk(asker)

    def do_deliver(self, index: int, keep: int = 0) -> None:
        """A message arrives, and perhaps will arrive again."""
        if not self.net:
            return
        index %= len(self.net)
        message = self.net[index]
        if not keep or message.answered is not None:
            del self.net[index]
        else:
            self.events["repeated"] += 1
        self._arrive(message)

    def do_drop(self, index: int) -> None:
        """A message is lost."""
        if self.net:
            message = self.net.pop(index % len(self.net))
            self.events["dropped"] += 1
            if message.answered is not None and not message.source.dead:
                message.answered.errback(PeerTimedOut("lost"))

    def _arrive(self, message: Message) -> None:
        target = self.processes[message.target]
        content = message.content
        if isinstance(content, Delta):
            self._take(target, message, content)
        elif isinstance(content, Push):
            before = target.replica.applied.vv
            taken = target.replica.apply_push(content.versions, content.lamport)
            target.committer.kick()
            self.events["push taken"] += taken.taken
            self.events["push out of turn"] += taken.gap
            assert taken.taken or target.replica.applied.vv == before
        elif isinstance(content, NextPart):
            answer = target.sender.next_part(message.source.name, content)
            assert message.answered is not None
            if not message.source.dead:
                if isinstance(answer, Refused):
                    self.events["session lost"] += 1
                message.answered.callback(Reply(1, answer))

    def _take(self, target: Process, message: Message, delta: Delta) -> None:
        peer, told = message.source.name, message.told
        if not leq(delta.base, target.replica.applied.vv):
            self.events["delta refused"] += 1
        elif delta.session:
            self.events["delta in parts"] += 1

        def done(result: object) -> None:
            if isinstance(result, Failure):
                result.trap(KVSError)
            elif result:
                self.events["delta taken"] += 1
                if told is not None and not target.dead:
                    record = target.cluster.record(peer)
                    record.holds_all = message.source.replica.holds_all
                    target.cluster.learn_report(peer, told)

        taking = ensureDeferred(target.receiver.take(peer, delta))
        taking.addBoth(done).addErrback(self.failures.append)

    # Roles.

    def do_hear(self, node: int, source: int) -> None:
        """A proxy follows the clock and VV of another node (R13)."""
        process, peer = self.at(node), self.at(source)
        if not process.replica.holds_all:
            durable = peer.replica.durable
            process.replica.hear_clock(durable.clock)
            process.replica.hear_clock(durable.vv)
            process.replica.hear_lamport(durable.lamport)
            process.committer.kick()

    def do_promote(self, node: int) -> None:
        """A proxy becomes a replica that lags."""
        process = self.at(node)
        process.replica.set_holds_all(True)
        process.committer.kick()

    def do_demote(self, node: int) -> None:
        """A replica drops its data, once all before it have what it has (R15)."""
        process = self.at(node)
        earlier = list(self.processes.values())[: self.names.index(process.name)]
        replicas = [p.replica for p in earlier if p.replica.holds_all]
        vv = process.replica.applied.vv
        covered = all(leq(vv, other.durable.vv) for other in replicas)
        if process.replica.holds_all and replicas and covered and process.replica.idle:
            process.replica.forget_all(process.cluster.rng)
            process.committer.kick()
            self.events["demoted"] += 1
            self.entrusted.add(process.name)

    # Compaction and the view.

    def apart(self, one: Process, other: Process) -> bool:
        """Tell whether one of two is outside the view."""
        return (one.name in self.absent) != (other.name in self.absent)

    def do_compact(self, node: int, seal: bool = True) -> None:
        """One forgets what all members that it knows of have reported to have."""
        process = self.at(node)
        replica, cluster = process.replica, process.cluster
        if not replica.compactable or process.committer.full:
            return
        if process.storage.result.unfolded:
            return
        others = sorted(process.members - {process.name})
        upto = stable(replica.durable.vv, [cluster.record(n).report for n in others])
        keys, _ = process.storage.unsettled(
            upto, START, versions_max=100, bytes_max=10**6
        )
        done = replica.compact(keys, upto, seal=seal)
        for version in replica.uncommitted():
            if version.dot not in self.oracle.writes:
                self.oracle.mint(minted(version))
        self.events["compacted"] += done.changed
        self.events["sealed"] += done.seals
        process.committer.kick()

    def do_round(self, node: int) -> None:
        """All hear of all, then one compacts."""
        for asker in range(len(self.names)):
            for source in range(len(self.names)):
                self.do_hear(asker, source)
                self.do_sync(asker, source)
            self.do_disk(asker, 9)
        self.do_compact(node)
        self.do_disk(node, 2)

    def do_leave(self, node: int) -> None:
        """One is removed everywhere and unreachable; clients may still ask it."""
        name = self.at(node).name
        if len(self.absent) < len(self.names) - 1:
            self.exact = False
            self.absent.add(name)
            for process in self.processes.values():
                if process.name not in self.absent:
                    process.members = process.members - {name}
            self.events["left"] += 1

    def do_back(self, node: int) -> None:
        """One that was removed is added again."""
        self._back(self.at(node).name)

    def _back(self, name: Name) -> None:
        self.absent.discard(name)
        for process in self.processes.values():
            process.members = process.members | {name}

    def do_view(self, node: int, other: int, there: bool) -> None:
        """One learns that another is a member, or that it is not."""
        process, name = self.at(node), self.at(other).name
        if process.name != name:
            self.exact = False
            change = process.members.union if there else process.members.difference
            process.members = set(change({name}))

    # The end of a history.

    def settle(self) -> None:
        """
        Let all pull from all until nothing changes; all show the right winner.

        Then once more when all that can be forgotten was; and who was away comes back
        with what it had, late messages arrive, and a backup is restored.
        """
        late: list[Message] = []
        while self.net:
            if self.net[0].answered is None:
                late.append(self.net.pop(0))
            else:
                self.do_drop(0)
        for name in sorted(self.absent):
            self._back(name)
        for process in self.processes.values():
            process.members = set(self.names)
        self._come_together()
        for _ in range(3):
            for node in range(len(self.names)):
                self.do_compact(node)
                self.do_disk(node, 1000)
                self.check()
            self._come_together()
        for message in late:
            if not message.source.dead:
                self._arrive(message)
                self.check()
        self._come_together()

    def _come_together(self) -> None:
        for _ in range(4 + 2 * len(self.names)):
            self.clock.advance(SETTINGS.full_disk_retry_s)
            for node in range(len(self.names)):
                for other in range(len(self.names)):
                    self.do_hear(node, other)
                self.do_disk(node, 1000)
            before = [p.replica.durable for p in self.processes.values()]
            for asker in range(len(self.names)):
                for source in range(len(self.names)):
                    self.do_sync(asker, source)
                    self.check()
            if before == [p.replica.durable for p in self.processes.values()]:
                break
        else:
            raise AssertionError("no fixpoint")
        for node in range(len(self.names)):
            self.do_disk(node, 1000)
        self.demand_converged()

    def demand_converged(self) -> None:
        """Same knowledge, same data, same winner everywhere; nothing was lost."""
        replicas = [p for p in self.processes.values() if p.replica.holds_all]
        known = joined(*(p.replica.durable.vv for p in self.processes.values()))
        for process in replicas:
            assert process.replica.idle
            assert process.replica.durable.vv == known, "knowledge differs"
            assert process.storage.result == replicas[0].storage.result
            for key in self.keys:
                shown = process.replica.read(key, EMPTY_PAYLOAD).version
                wanted = self.oracle.winner(key, known)
                assert (shown and shown.dot) == (wanted and wanted.dot), (
                    f"{process.name} shows {shown}, wanted {wanted}"
                )
                if self.exact:
                    right = self.oracle.winner(key, known, seals=False)
                    assert wanted is right, f"a seal changed {key}: {wanted}, {right}"
        lossy = self.lossy | self.entrusted if self.lossy else self.lossy
        for dot, name in self.acknowledged.items():
            assert name in lossy or known.get(dot[0], 0) >= dot[1], (
                f"{dot} was acknowledged and is lost"
            )
