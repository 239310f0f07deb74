"""
How much is under way at once, clients and peers apart.

Invariant: whatever enters leaves, once, whether it was answered, refused half way or
lost its connection; so all counters are zero when nothing is under way.  Peers have a
lane of their own, so that no crowd of clients keeps a cluster from converging.
"""

from __future__ import annotations

from twisted_kvs.core.errors import Overloaded
from twisted_kvs.core.settings import Settings

PEER_REQUESTS_MAX = 1024
"""Requests of peers in flight; a fixed limit of the protocol, far above any need."""


class Lane:
    """Requests in flight and bytes of their bodies, of one kind of asker."""

    def __init__(self, *, requests_max: int, body_bytes_max: int) -> None:
        """Start empty."""
        assert requests_max > 0 and body_bytes_max > 0
        self._requests_max = requests_max
        self._body_bytes_max = body_bytes_max
        self.requests = 0
        """Between the end of their headers and their answer."""
        self.body_bytes = 0
        """Received or announced, of the requests in flight."""

    def enter(self, body_bytes: int) -> Place:
        """
        Take a place for a request whose headers have come.

        :param body_bytes: the announced length of its body, 0 where that is unknown.
        :raises Overloaded: if there are too many requests or bytes; nothing is counted.
        """
        if self.requests >= self._requests_max:
            raise Overloaded(f"over {self._requests_max} requests are in flight")
        self._check_bytes(body_bytes)
        return Place(self, body_bytes)

    def _check_bytes(self, more: int) -> None:
        if self.body_bytes + more > self._body_bytes_max:
            raise Overloaded(
                f"over {self._body_bytes_max} bytes of bodies are under way"
            )


class Place:
    """One request's part of a lane."""

    __slots__ = ("_body_bytes", "_lane", "_left")

    def __init__(self, lane: Lane, body_bytes: int) -> None:
        """Count it; called by the lane only."""
        self._lane = lane
        self._body_bytes = body_bytes
        self._left = False
        lane.requests += 1
        lane.body_bytes += body_bytes

    def grow(self, more: int) -> None:
        """
        Count bytes of a body whose length was not announced.

        :raises Overloaded: if there are too many; these are not counted.
        """
        assert not self._left
        self._lane._check_bytes(more)
        self._body_bytes += more
        self._lane.body_bytes += more

    def leave(self) -> None:
        """Count it no longer; more than one call is one."""
        if self._left:
            return
        self._left = True
        self._lane.requests -= 1
        self._lane.body_bytes -= self._body_bytes
        assert self._lane.requests >= 0 and self._lane.body_bytes >= 0


class Admission:
    """The lanes of a node's port."""

    def __init__(self, settings: Settings) -> None:
        """Take the limits that are options."""
        body_bytes_max = settings.body_bytes_in_flight_max
        self.clients = Lane(
            requests_max=settings.requests_in_flight_max, body_bytes_max=body_bytes_max
        )
        self.peers = Lane(requests_max=PEER_REQUESTS_MAX, body_bytes_max=body_bytes_max)
