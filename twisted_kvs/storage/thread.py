"""
Where a store writes: on one thread of its own.

Never on the reactor's thread pool: look-ups of names share that, and a dead DNS fills
it.  A thread is started with the first call, never before a daemon forks.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure

T = TypeVar("T")


class CallRunner(Protocol):
    """Runs calls one after the other, in the order given."""

    def run(self, call: Callable[[], T]) -> Deferred[T]:
        """Run ``call``; fires on the caller's thread with what it gave or raised."""

    def run_beside(self, call: Callable[[], T]) -> Deferred[T]:
        """Run ``call`` without holding up the others, on a thread of its own."""

    def stop(self) -> Deferred[None]:
        """Take no more calls; fires when those given to ``run`` have returned."""


class StoreThread:
    """Runs calls on a thread of its own, and answers on the reactor's."""

    def __init__(self, reactor: IReactorFromThreads) -> None:
        """Answer through ``reactor``; no thread is started yet."""
        self._reactor = reactor
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def run(self, call: Callable[[], T]) -> Deferred[T]:
        """Run ``call`` after those given before."""
        if self._thread is None:
            self._thread = _start("kvs-store", self._work)
        work, done = self._prepare(call)
        self._calls.put(work)
        return done

    def run_beside(self, call: Callable[[], T]) -> Deferred[T]:
        """Run ``call`` on a thread that ends with it."""
        work, done = self._prepare(call)
        _start("kvs-store-beside", work)
        return done

    def stop(self) -> Deferred[None]:
        """End the thread; the next call would start another."""
        thread, self._thread = self._thread, None
        if thread is None:
            return succeed(None)
        stopped: Deferred[None] = Deferred()
        self._calls.put(lambda: self._reactor.callFromThread(stopped.callback, None))
        self._calls.put(None)
        # The thread has nothing left to do but to end.
        return stopped.addCallback(lambda _: thread.join())

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def _prepare(self, call: Callable[[], T]) -> tuple[Callable[[], None], Deferred[T]]:
        done: Deferred[T] = Deferred()

        def work() -> None:
            try:
                result = call()
            except BaseException:
                self._reactor.callFromThread(done.errback, Failure())
            else:
                self._reactor.callFromThread(done.callback, result)

        return work, done


def _start(name: str, work: Callable[[], None]) -> threading.Thread:
    # A daemon: a process that ends without having closed its store must end.
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread


class CallersThread:
    """Runs every call at once, where it is made: for tests and simulations."""

    def run(self, call: Callable[[], T]) -> Deferred[T]:
        """Run ``call`` now; the Deferred has fired."""
        return maybeDeferred(call)

    def run_beside(self, call: Callable[[], T]) -> Deferred[T]:
        """Run ``call`` now; the Deferred has fired."""
        return maybeDeferred(call)

    def stop(self) -> Deferred[None]:
        """Nothing is left to be done."""
        return succeed(None)
