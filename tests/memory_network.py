"""
A reactor that is a network in memory: connections, their loss, and time.

Real protocols, factories and endpoints run on it.  Nothing moves but in ``flush`` and
``advance``; what was written between two of them arrives in one piece, as it does over
TCP.  It can refuse a connection, never answer one, or stop carrying bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import (
    IConnector,
    IConsumer,
    IHalfCloseableProtocol,
    IPushProducer,
    IReactorTCP,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

BUFFER_BYTES = 64 * 1024
PIECE_BYTES = 64 * 1024


@implementer(ITCPTransport, IConsumer, IPushProducer)
class MemoryTransport:
    """One end of a connection; behaves as Twisted's TCP transports do."""

    other: MemoryTransport

    def __init__(
        self, protocol: Protocol, network: MemoryNetwork, peer: IPv4Address
    ) -> None:
        """Take the protocol of this end."""
        self.protocol = protocol
        self.no_delay = False
        self.connected = True
        self.disconnecting = False
        self.frozen = False
        """True: nothing that was written leaves."""
        self.deliveries: list[bytes] = []
        """What arrived at the other end, piece by piece."""
        self._network = network
        self._peer = peer
        self._out = bytearray()
        self._out_ended = self._end_told = False
        self._reading = True
        self._producer: Any = None
        self._producer_paused = False
        self._lost: Failure | None = None

    # What protocols call.

    def write(self, data: bytes) -> None:
        """Send."""
        assert isinstance(data, bytes)
        if not self.connected or self.disconnecting or self._out_ended:
            return
        self._out += data
        if (
            self._producer
            and not self._producer_paused
            and len(self._out) > BUFFER_BYTES
        ):
            self._producer_paused = True
            self._producer.pauseProducing()

    def writeSequence(self, data: Any) -> None:
        """Send all."""
        self.write(b"".join(data))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Tell somebody when to write."""
        assert streaming and self._producer is None
        self._producer, self._producer_paused = producer, False

    def unregisterProducer(self) -> None:
        """Tell nobody when to write."""
        self._producer = None

    def pauseProducing(self) -> None:
        """Stop reading."""
        self._reading = False

    def resumeProducing(self) -> None:
        """Read."""
        self._reading = True

    def stopProducing(self) -> None:
        """Close."""
        self.loseConnection()

    def loseConnection(self) -> None:
        """Close when all is sent; nothing is read any more."""
        self.disconnecting = True

    def loseWriteConnection(self) -> None:
        """Send no more; go on reading."""
        self._out_ended = True

    def abortConnection(self) -> None:
        """Close at once."""
        if self.connected and self._lost is None:
            self.disconnecting = True
            self._lost = Failure(error.ConnectionAborted())
            self.other._lost = self.other._lost or Failure(error.ConnectionLost())

    def getPeer(self) -> IPv4Address:
        """Tell the other's address."""
        return self._peer

    def getHost(self) -> IPv4Address:
        """Tell the own address."""
        return IPv4Address("TCP", "127.0.0.1", 1)

    def getTcpNoDelay(self) -> bool:
        """Tell whether small writes leave at once."""
        return self.no_delay

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Let small writes leave at once."""
        self.no_delay = bool(enabled)

    def getTcpKeepAlive(self) -> bool:
        """Tell nothing of interest."""
        return False

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Do nothing."""

    # What the network calls.

    def step(self) -> bool:
        """Do one thing, if there is one to do."""
        if not self.connected:
            return False
        if self._lost is not None:
            self._lose(self._lost)
            return True
        if self._out and not self.frozen and self._deliver():
            return True
        if self._out:
            return False
        if self._producer and self._producer_paused:
            self._producer_paused = False
            self._producer.resumeProducing()
            return True
        if self.disconnecting:
            self._end_other()
            self._lose(Failure(error.ConnectionDone()))
            return True
        if self._out_ended:
            return self._end_other()
        return False

    def _deliver(self) -> bool:
        other = self.other
        if other.disconnecting:
            # Unread input answers with a reset, as the kernel does.
            self._out.clear()
            return True
        if not other._reading:
            return False
        piece = bytes(self._out[:PIECE_BYTES])
        del self._out[:PIECE_BYTES]
        self.deliveries.append(piece)
        if other.connected:
            other.protocol.dataReceived(piece)
        return True

    def _end_other(self) -> bool:
        other = self.other
        if not other.connected or other._lost is not None or self.frozen:
            return False
        if self.connected and IHalfCloseableProtocol.providedBy(other.protocol):
            if self._end_told:
                return False
            self._end_told = True
            other.protocol.readConnectionLost()
        else:
            other._lost = Failure(error.ConnectionDone())
        return True

    def _lose(self, reason: Failure) -> None:
        self.connected = False
        self._end_other()
        self.protocol.connectionLost(reason)


