"""
The checkers: what a history of real hosts shows of the promises.

They know of faults only whether a node could be reached at all, and when all was well.
The rules are those of ``twisted_kvs.simulation.oracle``, fed from answers.  ``python -m
tests.hosts.checks FILE`` checks a file again.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from twisted_kvs.core.causality import Actor, leq
from twisted_kvs.core.payload import before
from twisted_kvs.core.retiring import has_marker
from twisted_kvs.simulation.oracle import Write, joined

from .history import (
    Agreed,
    Answered,
    Asked,
    Began,
    Done,
    Late,
    Record,
    Unanswered,
    read_history,
)
from .knowledge import Known, Request, Tokens, not_replaced
from .yardstick import late_s

ANSWER_S = 1.0
CONVERGE_S = 10.0
"""As promised."""
MEASURING_S = 0.25
"""Allowed besides, and what the machine itself is late: all run on the same one."""
SETTLES_S = 3.0
"""
After the last fault, until no answer may be marked.

A peer that failed is skipped for 1 s, writes that nobody could give for 1.5 s; nodes
that were believed dead are tried every 2 s.
"""
TRY_S = 0.3
"""No node has given up a replica and tried another sooner, where all are in reach."""
STALLED_S = 0.3
"""A machine that was late by so much may have a slow disk."""
MAYBE = "may or may not"
"""Said of a write that a slow disk has not taken in time."""
AWAY = {"kill": "ready", "pause": "resume", "disconnect": "connect", "spoil": "mend"}
"""What makes that a node need not answer in time, and what ends it."""
ENDS = frozenset({"heal", *AWAY.values()})
NETWORK_ONLY = frozenset({"disconnect", "spoil"})
"""Of these, what is not felt from within."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken."""

    promise: str
    what: str
    lines: tuple[int, ...]
    """Of the history, from 1."""


@dataclass(slots=True)
class Figures:
    """What was seen."""

    requests: int = 0
    writes: int = 0
    deletes: int = 0
    stale: int = 0
    refused: int = 0
    unanswered: int = 0
    slowest_s: float = 0.0
    """Of answers of nodes that could be reached, without what the machine was late."""
    late_s: float = 0.0
    converged_s: list[float] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)


