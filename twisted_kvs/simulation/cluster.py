"""
Real nodes, simulated disks, one virtual clock, one network: a cluster in a process.

One seed decides everything.  Time moves only in ``advance`` and ``run``.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable
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

_T = TypeVar("_T")
STEP_S = 0.001
EPOCH_US = 1_700_000_000_000_000


class Died(AssertionError):
    """A node ended its process, or an operation never ended."""


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
        self.disk_s = disk_s
        self.skew_us: dict[Name, int] = {}
        self._beats: dict[Name, float] = {}
        self._deaths: list[str] = []
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
            self._start(name, first, self.k)

    def start_alone(self, name: Name) -> None:
        """Start a node with neither VIEW nor K."""
        self._start(name, View(), None)

    def _start(self, name: Name, view: View, k: int | None) -> None:
        boot_id = self.rng.getrandbits(64)
        storage = self.disks.get(name)
        if storage is None:
            storage = self.disks[name] = SimulatedDisk(
                self.clock,
                self.rng,
                delay_s=self.disk_s,
                given=functools.partial(self._tell, name),
            )

        def fatal(failure: Failure) -> None:
            self._deaths.append(f"{name}: {failure.getTraceback()}")

        node = Node(
            me=name,
            settings=self.settings,
            storage=storage,
            transport=self.network.transport(name, boot_id),
            payloads=PayloadCodec(Secrets((DEFAULT_SECRET,))),
            clock=self.clock,
            wall_us=lambda: self.wall_us(name),
            rng=random.Random(self.rng.getrandbits(64)),
            boot_id=boot_id,
            first_view=view,
            replica_count=k,
            fatal=fatal,
        )
        self.nodes[name] = node
        self.network.listen(name, boot_id, node.answer_peer)
        node.start(storage.open())
        self._beats[name] = self.clock.seconds() + self.rng.random() * 0.5

    def _tell(self, name: Name, commit: Commit) -> None:
        self.committing(name, commit)

    def wall_us(self, name: Name) -> int:
        """Tell a node's wall clock: virtual time and its skew."""
        now = int(self.clock.seconds() * 1_000_000)
        return EPOCH_US + now + self.skew_us.get(name, 0)

    def kill(self, name: Name, *, keep_disk: bool = True) -> None:
        """
        Kill -9: nothing more leaves the node.

        The commit under way is durable or not, which is drawn; nobody hears of it.

        :param keep_disk: False: the whole machine is gone, with all that was not sent.
        """
        if keep_disk:
            self.network.silence(name)
        else:
            self.network.unplug(name)
        node = self.nodes.pop(name)
        self._beats.pop(name)
        node.halt()
        if not keep_disk:
            del self.disks[name]
            return
        if self.rng.random() < 0.5:
            self.disks[name].flush()
        self.disks[name].crash()

    def advance(self, seconds: float) -> None:
        """
        Let time pass; nodes gossip on their beats.

        :raises Died: if a node ended its process.
        """
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end - STEP_S / 2:
            self.clock.advance(self._step_s(end))
            now = self.clock.seconds()
            for name in sorted(self._beats):
                if name in self._beats and self._beats[name] <= now:
                    jitter = self.rng.uniform(0.8, 1.2)
                    self._beats[name] = now + self.settings.gossip_interval_s * jitter
                    self.nodes[name].gossip_round()
            if self._deaths:
                raise Died(self._deaths[0])
            self.after_step()

    def _step_s(self, end: float) -> float:
        """Tell how long to the next event, at least a step; nothing happens between."""
        times = [call.getTime() for call in self.clock.getDelayedCalls()]
        coming = min([end, *times, *self._beats.values()])
        return max(STEP_S, coming - self.clock.seconds())

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
            if read.version is not None:
                shown[key] = msgspec.json.decode(read.version.value)
        return shown

    def converged(self) -> bool:
        """Tell whether all replicas know the same."""
        replicas = [n for n in self.nodes.values() if n.cluster.is_replica]
        return all(
            n.replica.durable.vv == replicas[0].replica.durable.vv for n in replicas
        )
