"""
Histories: drawn by a seed, run, and shrunk to what is needed to break a promise.

A run draws from a random subset of the faults, because uniform mixtures dilute the rare
sequences that matter (Groce et al., "Swarm testing", 2012).  Most are short, so that
many are run; some are long.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from zope.interface import implementer

from ..core.settings import Settings
from .checkers import Violation
from .faults import FAULTS, NODE, Op, Ops
from .storm import Storm, spell

CLIENT = range(3)
KEY = range(3)
CLIENTS: Ops = {
    "put": (CLIENT, NODE, KEY),
    "get": (CLIENT, NODE, KEY),
    "burst": (CLIENT, NODE, KEY),
    "tie": (CLIENT, NODE, KEY),
    "roam": (CLIENT, NODE, KEY),
    "delete": (CLIENT, NODE, KEY),
    "erase": (CLIENT, KEY),
    "forget": (CLIENT,),
    "advance": ((1, 3, 10, 50, 200, 700, 2500, 5000),),
}
ORDINARY = Settings()
SMALL = Settings(
    delta_part_versions_max=1,
    delta_sessions_max=2,
    fold_versions=1,
    demotion_s=3.5,
    push_queue_versions_max=2,
    push_queue_bytes_max=400,
    delta_part_dots_max=1,
    compact_interval_s=0.4,
    compact_versions=1,
    compact_pause_s=0.001,
    retire_interval_s=0.5,
)
"""Limits so small that they are met: deltas in many parts, queues that are dropped."""
SPREAD = Settings(spread=True)
"""Replicas hand on, too."""
SETTINGS = {"ordinary": ORDINARY, "small limits": SMALL, "spread": SPREAD}
FAILED_RUNS_MAX = 400
"""A history is shrunk by so many runs at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that is decided about a run before it begins."""

    seed: int
    nodes: int
    k: int
    keys: int
    settings: str
    faults: tuple[str, ...]
    """Which are to happen."""
    history: tuple[Op, ...]

    def lines(self) -> list[str]:
        """Write it so that somebody can read it."""
        head = (
            f"{self.nodes} nodes, K={self.k}, {self.keys} keys, {self.settings}, "
            f"seed {self.seed}"
        )
        return [head, *(f"  {spell(op)}" for op in self.history)]

    def code(self) -> str:
        """Write it so that it can be run again, as it is."""
        return (
            f"Storm(SETTINGS[{self.settings!r}], seed={self.seed}, nodes={self.nodes}, "
            f"k={self.k}, keys={self.keys}).run({list(self.history)!r})"
        )


def draw(seed: int, allowed: Collection[str] = tuple(FAULTS)) -> Plan:
    """
    Draw a run.

    :param seed: decides all of it, together with what is allowed.
    :param allowed: names of faults.
    """
    rng = random.Random(seed)
    nodes = rng.choice((2, 3, 3, 3, 4, 4, 5))
    k = rng.choice((1, 2, 2, 3, 3, 3))
    keys = rng.choice((1, 1, 2, 3))
    settings = rng.choice(
        ("ordinary", "ordinary", "small limits", "small limits", "spread")
    )
    faults = _draw_faults(rng, sorted(allowed), k=k, spare=nodes - k)
    size = rng.choice((8, 12, 12, 18, 18, 25, 25, 60))
    if rng.random() < 0.02:
        size = 200
    return Plan(
        seed=seed,
        nodes=nodes,
        k=k,
        keys=keys,
        settings=settings,
        faults=faults,
        history=tuple(
            _draw_history(rng, faults, rng.randint(size // 2, size), allowed)
        ),
    )


def _draw_faults(
    rng: random.Random, allowed: Sequence[str], *, k: int, spare: int
) -> tuple[str, ...]:
    if not allowed or rng.random() < 0.05:
        return ()
    share = rng.choice((0.1, 0.2, 0.4))
    drawn = [name for name in allowed if rng.random() < share]
    if not drawn:
        drawn = [rng.choice(allowed)]
    # Without a proxy none can be cut off.
    if "isolated-proxy" in drawn and (spare < 1 or "k-change" in drawn):
        drawn.remove("isolated-proxy")
    # And without another replica nothing is compared.
    if "broken-disk" in drawn and (k < 2 or "k-change" in drawn):
        drawn.remove("broken-disk")
    return tuple(drawn)


def _draw_history(
    rng: random.Random, faults: Sequence[str], size: int, allowed: Collection[str]
) -> list[Op]:
    able: dict[str, tuple[Sequence[object], ...]] = dict(CLIENTS)
    for fault in faults:
        able |= FAULTS[fault].ops
        for other, ops in FAULTS[fault].along.items():
            able |= ops if other in allowed else {}
    names = sorted(able)
    weights = [rng.choice((1, 1, 2, 4)) for _ in names]
    chosen = rng.choices(names, weights, k=size)
    for fault in faults:
        first = next(iter(FAULTS[fault].ops))
        if first not in chosen:
            chosen.insert(rng.randrange(len(chosen)), first)
    lasting = {next(iter(FAULTS[f].ops)) for f in faults if FAULTS[f].lasts}
    history: list[Op] = []
    for name in chosen:
        history.append((name, *map(rng.choice, able[name])))
        if name in lasting and rng.random() < 0.5:
            history.append(("advance", rng.choice((50, 200, 700))))
    return history


def run(plan: Plan, observe: Callable[[str], None] | None = None) -> Storm:
    """
    Run it.

    :param observe: told, in words, of all that happens.
    :raises Violation: if a promise was broken.
    :raises FaultMissing: if a planned fault did not happen.
    """
    with _no_failures():
        storm = Storm(
            SETTINGS[plan.settings],
            seed=plan.seed,
            nodes=plan.nodes,
            k=plan.k,
            keys=plan.keys,
        )
        if observe is not None:
            _watch(storm, observe)
        storm.run(plan.history, plan.faults)
    return storm


def _watch(storm: Storm, observe: Callable[[str], None]) -> None:
    def tell(line: str) -> None:
        observe(f"{storm.cluster.clock.seconds():9.4f} {line}")

    storm.observe = tell
    storm.cluster.network.observe = lambda line: tell("  " + line)


@implementer(ILogObserver)
class _Failures:
    """Keeps what nodes could only log."""

    def __init__(self) -> None:
        self.seen: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        ours = str(event.get("log_namespace", "")).startswith("twisted_kvs.")
        if ours and event.get("log_level") is LogLevel.critical:
            self.seen.append(event)


@contextmanager
def _no_failures() -> Iterator[None]:
    """Nothing may fail in a way that a node can only log."""
    observer = _Failures()
    # What dead nodes leave behind is collected later: its end is no news of this run.
    collecting = gc.isenabled()
    gc.disable()
    globalLogPublisher.addObserver(observer)
    try:
        yield
    finally:
        globalLogPublisher.removeObserver(observer)
        if collecting:
            gc.enable()
    if observer.seen:
        event = observer.seen[0]
        raise Violation("errors", str(event.get("log_failure", event)))


def checker_of(plan: Plan) -> str | None:
    """Tell which checker a run violates; None if it ends well."""
    try:
        run(plan)
    except Violation as violation:
        return violation.checker
    except Exception as error:
        return type(error).__name__
    return None


def shrunk(history: list[Op], fails: Callable[[list[Op]], bool]) -> list[Op]:
    """Leave out operations as long as a history fails without them."""
    size = max(1, len(history) // 2)
    while True:
        start = 0
        while start < len(history):
            less = history[:start] + history[start + size :]
            if fails(less):
                history = less
            else:
                start += size
        if size == 1:
            return history
        size //= 2


def shrink(plan: Plan, checker: str) -> Plan:
    """
    Find a shorter run that violates the same checker.

    Planned faults do not count any more: it is enough that the promise is broken.
    """
    runs = 0

    def tried(history: list[Op]) -> Plan:
        return replace(plan, faults=(), history=tuple(history))

    def fails(history: list[Op]) -> bool:
        nonlocal runs
        runs += 1
        return runs < FAILED_RUNS_MAX and checker_of(tried(history)) == checker

    if not fails(list(plan.history)):
        return plan
    shorter = tried(shrunk(list(plan.history), fails))
    for simpler in _simpler(shorter):
        plan = simpler(shorter)
        if plan != shorter and runs < FAILED_RUNS_MAX:
            runs += 1
            if checker_of(plan) == checker:
                shorter = plan
    return shorter


def _simpler(plan: Plan) -> Iterator[Callable[[Plan], Plan]]:
    """List what may be made simpler: the cluster, and each number of the history."""
    yield lambda now: replace(now, settings="ordinary")
    yield lambda now: replace(now, keys=1)
    for nodes in range(2, plan.nodes):
        yield partial(_smaller, nodes=nodes)
    every: dict[str, tuple[Sequence[object], ...]] = dict(CLIENTS)
    for fault in FAULTS.values():
        for ops in (fault.ops, *fault.along.values()):
            every |= ops
    for place, (name, *arguments) in enumerate(plan.history):
        simplest = [values[0] for values in every.get(str(name), ())]
        for which in range(min(len(arguments), len(simplest))):
            yield partial(_with, place=place, which=which + 1, to=simplest[which])


def _smaller(plan: Plan, *, nodes: int) -> Plan:
    return replace(plan, nodes=min(nodes, plan.nodes), k=min(plan.k, nodes))


def _with(plan: Plan, *, place: int, which: int, to: object) -> Plan:
    op = list(plan.history[place])
    op[which] = to
    history = (*plan.history[:place], tuple(op), *plan.history[place + 1 :])
    return replace(plan, history=history)
