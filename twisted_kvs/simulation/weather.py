"""
What goes wrong in a storm: every fault as an operation on a simulated cluster.

An operation is a method ``do_<name>`` with small numbers; each is taken modulo what
exists, so that any history can be run and shrunk.  ``events`` counts what really
happened: a fault that touched nobody did not happen.
"""

from __future__ import annotations

from collections import Counter
from typing import TypeVar

import msgspec
from twisted.python.failure import Failure

from ..core.causality import Name
from ..core.errors import BadRequest, DiskFull, Overloaded, Removed
from ..core.names import parse_name
from ..core.settings import Settings
from ..node import Node
from ..operations import Answer
from .checkers import ANSWER_S, SLACK_S, Violation, Witness
from .cluster import Died, Process, SimulatedCluster
from .disk import SimulatedDisk

DELAY_S = (0.0002, 0.002)
DISK_S = (0.0002, 0.003)
"""Of a network and a disk with which all is well."""
SLOW_S = 0.01


_T = TypeVar("_T")
AMBUSH_S = 2.5
"""So long is waited for a message: some rounds of gossip."""
RELIEVED_S = 3.6
"""After this a silent replica is believed dead."""
DEMOTED_S = 5.0
"""After this who has taken its place may have dropped all, where limits are small."""
REGROUP_TRIES = 60
"""Halves of a second in which all have to know each other again."""


def operation(method: _T) -> _T:
    """Mark what histories call by name, with what was drawn in its place."""
    return method