class Check:
    """Checks one history."""

    def __init__(self, records: Sequence[Record]) -> None:
        """Check all of it; see ``violations`` and ``figures``."""
        self.violations: list[Violation] = []
        self.figures = Figures()
        self._records = records
        self._requests = list(requests_of(records))
        self._begin = next(r for r in records if isinstance(r, Began))
        self._done = [r for r in records if isinstance(r, Done)]
        self._late = [(r.began, r.ended) for r in records if isinstance(r, Late)]
        self._agreed = [r for r in records if isinstance(r, Agreed)]
        self._away = {name: list(self._intervals(name)) for name in self._begin.nodes}
        self._clocks_wrong_at = min(
            (d.at for d in self._done if d.what == "clock"), default=float("inf")
        )
        self._tokens = Tokens(records)
        self._known = Known()
        self._written: dict[str, dict[str, list[tuple[Request, Write | None]]]] = {}
        for request in self._requests:
            self._check_answer(request)
        self._learn()
        for name in self._begin.nodes:
            self._check_order(name)
        for request in self._requests:
            if request.answer is not None and not request.writes:
                self._check_read(request, request.answer)
        self._check_agreements()
        self.figures.late_s = sum(ended - began for began, ended in self._late)
        self.figures.faults.update(d.what for d in self._done)

    # Answers in time.

    def _intervals(self, name: str) -> Iterator[tuple[str, float, float]]:
        for begins, ends in AWAY.items():
            since = None
            for done in self._done:
                if name in done.nodes and done.what == begins and since is None:
                    since = done.at
                if name in done.nodes and done.what == ends and since is not None:
                    yield begins, since, done.at
                    since = None
            if since is not None:
                yield begins, since, float("inf")

    def _reachable(self, request: Request) -> bool:
        asked = request.asked
        return not any(
            began <= request.ended and asked.at <= ended
            for kind, began, ended in self._away[asked.node]
            if not (asked.within and kind in NETWORK_ONLY)
        )

    def _check_answer(self, request: Request) -> None:
        figures, end = self.figures, request.end
        figures.requests += 1
        figures.writes += request.asked.value is not None
        figures.deletes += request.asked.deletes
        if end is None:
            return
        taken = end.at - request.asked.at
        late = late_s(self._late, request.asked.at, end.at)
        if isinstance(end, Answered):
            figures.stale += end.stale
            if request.answer is None:
                self._check_refusal(request, end, late)
            elif has_marker(self._tokens.payload(end.payload).vector):
                what = "its payload names retired actors that no node knows"
                self._violated("identity", what, request)
        else:
            figures.unanswered += 1
        if not self._reachable(request):
            return
        if isinstance(end, Unanswered):
            self._violated("answers", f"no answer: {end.error}", request)
        figures.slowest_s = max(figures.slowest_s, taken - late)
        if taken - late > ANSWER_S + MEASURING_S:
            self._violated("answers", f"answered after {taken:.3f} s", request)

    def _check_refusal(self, request: Request, end: Answered, late: float) -> None:
        """A write that waits for the disk may be refused if all stands still."""
        self.figures.refused += 1
        excused = late >= STALLED_S or not self._reachable(request)
        if MAYBE not in (end.message or "") or not excused:
            self._violated("answers", f"refused: {end.status}", request)

    # Writes.

    def _learn(self) -> None:
        for request in self._requests:
            asked = request.asked
            if not request.writes:
                continue
            write = None
            if request.answer is not None:
                write = self._learn_write(request, request.answer)
            values = self._written.setdefault(asked.key, {})
            # What is deleted is shown by nobody.
            value = f"deleted {asked.number}" if asked.deletes else asked.value
            values.setdefault(value or "", []).append((request, write))
            if self._may_be_loose(request, write):
                self._known.loose.setdefault(asked.key, []).append(request)
        try:
            self._known.demand_all_closed()
        except AssertionError as error:
            self._violated("identity", str(error))

    def _learn_write(self, request: Request, answer: Answered) -> Write | None:
        value = request.asked.value
        assert answer.dot is not None and request.asked.deletes == (value is None)
        if answer.stale and self._tokens.marked(request.asked.payload):
            # Its node may have lost what the marker means: then the answer names more
            # than the write comes after (R20), and nobody can tell from outside.
            return None
        name, _, counter = answer.dot.rpartition(":")
        given = self._tokens.payload(request.asked.payload)
        got = self._tokens.payload(answer.payload)
        past = dict(got.vector)
        if past.get(Actor(name)) != int(counter):
            self._violated("identity", "the payload is not that of the write", request)
            return None
        past[Actor(name)] -= 1
        write = Write(
            actor=Actor(name),
            counter=int(counter),
            key=request.asked.key,
            value=None if value is None else value.encode(),
            ts=microseconds(answer.timestamp),
            past={actor: n for actor, n in past.items() if n},
        )
        if not before(given, got) or not leq(given.vector, write.past):
            self._violated("sessions", "a write comes after what was read", request)
        if self._number(name) != answer.node_id:
            self._violated("identity", "another node than its dot says", request)
        try:
            self._known.mint(write)
        except AssertionError as error:
            self._violated("identity", str(error), request)
        return write

    def _check_order(self, name: str) -> None:
        """Check that a write comes after all that its process had answered before."""
        answered: dict[Actor, int] = {}
        at_asking: dict[int, dict[Actor, int]] = {}
        written = {
            request.asked.number: (request, write)
            for values in self._written.values()
            for same in values.values()
            for request, write in same
            if write is not None and request.asked.node == name
        }
        for record in self._records:
            if isinstance(record, Done) and record.what == "kill":
                answered = {} if name in record.nodes else answered
            elif isinstance(record, Asked) and record.number in written:
                at_asking[record.number] = answered
            elif isinstance(record, Answered) and record.number in written:
                request, write = written[record.number]
                if not leq(at_asking[record.number], write.past):
                    what = f"not after what was written before at {name}"
                    self._violated("sessions", what, request)
                answered = joined(answered, write.past, dict([write.dot]))

    def _number(self, actor: str) -> int:
        return self._begin.nodes.index(actor.partition("#")[0])

    def _may_be_loose(self, request: Request, write: Write | None) -> bool:
        """Tell whether there may be a version of it that no answer has named."""
        if write is None or request.asked.phase == "storm":
            return True
        if request.ended - request.asked.at > TRY_S:
            return True
        return write.actor.partition("#")[0] != request.asked.node

    # Reads.

    def _check_read(self, request: Request, answer: Answered) -> None:
        asked = request.asked
        given = self._tokens.payload(asked.payload)
        got = self._tokens.payload(answer.payload)
        if not before(given, got):
            self._violated("sessions", "a payload must grow", request)
        try:
            self._known.demand_closed(got.vector)
        except AssertionError as error:
            self._violated("sessions", str(error), request)
        if answer.stale and self._all_is_well(request):
            self._violated("staleness", "unsure, and nothing is wrong", request)
        shown: Write | None = None
        if answer.status == 200:
            found = self._find(request, answer)
            if not found:
                return
            [shown] = found
            if shown and not leq(self._known.upto([shown.dot]), got.vector):
                self._violated("sessions", "a payload without what was shown", request)
        if not answer.stale:
            self._check_shown(request, answer, shown)

    def _all_is_well(self, request: Request) -> bool:
        """Tell whether nothing is cut, and gossip had its time."""
        at = request.asked.at
        last = max((done.at for done in self._done if done.at <= at), default=0.0)
        settled = request.asked.phase == "quiet" and at >= last + SETTLES_S
        return settled and late_s(self._late, last, request.ended) < STALLED_S

    def _find(self, request: Request, answer: Answered) -> list[Write | None]:
        """Find what was shown: nothing if that is not possible, else one."""
        asked = request.asked
        same = self._written.get(asked.key, {}).get(answer.value or "", [])
        same = [(r, w) for r, w in same if r.asked.at <= answer.at]
        for _, write in same:
            if write and write.ts == microseconds(answer.timestamp):
                if self._number(write.actor) != answer.node_id:
                    self._violated("identity", "shown with another node", request)
                return [write]
        if any(self._may_be_loose(r, w) for r, w in same):
            return [None]
        self._violated("identity", f"nobody wrote {answer.value!r} then", request)
        return []

    def _check_shown(
        self, request: Request, answer: Answered, shown: Write | None
    ) -> None:
        """Check an answer without the stale mark against what its client knows."""
        key = request.asked.key
        if self._may_be_deleted(request):
            return
        knows = self._tokens.payload(request.asked.payload).vector
        if answer.status == 404 or (shown and self._is_sure(request)):
            try:
                dot = shown.dot if shown else None
                self._known.demand_shown(key, knows, dot)
            except AssertionError as error:
                self._violated("sessions", str(error), request)
            return
        if shown:
            if not not_replaced(shown, knows, self._known.by_key.get(key, [])):
                self._violated("sessions", f"{shown.dot} was replaced", request)
            return
        assert answer.node_id is not None
        origin = self._begin.nodes[answer.node_id]
        got = self._tokens.payload(answer.payload).vector
        newer = self._known.must_not_be_shown(key, knows, origin, got)
        if newer is None and not self._skewed(request):
            stamp = microseconds(answer.timestamp)
            known = self._known.live(key, knows)
            newer = next((w for w in known if w.ts > stamp), None)
        if newer is not None:
            self._violated("sessions", f"shown to one who knows {newer}", request)

    def _may_be_deleted(self, request: Request) -> bool:
        """
        Tell whether a key may have been deleted by a request that was not answered.

        Then it shows nothing, or what was beaten by what that has deleted.
        """
        loose = self._known.loose.get(request.asked.key, ())
        return any(r.asked.deletes and r.asked.at <= request.ended for r in loose)

    def _skewed(self, request: Request) -> bool:
        return request.ended >= self._clocks_wrong_at

    def _is_sure(self, request: Request) -> bool:
        """
        Tell whether nothing unknown can excuse what is shown.

        By right clocks what comes after a write has no earlier time, so what beats it
        beats the write, too.
        """
        loose = self._known.loose.get(request.asked.key, ())
        return not self._skewed(request) or not any(
            r.asked.at <= request.ended for r in loose
        )

    # Agreement.

    def _check_agreements(self) -> None:
        calms = [d.at for d in self._done if d.what == "calm"]
        if len(self._agreed) < len(calms):
            self._violated("convergence", "not all agree after the last calm")
        last = 0.0
        for calm, agreed in zip(calms, self._agreed, strict=False):
            sweep = [r for r in self._requests if r.asked.session == agreed.sweep]
            healed = [d.at for d in self._done if d.what in ENDS and d.at <= calm]
            since = max(healed, default=calm)
            taken = max(r.ended for r in sweep) - since
            self.figures.converged_s.append(taken)
            late = late_s(self._late, since, since + taken)
            if taken - late > CONVERGE_S:
                lines = tuple(line for r in sweep for line in r.lines)
                self.violations.append(
                    Violation("convergence", f"after {taken:.3f} s", lines)
                )
            self._check_sweep(sweep, last)
            last = agreed.at

    def _check_sweep(self, sweep: Sequence[Request], last: float) -> None:
        seen: dict[str, set[tuple[object, ...]]] = {}
        for request in sweep:
            answer = request.answer
            if answer is None or answer.stale:
                self._violated("convergence", "unsure, or no answer", request)
                continue
            version = (answer.value, answer.timestamp, answer.node_id)
            versions = seen.setdefault(request.asked.key, set())
            versions.add(version)
            if len(versions) > 1:
                self._violated("convergence", f"not the same: {versions}", request)
            self._check_kept(request, answer, last)

    def _check_kept(self, request: Request, answer: Answered, last: float) -> None:
        """Check that all acknowledged writes are there, and the right one is shown."""
        key = request.asked.key
        here = self._tokens.payload(answer.payload).vector
        for same in self._written.get(key, {}).values():
            for wrote, write in same:
                if write is None or wrote.ended > request.asked.at:
                    continue
                kept = here.get(write.actor, 0) >= write.counter
                if not kept and not self._on_lost_disk(wrote, write, last):
                    what = f"{write.dot} was acknowledged and is lost"
                    self._violated("durability", what, wrote, request)
        if self._may_be_deleted(request):
            return
        winner = self._known.winner(key, here)
        if winner is None or answer.status != 200:
            return
        found = self._find(request, answer)
        if not found or found == [winner]:
            return
        if found == [None]:
            wrong = microseconds(answer.timestamp) < winner.ts
            wrong = wrong and not self._skewed(request)
        else:
            wrong = self._is_sure(request)
        if wrong:
            self._violated("convergence", f"shown instead of {winner}", request)

    def _on_lost_disk(self, wrote: Request, write: Write, last: float) -> bool:
        """Tell whether its node lost its disk before all were seen to agree again."""
        name = write.actor.partition("#")[0]
        return any(
            name in done.nodes and wrote.ended >= last and wrote.asked.at <= done.at
            for done in self._done
            if done.what == "wipe"
        )

    def _violated(self, promise: str, what: str, *requests: Request) -> None:
        lines = tuple(line for request in requests for line in request.lines)
        self.violations.append(Violation(promise, what, lines))


