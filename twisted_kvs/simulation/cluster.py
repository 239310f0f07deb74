"""
Real nodes, simulated disks, one virtual clock, one network: a cluster in a process.

One seed decides everything.  Time moves only in ``advance`` and ``run``.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from ..core.causality import Name
from ..core.messages import Commit
from ..core.payload import EMPTY_PAYLOAD, PayloadCodec
from ..core.secrets import DEFAULT_SECRET, Secrets
from ..core.settings import Settings
from ..core.view import View
from ..node import Node
from ..operations import Answer
from ..storage.api import START
from .disk import SimulatedDisk
from .network import Network
from .pausing import ProcessClock

_T = TypeVar("_T")
STEP_S = 0.001
EPOCH_US = 1_700_000_000_000_000


class Died(AssertionError):
    """A node ended its process, or an operation never ended."""


@dataclass(slots=True, eq=False)
class Process:
    """One run of one node."""

    name: Name
    boot_id: int
    node: Node
    clock: ProcessClock
    disk: SimulatedDisk
    beat: float
    """When its next round of gossip is due."""
    paused_at: float | None = None
    """Since when it stands still."""


class Client:
    """A client that threads its causal payload through all it does."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        """Start without history."""
        self._cluster = cluster
        self.token = ""
        self.stale = False

    def put(self, at: Name, key: str, value: object) -> Answer:
        """Write something that JSON can say; the answer's payload is the next."""
        node = self._cluster.nodes[at]
        payload = node.payloads.decode(self.token)
        return self._take(node.put(key, msgspec.json.encode(value), payload))

    def delete(self, at: Name, key: str) -> Answer:
        """Delete; the answer's payload is the next, also of a 404."""
        node = self._cluster.nodes[at]
        return self._take(node.delete(key, node.payloads.decode(self.token)))

    def get(self, at: Name, key: str) -> str | None:
        """Read; None if there is no such key."""
        node = self._cluster.nodes[at]
        answer = self._take(node.get(key, node.payloads.decode(self.token)))
        if answer.status == 404:
            return None
        value: str = msgspec.json.decode(answer.body)["value"]
        return value

    def _take(self, waiting: Deferred[Answer]) -> Answer:
        answer = self._cluster.wait(waiting)
        headers = dict(answer.headers)
        self.stale = "KVS-Stale" in headers
        self.token = headers["KVS-Causal-Payload"]
        return answer