class Weather:
    """A cluster, and all that can be done to it."""

    def __init__(
        self, settings: Settings | None, *, seed: int, nodes: int, k: int
    ) -> None:
        """Start a healthy cluster of ``nodes`` nodes, the first ``k`` as replicas."""
        self.cluster = SimulatedCluster(seed, k=k, settings=settings, disk_s=DISK_S)
        self.events: Counter[str] = Counter()
        self.witness = Witness(self.cluster, self.events)
        self.oracle, self.invariants = self.witness.oracle, self.witness.invariants
        self.names = [parse_name(f"10.0.0.{i + 9}:8080") for i in range(nodes)]
        self.recruits: list[Name] = []
        """Nodes that were not there at the beginning."""
        self.rots = False
        self.rotten: set[Name] = set()
        """Whose disk is to be damaged, if it is a replica at the end; or any other."""
        self._removed: set[Name] = set()
        self._full_at = self._slow_at = -1.0
        """When a disk was last seen so; looked at before that changes."""
        self._pauses: dict[int, int] = {}
        """How often a process stood still, by its boot id."""
        self._backups: dict[Name, SimulatedDisk] = {}

    def at(self, index: int) -> Name:
        """Choose a node."""
        return self.names[index % len(self.names)]

    def _main(self, name: Name) -> Process | None:
        node = self.cluster.nodes.get(name)
        return None if node is None else self.cluster.process(node)

    def _disks(self, name: Name) -> list[SimulatedDisk]:
        disks = [self.cluster.disks[name]] if name in self.cluster.disks else []
        twin = self.cluster.twins.get(name)
        return disks if twin is None else [*disks, twin.disk]

    def _lost_with(self, process: Process) -> None:
        """Clients of a process that ended notice; overridden by who has clients."""

    def _resumed(self, process: Process, paused_s: float) -> None:
        """A process goes on; overridden by who has clients."""

    @operation
    def do_put(self, client: int, node: int, key: int) -> None:
        """A client writes; overridden by who has clients."""

    # Links.

    def _cut(self, one: Name, other: Name, cause: str) -> None:
        faults = self.cluster.network.faults
        faults.cuts.add((one, other))
        faults.causes[one, other] = cause

    @operation
    def do_cut(self, one: int, other: int, both: bool = True) -> None:
        """A link breaks, perhaps in one direction only."""
        self._cut(self.at(one), self.at(other), "cut both ways" if both else "one way")
        if both:
            self._cut(self.at(other), self.at(one), "cut both ways")

    @operation
    def do_mute(self, one: int, other: int) -> None:
        """One direction of a link breaks."""
        self.do_cut(one, other if self.at(one) != self.at(other) else one + 1, False)

    @operation
    def do_partition(self, members: int) -> None:
        """The network falls into two; bits say who is on which side."""
        sides: tuple[list[Name], list[Name]] = ([], [])
        for index, name in enumerate(self.names):
            sides[members >> index & 1].append(name)
        for one in sides[0]:
            for other in sides[1]:
                self._cut(one, other, "partition")
                self._cut(other, one, "partition")

    @operation
    def do_isolate(self, node: int) -> None:
        """A proxy loses all its links."""
        nodes = self.cluster.nodes
        proxies = [n for n in self.names if n in nodes and self._is_proxy(n)]
        if proxies:
            proxy = proxies[node % len(proxies)]
            for name in self.names:
                if name != proxy:
                    self._cut(proxy, name, "isolated proxy")
                    self._cut(name, proxy, "isolated proxy")

    def _is_proxy(self, name: Name) -> bool:
        cluster = self.cluster.nodes[name].cluster
        return not cluster.is_replica and not cluster.removed

    @operation
    def do_heal(self) -> None:
        """All links carry everything."""
        self.cluster.network.heal()

    # Messages.

    @operation
    def do_noise(
        self, loss: int, duplicate: int, delay_ms: int, garbage: int = 0
    ) -> None:
        """The network loses, repeats, delays (up to so long) and spoils messages."""
        faults = self.cluster.network.faults
        faults.loss, faults.duplicate = loss / 100, duplicate / 100
        faults.garbage, faults.reorder = garbage / 100, 0.0
        faults.delay_s = (DELAY_S[0], DELAY_S[0] + delay_ms / 1000)

    @operation
    def do_lose(self, percent: int) -> None:
        """Messages are lost."""
        self.cluster.network.faults.loss = percent / 100

    @operation
    def do_double(self, percent: int) -> None:
        """Requests of nodes arrive twice."""
        self.cluster.network.faults.duplicate = percent / 100

    @operation
    def do_reorder(self, percent: int) -> None:
        """Messages overtake each other."""
        self.cluster.network.faults.reorder = percent / 100

    @operation
    def do_delay(self, milliseconds: int) -> None:
        """Messages take up to so long."""
        self.cluster.network.faults.delay_s = (DELAY_S[0], milliseconds / 1000)

    @operation
    def do_spoil(self, percent: int) -> None:
        """Signatures do not fit."""
        self.cluster.network.faults.garbage = percent / 100

    @operation
    def do_quiet(self) -> None:
        """Messages that arrive arrive as in a healthy network."""
        self.do_noise(0, 0, 2)

    # Processes.

    @operation
    def do_kill(self, node: int, keep_disk: bool = True) -> None:
        """A process is killed."""
        self.events["crashed"] += keep_disk and self.at(node) in self.cluster.nodes
        self._kill(node, keep_disk=keep_disk)

    def _kill(self, node: int, *, keep_disk: bool = True) -> None:
        process = self._main(self.at(node))
        if process is None:
            return
        self.cluster.kill(process.name, keep_disk=keep_disk)
        self._lost_with(process)
        self.events["killed"] += 1
        if not keep_disk:
            self.witness.disk_lost()
            self.rotten.discard(process.name)
            self.events["disk lost"] += 1

    @operation
    def do_wipe(self, node: int) -> None:
        """A machine is lost."""
        self._kill(node, keep_disk=False)

    @operation
    def do_replace(self, node: int) -> None:
        """A machine is lost, and a new one takes its place at once."""
        self._kill(node, keep_disk=False)
        self.do_start(node)

    @operation
    def do_ambush(self, node: int, other: int, kind: str) -> None:
        """A machine is replaced just as it and a peer send something (H5)."""
        if self._until_sent(node, other, kind):
            self.do_replace(node)

    @operation
    def do_trip(self, node: int, other: int, kind: str) -> None:
        """A process is killed and started again just as something is sent."""
        if self._until_sent(node, other, kind):
            self.do_restart(node)

    def _until_sent(self, node: int, other: int, kind: str) -> bool:
        """Wait for a message between two nodes, which is under way then."""
        one = self.at(node)
        two = self.at(other if self.at(other) != one else node + 1)
        last_sent = self.cluster.network.last_sent
        links = ((one, two), (two, one))
        for link in links:
            last_sent.pop(link, None)
        return self.cluster.advance(
            AMBUSH_S, until=lambda: any(last_sent.get(link) == kind for link in links)
        )

    @operation
    def do_start(self, node: int) -> None:
        """A process is started again."""
        name = self.at(node)
        if name not in self.cluster.nodes:
            self._start(name)

    def _start(self, name: Name) -> None:
        if name in self.recruits:
            self.cluster.start_alone(name)
        else:
            first = [n for n in self.names if n not in self.recruits]
            self.cluster.start([name], view=first)

    @operation
    def do_restart(self, node: int) -> None:
        """A process is killed and started again at once."""
        self.events["restarted"] += self.at(node) in self.cluster.nodes
        self._kill(node)
        self.do_start(node)

    @operation
    def do_relieve(self, node: int) -> None:
        """A process is away until a proxy has taken its place, and comes back."""
        self._kill(node)
        self.cluster.advance(RELIEVED_S)
        self.do_start(node)
        self.cluster.advance(DEMOTED_S)

    @operation
    def do_stop(self, node: int) -> None:
        """A process is stopped in order: it answers all that it took."""
        process = self._main(self.at(node))
        if process is None or process.paused_at is not None:
            return
        self.cluster.wait(process.node.stop(), limit_s=2.0)
        assert not self._asked(process), "a node that stops answers what it took"
        self.events["stopped"] += 1
        self._kill(node)

    def _asked(self, process: Process) -> bool:
        """Tell whether a client waits for it; overridden by who has clients."""
        return False

    @operation
    def do_pause(self, node: int, milliseconds: int) -> None:
        """A process stands still for a while."""
        process = self._main(self.at(node))
        if process is not None and process.paused_at is None:
            self.cluster.pause(process)
            self._pauses[process.boot_id] = self._pauses.get(process.boot_id, 0) + 1
            self.cluster.clock.callLater(
                milliseconds / 1000,
                self._resume,
                process,
                self._pauses[process.boot_id],
            )

    def _resume(self, process: Process, pause: int) -> None:
        """End a pause of a process, unless it has ended and this is another."""
        began = process.paused_at
        if began is None or self._pauses.get(process.boot_id) != pause:
            return
        if process in self.cluster.processes:
            paused_s = self.cluster.clock.seconds() - began
            self._resumed(process, paused_s)
            self.events["stood still"] += self.cluster.resume(process)

    @operation
    def do_backup(self, node: int) -> None:
        """Somebody copies a disk."""
        if self.at(node) in self.cluster.disks:
            self._backups[self.at(node)] = self.cluster.disks[self.at(node)].copied()

    @operation
    def do_rollback(self, node: int) -> None:
        """A node writes, and is started from a copy of its disk from before that."""
        self.do_backup(node)
        self.do_put(node, node, 0)
        self.cluster.advance(0.05)
        self.do_restore(node)

    @operation
    def do_restore(self, node: int) -> None:
        """A node is started from a copy of its disk that was made earlier."""
        ring = [self.at(node + offset) for offset in range(len(self.names))]
        older = [name for name in ring if self._has_older_backup(name)]
        if not older:
            return
        name = older[0]
        self._kill(self.names.index(name))
        self.events["restored"] += 1
        self.cluster.disks[name] = self._backups[name].copied()
        self.witness.disk_lost()
        self.rotten.discard(name)
        self._start(name)

    def _has_older_backup(self, name: Name) -> bool:
        backup, now = self._backups.get(name), self.cluster.disks.get(name)
        return backup is not None and (now is None or backup.serial != now.serial)

    @operation
    def do_twin(self, node: int, clone: bool) -> None:
        """A second process is started under a name, on an empty disk or a copy."""
        name = self.at(node)
        if name in self.cluster.twins or name in self.recruits:
            return
        disk = self.cluster.disks.get(name)
        copied = disk.copied() if clone and disk is not None else None
        first = [n for n in self.names if n not in self.recruits]
        self.cluster.start_twin(name, view=first, disk=copied)
        self.events["twin"] += 1
        self.events["two under one name"] += name in self.cluster.nodes

    @operation
    def do_untwin(self, node: int) -> None:
        """The second process under a name ends, and its machine with it."""
        name = self.at(node)
        if name in self.cluster.twins:
            twin = self.cluster.twins[name]
            self.cluster.kill_twin(name)
            self._lost_with(twin)
            self.witness.disk_lost()

    # Clocks.

    @operation
    def do_skew(self, node: int, seconds: int) -> None:
        """A wall clock is set, perhaps back."""
        self.witness.note()
        self.cluster.skew_us[self.at(node)] = seconds * 1_000_000
        self.witness.skewed.add(self.at(node))

    @operation
    def do_rewind(self, node: int, seconds: int) -> None:
        """A wall clock steps back between two writes."""
        self.do_put(node, node, 0)
        self.cluster.advance(0.01)
        self.do_back(node, seconds)
        self.do_put(node + 1, node, 0)

    @operation
    def do_back(self, node: int, seconds: int) -> None:
        """A wall clock steps back."""
        self.witness.note()
        now = self.cluster.skew_us.get(self.at(node), 0)
        self.cluster.skew_us[self.at(node)] = now - seconds * 1_000_000

    # Disks.

    @operation
    def do_fill(self, node: int) -> None:
        """A disk is full, and somebody writes there."""
        self.do_full(node, True)
        self.do_put(node, node, 0)

    @operation
    def do_full(self, node: int, full: bool) -> None:
        """A disk fills up, or has room again."""
        self._note_disks()
        for disk in self._disks(self.at(node)):
            disk.full = full

    @operation
    def do_slow(self, node: int, delay_ms: int) -> None:
        """Commits of a node take up to so long."""
        self._note_disks()
        for disk in self._disks(self.at(node)):
            disk.delay_s = (DISK_S[0], 0.0003 + delay_ms / 1000)

    def _note_disks(self) -> None:
        now = self.cluster.clock.seconds()
        disks = [disk for name in self.names for disk in self._disks(name)]
        if any(disk.full for disk in disks):
            self._full_at = now
        if any(disk.delay_s[1] > SLOW_S for disk in disks):
            self._slow_at = now

    def _disks_were(self, since: float) -> tuple[bool, bool]:
        """Tell whether any disk has been full, and slow, since then."""
        self._note_disks()
        return self._full_at >= since, self._slow_at >= since

    @operation
    def do_rot(self, node: int) -> None:
        """A disk damages what it holds, unseen; it is found at the end."""
        self.rots = True
        self.rotten.add(self.at(node))

    # Operators.

    @operation
    def do_view(self, at: int, target: int, *, add: bool = False) -> None:
        """An operator removes a member (or adds it), at some node."""
        node = self.cluster.nodes.get(self.at(at))
        if node is None or not node.cluster.view.members or node.cluster.removed:
            return  # A node that was not added yet would make a cluster of its own.
        first = set(self.names) - set(self.recruits)
        if not add and not first - self._removed - {self.at(target)}:
            return  # Two operators could remove everybody, each on his own side.
        self._removed |= set() if add else {self.at(target)}
        self.events["view change asked"] += 1
        kind = "add" if add else "remove"
        asked = self.cluster.clock.seconds()
        changing = node.update_view(kind, self.at(target))
        changing.addCallbacks(self._changed, self._refused)
        changing.addCallback(lambda _: self._look_at_time(node, asked))
        changing.addErrback(self._failed)

    @operation
    def do_join(self, at: int, target: int) -> None:
        """An operator adds a member."""
        self.do_view(at, target, add=True)

    @operation
    def do_recruit(self, at: int) -> None:
        """An operator starts a node that was never there, and adds it."""
        if len(self.recruits) >= 2:
            return
        name = parse_name(f"10.0.0.{100 - len(self.recruits)}:8080")
        self.recruits.append(name)
        self.names.append(name)
        self.cluster.start_alone(name)
        self.events["recruited"] += 1
        self.do_join(at % (len(self.names) - 1), len(self.names) - 1)

    @operation
    def do_k(self, node: int, k: int) -> None:
        """An operator starts a node again with another K."""
        name = self.at(node)
        if name in self.recruits or name not in self.cluster.nodes:
            return
        before = self.cluster.nodes[name].cluster.k
        self.cluster.k_given[name] = k
        self.do_restart(node)
        self.events["K changed"] += self.cluster.nodes[name].cluster.k != before

    def _look_at_time(self, node: Node, asked: float) -> None:
        """Operators are answered within a second, too, by who does not stand still."""
        process = self.cluster.process(node)
        stood = process is None or process.boot_id in self._pauses
        took = self.cluster.clock.seconds() - asked
        if took > ANSWER_S + SLACK_S and not stood:
            raise Violation("answers", f"{node.me} took {took:.3f} s for a view change")

    def _changed(self, answer: Answer) -> None:
        self.events["view changed"] += answer.status == 200
        fields = msgspec.json.decode(answer.body)
        alive = fields["number_of_nodes"]
        if not 0 <= alive <= len(self.names):
            raise Violation("answers", f"{alive} of {len(self.names)} nodes are alive")

    def _refused(self, failure: Failure) -> None:
        failure.trap(BadRequest, Overloaded, DiskFull, Removed)
        self.events["view change refused"] += 1

    def _failed(self, failure: Failure) -> None:
        """Something was checked in a callback, and is wrong."""
        error = failure.value
        if not isinstance(error, Violation):
            error = Died(failure.getTraceback())
        self.cluster.deaths.append(error)

    # The end of it.

    @operation
    def do_revive(self) -> None:
        """All disks have room and are quick, and all processes run."""
        for index in range(len(self.names)):
            self.do_untwin(index)
            self.do_full(index, False)
            self.do_slow(index, 2)
            if self.at(index) not in self.cluster.nodes:
                self._start(self.at(index))
        for process in list(self.cluster.processes):
            self._resume(process, self._pauses.get(process.boot_id, 0))

    @operation
    def do_regroup(self) -> bool:
        """
        All who were removed are added, once everybody knows of it.

        :returns: whether anybody was.
        """
        if not self.events["view change asked"]:
            return False
        added = False
        self.do_heal()
        self.do_quiet()
        self.do_revive()
        # Until what was asked for is answered, and so done or not.
        self.cluster.advance(1.1)
        for _ in range(REGROUP_TRIES):
            if self._all_are_members():
                break
            # Who was removed may come back with removals that nobody else knew of.
            nodes = self.cluster.nodes.values()
            member = next(
                n for n in nodes if n.cluster.view.members and not n.cluster.removed
            )
            members = member.cluster.view.members
            for name in [n for n in self.names if n not in members][:1]:
                added = True
                adding = member.update_view("add", name)
                adding.addErrback(self._refused).addErrback(self._failed)
            self.cluster.advance(0.5)
        self._removed.clear()
        return added

    def _all_are_members(self) -> bool:
        views = {node.cluster.view for node in self.cluster.nodes.values()}
        return len(views) == 1 and views.pop().members == set(self.names)
