"""
The whole port: its connections, the time that they may take, its end.

What a connection does is in ``channel``; here is what they share.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.web import http, server
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource, Resource

from twisted_kvs.core.settings import Settings
from twisted_kvs.metrics import RequestMetrics

from .admission import Admission
from .channel import Channel, Request
from .peer_gate import PeerGate
from .seats import Seats

SWEEP_S = 1.0
"""How often connections are looked at for being too slow."""


class Site(server.Site):
    """All connections of one port, and what they share."""

    protocol = Channel  # type: ignore[assignment]  # Twisted's own is for HTTP/2, too
    requestFactory = Request
    displayTracebacks = False

    def __init__(
        self,
        resource: IResource,
        *,
        settings: Settings,
        gate: PeerGate,
        reactor: IReactorTime,
    ) -> None:
        """See ``make_site``."""
        super().__init__(resource, timeout=None, reactor=reactor)
        self.settings = settings
        self.gate = gate
        self.admission = Admission(settings, reactor)
        self.seats = Seats(settings.connections_max)
        self.requests = RequestMetrics()
        self.closing = False
        self.draining = False
        self.tells_requests = False
        self._channels: set[Channel] = set()
        self._sweep_call: IDelayedCall | None = None
        self._closed: list[Deferred[None]] = []

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return len(self._channels)

    # Twisted's access log costs a timer a second and 20 to 45 % of a request.

    def startFactory(self) -> None:
        """Open no access log."""

    def stopFactory(self) -> None:
        """Close no access log."""

    def log(self, request: http.Request) -> None:
        """Log no request."""

    def connection_made(self, channel: Channel) -> None:
        """Watch a connection."""
        self._channels.add(channel)
        self.seats.arrive(channel)
        if self._sweep_call is None:
            self._sweep_call = self.reactor.callLater(SWEEP_S, self._sweep)
        if self.closing:
            channel.close()

    def connection_lost(self, channel: Channel) -> None:
        """Watch a connection no longer."""
        self._channels.discard(channel)
        self.seats.leave(channel)
        if self._channels:
            return
        if self._sweep_call is not None:
            self._sweep_call.cancel()
            self._sweep_call = None
        closed, self._closed = self._closed, []
        for deferred in closed:
            deferred.callback(None)

    def _sweep(self) -> None:
        now = self.reactor.seconds()
        self._sweep_call = self.reactor.callLater(SWEEP_S, self._sweep)
        for channel in list(self._channels):
            channel.check(now)

    def drain(self) -> None:
        """Answer on, but not ready; a client's next answer ends its connection."""
        self.draining = True

    def close(self, *, grace_s: float) -> Deferred[None]:
        """
        Close idle connections now and the others with their next answer.

        The listening port is somebody else's and must have been closed.

        :param grace_s: what is left then is cut off.
        :returns: fires when all connections are gone.
        """
        self.closing = True
        for channel in list(self._channels):
            channel.close()
        if not self._channels:
            return succeed(None)
        closed: Deferred[None] = Deferred()
        self._closed.append(closed)
        cut_off = self.reactor.callLater(grace_s, self._abort)

        def stop_waiting(_: None) -> None:
            if cut_off.active():
                cut_off.cancel()

        return closed.addCallback(stop_waiting)

    def _abort(self) -> None:
        for channel in list(self._channels):
            channel.transport.abortConnection()


class Root(Resource):
    """Sends peers whose envelope was verified to one resource, all else to another."""

    isLeaf = True

    def __init__(self, *, clients: IResource, peers: IResource) -> None:
        """Take two leaf resources."""
        super().__init__()
        self._clients = clients
        self._peers = peers

    def render(self, request: IRequest) -> bytes | int:
        """Let one of them answer."""
        peer = getattr(request, "envelope", None) is not None
        answer: bytes | int = (self._peers if peer else self._clients).render(request)
        return answer


def make_site(
    resource: IResource, *, settings: Settings, gate: PeerGate, reactor: IReactorTime
) -> Site:
    """
    Make what listens on a node's port.

    :param resource: usually a ``Root``; finds a request's whole body in
        ``request.content.getvalue()``, a peer's envelope in ``request.envelope``.
    :param gate: verifies peers.
    :param reactor: times everything.
    """
    return Site(resource, settings=settings, gate=gate, reactor=reactor)