def requests_of(records: Sequence[Record]) -> Iterator[Request]:
    """Join requests with what came of them, in the order of asking."""
    ends = {
        record.number: (line, record)
        for line, record in enumerate(records, 1)
        if isinstance(record, Answered | Unanswered)
    }
    for line, record in enumerate(records, 1):
        if isinstance(record, Asked):
            if record.number in ends:
                end_line, end = ends[record.number]
                yield Request(record, end, (line, end_line))
            else:
                yield Request(record, None, (line,))


def microseconds(timestamp: str | None) -> int:
    """Read a timestamp as it is compared."""
    assert timestamp is not None
    seconds, _, fraction = timestamp.partition(".")
    return int(seconds) * 1_000_000 + int(fraction)


def check_file(path: Path) -> tuple[Figures, list[str]]:
    """
    Check a history again.

    :returns: what was seen, and a text for each violation with the lines it is about.
    """
    with path.open("rb") as file:
        lines = file.readlines()
    check = Check(read_history(lines))
    texts = []
    for violation in check.violations:
        shown = [f"  {n}: {lines[n - 1].decode().rstrip()}" for n in violation.lines]
        head = f"{violation.promise}: {violation.what}"
        texts.append("\n".join([head, *shown]))
    return check.figures, texts


def main() -> int:
    """Check the files named; 1 if a promise was broken."""
    broken = False
    for name in sys.argv[1:]:
        figures, texts = check_file(Path(name))
        print(name, figures, *texts, sep="\n")
        broken = broken or bool(texts)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
