"""
The store that forgets: everything in memory, for nodes without a directory and for
simulations, which decide when a commit is durable, when it fails and when all is lost
that was not.

Invariant: the same as the durable store in all that can be seen, crashes included; both
run one suite of tests.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter

from twisted.internet.defer import Deferred, fail, succeed

from ..core.causality import Actor, Dot, VersionVector
from ..core.messages import Commit, CommitResult, ReplicaState, ValidateStage
from ..core.versions import Antichain, Version, maximal, version_hash
from .api import STORED_COUNTER_MAX, Cursor, Snapshot, SnapshotLost, Storage
from .tally import Tally

_COUNTER_BITS = 43
_DEAD_MIN = 16


@dataclass(slots=True, eq=False)
class _Row:
    version: Version
    hash: int
    stage: int
    since: int
    """Serial of the commit that made it visible; 0 while its stage is not valid."""


@dataclass(slots=True)
class _ActorRows:
    """The versions of one actor by counter."""

    rows: dict[int, _Row] = field(default_factory=dict)
    counters: list[int] = field(default_factory=list)
    """Ascending; those of versions that are gone are left in until many are."""

    def add(self, counter: int, row: _Row) -> None:
        counters = self.counters
        if not counters or counters[-1] < counter:
            counters.append(counter)
        else:
            place = bisect_right(counters, counter)
            if counters[place - 1 : place] != [counter]:
                insort(counters, counter)
        self.rows[counter] = row

    def drop(self, counter: int) -> None:
        del self.rows[counter]
        if len(self.counters) > 2 * len(self.rows) + _DEAD_MIN:
            self.counters = sorted(self.rows)

    def between(self, above: int, upto: int) -> Iterator[tuple[int, _Row]]:
        for place in range(bisect_right(self.counters, above), len(self.counters)):
            counter = self.counters[place]
            if counter > upto:
                return
            row = self.rows.get(counter)
            if row is not None:
                yield counter, row


class MemoryStorage(Storage):
    """A store in memory; it lives as long as the object does, ``close`` or not."""

    def __init__(self, *, manual: bool = False) -> None:
        """
        Make a fresh store.

        :param manual: a commit is durable and visible when ``flush`` is called; else at
            once.
        """
        self._manual = manual
        self._state: ReplicaState | None = None
        self._tally = Tally()
        self._size_bytes = 0
        self._keys: dict[str, list[_Row]] = {}
        self._actors: dict[Actor, _ActorRows] = {}
        self._numbers: dict[Actor, int] = {}
        self._valid_since: dict[int, int] = {}
        self._first_stage = 0
        self._stages: dict[int, dict[Dot, _Row]] = {}
        self._snapshots: dict[MemorySnapshot, None] = {}
        self._waiting: tuple[Commit, Deferred[CommitResult]] | None = None
        self._failures: list[BaseException] = []

    # Life.

    def open(self) -> ReplicaState | None:
        for stage in sorted(self._tally.filling):
            self._drop(stage)
        # Stages of this run come after those that are still to be folded.
        self._first_stage = max(self._tally.valid, default=0)
        return self._state

    def close(self) -> Deferred[None]:
        while self._waiting is not None:
            self.flush()
        for snapshot in list(self._snapshots):
            snapshot.close()
        return succeed(None)

    # Time and chance of simulations.

    @property
    def waiting(self) -> Commit | None:
        """The commit that ``flush`` makes durable."""
        return None if self._waiting is None else self._waiting[0]

    def flush(self) -> bool:
        """
        Make the commit that was given durable, or let it fail, and say so.

        :returns: whether there was one.
        """
        if self._waiting is None:
            return False
        commit, done = self._waiting
        self._waiting = None
        if self._failures:
            done.errback(self._failures.pop(0))
            return True
        try:
            self._apply(commit)
        except Exception:
            # As with a broken disk: nobody may go on with this store.
            done.errback()
        else:
            done.callback(self._tally.result)
        return True

    def fail_next(self, error: BaseException) -> None:
        """Let the next commit that would become durable fail, and store nothing."""
        self._failures.append(error)

    def crash(self) -> None:
        """
        Lose what a crash loses: the commit under way and all snapshots.

        Its Deferred never fires.  ``open`` comes next.
        """
        self._waiting = None
        self._failures.clear()
        for snapshot in list(self._snapshots):
            snapshot.close()

    def lose_snapshots(self) -> None:
        """Take all snapshots away, as a store does whose log grew too long."""
        for snapshot in list(self._snapshots):
            snapshot.close()

    # Reading.

    @property
    def result(self) -> CommitResult:
        return self._tally.result

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def count(self) -> int:
        return self._tally.visible

    def versions(self, key: str) -> Antichain:
        rows = self._keys.get(key)
        if rows is None:
            return ()
        if len(rows) == 1 and not rows[0].stage:
            return (rows[0].version,)
        shows = self._tally.shows
        return maximal(row.version for row in rows if shows(row.stage))

    def staged(self, stage: int, key: str) -> Antichain:
        wanted = self._first_stage + stage
        rows = self._keys.get(key, ())
        return maximal(row.version for row in rows if row.stage == wanted)

    def snapshot(self) -> MemorySnapshot:
        assert self._state is not None, "no snapshot before the first commit"
        snapshot = MemorySnapshot(self, self._state, self._tally.copy())
        self._snapshots[snapshot] = None
        return snapshot

    # Writing.

    def commit(self, commit: Commit) -> Deferred[CommitResult]:
        assert self._waiting is None, "one commit at a time"
        for version in (
            *commit.insert,
            *(commit.stage.versions if commit.stage else ()),
        ):
            if version.counter > STORED_COUNTER_MAX:
                return fail(ValueError(f"{version.counter} is no counter to be stored"))
        done: Deferred[CommitResult] = Deferred()
        self._waiting = commit, done
        if not self._manual:
            self.flush()
        return done

    def _apply(self, commit: Commit) -> None:
        # In the order in which the durable store does it.
        tally = self._tally
        tally.serial += 1
        if commit.forget_all:
            self._forget_all()
        if commit.stage is not None:
            self._stage(self._first_stage + commit.stage.stage, commit.stage.versions)
        if commit.drop_stage is not None:
            self._drop(self._first_stage + commit.drop_stage)
        if commit.fold_versions and tally.valid:
            self._fold(next(iter(tally.valid)), commit.fold_versions)
        hidden: dict[str, None] = {}
        for dot in (*commit.remove, *(version.dot for version in commit.insert)):
            row = self._row(dot)
            if row is not None:
                # What it dominates is hidden, and nobody would fold the key any more.
                if row.stage:
                    hidden[row.version.key] = None
                self._remove(dot)
        for version in commit.insert:
            self._add(version, 0)
        for key in hidden:
            self._drop_dominated(key)
        if commit.validate is not None:
            self._validate(commit.validate)
        self._state = commit.state

    def _stage(self, stage: int, versions: tuple[Version, ...]) -> None:
        for version in versions:
            row = self._row(version.dot)
            if row is not None:
                if row.stage == stage or self._tally.shows(row.stage):
                    continue
                self._tally.rob(row.stage)
                self._remove(version.dot)
            self._add(version, stage)

    def _validate(self, validate: ValidateStage) -> None:
        stage = self._first_stage + validate.stage
        covered = validate.covered
        for actor, counter in list(self._stages.get(stage, ())):
            if counter <= covered.get(actor, 0):
                self._remove((actor, counter))
        self._tally.validate(stage)
        self._valid_since[stage] = self._tally.serial

    def _drop(self, stage: int) -> None:
        for dot in list(self._stages.get(stage, ())):
            self._remove(dot)
        self._tally.drop(stage)

    def _fold(self, stage: int, count: int) -> None:
        moved = list(self._stages[stage].values())[:count]
        for row in moved:
            self._leave_stage(row)
            row.stage, row.since = 0, self._valid_since[stage]
        self._tally.settle(stage, len(moved))
        for key in {row.version.key: None for row in moved}:
            self._drop_dominated(key)

    def _drop_dominated(self, key: str) -> None:
        visible = [r for r in self._keys.get(key, ()) if self._tally.shows(r.stage)]
        kept = {version.dot for version in maximal(r.version for r in visible)}
        for row in visible:
            if row.version.dot not in kept:
                self._remove(row.version.dot)

    def _forget_all(self) -> None:
        # Open snapshots keep the old ones.
        self._keys, self._actors, self._stages = {}, {}, {}
        self._size_bytes = 0
        self._tally.forget_all()

    # Rows.

    def _row(self, dot: Dot) -> _Row | None:
        of_actor = self._actors.get(dot[0])
        return None if of_actor is None else of_actor.rows.get(dot[1])

    def _add(self, version: Version, stage: int) -> None:
        row = _Row(
            version, version_hash(version), stage, 0 if stage else self._tally.serial
        )
        self._keys.setdefault(version.key, []).append(row)
        self._numbers.setdefault(version.actor, len(self._numbers) + 1)
        self._actors.setdefault(version.actor, _ActorRows()).add(version.counter, row)
        if stage:
            self._stages.setdefault(stage, {})[version.dot] = row
        self._tally.enter(stage, rows=1, joined_hash=row.hash)
        self._size_bytes += _size(version)

    def _remove(self, dot: Dot) -> None:
        row = self._row(dot)
        if row is None:
            return
        for snapshot in self._snapshots:
            snapshot.keep(row)
        version = row.version
        self._actors[version.actor].drop(version.counter)
        rows = self._keys[version.key]
        rows.remove(row)
        if not rows:
            del self._keys[version.key]
        self._leave_stage(row)
        self._tally.leave(row.stage, row.hash)
        self._size_bytes -= _size(version)

    def _leave_stage(self, row: _Row) -> None:
        if row.stage:
            of_stage = self._stages[row.stage]
            del of_stage[row.version.dot]
            if not of_stage:
                del self._stages[row.stage]

    # For snapshots.

    @property
    def serial(self) -> int:
        """Number of the last commit since the store was made."""
        return self._tally.serial

    @property
    def index(self) -> dict[Actor, _ActorRows]:
        """The versions by actor; another object after all were forgotten."""
        return self._actors

    def number(self, actor: Actor) -> int | None:
        """Tell where an actor stands in the order in which the store met them."""
        return self._numbers.get(actor)

    def give_back(self, snapshot: MemorySnapshot) -> None:
        """Forget a snapshot that is closed."""
        self._snapshots.pop(snapshot, None)


class MemorySnapshot(Snapshot):
    """The rows of the store that were visible then, and those that went since."""

    def __init__(
        self, storage: MemoryStorage, state: ReplicaState, tally: Tally
    ) -> None:
        """Hold this instant of ``storage``."""
        self._storage = storage
        self._state = state
        self._tally = tally
        self._index: dict[Actor, _ActorRows] | None = storage.index
        self._gone: defaultdict[Actor, dict[int, _Row]] = defaultdict(dict)

    @property
    def state(self) -> ReplicaState:
        return self._state

    @property
    def result(self) -> CommitResult:
        return self._tally.result

    @property
    def age_commits(self) -> int:
        return self._storage.serial - self._tally.serial

    def missing(
        self,
        base: VersionVector,
        after: Cursor,
        *,
        versions_max: int,
        bytes_max: int,
    ) -> tuple[list[Version], Cursor | None]:
        assert versions_max > 0
        found: list[Version] = []
        last = after
        room = bytes_max
        for cursor, version in self._after(base, after):
            room -= _size(version)
            if found and (room < 0 or len(found) == versions_max):
                return found, last
            found.append(version)
            last = cursor
        return found, None

    def keep(self, row: _Row) -> None:
        """A row goes from the store: note it if it is part of this instant."""
        if self._sees(row):
            self._gone[row.version.actor][row.version.counter] = row

    def close(self) -> None:
        self._index = None
        self._gone.clear()
        self._storage.give_back(self)

    def _sees(self, row: _Row) -> bool:
        if row.stage:
            return row.stage in self._tally.valid
        return row.since <= self._tally.serial

    def _after(
        self, base: VersionVector, after: Cursor
    ) -> Iterator[tuple[Cursor, Version]]:
        index = self._index
        if index is None:
            raise SnapshotLost("the snapshot is gone, pull again")
        vv = self._state.vv
        numbered = ((self._storage.number(actor), actor) for actor in vv)
        for number, actor in sorted(x for x in numbered if x[0] is not None):
            assert number is not None
            first = number << _COUNTER_BITS
            above = max(base.get(actor, 0), after - first)
            for counter, version in self._of_actor(index, actor, above):
                if counter > vv[actor]:
                    break
                yield Cursor(first | counter), version

    def _of_actor(
        self, index: dict[Actor, _ActorRows], actor: Actor, above: int
    ) -> Iterator[tuple[int, Version]]:
        rows = index.get(actor)
        there = [] if rows is None else rows.between(above, STORED_COUNTER_MAX)
        gone = sorted(
            (item for item in self._gone.get(actor, {}).items() if item[0] > above),
            key=itemgetter(0),
        )
        for counter, row in heapq.merge(there, gone, key=itemgetter(0)):
            if self._sees(row):
                yield counter, row.version


def _size(version: Version) -> int:
    return len(version.key.encode()) + len(version.value)
