"""
How much is under way at once, clients and peers apart.

Invariant: whatever enters leaves, once, whether it was answered, refused half way or
lost its connection; so all counters are zero when nothing is under way.  Peers have a
lane of their own, so that no crowd of clients keeps a cluster from converging.

What waits in sockets cannot be counted.  So a node also looks at how long it has been
answering what one look at its sockets found: what it reads after that has waited, and
what it could not answer within the promised second it refuses at once.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from twisted_kvs.core.errors import Overloaded
from twisted_kvs.core.settings import MIB, Settings
from twisted_kvs.core.versions import VALUE_BYTES_MAX

PEER_REQUESTS_MAX = 1024
"""Requests of peers in flight; a fixed limit of the protocol, far above any need."""
HEAD_BYTES_MAX = 32 * MIB
"""Of the unfinished heads of all requests."""
ANSWER_BYTES_MAX = 64 * MIB
"""Of all answers that clients do not take as fast as they asked for them."""
TOO_LATE = "more requests than this node can answer in time"
TURN_LEAST_S = 0.025
TURN_S = 0.2
"""Clients are answered for so long before the node looks for others who wait.  A
request may have waited for one such turn, waits for the rest of the next, and then for
the disk: with half a second for that all is answered in the promised one."""
assert 2 * VALUE_BYTES_MAX < ANSWER_BYTES_MAX


class Held:
    """Bytes that are kept for clients outside of the bodies of requests."""

    def __init__(self, bytes_max: int, *, what: str) -> None:
        """
        Start empty.

        :param what: is held, for the message to whom it is refused.
        """
        self._bytes_max = bytes_max
        self._what = what
        self.bytes = 0

    def take(self, more: int) -> None:
        """
        Hold more.

        :raises Overloaded: if that is too much; nothing is counted.
        """
        if self.bytes + more > self._bytes_max:
            raise Overloaded(f"over {self._bytes_max} bytes of {self._what}")
        self.bytes += more

    def give_back(self, fewer: int) -> None:
        """Hold less."""
        self.bytes -= fewer
        assert self.bytes >= 0


class Turn:
    """How long clients have been answered without a look for others who wait."""

    def __init__(self, clock: IReactorTime) -> None:
        """Start before the first turn."""
        self._clock = clock
        self._began: float | None = None
        self._budget_s = TURN_S

    @property
    def spent(self) -> bool:
        """Whether this turn has taken so long that no more requests are let in."""
        began = self._began
        return began is not None and self._clock.seconds() - began > self._budget_s

    def check(self) -> None:
        """
        Look at the clock before a request is let in.

        :raises Overloaded: if this turn has taken too long already.
        """
        if self._began is None:
            self._began = self._clock.seconds()
            # Runs before the reactor looks at its sockets again.
            self._clock.callLater(0, self._over)
        elif self.spent:
            raise Overloaded(TOO_LATE)

    def _over(self) -> None:
        # A crowd that comes at once is served for long.  If it goes on coming, short
        # turns serve as many, and nobody waits for long.
        if self.spent:
            self._budget_s = max(self._budget_s / 2, TURN_LEAST_S)
        else:
            self._budget_s = min(self._budget_s * 1.25, TURN_S)
        self._began = None


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

    def __init__(self, settings: Settings, clock: IReactorTime) -> None:
        """Take the limits that are options."""
        self.turn = Turn(clock)
        self.heads = Held(HEAD_BYTES_MAX, what="unfinished heads")
        self.answers = Held(ANSWER_BYTES_MAX, what="answers that nobody takes")
        body_bytes_max = settings.body_bytes_in_flight_max
        self.clients = Lane(
            requests_max=settings.requests_in_flight_max, body_bytes_max=body_bytes_max
        )
        self.peers = Lane(requests_max=PEER_REQUESTS_MAX, body_bytes_max=body_bytes_max)
