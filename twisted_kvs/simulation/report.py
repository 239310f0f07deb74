"""What a user reads about simulated runs: a summary, and how a promise was broken."""

from __future__ import annotations

from collections.abc import Sequence

from .checkers import CHECKERS
from .faults import FAULTS
from .runner import Broken, Order, Result

TRACE_SHOWN = 40
"""Last lines of a trace that are printed."""


def fault_lines() -> list[str]:
    """List all faults with what they are."""
    width = max(map(len, FAULTS))
    return [f"{fault.name:<{width}}  {fault.says}" for fault in FAULTS.values()]


def summary(result: Result) -> list[str]:
    """Tell what was run, and which faults have happened how often."""
    totals = result.totals
    rate = totals.histories / result.seconds if result.seconds else 0.0
    events = totals.events
    (slowest_s, slowest), (converged_s, converged) = totals.slowest, totals.converged
    lines = [
        f"{'histories':<28}{totals.histories:>14,}",
        f"{'operations':<28}{totals.operations:>14,}",
        f"{'answers, fresh / stale':<28}"
        f"{events['read fresh'] + events['write fresh']:>14,}"
        f" / {events['read stale'] + events['write stale']:,}",
        f"{'messages':<28}{totals.messages:>14,}",
        f"{'virtual hours':<28}{totals.virtual_s / 3600:>14.1f}",
        f"{'slowest answer':<28}{slowest_s:>12.3f} s, seed {slowest}",
        f"{'longest convergence':<28}{converged_s:>12.2f} s, seed {converged}",
        f"{'trace':<28}{totals.trace:>14x}",
        f"{'took':<28}{result.seconds:>12.1f} s, {rate:.0f} histories a second",
        "",
        f"{'fault':<16}{'in histories':>14}{'times':>14}",
    ]
    for fault in FAULTS.values():
        happened = events[fault.event]
        lines.append(
            f"{fault.name:<16}{totals.planned[fault.name]:>14,}{happened:>14,}"
        )
    return lines


def violation(broken: Broken, trace: Sequence[str], order: Order) -> list[str]:
    """Tell how a promise was broken, and how to see it again."""
    left_out = len(trace) - TRACE_SHOWN
    kind = f"VIOLATION of {broken.checker}" if broken.checker in CHECKERS else "ERROR"
    return [
        f"{kind}, seed {broken.plan.seed}",
        broken.what,
        "",
        "the shortest history found that breaks it:",
        *broken.plan.lines(),
        "",
        f"its end{f', {left_out} earlier lines left out' if left_out > 0 else ''}:",
        *trace[-TRACE_SHOWN:],
        "",
        "again, as it is shown here (twisted_kvs.simulation: storm, histories):",
        broken.plan.code(),
        f"as it was drawn: {command(order, broken.plan.seed)}",
    ]


def command(order: Order, seed: int) -> str:
    """Write the command that runs one seed again."""
    words = [f"kvs simulate --runs 1 --seed {seed}"]
    missing = [name for name in FAULTS if name not in order.faults]
    if not order.faults:
        words.append("--no-faults")
    elif len(missing) > len(order.faults):
        words += [f"--only {name}" for name in order.faults]
    else:
        words += [f"--without {name}" for name in missing]
    return " ".join(words)
