"""
The life of a node's process: what starts and stops in which order, and what beats.

Start: store, port, node, gossip.  Stop: first the node is ready no more and answers on,
so that whoever watches it sends clients elsewhere; then port, connections (each with
its next answer), gossip, node, connections to peers, store, all within ``STOP_S``; so
nothing is asked of a part that is not there.

Invariants: no port opens before the store is open; a node that cannot start ends its
process with one line; an exception never stops the beat.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NoReturn, Protocol

from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    ensureDeferred,
    maybeDeferred,
)
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from .core.causality import Name
from .core.errors import KVSError, StoreRefused
from .core.messages import ReplicaState
from .options import DRAIN_DEFAULT_S

STOP_S = 3.4
"""For the stop itself; what is left of 5 s is for the interpreter to end."""
STOP_PORT_S = 0.2
STOP_CONNECTIONS_S = 1.4
STOP_NODE_S = 2.9
STOP_TRANSPORT_S = 3.1
ANSWER_S = 1.0
"""In which every request is answered."""
assert STOP_PORT_S + ANSWER_S < STOP_CONNECTIONS_S
assert STOP_CONNECTIONS_S < STOP_NODE_S < STOP_TRANSPORT_S < STOP_S
"""Moments, counted from the first, at which the next part is stopped regardless."""
assert DRAIN_DEFAULT_S + STOP_S < 4.5, (
    "an operator is promised that a node ends within 5 s"
)


class NodeLife(Protocol):
    """The part of a node that its services call."""

    def start(self, stored: ReplicaState | None) -> None:
        """Begin; ``stored`` is what the store had."""

    def gossip_round(self) -> None:
        """Start the exchanges that are due; returns at once."""

    def stop(self) -> Deferred[None]:
        """Finish what was acknowledged, refuse the rest."""


class StorageLife(Protocol):
    """The part of a store that its service calls."""

    def open(self) -> ReplicaState | None:
        """Open it and give the state of the last commit."""

    def close(self) -> Deferred[None]:
        """Finish the commit under way and close."""


Close = Callable[[], "Deferred[None]"]
"""Closes something; what it returns may be cancelled, to wait no more."""


class StartFailed(SystemExit, Exception):
    """
    Ends a process that cannot start, with one line and status 1.

    An ``Exception``, too, since twistd waits for ever for a daemon that ends otherwise
    before it has started.
    """


class StoreService(Service):
    """Opens the store: before the port, after the fork (threads do not survive it)."""

    def __init__(self, storage: StorageLife) -> None:
        """Open ``storage`` when started."""
        self._storage = storage
        self._opened = False
        self.stored: ReplicaState | None = None
        """What the store had when it was opened."""

    @property
    def is_open(self) -> bool:
        """Whether it was opened, and not yet closed."""
        return self._opened

    def privilegedStartService(self) -> None:
        """
        Open the store.

        :raises StoreRefused: if it must not be used.
        """
        super().privilegedStartService()
        self.stored = self._storage.open()
        self._opened = True

    def startService(self) -> None:
        """Open it now where there was no privileged start (``twist`` has none)."""
        super().startService()
        if not self._opened:
            self.privilegedStartService()

    def stopService(self) -> Deferred[None]:
        """Close it; fires when the directory is free."""
        super().stopService()
        if not self._opened:
            return maybeDeferred(lambda: None)
        self._opened = False
        return self._storage.close()


class NodeService(Service):
    """Starts the node when store and port are open, and says so in the log."""

    _log = Logger()

    def __init__(
        self,
        node: NodeLife,
        store: StoreService,
        *,
        start_line: str,
        warnings: Sequence[str] = (),
    ) -> None:
        """
        Start ``node`` with what ``store`` had.

        :param start_line: told once in the log, and so are the warnings.
        """
        self._warnings = warnings
        self._node = node
        self._store = store
        self._start_line = start_line

    def startService(self) -> None:
        """Start the node."""
        super().startService()
        self._log.info("{line}", line=self._start_line)
        for warning in self._warnings:
            self._log.warn("{line}", line=warning)
        self._node.start(self._store.stored)

    def stopService(self) -> Deferred[None]:
        """Stop the node; fires when everything that it acknowledged is done."""
        super().stopService()
        return self._node.stop()


class GossipService(Service):
    """
    Beats: starts a round of gossip every interval, more or less a random part of it.

    Beats of nodes that were started together do not fall in step: the first comes after
    a random part of the interval.  A round that raises is logged and changes nothing.
    """

    _log = Logger()

    def __init__(
        self,
        gossip_round: Callable[[], None],
        *,
        clock: IReactorTime,
        rng: random.Random,
        interval_s: float,
        jitter: float,
    ) -> None:
        """
        Prepare to beat.

        :param gossip_round: starts exchanges and does not wait for them.
        :param jitter: two rounds are ``interval_s`` apart, more or less this fraction.
        """
        assert interval_s > 0 and 0 <= jitter < 1
        self._gossip_round = gossip_round
        self._clock = clock
        self._rng = rng
        self._interval_s = interval_s
        self._jitter = jitter
        self._loop: LoopingCall | None = None
        self._pending: IDelayedCall | None = None

    def startService(self) -> None:
        """Begin after a random part of the interval."""
        super().startService()
        self._loop = LoopingCall(self._beat)
        self._loop.clock = self._clock
        self._later(self._rng.random() * self._interval_s, self._begin)

    def stopService(self) -> None:
        """Start no more rounds."""
        super().stopService()
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None
        if self._loop is not None and self._loop.running:
            self._loop.stop()

    def _begin(self) -> None:
        assert self._loop is not None
        finished = self._loop.start(self._interval_s)
        finished.addErrback(partial(self._log.failure, "gossip stopped beating"))

    def _beat(self) -> None:
        # Each round is late by a random part, so that two of them are at most this part
        # of the interval nearer or farther than the beats.
        late_s = self._rng.random() * self._jitter * self._interval_s
        if self._pending is None:
            self._later(late_s, self._round)

    def _later(self, delay_s: float, then: Callable[[], None]) -> None:
        def due() -> None:
            self._pending = None
            then()

        self._pending = self._clock.callLater(delay_s, due)

    def _round(self) -> None:
        try:
            self._gossip_round()
        except Exception:
            self._log.failure("a round of gossip failed")


class KVSService(MultiService):
    """A whole node as one service: starts its parts in order, stops them in order."""

    _log = Logger()

    def __init__(
        self,
        *,
        store: StoreService,
        port: IService,
        listen_given: str,
        directory_given: str,
        node: NodeService,
        gossip: GossipService,
        turns: IService,
        close_connections: Close,
        close_transport: Close,
        leave: Callable[[], None],
        drain_s: float,
        clock: IReactorTime,
    ) -> None:
        """
        Put the parts together.

        :param listen_given: what said where ``port`` is, for the one line where it
            cannot be opened; ``directory_given`` the same of the store.
        :param turns: watches the reactor, from the start until the port is closed.
        :param leave: called first of all in a stop: the node is ready no more.
        :param drain_s: for so long everything goes on after that; 0: not at all.
        :param close_connections: those of clients and peers, made through ``port``.
        :param close_transport: those to peers.
        :param clock: times the stop.
        """
        super().__init__()
        self._clock = clock
        for part in (store, port, node, gossip, turns):
            part.setServiceParent(self)
        self._store = store
        self._listen_given = listen_given
        self._directory_given = directory_given
        self._leave = leave
        self._drain_s = drain_s
        self._draining: Deferred[None] | None = None
        self._stops: tuple[tuple[str, Callable[[], object], float], ...] = (
            ("port", port.stopService, STOP_PORT_S),
            ("turns", turns.stopService, STOP_PORT_S),
            ("connections", close_connections, STOP_CONNECTIONS_S),
            ("gossip", gossip.stopService, STOP_CONNECTIONS_S),
            ("node", node.stopService, STOP_NODE_S),
            ("transport", close_transport, STOP_TRANSPORT_S),
            ("store", store.stopService, STOP_S),
        )

    def privilegedStartService(self) -> None:
        """
        Open the store, then the port.

        :raises StartFailed: with one line, if one of them cannot be opened.
        """
        self._started(super().privilegedStartService)

    def startService(self) -> None:
        """
        Start all that is not yet started.

        :raises StartFailed: with one line, if something cannot be started.
        """
        self._started(super().startService)

    def stopService(self) -> Deferred[None]:
        """Stop one part after the other; fires when all are stopped, or given up."""
        Service.stopService(self)
        return ensureDeferred(self._stop())

    def _started(self, start: Callable[[], None]) -> None:
        try:
            start()
        # OverflowError: what sockets say to a port that is none, as in tcp:99999.
        except (KVSError, OSError, CannotListenError, OverflowError) as error:
            reason = one_line(error)
            if isinstance(error, StoreRefused):
                reason = not_usable(self._directory_given, error)
            # After the store only the port asks the system for anything.
            elif self._store.is_open and not isinstance(error, KVSError):
                reason = f"{self._listen_given} ({reason}), want a free one"
            self._give_up(reason)

    def _give_up(self, reason: str) -> NoReturn:
        # Standard error may already lead to the log, so this is one line there, too.
        # The store's thread must end, or the interpreter waits for it.
        self._store.stopService().addErrback(lambda _: None)
        raise StartFailed(f"kvs: {reason}") from None

    def hurry(self) -> None:
        """Wait no longer for clients to go elsewhere; does nothing at other times."""
        if self._draining is not None:
            self._draining.cancel()

    async def _drained(self) -> None:
        self._draining = deferLater(self._clock, self._drain_s)
        try:
            await self._draining
        except CancelledError:
            self._log.info("told again to stop: not waiting any more")
        finally:
            self._draining = None

    async def _stop(self) -> None:
        try:
            self._leave()
        except Exception:
            self._log.failure("cannot leave in order")
        if self._drain_s > 0:
            await self._drained()
        began = self._clock.seconds()
        for name, stop, until_s in self._stops:
            left_s = max(0.0, began + until_s - self._clock.seconds())
            try:
                await maybeDeferred(stop).addTimeout(left_s, self._clock)
            # What comes next must be stopped all the same.
            except DeferredTimeoutError:
                self._log.warn("{part} did not stop in time, going on", part=name)
            except Exception:
                self._log.failure("cannot stop {part}", part=name)


def one_line(error: Exception) -> str:
    """Tell an error without line breaks."""
    return " ".join(str(error).split())


def not_usable(directory_given: str, error: StoreRefused) -> str:
    """
    Say in one line that a data directory cannot be used.

    :param directory_given: what named it.
    """
    want = "want a directory that this node may write, its own or a new one"
    return f"{directory_given} ({one_line(error)}), {want}"


def start_line(
    *,
    me: Name,
    listen: str,
    directory: str | None,
    replica_count: int | None,
    first_view: Iterable[Name],
) -> str:
    """Say what a node was started with."""
    view = ",".join(first_view) or "not given"
    return (
        f"node {me} listens on {listen}, data in {directory or 'memory only'}, "
        f"K {replica_count or 'not given'}, view {view}"
    )


def end_process(
    failure: Failure, *, exit_process: Callable[[int], object] = os._exit
) -> None:
    """
    End the process at once, with exit status 1: for a node that must not answer.

    Nothing is stopped in order, since every more turn of the reactor could send an
    answer.  What was acknowledged is on disk; the log's observers write unbuffered.
    """
    log = Logger()
    try:
        if failure.check(StoreRefused):
            log.critical("this node must not go on: {error}", error=failure.value)
        else:
            log.failure("this node must not go on", failure)
    finally:
        exit_process(1)