@implementer(IConnector)
class MemoryConnector:
    """An attempt to connect."""

    def __init__(
        self, network: MemoryNetwork, host: str, port: int, factory: Any
    ) -> None:
        """Begin."""
        self.network = network
        self.host, self.port, self.factory = host, port, factory
        self.given_up = False

    def stopConnecting(self) -> None:
        """Give up."""
        self.given_up = True

    def disconnect(self) -> None:
        """Give up."""
        self.given_up = True

    def connect(self) -> None:
        """Do nothing; nobody reconnects here."""

    def succeed(self) -> None:
        """Connect, whatever is dropped."""
        self.given_up = True
        self.network.complete(self)

    def refuse(self, why: Failure | None = None) -> None:
        """Say no."""
        self.given_up = True
        refused = why or Failure(error.ConnectionRefusedError())
        self.factory.clientConnectionFailed(self, refused)

    def getDestination(self) -> IPv4Address:
        """Tell where to."""
        return IPv4Address("TCP", self.host, self.port)


@implementer(IReactorTCP)
class MemoryNetwork(Clock):
    """Clock and TCP in one; addresses are texts."""

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self.connections: list[tuple[MemoryTransport, MemoryTransport]] = []
        """All there ever were, client's end first."""
        self.slow = False
        """True: each end sends one piece in a tenth of a second."""
        self.dropped: set[tuple[str, int]] = set()
        """Addresses whose connections are neither made nor refused."""
        self._servers: dict[tuple[str, int], Factory] = {}
        self.connecting: list[MemoryConnector] = []
        """Attempts of which nothing has come yet, those that were given up included."""

    def listen(self, host: str, port: int, factory: Any) -> None:
        """Answer connections to an address."""
        self._servers[host, port] = factory

    def stop(self, host: str, port: int) -> None:
        """Refuse connections to an address from now on."""
        del self._servers[host, port]

    def listenTCP(self, *args: Any, **kwargs: Any) -> Any:
        """Is not for this network: use ``listen``."""
        raise NotImplementedError

    def connectTCP(
        self,
        host: str,
        port: int,
        factory: Any,
        timeout: float = 30,
        bindAddress: Any = None,
    ) -> MemoryConnector:
        """Begin to connect; something comes of it in ``flush``."""
        connector = MemoryConnector(self, host, port, factory)
        factory.startedConnecting(connector)
        self.connecting.append(connector)
        return connector

    def connect(self, host: str, port: int, client: Protocol) -> MemoryTransport:
        """Connect a protocol at once; return its end."""
        server: Any = self._servers[host, port].buildProtocol(None)
        assert server is not None
        near = MemoryTransport(client, self, IPv4Address("TCP", host, port))
        far = MemoryTransport(server, self, IPv4Address("TCP", "10.9.9.9", 999))
        near.other, far.other = far, near
        self.connections.append((near, far))
        server.makeConnection(far)
        client.makeConnection(near)
        return near

    def flush(self) -> None:
        """Move everything that can move, without any time going by."""
        for _ in range(1 if self.slow else 100_000):
            if not self.step() or self.slow:
                return
        raise AssertionError("the network does not come to rest")

    def advance(self, amount: float) -> None:
        """Let time go by, in steps of a tenth of a second at most."""
        self.flush()
        while amount > 0:
            step = min(amount, 0.1)
            amount = round(amount - step, 6)
            super().advance(step)
            self.flush()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Carry no bytes meanwhile on the connections that are there."""
        ends = [end for pair in self.connections for end in pair]
        for end in ends:
            end.frozen = True
        yield
        for end in ends:
            end.frozen = False

    @property
    def open_connections(self) -> int:
        """Connections of which an end is still there."""
        return sum(near.connected or far.connected for near, far in self.connections)

    def step(self) -> bool:
        """Let each end do one thing; tell whether one did."""
        if any(call.getTime() <= self.rightNow for call in self.calls):
            super().advance(0)
            return True
        moved = [end.step() for pair in self.connections for end in pair]
        return any(moved) or self._connect_next()

    def _connect_next(self) -> bool:
        for connector in self.connecting:
            address = connector.host, connector.port
            if connector.given_up or address not in self.dropped:
                self.connecting.remove(connector)
                if not connector.given_up:
                    self.complete(connector)
                return True
        return False

    def complete(self, connector: MemoryConnector) -> None:
        """Let something come of an attempt."""
        if (connector.host, connector.port) not in self._servers:
            connector.refuse()
            return
        client = connector.factory.buildProtocol(connector.getDestination())
        self.connect(connector.host, connector.port, client)
