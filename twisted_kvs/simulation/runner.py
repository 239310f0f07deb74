"""
Many runs: one after the other or in several processes, counted, and told about.

Invariant: what a run does follows from its seed and the faults that are allowed, and
from nothing else: not from the runs before it, and not from the process that runs it.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count, islice
from types import FrameType
from typing import TypeAlias

from twisted.logger import globalLogBeginner

from .checkers import Violation
from .faults import FAULTS, Op
from .histories import Plan, checker_of, draw, run, shrink
from .storm import Storm

BATCH = 25
"""Runs that a process does before it tells about them."""
TELL_S = 5.0
"""Time between two lines of progress."""
TRACE_LINES_MAX = 100_000
INTERRUPTED = 128 + signal.SIGINT
"""The status of a run that was ended by Ctrl-C."""

Longest: TypeAlias = tuple[float, int]
"""Seconds, and the seed of the run that took them."""


@dataclass(slots=True)
class Totals:
    """What many runs have done together."""

    histories: int = 0
    operations: int = 0
    messages: int = 0
    virtual_s: float = 0.0
    slowest: Longest = (0.0, 0)
    converged: Longest = (0.0, 0)
    """The longest time to come together."""
    planned: Counter[str] = field(default_factory=Counter)
    """Runs in which a fault was planned; it happened in each of them."""
    events: Counter[str] = field(default_factory=Counter)
    trace: int = 0
    """Hash of all messages of all runs."""

    def take(self, plan: Plan, storm: Storm) -> None:
        """Count a run."""
        traffic = storm.cluster.network.traffic
        self.histories += 1
        self.operations += storm.operations
        self.messages += traffic.messages
        self.virtual_s += storm.cluster.clock.seconds()
        self.slowest = max(self.slowest, (storm.witness.slowest_s, plan.seed))
        self.converged = max(self.converged, (storm.converged_s, plan.seed))
        self.planned.update(plan.faults)
        self.events.update(storm.events)
        self.trace ^= zlib.crc32(f"{plan.seed} {traffic.trace}".encode())

    def join(self, other: Totals) -> None:
        """Add those of other runs."""
        self.histories += other.histories
        self.operations += other.operations
        self.messages += other.messages
        self.virtual_s += other.virtual_s
        self.slowest = max(self.slowest, other.slowest)
        self.converged = max(self.converged, other.converged)
        self.planned.update(other.planned)
        self.events.update(other.events)
        self.trace ^= other.trace


@dataclass(frozen=True, slots=True)
class Broken:
    """A run that did not end well."""

    plan: Plan
    checker: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be run."""

    seed: int
    runs: int | None
    """None: until the time is up."""
    seconds: float | None = None
    jobs: int = 1
    faults: tuple[str, ...] = tuple(FAULTS)


@dataclass(slots=True)
class Result:
    """What has come of it."""

    totals: Totals = field(default_factory=Totals)
    broken: list[Broken] = field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False


def run_all(order: Order, tell: Callable[[str], None]) -> Result:
    """
    Run until all is run, the time is up, or a promise is broken.

    Ctrl-C ends it, too, after the histories that are under way; a second one at once.

    :param tell: takes lines of progress.
    """
    began = told = time.monotonic()
    result = Result()
    with _interruptible(tell) as interrupted:
        for totals, broken in _outcomes(order):
            result.totals.join(totals)
            result.broken += broken
            now = time.monotonic()
            result.seconds = now - began
            if now - told >= TELL_S:
                told = now
                rate = result.totals.histories / result.seconds
                tell(f"{result.totals.histories:,} histories, {rate:.0f} a second")
            if result.broken:
                break
            if order.seconds is not None and now - began >= order.seconds:
                break
            if interrupted():
                result.interrupted = True
                break
    return result


@contextmanager
def _interruptible(tell: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """
    Take Ctrl-C as a wish: raised within a history, its nodes would take it for a fault.

    :returns: what tells whether it was made.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    wishes = 0

    def wish(number: int, frame: FrameType | None) -> None:
        nonlocal wishes
        wishes += 1
        if wishes > 1:
            os._exit(INTERRUPTED)
        tell("interrupted: ending with the histories under way")

    before = signal.signal(signal.SIGINT, wish)
    try:
        yield lambda: wishes > 0
    finally:
        signal.signal(signal.SIGINT, before)


def _batches(order: Order) -> Iterator[range]:
    for start in count(order.seed, BATCH):
        end = start + BATCH
        if order.runs is not None:
            end = min(end, order.seed + order.runs)
        if start >= end:
            return
        yield range(start, end)


def _outcomes(order: Order) -> Iterator[tuple[Totals, list[Broken]]]:
    if order.jobs == 1:
        for seeds in _batches(order):
            yield run_seeds(seeds, order.faults)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(order.jobs, context, initializer=begin) as pool:
        batches = _batches(order)
        under_way: set[Future[tuple[Totals, list[Broken]]]] = set()
        try:
            while True:
                for seeds in islice(batches, 2 * order.jobs - len(under_way)):
                    under_way.add(pool.submit(run_seeds, seeds, order.faults))
                if not under_way:
                    return
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def begin() -> None:
    """Prepare a process of a pool; it ends with the one that started it."""
    # A terminal interrupts all of them; the one that started it says when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _settle()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _settle() -> None:
    """Prepare a process that does nothing but run."""
    # Nobody reads what nodes log, and Twisted keeps it until somebody does.
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False)
    gc.freeze()


def run_seeds(
    seeds: Iterable[int], faults: tuple[str, ...]
) -> tuple[Totals, list[Broken]]:
    """Run some, up to the first that does not end well."""
    totals = Totals()
    for seed in seeds:
        plan = draw(seed, faults)
        try:
            totals.take(plan, run(plan))
        except Exception as error:
            return totals, [Broken(plan, _kind(error), _words(error))]
    gc.collect()
    return totals, []


def _kind(error: Exception) -> str:
    return error.checker if isinstance(error, Violation) else type(error).__name__


def _words(error: Exception) -> str:
    if isinstance(error, AssertionError):
        return str(error)
    return "".join(traceback.format_exception(error))


def explain(broken: Broken) -> tuple[Broken, list[str]]:
    """
    Find a short history that breaks the same promise, and trace it.

    :returns: what it violates, and all that happens in it.
    """
    plan = shrink(broken.plan, broken.checker)
    trace: list[str] = []

    def observe(line: str) -> None:
        if len(trace) < TRACE_LINES_MAX:
            trace.append(line)

    what = broken.what
    try:
        run(plan, observe)
    except Exception as error:
        what = _words(error)
    return Broken(plan, broken.checker, what), trace


def first_caught(
    seeds: Iterable[int], history: Sequence[Op] = ()
) -> tuple[int, str] | tuple[int]:
    """
    Count the runs up to the first that violates a checker, and name that.

    :param history: what all runs do, in the place of what is drawn.
    """
    _settle()
    number = 0
    for number, seed in enumerate(seeds, 1):
        plan = draw(seed)
        if history:
            plan = replace(plan, nodes=4, k=2, faults=(), history=tuple(history))
        checker = checker_of(plan)
        if checker is not None:
            return number, checker
        if number % BATCH == 0:
            gc.collect()
    return (number,)
