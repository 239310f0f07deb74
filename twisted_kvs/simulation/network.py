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
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import Clock

from ..core.causality import Name
from ..core.codec import Codec
from ..core.errors import BadPeerMessage, PeerTimedOut, PeerUnreachable
from ..core.messages import Forward, Operation, PeerAnswer, PeerRequest, Refused
from ..core.settings import Settings
from ..operations import Reply

PROGRESS_S = Settings().gossip_progress_s
"""A message that was lost makes no progress: its asker gives up after so long."""

REORDER_S = 0.1
"""How long a message is held up at most, to be overtaken."""
LATE_S = 0.015
"""A message that takes so long counts as delayed; a healthy network is faster."""

Answerer = Callable[[Name, int, PeerRequest], Deferred[PeerAnswer]]
Link = tuple[Name, Name]
"""One direction: from, to."""


@dataclass(slots=True)
class Faults:
    """What the network does to messages; probabilities per message and direction."""

    delay_s: tuple[float, float] = (0.0002, 0.002)
    """Least and greatest time that a message takes."""
    loss: float = 0.0
    duplicate: float = 0.0
    """Requests that arrive twice."""
    reorder: float = 0.0
    """Messages that are held up for a while, so that later ones overtake them."""
    garbage: float = 0.0
    """Messages whose signature does not fit when they arrive."""
    cuts: set[Link] = field(default_factory=set)
    """Directed links that carry nothing."""
    causes: dict[Link, str] = field(default_factory=dict)
    """What cut a link, where that is to be counted."""


@dataclass(slots=True)
class Traffic:
    """What crossed the network; a fault that never happened proves nothing."""

    messages: int = 0
    bytes_carried: int = 0
    lost: int = 0
    """By chance."""
    unplugged: int = 0
    """Lost with the machine that had sent them."""
    duplicated: int = 0
    garbage: int = 0
    cut: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    """Messages that a cut link lost, by what cut it."""
    delayed: int = 0
    reordered: int = 0
    """Messages that were held up until one that was sent later over the same link had
    arrived."""
    held: int = 0
    """Messages that came while their process stood still."""
    trace: int = 0
    """Hash of every message sent so far, its time, its ends and its bytes."""


@dataclass(frozen=True, slots=True)
class _Port:
    boot_id: int
    answer: Answerer


@dataclass(slots=True)
class _Order:
    """Which messages of a link were sent and have arrived."""

    sent: int = 0
    arrived: int = 0


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
        self.observe: Callable[[str], None] | None = None
        """Told, in words, of every message that is sent."""
        self.heard: set[int] = set()
        """Boot ids of processes that have had any word of another."""
        self.last_sent: dict[Link, str] = {}
        """What kind of message was sent last over a link."""
        self.forwards: Counter[Name] = Counter()
        """How often each name has handed a request on."""
        self._ports: dict[Name, list[_Port]] = {}
        self._unplugged: set[tuple[Name, int]] = set()
        self._held: dict[int, list[Callable[[], None]]] = {}
        self._orders: dict[Link, _Order] = {}

    def listen(
        self, name: Name, boot_id: int, answer: Answerer, *, beside: bool = False
    ) -> None:
        """
        Let a process answer under ``name``; replaces the one before.

        :param beside: both have the name: chance decides who gets a message.
        """
        others = self._ports.get(name, []) if beside else []
        self._ports[name] = [*others, _Port(boot_id, answer)]

    def silence(self, name: Name, boot_id: int) -> None:
        """A process answers no more; if none is left, connections are refused."""
        left = [p for p in self._ports.get(name, ()) if p.boot_id != boot_id]
        self._ports[name] = left
        self._held.pop(boot_id, None)

    def unplug(self, name: Name, boot_id: int) -> None:
        """Silence a process and lose what it has sent and did not arrive yet."""
        self.silence(name, boot_id)
        self._unplugged.add((name, boot_id))

    def pause(self, boot_id: int) -> None:
        """A process stands still: what comes for it waits."""
        self._held.setdefault(boot_id, [])

    def resume(self, boot_id: int) -> None:
        """Give a process all that came while it stood still, in that order."""
        for arrive in self._held.pop(boot_id, ()):
            arrive()

    def held_up(self, boot_id: int, arrive: Callable[[], None]) -> bool:
        """Keep what comes for a process that stands still, and say whether."""
        if boot_id not in self._held:
            return False
        self.traffic.held += 1
        self._held[boot_id].append(arrive)
        return True

    def unplugged(self, name: Name, boot_id: int) -> bool:
        """Tell whether a message of this process is lost because it was unplugged."""
        lost = (name, boot_id) in self._unplugged
        self.traffic.unplugged += lost
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
        self.faults.causes.clear()

    def count(self, link: Link, packed: bytes, kind: str) -> None:
        """Take note of a message that is sent over a link."""
        traffic = self.traffic
        traffic.messages += 1
        self.last_sent[link] = kind
        self.forwards[link[0]] += kind == Forward.__name__
        traffic.bytes_carried += len(packed)
        noted = f"{traffic.trace} {self.clock.seconds()} {link} ".encode()
        traffic.trace = zlib.crc32(noted + packed)
        if self.observe is not None:
            lost = " (cut)" if link in self.faults.cuts else ""
            self.observe(f"{link[0]} -> {link[1]}: {kind}, {len(packed)} bytes{lost}")

    def carries(self, source: Name, target: Name) -> bool:
        """Decide, once per message, whether it arrives."""
        if (source, target) in self.faults.cuts:
            self.traffic.cut += 1
            self.traffic.causes[self.faults.causes.get((source, target), "cut")] += 1
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

    def deliver(self, link: Link, arrive: Callable[[], None]) -> None:
        """Let a message arrive after a while; unequal delays reorder messages."""
        delay = self.rng.uniform(*self.faults.delay_s)
        self.traffic.delayed += delay >= LATE_S
        held_up = self.faults.reorder and self.rng.random() < self.faults.reorder
        if held_up:
            delay += self.rng.uniform(0, REORDER_S)
        order = self._orders.setdefault(link, _Order())
        order.sent += 1
        number = order.sent

        def arrived() -> None:
            self.traffic.reordered += bool(held_up) and number < order.arrived
            order.arrived = max(order.arrived, number)
            arrive()

        self.clock.callLater(delay, arrived)

    def transport(
        self, name: Name, boot_id: int, clock: IReactorTime | None = None
    ) -> SimulatedTransport:
        """
        Make the transport of one process.

        :param clock: by which the process tells that it has waited for too long.
        """
        return SimulatedTransport(self, (name, boot_id), clock or self.clock)

    def port(self, name: Name) -> _Port | None:
        """Who answers under ``name`` now."""
        ports = self._ports.get(name)
        if not ports:
            return None
        return ports[0] if len(ports) == 1 else self.rng.choice(ports)

    def listens(self, name: Name, port: _Port) -> bool:
        """Tell whether this very process still answers."""
        return port in self._ports.get(name, ())


