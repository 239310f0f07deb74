"""
How many connections are open, and who goes when there are too many.

Invariant: the descriptors that a process may open are never used up by clients, so a
node can always reach its peers, be reached by them, and open its files.

Beyond the limit a new connection takes the place of the one that has been idle for
longest, as nginx does.  Where none is idle it is *surplus*: its first request is
refused with 503, unless it shows that it comes from a peer.  Connections of peers do
not count, and none is closed for a client's sake.  Surplus connections have a limit,
too; above it the oldest of them goes.
"""

from __future__ import annotations

import enum
from typing import Protocol

from twisted_kvs.core.errors import Overloaded

SURPLUS_MAX = 128


class Stage(enum.Enum):
    """What a connection is doing."""

    IDLE = "idle"
    """No request is under way."""
    RECEIVING = "receiving"
    """Since the first byte of a request."""
    ANSWERING = "answering"
    """Since the last byte of a request."""
    LINGERING = "lingering"
    """Everything was said; what still comes is dropped."""
    CLOSING = "closing"
    """Nothing is read; what was said is being sent."""


class Seated(Protocol):
    """A connection."""

    def give_way(self) -> None:
        """Close now; there is nothing under way."""

    def turn_away(self) -> None:
        """Close now, whatever is under way."""


class Seats:
    """The connections of a port, clients and peers apart."""

    def __init__(self, connections_max: int) -> None:
        """Start with no connection."""
        self._connections_max = connections_max
        self._clients: dict[Seated, None] = {}
        self._peers: dict[Seated, None] = {}
        self._surplus: dict[Seated, None] = {}
        # The longest idle one first.
        self._idle: dict[Seated, None] = {}

    @property
    def clients(self) -> int:
        """Connections that count."""
        return len(self._clients)

    @property
    def peers(self) -> int:
        """Connections of peers."""
        return len(self._peers)

    def arrive(self, connection: Seated) -> None:
        """Take a new connection; another one may have to go."""
        if len(self._clients) < self._connections_max:
            self._clients[connection] = None
            return
        longest_idle = next((one for one in self._idle if one in self._clients), None)
        if longest_idle is not None:
            self.leave(longest_idle)
            self._clients[connection] = None
            longest_idle.give_way()
            return
        if len(self._surplus) >= SURPLUS_MAX:
            oldest = next(iter(self._surplus))
            self.leave(oldest)
            oldest.turn_away()
        self._surplus[connection] = None

    def leave(self, connection: Seated) -> None:
        """Count a connection no longer."""
        for among in (self._clients, self._peers, self._surplus, self._idle):
            among.pop(connection, None)

    def idles(self, connection: Seated, idle: bool) -> None:
        """Note whether a connection has anything under way."""
        if idle:
            self._idle[connection] = None
        else:
            self._idle.pop(connection, None)

    def seat_peer(self, connection: Seated) -> None:
        """Note that a connection is a peer's; a verified message came over it."""
        if connection not in self._peers:
            self._clients.pop(connection, None)
            self._surplus.pop(connection, None)
            self._peers[connection] = None

    def is_surplus(self, connection: Seated) -> bool:
        """Tell whether a connection is beyond the limit."""
        return connection in self._surplus

    def check(self, connection: Seated) -> None:
        """
        Decide about a client's request.

        :raises Overloaded: if its connection is beyond the limit.
        """
        if connection in self._surplus:
            raise Overloaded(f"over {self._connections_max} connections are open")
