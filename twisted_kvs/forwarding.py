"""
Handing clients' requests on to a replica: evenly, within the time budget (R13).

One hop at most: who is asked answers or refuses.  A peer that cannot be connected to
does not count as a try.  Reads are hedged (Dean and Barroso, "The tail at scale",
2013);
a write that was sent and not answered is tried once more elsewhere: at least once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from .cluster import Cluster
from .core.causality import Name, VersionVector
from .core.errors import Overloaded, PeerError, PeerUnreachable, SlowDisk
from .core.messages import Forward, ForwardAnswer, Operation, Refused, Standing
from .core.payload import Payload
from .operations import Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A client's request about a key, parsed and verified."""

    operation: Operation
    key: str
    value: bytes | None = None
    """Of a PUT."""
    payload: Payload
    deadline: float
    """Monotonic seconds; includes what is left for the node's own answer."""
    seen: VersionVector = field(default_factory=dict)
    """S of the node that it comes from (R13): the write comes after it, too."""
    forwarded: bool = False
    """Its asker gives up at the deadline and asks another node: then it is too late."""


class Forwarder:
    """Asks replicas on behalf of clients."""

    _log = Logger()

    def __init__(self, cluster: Cluster) -> None:
        """Ask the replicas of ``cluster``."""
        self.cluster = cluster
        self._turn = cluster.rng.randrange(2**16)

    def targets(self, *, and_me: bool = False) -> list[Name]:
        """
        List whom to ask, the next in turn first: replicas that serve, then the others.

        A replica that failed within the last second is not asked.

        :param and_me: this node takes its turn, too; it serves.
        """
        cluster = self.cluster
        able = [
            name
            for name in cluster.replicas()
            if (name == cluster.me and and_me)
            or (name != cluster.me and not cluster.skipped(name))
        ]
        serving = [
            name
            for name in able
            if name == cluster.me or cluster.record(name).standing is Standing.SERVING
        ]
        others = [n for n in able if n not in serving]
        if serving:
            turn = self._turn % len(serving)
            serving = serving[turn:] + serving[:turn]
        self._turn += 1
        return serving + others

    async def forward(self, request: Request, targets: list[Name]) -> Answer | None:
        """
        Let a replica answer.

        :returns: its answer, unchanged; None if no replica could be reached in time.
        :raises Overloaded: if every one refused for load.
        """
        if request.operation is not Operation.GET:
            return await self._write(request, targets)
        return await _HedgedRead(self, request, targets).answer()

    async def _write(self, request: Request, targets: list[Name]) -> Answer | None:
        cluster = self.cluster
        limits = iter(cluster.settings.write_try_s)
        limit, refusals, asked = next(limits, None), [], 0
        for name in targets:
            left = self.left(request)
            if limit is None or left <= 0:
                break
            try:
                answer = await self.try_one(name, request, min(limit, left))
            except PeerUnreachable:
                continue
            except PeerError:
                limit = next(limits, None)
                asked += 1
                continue
            if isinstance(answer, Answer):
                return answer
            if answer.status == SlowDisk.status:
                # As good as no answer: it may have been done.
                limit = next(limits, None)
            refusals.append(answer)
            asked += 1
        _all_overloaded(refusals, asked)
        return None

    def left(self, request: Request) -> float:
        """Seconds that a try may take and leave enough for the own answer."""
        cluster = self.cluster
        return request.deadline - cluster.settings.answer_reserve_s - cluster.now()

    async def try_one(
        self, name: Name, request: Request, limit_s: float
    ) -> Answer | Refused:
        """
        Ask one replica once.

        :raises PeerError: if it did not answer; it is skipped for a while then.
        """
        cluster = self.cluster
        message = Forward(
            operation=request.operation,
            key=request.key,
            value=request.value or b"",
            vector=dict(request.payload.vector),
            lamport=request.payload.lamport,
            seen=dict(cluster.replica.seen),
            budget_ms=max(1, int(limit_s * 1000)),
        )
        try:
            answer = await cluster.ask(
                name,
                message,
                connect_s=min(cluster.settings.connect_s, limit_s),
                total_s=limit_s,
            )
        except PeerError:
            cluster.skip(name)
            raise
        if isinstance(answer, Refused):
            return answer
        if not isinstance(answer, ForwardAnswer):
            cluster.skip(name)
            raise PeerError(f"{name} did not answer a forwarded request")
        cluster.replica.hear_lamport(answer.lamport)
        if request.operation is not Operation.GET and answer.status < 300:
            # It comes after all that the client knows, whose payload may hold a marker
            # that cannot be read here (R20): no vector of ours may.
            cluster.replica.answered(answer.vector)
            cluster.replica.hear_clock(answer.vector)
        return Answer(answer.status, answer.body, tuple(answer.headers))


class _HedgedRead:
    """One read at several replicas: the first answer counts."""

    def __init__(
        self, forwarder: Forwarder, request: Request, targets: list[Name]
    ) -> None:
        self._forwarder = forwarder
        self._cluster = forwarder.cluster
        self._request = request
        self._targets: Iterator[Name] = iter(targets)
        self._result: Deferred[Answer | None] = Deferred()
        self._running: set[Deferred[None]] = set()
        self._refusals: list[Refused] = []
        self._asked = 0
        self._timer: IDelayedCall | None = None

    async def answer(self) -> Answer | None:
        """Ask until one answers, or there is nobody left to ask, or no time."""
        self._next()
        try:
            return await self._result
        finally:
            self._stop()

    def _next(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        settings = self._cluster.settings
        left = self._forwarder.left(self._request)
        name = next(self._targets, None) if left > 0 else None
        if name is None:
            if not self._running:
                self._finish()
            return
        self._timer = self._cluster.clock.callLater(settings.read_hedge_s, self._next)
        trying = ensureDeferred(self._try(name, min(settings.read_try_s, left)))
        self._running.add(trying)
        trying.addBoth(self._ended, trying)

    async def _try(self, name: Name, limit_s: float) -> None:
        try:
            answer = await self._forwarder.try_one(name, self._request, limit_s)
        except PeerUnreachable:
            pass
        except PeerError:
            self._asked += 1
        else:
            self._asked += 1
            if isinstance(answer, Answer):
                if not self._result.called:
                    self._result.callback(answer)
                return
            self._refusals.append(answer)
        if not self._result.called:
            self._cluster.clock.callLater(0, self._after_failure)

    def _after_failure(self) -> None:
        if not self._result.called:
            self._next()

    def _ended(self, result: Failure | None, trying: Deferred[None]) -> None:
        self._running.discard(trying)
        if isinstance(result, Failure) and not self._result.called:
            self._result.errback(result)

    def _finish(self) -> None:
        if self._result.called:
            return
        try:
            _all_overloaded(self._refusals, self._asked)
        except Overloaded:
            self._result.errback()
        else:
            self._result.callback(None)

    def _stop(self) -> None:
        # Those that are under way end by themselves: HTTP/1.1 calls off a request only
        # by closing its connection, and over a long line each read would close one.
        if self._timer is not None and self._timer.active():
            self._timer.cancel()


def _all_overloaded(refusals: list[Refused], asked: int) -> None:
    overloaded = [r for r in refusals if r.status == Overloaded.status]
    if overloaded and len(overloaded) == asked:
        raise Overloaded("all replicas have too many requests in flight")
