"""
A network of one process: virtual time, messages as bytes, faults as settings.

Everything that chance decides is drawn from one generator, in the order in which things
happen, so that a run is replayed by its seed.  A cut link drops messages silently, as a
disconnected network does; an unreachable or dead peer refuses at once or is silent,
which is drawn, too.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock

from ..core.causality import Name
from ..core.codec import Codec
from ..core.errors import BadPeerMessage, PeerTimedOut, PeerUnreachable
from ..core.messages import PeerAnswer, PeerRequest, Refused
from ..core.settings import Settings
from ..operations import Reply

PROGRESS_S = Settings().gossip_progress_s
"""A message that was lost makes no progress: its asker gives up after so long."""

Answerer = Callable[[Name, int, PeerRequest], Deferred[PeerAnswer]]


@dataclass(slots=True)
class Faults:
    """What the network does to messages; probabilities per message and direction."""

    delay_s: tuple[float, float] = (0.0002, 0.002)
    """Least and greatest time that a message takes."""
    loss: float = 0.0
    duplicate: float = 0.0
    """Requests that arrive twice."""
    garbage: float = 0.0
    """Messages whose signature does not fit when they arrive."""
    cuts: set[tuple[Name, Name]] = field(default_factory=set)
    """Directed links that carry nothing: (from, to)."""


@dataclass(slots=True)
class Traffic:
    """What crossed the network; a fault that never happened proves nothing."""

    messages: int = 0
    bytes_carried: int = 0
    lost: int = 0
    duplicated: int = 0
    garbage: int = 0
    cut: int = 0
    trace: int = 0
    """Hash of every message sent so far, its time, its ends and its bytes."""


@dataclass(frozen=True, slots=True)
class _Port:
    boot_id: int
    answer: Answerer


class Network:
    """Carries messages between the nodes of one simulated cluster."""

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        """
        Make a network without nodes or faults.

        :param clock: the virtual time of all nodes.
        :param rng: decides every delay and loss.
        """
        self.clock = clock
        self.rng = rng
        self.codec = Codec()
        self.faults = Faults()
        self.traffic = Traffic()
        self._ports: dict[Name, _Port] = {}
        self._unplugged: set[tuple[Name, int]] = set()

    def listen(self, name: Name, boot_id: int, answer: Answerer) -> None:
        """Let a node answer under ``name``; replaces the one before."""
        self._ports[name] = _Port(boot_id, answer)

    def silence(self, name: Name) -> None:
        """Nobody answers under ``name`` any more: connections are refused."""
        self._ports.pop(name, None)

    def unplug(self, name: Name) -> None:
        """Silence a node and lose what it has sent and did not arrive yet."""
        port = self._ports.pop(name, None)
        if port is not None:
            self._unplugged.add((name, port.boot_id))

    def unplugged(self, name: Name, boot_id: int) -> bool:
        """Tell whether a message of this process is lost because it was unplugged."""
        lost = (name, boot_id) in self._unplugged
        self.traffic.lost += lost
        return lost

    def cut(self, one: Name, other: Name) -> None:
        """Cut a link, both ways."""
        self.faults.cuts |= {(one, other), (other, one)}

    def partition(self, *groups: list[Name]) -> None:
        """Let only members of the same group reach each other."""
        for index, group in enumerate(groups):
            for others in groups[index + 1 :]:
                for one in group:
                    for other in others:
                        self.cut(one, other)

    def heal(self) -> None:
        """Carry everything again."""
        self.faults.cuts.clear()

    def count(self, link: tuple[Name, Name], packed: bytes) -> None:
        """Take note of a message that is sent over a link: (from, to)."""
        traffic = self.traffic
        traffic.messages += 1
        traffic.bytes_carried += len(packed)
        noted = f"{traffic.trace} {self.clock.seconds()} {link} ".encode()
        traffic.trace = zlib.crc32(noted + packed)

    def carries(self, source: Name, target: Name) -> bool:
        """Decide, once per message, whether it arrives."""
        if (source, target) in self.faults.cuts:
            self.traffic.cut += 1
            return False
        if self.faults.loss and self.rng.random() < self.faults.loss:
            self.traffic.lost += 1
            return False
        return True

    def spoils(self) -> bool:
        """Decide, once per message that arrives, whether it is garbage."""
        spoiled = bool(self.faults.garbage) and self.rng.random() < self.faults.garbage
        self.traffic.garbage += spoiled
        return spoiled

    def delay_s(self) -> float:
        """Draw how long a message takes; unequal delays reorder messages."""
        return self.rng.uniform(*self.faults.delay_s)

    def transport(self, name: Name, boot_id: int) -> SimulatedTransport:
        """Make the transport of one process."""
        return SimulatedTransport(self, name, boot_id)

    def port(self, name: Name) -> _Port | None:
        """Who answers under ``name`` now."""
        return self._ports.get(name)


class SimulatedTransport:
    """``PeerTransport`` over a ``Network``."""

    def __init__(self, network: Network, me: Name, boot_id: int) -> None:
        """Ask on behalf of the process ``boot_id`` under the name ``me``."""
        self._network = network
        self._me = me
        self._boot_id = boot_id
        self._closed = False

    def ask(
        self, peer: Name, request: PeerRequest, *, connect_s: float, total_s: float
    ) -> Deferred[Reply]:
        """Ask once, as ``PeerTransport.ask``."""
        asking = _Asking(self._network, (self._me, self._boot_id), peer)
        if self._closed:
            asking.fail(PeerUnreachable("this node has stopped"))
        else:
            asking.send(request, connect_s, total_s)
        return asking.result

    def close(self) -> Deferred[None]:
        """Ask nobody any more."""
        self._closed = True
        return succeed(None)


class _Asking:
    """One request and its answer on their way."""

    def __init__(self, network: Network, source: tuple[Name, int], peer: Name) -> None:
        self._network = network
        self._me, self._boot_id = source
        self._peer = peer
        self._timer: IDelayedCall | None = None
        self.result: Deferred[Reply] = Deferred(lambda _: self._end())

    def fail(self, error: Exception) -> None:
        """Give up."""
        self._end()
        if not self.result.called:
            self.result.errback(error)

    def send(self, request: PeerRequest, connect_s: float, total_s: float) -> None:
        """Encode, and let it arrive after a while, twice, or never."""
        network, clock = self._network, self._network.clock
        packed = network.codec.encode(request)
        network.count((self._me, self._peer), packed)
        dark = (self._me, self._peer) in network.faults.cuts
        limit = min(connect_s, total_s) if dark else min(total_s, PROGRESS_S)
        error = PeerUnreachable if dark else PeerTimedOut
        self._timer = clock.callLater(
            limit, self.fail, error(f"{self._peer} did not answer in {limit} s")
        )
        if not network.carries(self._me, self._peer):
            return
        clock.callLater(network.delay_s(), self._arrive, packed)
        twice = network.faults.duplicate
        if twice and network.rng.random() < twice:
            network.traffic.duplicated += 1
            clock.callLater(network.delay_s(), self._arrive, packed)

    def _arrive(self, packed: bytes) -> None:
        network = self._network
        if network.unplugged(self._me, self._boot_id):
            return
        port = network.port(self._peer)
        if port is None:
            if network.carries(self._peer, self._me):
                refused = PeerUnreachable(f"{self._peer} refused the connection")
                network.clock.callLater(network.delay_s(), self.fail, refused)
            return
        if network.spoils():
            self._back(Refused(BadPeerMessage.status, "bad signature"), port)
            return
        request = network.codec.decode_request(packed)
        answering = port.answer(self._me, self._boot_id, request)
        answering.addCallback(self._back, port)

    def _back(self, answer: PeerAnswer, port: _Port) -> None:
        network = self._network
        if network.port(self._peer) is not port:
            return  # It died before it could answer.
        packed = network.codec.encode(answer)
        network.count((self._peer, self._me), packed)
        if network.carries(self._peer, self._me):
            network.clock.callLater(network.delay_s(), self._finish, packed, port)

    def _finish(self, packed: bytes, port: _Port) -> None:
        lost = self._network.unplugged(self._peer, port.boot_id)
        if lost or self.result.called:
            return
        self._end()
        try:
            if self._network.spoils():
                raise BadPeerMessage(f"{self._peer} answered with a bad signature")
            answer = self._network.codec.decode_answer(packed)
        except BadPeerMessage as error:
            self.result.errback(error)
        else:
            self.result.callback(Reply(port.boot_id, answer))

    def _end(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
