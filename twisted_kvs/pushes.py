"""
Eager push: fresh writes go to the other replicas at once, in batches (R8).

One batch is under way per peer, what is written meanwhile goes into the next, so the
cost of a request is shared under load.  A push is never repeated and never relayed:
every gap it leaves is repaired by a pull.  Only durable writes are pushed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from .cluster import Cluster
from .core.causality import Actor, Dot, Name, VersionVector, join
from .core.errors import PeerError
from .core.messages import Push, PushAnswer
from .core.versions import Version


@dataclass(slots=True)
class _Queue:
    """What waits to be pushed to one peer; without gaps within an actor."""

    versions: deque[Version] = field(default_factory=deque)
    size_bytes: int = 0
    flying: bool = False


@dataclass(slots=True)
class _Waiter:
    """A write that waits for one acknowledgement."""

    dot: Dot
    outstanding: set[Name]
    fired: Deferred[bool]


class Pushes:
    """Pushes this node's writes and tells who has them."""

    _log = Logger()

    def __init__(self, cluster: Cluster) -> None:
        """Push to the replicas of ``cluster``."""
        self._cluster = cluster
        self._queues: dict[Name, _Queue] = {}
        self._waiters: dict[Actor, list[_Waiter]] = {}

    def push(self, versions: tuple[Version, ...]) -> None:
        """Hand fresh, durable writes of this node to every other replica."""
        cluster = self._cluster
        for peer in cluster.replicas():
            if peer == cluster.me:
                continue
            queue = self._queues.setdefault(peer, _Queue())
            for version in versions:
                queue.versions.append(version)
                queue.size_bytes += _size(version)
            settings = cluster.settings
            if (
                len(queue.versions) > settings.push_queue_versions_max
                or queue.size_bytes > settings.push_queue_bytes_max
            ):
                _drop(queue)
            else:
                self._kick(peer, queue)

    def acknowledged(self, dot: Dot) -> Deferred[bool]:
        """
        Wait until one other replica has a write that was just pushed.

        :returns: fires with whether one has it: at the first acknowledgement, when no
            push of it can succeed any more, or after ``push_ack_s``.  May be cancelled.
        """
        waiter = _Waiter(dot, set(), Deferred())
        for peer, queue in self._queues.items():
            if queue.flying and not self._cluster.skipped(peer):
                waiter.outstanding.add(peer)
        if not waiter.outstanding:
            waiter.fired.callback(False)
            return waiter.fired
        waiting = self._waiters.setdefault(dot[0], [])
        waiting.append(waiter)
        timer = self._cluster.clock.callLater(
            self._cluster.settings.push_ack_s, self._fire, waiter, False
        )

        def done(result: bool | Failure) -> bool | Failure:
            if timer.active():
                timer.cancel()
            if waiter in waiting:
                waiting.remove(waiter)
            return result

        return waiter.fired.addBoth(done)

    def drop_all(self) -> None:
        """Forget what waits to be pushed: a pull repairs it."""
        for queue in self._queues.values():
            _drop(queue)

    def _fire(self, waiter: _Waiter, given: bool) -> None:
        if not waiter.fired.called:
            waiter.fired.callback(given)

    def _kick(self, peer: Name, queue: _Queue) -> None:
        if queue.flying or not queue.versions:
            return
        queue.flying = True
        ensureDeferred(self._send(peer, queue)).addErrback(self._crashed, peer, queue)

    def _crashed(self, failure: Failure, peer: Name, queue: _Queue) -> None:
        self._log.failure("a push failed", failure=failure)
        queue.flying = False
        self._failed(peer, queue)

    async def _send(self, peer: Name, queue: _Queue) -> None:
        cluster, settings = self._cluster, self._cluster.settings
        while queue.versions:
            batch: list[Version] = []
            size = 0
            while queue.versions and len(batch) < settings.push_batch_versions_max:
                size += _size(queue.versions[0])
                if batch and size > settings.push_batch_bytes_max:
                    break
                batch.append(queue.versions.popleft())
                queue.size_bytes -= _size(batch[-1])
            push = Push(lamport=cluster.replica.durable.lamport, versions=batch)
            try:
                answer = await cluster.ask(
                    peer,
                    push,
                    connect_s=settings.connect_s,
                    total_s=settings.gossip_progress_s,
                )
            except PeerError as error:
                self._log.debug("no push to {peer}: {error}", peer=peer, error=error)
                cluster.skip(peer)
                break
            if not isinstance(answer, PushAnswer):
                self._log.debug("{peer} refused a push", peer=peer)
                break
            cluster.learn_vv(peer, join(cluster.record(peer).vv, answer.vv))
            self._confirm(answer.vv)
        else:
            queue.flying = False
            return
        queue.flying = False
        self._failed(peer, queue)

    def _confirm(self, vv: VersionVector) -> None:
        for actor, counter in vv.items():
            for waiter in list(self._waiters.get(actor, ())):
                if waiter.dot[1] <= counter:
                    self._fire(waiter, True)

    def _failed(self, peer: Name, queue: _Queue) -> None:
        _drop(queue)
        for waiting in self._waiters.values():
            for waiter in list(waiting):
                waiter.outstanding.discard(peer)
                if not waiter.outstanding:
                    self._fire(waiter, False)


def _drop(queue: _Queue) -> None:
    queue.versions.clear()
    queue.size_bytes = 0


def _size(version: Version) -> int:
    return len(version.value or b"") + len(version.key) + 64 * (1 + len(version.past))