class SimulatedCluster:
    """Nodes by name; killed and restarted, cut off and healed."""

    def __init__(
        self,
        seed: int,
        *,
        k: int = 3,
        settings: Settings | None = None,
        disk_s: tuple[float, float] = (0.0002, 0.003),
    ) -> None:
        """
        Make an empty cluster.

        :param seed: decides every draw of the network, the disks and the nodes.
        :param disk_s: least and greatest time that a commit takes.
        """
        self.rng = random.Random(seed)
        self.clock = Clock()
        self.network = Network(self.clock, self.rng)
        self.settings = settings or Settings()
        self.k = k
        self.nodes: dict[Name, Node] = {}
        self.disks: dict[Name, SimulatedDisk] = {}
        self.processes: list[Process] = []
        """All that run, in the order of their starts; twins among them."""
        self.twins: dict[Name, Process] = {}
        """Second processes under a name that is taken."""
        self.disk_s = disk_s
        self.skew_us: dict[Name, int] = {}
        self.k_given: dict[Name, int] = {}
        """K of nodes that are started with another one than the rest."""
        self.deaths: list[Exception] = []
        """What ended the simulation; raised by the step in which it came."""
        self.after_step: Callable[[], None] = lambda: None
        """Checks that run after every step of time."""
        self.committing: Callable[[Name, Commit], None] = lambda name, commit: None
        """Told of every commit of a node when it begins."""

    def start(
        self, names: Iterable[Name], *, view: Iterable[Name] | None = None
    ) -> None:
        """Start nodes with VIEW and K; their disks stay from the last start."""
        started = list(names)
        first = View.start(tuple(started if view is None else view))
        for name in started:
            self._start(name, first, self.k_given.get(name, self.k))

    def start_alone(self, name: Name) -> None:
        """Start a node with neither VIEW nor K."""
        self._start(name, View(), None)

    def start_twin(
        self, name: Name, *, view: Iterable[Name], disk: SimulatedDisk | None
    ) -> None:
        """
        Start a second process under a name, on a disk of its own.

        :param disk: a copy of another one; None: an empty one.
        """
        disk = disk or self._new_disk(name)
        first = View.start(tuple(view))
        k = self.k_given.get(name, self.k)
        self.twins[name] = self._run(name, first, k, disk=disk, beside=True)

    def _start(self, name: Name, view: View, k: int | None) -> None:
        disk = self.disks.get(name)
        if disk is None:
            disk = self.disks[name] = self._new_disk(name)
        beside = name in self.twins
        self.nodes[name] = self._run(name, view, k, disk=disk, beside=beside).node

    def _new_disk(self, name: Name) -> SimulatedDisk:
        return SimulatedDisk(
            self.clock,
            self.rng,
            delay_s=self.disk_s,
            given=functools.partial(self._tell, name),
        )

    def _run(
        self,
        name: Name,
        view: View,
        k: int | None,
        *,
        disk: SimulatedDisk,
        beside: bool,
    ) -> Process:
        boot_id = self.rng.getrandbits(64)
        clock = ProcessClock(self.clock)
        disk.clock = clock

        def fatal(failure: Failure) -> None:
            error = failure.value
            if not isinstance(error, AssertionError):  # Of what watches the node.
                error = Died(f"{name}: {failure.getTraceback()}")
            self.deaths.append(error)

        node = Node(
            me=name,
            settings=self.settings,
            storage=disk,
            transport=self.network.transport(name, boot_id, clock),
            payloads=PayloadCodec(Secrets((DEFAULT_SECRET,))),
            clock=clock,
            wall_us=lambda: self.wall_us(name),
            rng=random.Random(self.rng.getrandbits(64)),
            boot_id=boot_id,
            first_view=view,
            replica_count=k,
            fatal=fatal,
        )
        self.network.listen(name, boot_id, node.answer_peer, beside=beside)
        node.start(disk.open())
        beat = self.clock.seconds() + self.rng.random() * 0.5
        process = Process(name, boot_id, node, clock, disk, beat)
        self.processes.append(process)
        return process

    def _tell(self, name: Name, commit: Commit) -> None:
        self.committing(name, commit)

    def wall_us(self, name: Name) -> int:
        """Tell a node's wall clock: virtual time and its skew."""
        now = int(self.clock.seconds() * 1_000_000)
        return EPOCH_US + now + self.skew_us.get(name, 0)

    def process(self, node: Node) -> Process | None:
        """Find the process of a node, if it runs."""
        return next((p for p in self.processes if p.node is node), None)

    def kill(self, name: Name, *, keep_disk: bool = True) -> None:
        """
        Kill -9: nothing more leaves the node.

        The commit under way is durable or not, which is drawn; nobody hears of it.

        :param keep_disk: False: the whole machine is gone, with all that was not sent.
        """
        process = self.process(self.nodes.pop(name))
        assert process is not None
        self._end(process, keep_disk=keep_disk)
        if not keep_disk:
            del self.disks[name]

    def kill_twin(self, name: Name) -> None:
        """End a second process, and its machine with it."""
        self._end(self.twins.pop(name), keep_disk=False)

    def _end(self, process: Process, *, keep_disk: bool) -> None:
        if keep_disk:
            self.network.silence(process.name, process.boot_id)
        else:
            self.network.unplug(process.name, process.boot_id)
        self.processes.remove(process)
        process.node.halt()
        if keep_disk:
            if self.rng.random() < 0.5:
                process.disk.flush()
            process.disk.crash()
        # What waits for an answer is told that none will come: then it is over.
        process.clock.run_out()

    def pause(self, process: Process) -> None:
        """Let a process stand still: no timer, no message, no commit ends."""
        if process.paused_at is None:
            process.paused_at = self.clock.seconds()
            self.network.pause(process.boot_id)

    def resume(self, process: Process) -> bool:
        """
        Let a process go on: what came meanwhile comes at once, timers are late.

        :returns: whether it has missed anything.
        """
        assert process.paused_at is not None
        process.paused_at = None
        missed = process.clock.due() or process.beat <= self.clock.seconds()
        before = self.network.traffic.trace
        # An event loop may find either first.
        if self.rng.random() < 0.5:
            self.network.resume(process.boot_id)
            process.clock.run_due()
        else:
            process.clock.run_due()
            self.network.resume(process.boot_id)
        return missed or before != self.network.traffic.trace

    def advance(
        self, seconds: float, *, until: Callable[[], bool] = lambda: False
    ) -> bool:
        """
        Let time pass; nodes gossip on their beats.

        :param until: looked at after every step; ends it early.
        :returns: whether it did.
        :raises Died: if a node ended its process.
        """
        end = self.clock.seconds() + seconds
        while self.clock.rightNow < end - STEP_S / 2:
            self.clock.advance(self._step_s(end))
            now = self.clock.rightNow
            for process in tuple(self.processes):
                if process.paused_at is None:
                    calls = process.clock.calls
                    if calls and calls[0].time <= now:
                        process.clock.run_due()
                    if process.beat <= now:
                        self._beat(process, now)
            if self.deaths:
                raise self.deaths[0]
            self.after_step()
            if until():
                return True
        return False

    def _beat(self, process: Process, now: float) -> None:
        jitter = self.rng.uniform(0.8, 1.2)
        process.beat = now + self.settings.gossip_interval_s * jitter
        process.node.gossip_round()

    def _step_s(self, end: float) -> float:
        """Tell how long to the next event, at least a step; nothing happens between."""
        coming = end
        if self.clock.calls:
            coming = min(coming, self.clock.calls[0].time)
        for process in self.processes:
            if process.paused_at is None:
                calls = process.clock.calls
                if calls and calls[0].time < coming:
                    coming = calls[0].time
                if process.beat < coming:
                    coming = process.beat
        return max(STEP_S, coming - self.clock.rightNow)

    def wait(self, waiting: Deferred[_T], *, limit_s: float = 1.0) -> _T:
        """
        Let time pass until an operation ends.

        :raises Died: if it does not end in time; or what the operation raised.
        """
        results: list[_T | Failure] = []
        waiting.addBoth(results.append)
        end = self.clock.seconds() + limit_s
        while not results:
            if self.clock.seconds() > end:
                raise Died(f"an operation did not end within {limit_s} s")
            self.advance(STEP_S)
        result = results[0]
        if isinstance(result, Failure):
            result.raiseException()
        assert not isinstance(result, Failure)
        return result

    def client(self) -> Client:
        """Make a client without history."""
        return Client(self)

    def versions(self, name: Name) -> dict[str, str | None]:
        """Read every key at one node, from its disk: what it would show durably."""
        shown: dict[str, str | None] = {}
        snapshot = self.disks[name].snapshot()
        rows, _ = snapshot.missing({}, START, versions_max=10**9, bytes_max=10**12)
        snapshot.close()
        for key in sorted({version.key for version in rows}):
            read = self.nodes[name].replica.read(key, EMPTY_PAYLOAD)
            shown[key] = None
            if read.version is not None and read.version.value is not None:
                shown[key] = msgspec.json.decode(read.version.value)
        return shown

    def converged(self) -> bool:
        """Tell whether all replicas know the same."""
        replicas = [n for n in self.nodes.values() if n.cluster.is_replica]
        return all(
            n.replica.durable.vv == replicas[0].replica.durable.vv for n in replicas
        )
