"""
What a node counts of its work: plain numbers, bumped where the work is done.

Nothing here knows how metrics are published: that is done when somebody asks, so that a
request costs a few additions and no more.  The core counts nothing; what it did is in
its results, and is counted by who gets them.

Invariant: what is a sum only grows; and the number of counters follows from the program
and the view, never from what clients send.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from itertools import pairwise
from operator import itemgetter

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from .core.causality import Actor, Name, VersionVector, own_writes
from .core.versions import Version

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Upper bounds for times; an answer is promised within a second."""
VERSIONS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
"""Upper bounds for sizes of commits."""


class Histogram:
    """How often something was how great."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Count by upper bounds, ascending; what is greater counts, too."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """By bound, each without those below; the last are above all bounds."""
        self.total = 0.0
        """Sum of all that was seen."""

    def observe(self, value: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """List how many were at most how great; the last bound is infinite."""
        seen = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            seen += count
            yield bound, seen


class Kind(StrEnum):
    """What a request was about."""

    GET = "get"
    PUT = "put"
    DELETE = "delete"
    VIEW = "view"
    """Roles, replicas, update_view."""
    HEALTH = "health"
    METRICS = "metrics"
    STATUS = "status"
    PEER = "peer"
    """A signed message of another node."""
    OTHER = "other"
    """Anything else, what is no HTTP included."""


_USUAL = {
    Kind.GET: (200, 404, 503),
    Kind.PUT: (200, 201, 503),
    Kind.DELETE: (200, 404, 503),
}


class KindMetrics:
    """Requests of one kind."""

    __slots__ = ("seconds", "statuses")

    def __init__(self, kind: Kind) -> None:
        """Start at zero: what is usual is there before, so that its rise is seen."""
        self.statuses = dict.fromkeys(_USUAL.get(kind, ()), 0)
        self.seconds = Histogram(SECONDS)


class RequestMetrics:
    """Requests that were answered."""

    def __init__(self) -> None:
        """Start at zero."""
        self.kinds = {kind: KindMetrics(kind) for kind in Kind}

    def answered(self, kind: Kind, status: int, seconds: float | None) -> None:
        """
        Count an answer.

        :param seconds: since the last byte of the request; None where it was refused
            for load or before that byte: this says nothing of how long answers take.
        """
        of_kind = self.kinds[kind]
        statuses = of_kind.statuses
        statuses[status] = statuses.get(status, 0) + 1
        if seconds is not None:
            of_kind.seconds.observe(seconds)


class Traffic:
    """Bytes of messages between nodes, as they crossed the wire, without heads."""

    __slots__ = ("received", "sent")

    def __init__(self) -> None:
        """Start at zero."""
        self.received = 0
        self.sent = 0


class CommitMetrics:
    """Commits that became durable."""

    def __init__(self) -> None:
        """Start at zero."""
        self.versions = Histogram(VERSIONS)
        self.seconds = Histogram(SECONDS)
        self.conflicts = 0
        """Keys at which a commit left more than one version, with a new one."""


class Outcome(StrEnum):
    """How an exchange that this node began has ended."""

    EQUAL = "equal"
    """Both had the same."""
    EXCHANGED = "exchanged"
    """What either lacked was given, or there is more to be pulled."""
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    TIMED_OUT = "timed_out"
    DISK_FULL = "disk_full"
    BAD = "bad"
    """The peer did not speak as it should."""
    FAILED = "failed"
    """A bug, see the log."""


class WriteAges:
    """
    When this node's own writes became durable; so how old is what a peer lacks.

    Writes are marked in steps of ``STEP_S``, and in coarser ones far back, where a part
    of the age is as good: an age is too great by as much, and never too small.
    """

    STEP_S = 0.05
    PART = 0.02
    MARKS_MAX = 2048
    """Of each incarnation; steps that grow with the age fill half of it in years."""

    def __init__(self) -> None:
        """Know of no write."""
        self._last: dict[Actor, int] = {}
        self._marks: dict[Actor, list[tuple[int, float]]] = {}

    def found(self, stored: VersionVector, me: Name, now: float) -> None:
        """
        Note own writes of earlier processes, which may be older than ``now`` tells.

        :param stored: what is durable at the start.
        """
        for actor, counter in own_writes(stored, me).items():
            self._last[actor] = counter
            self._marks[actor] = [(1, now)]

    def durable(self, minted: Iterable[Version], now: float) -> None:
        """Note own writes, in the order of their counters, that are durable now."""
        for version in minted:
            actor, counter = version.actor, version.counter
            self._last[actor] = counter
            marks = self._marks.setdefault(actor, [])
            if not marks or now - marks[-1][1] >= self.STEP_S:
                marks.append((counter, now))
                if len(marks) > self.MARKS_MAX:
                    self._marks[actor] = self._thinned(marks, now)

    def _thinned(
        self, marks: list[tuple[int, float]], now: float
    ) -> list[tuple[int, float]]:
        kept = [marks[0]]
        for mark, after in pairwise(marks[1:]):
            if after[1] - kept[-1][1] > self.PART * (now - after[1]):
                kept.append(mark)
        return [*kept, marks[-1]]

    def oldest_lacking_s(self, vv: VersionVector, now: float) -> float:
        """Tell how old the oldest write is that ``vv`` does not cover; 0 if none is."""
        oldest = now
        for actor, last in self._last.items():
            known = vv.get(actor, 0)
            if known < last:
                marks = self._marks[actor]
                place = bisect_right(marks, known + 1, key=itemgetter(0))
                oldest = min(oldest, marks[max(place - 1, 0)][1])
        return now - oldest


class TurnProbe(Service):
    """
    Sees how long the reactor is busy with one turn.

    A timer is due every ``STEP_S``; by as much as it comes too late, the reactor was
    busy with something else, or the process had no processor.  So a turn is seen a
    step shorter than it was, at worst, and the longest ones are those seen best.
    """

    STEP_S = 0.05
    SLICE_S = 10.0
    SLICES = 6

    def __init__(self, clock: IReactorTime) -> None:
        """Probe the reactor behind ``clock``, once started."""
        self._clock = clock
        self._slices: deque[float] = deque([0.0], maxlen=self.SLICES)
        self._slice_ends = 0.0
        self._pending: IDelayedCall | None = None
        self._due = 0.0

    @property
    def longest_s(self) -> float:
        """The longest turn of the last minute."""
        return max(self._slices)

    def startService(self) -> None:
        """Begin to probe."""
        super().startService()
        self._slice_ends = self._clock.seconds() + self.SLICE_S
        self._next()

    def stopService(self) -> None:
        """Probe no more."""
        super().stopService()
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None

    def _next(self) -> None:
        self._due = self._clock.seconds() + self.STEP_S
        self._pending = self._clock.callLater(self.STEP_S, self._woken)

    def _woken(self) -> None:
        now = self._clock.seconds()
        if now >= self._slice_ends:
            self._slices.append(0.0)
            self._slice_ends = now + self.SLICE_S
        self._slices[-1] = max(self._slices[-1], now - self._due)
        self._next()