class SimulatedTransport:
    """``PeerTransport`` over a ``Network``."""

    def __init__(
        self, network: Network, source: tuple[Name, int], clock: IReactorTime
    ) -> None:
        """Ask on behalf of ``source``, a name and a boot id."""
        self.network = network
        self.source = source
        self.clock = clock
        self.closed = False

    def ask(
        self, peer: Name, request: PeerRequest, *, connect_s: float, total_s: float
    ) -> Deferred[Reply]:
        """Ask once, as ``PeerTransport.ask``."""
        asking = _Asking(self, peer)
        if self.closed:
            asking.fail(PeerUnreachable("this node has stopped"))
        else:
            asking.send(request, connect_s, total_s)
        return asking.result

    def close(self) -> Deferred[None]:
        """Ask nobody any more."""
        self.closed = True
        return succeed(None)


class _Asking:
    """One request and its answer on their way."""

    def __init__(self, transport: SimulatedTransport, peer: Name) -> None:
        self._transport = transport
        self._network = transport.network
        self._me, self._boot_id = transport.source
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
        network, link = self._network, (self._me, self._peer)
        packed = network.codec.encode(request)
        network.count(link, packed, type(request).__name__)
        dark = link in network.faults.cuts
        limit = min(connect_s, total_s) if dark else min(total_s, PROGRESS_S)
        error = PeerUnreachable if dark else PeerTimedOut
        self._timer = self._transport.clock.callLater(
            limit, self.fail, error(f"{self._peer} did not answer in {limit} s")
        )
        if not network.carries(*link):
            return
        network.deliver(link, lambda: self._arrive(packed))
        twice = network.faults.duplicate
        if twice and network.rng.random() < twice:
            network.traffic.duplicated += 1
            network.deliver(link, lambda: self._arrive(packed))

    def _arrive(self, packed: bytes) -> None:
        network = self._network
        if network.unplugged(self._me, self._boot_id):
            return
        port = network.port(self._peer)
        if port is None:
            if network.carries(self._peer, self._me):
                refused = PeerUnreachable(f"{self._peer} refused the connection")
                self._return(lambda: self.fail(refused))
            return
        if network.held_up(port.boot_id, lambda: self._late(packed, port)):
            return
        self._answer(packed, port)

    def _late(self, packed: bytes, port: _Port) -> None:
        """The process goes on, and finds this: whose asker may have hung up."""
        request = self._network.codec.decode_request(packed)
        write = isinstance(request, Forward) and request.operation is not Operation.GET
        if not (write and self.result.called):
            self._answer(packed, port)

    def _answer(self, packed: bytes, port: _Port) -> None:
        network = self._network
        if network.spoils():
            self._back(Refused(BadPeerMessage.status, "bad signature"), port)
            return
        request = network.codec.decode_request(packed)
        network.heard.add(port.boot_id)
        answering = port.answer(self._me, self._boot_id, request)
        answering.addCallback(self._back, port)

    def _back(self, answer: PeerAnswer, port: _Port) -> None:
        network = self._network
        if not network.listens(self._peer, port):
            return  # It died before it could answer.
        packed = network.codec.encode(answer)
        network.count((self._peer, self._me), packed, type(answer).__name__)
        if network.carries(self._peer, self._me):
            self._return(lambda: self._finish(packed, port))

    def _return(self, arrive: Callable[[], None]) -> None:
        """Let something come back, to a process that may stand still or be dead."""

        def come() -> None:
            closed = self._transport.closed
            if not closed and not self._network.held_up(self._boot_id, arrive):
                arrive()

        self._network.deliver((self._peer, self._me), come)

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
            self._network.heard.add(self._boot_id)
            self.result.callback(Reply(port.boot_id, answer))

    def _end(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
