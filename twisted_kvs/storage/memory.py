"""
The store that forgets: everything in memory, for nodes without a directory and for
simulations, which decide when a commit is durable, when it fails and when all is lost
that was not.

Invariant: the same as the durable store in all that can be seen, crashes included; both
run one suite of tests.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator
from operator import itemgetter

import msgspec
from twisted.internet.defer import Deferred, fail, succeed

from ..core.causality import Actor, Dot, VersionVector
from ..core.fence import LiveDots
from ..core.messages import Commit, CommitResult, ReplicaState, ValidateStage
from ..core.versions import Antichain, Version, maximal, version_hash
from .api import (
    LOOKED_PER_LISTED,
    STORED_COUNTER_MAX,
    Cursor,
    Snapshot,
    SnapshotLost,
    Storage,
    part_bytes,
)
from .memory_rows import ActorRows, Row, Rows
from .tally import Tally

_DEAD_MIN = 1000
LOOKED_PER_REMOVED = 20
"""A slice of a full join's removals looks at so many versions for each it may remove:
most often nearly all of them stay."""


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
        self._keys: dict[str, list[Row]] = {}
        self._keys_gone = 0
        self._rows = Rows()
        self._unsettled = Rows()
        self._valid_since: dict[int, int] = {}
        self._first_stage = 0
        self._stages: dict[int, dict[Dot, Row]] = {}
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
        if len(rows) == 1 and not rows[0].stage and not self._tally.standing:
            return (rows[0].version,)
        return maximal(row.version for row in rows if self._shows(row))

    def staged(self, stage: int, key: str) -> Antichain:
        wanted = self._first_stage + stage
        rows = self._keys.get(key, ())
        return maximal(row.version for row in rows if row.stage == wanted)

    def unsettled(
        self,
        upto: VersionVector,
        after: Cursor,
        *,
        versions_max: int,
        bytes_max: int,
    ) -> tuple[list[str], Cursor | None]:
        assert versions_max > 0
        keys: dict[str, None] = {}
        looked, last, room = 0, after, bytes_max
        for cursor, row in self._unsettled.after(upto, after):
            if not self._tally.shows(row.stage):
                continue
            room -= _size(row.version)
            if looked and (room < 0 or looked == versions_max):
                return list(keys), last
            if self._shows(row):
                keys[row.version.key] = None
            looked, last = looked + 1, cursor
        return list(keys), None

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
        if tally.standing:
            assert not any(tally.claims(version.dot) for version in commit.insert)
        for dot in (*commit.remove, *(version.dot for version in commit.insert)):
            row = self._rows.get(dot)
            if row is not None:
                # What it dominates is hidden, and nobody would fold the key any more.
                if row.stage:
                    hidden[row.version.key] = None
                self._remove(dot)
        for version in commit.insert:
            self._add(version, 0)
        for key in hidden:
            self._drop_dominated(key)
        self._forget_pasts(commit.forget_pasts)
        if commit.validate is not None:
            self._validate(commit.validate)
        self._state = commit.state
        self._let_go()

    def _stage(self, stage: int, versions: tuple[Version, ...]) -> None:
        for version in versions:
            row = self._rows.get(version.dot)
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
        self._tally.validate(stage, validate.fence)
        self._valid_since[stage] = self._tally.serial

    def _drop(self, stage: int) -> None:
        for dot in list(self._stages.get(stage, ())):
            self._remove(dot)
        self._tally.drop(stage)

    def _fold(self, stage: int, count: int) -> None:
        if not self._tally.valid[stage]:
            self._remove_doomed(stage, count)
        else:
            moved = list(self._stages[stage].values())[:count]
            for row in moved:
                self._leave_stage(row)
                row.stage, row.since = 0, self._valid_since[stage]
            self._tally.settle(stage, len(moved))
            for key in {row.version.key: None for row in moved}:
                self._drop_dominated(key)

    def _remove_doomed(self, stage: int, count: int) -> None:
        standing = self._tally.standing[stage]
        doomed: list[Dot] = []
        looked, upto = 0, Cursor(standing.looked)
        end = True
        for cursor, row in self._rows.after(standing.fence.claim, upto):
            if looked == count * LOOKED_PER_REMOVED or len(doomed) == count:
                end = False
                break
            looked, upto = looked + 1, cursor
            if self._tally.shows(row.stage) and standing.fence.dooms(row.version.dot):
                doomed.append(row.version.dot)
        for dot in doomed:
            self._remove(dot)
        self._tally.look(stage, None if end else upto)

    def _drop_dominated(self, key: str) -> None:
        visible = [row for row in self._keys.get(key, ()) if self._shows(row)]
        kept = {version.dot for version in maximal(r.version for r in visible)}
        for row in visible:
            if row.version.dot not in kept:
                self._remove(row.version.dot)

    def _forget_pasts(self, dots: Iterable[Dot]) -> None:
        found = [row for dot in dots if (row := self._rows.get(dot)) is not None]
        if self._tally.valid:
            # What these dominate is only hidden, and would come to light.
            for key in {row.version.key: None for row in found}:
                self._drop_dominated(key)
        for row in found:
            version = row.version
            if not version.past or self._rows.get(version.dot) is not row:
                continue
            for snapshot in self._snapshots:
                snapshot.keep(row)
            bare = msgspec.structs.replace(version, past={})
            other = Row(bare, row.hash, row.stage, row.since)
            self._rows.put(other)
            if version.value is not None:
                self._unsettled.drop(version.dot)
            else:
                self._unsettled.put(other)
            of_key = self._keys[version.key]
            of_key[of_key.index(row)] = other
            if row.stage:
                self._stages[row.stage][version.dot] = other

    def _forget_all(self) -> None:
        # Open snapshots keep the old ones.
        self._keys, self._stages = {}, {}
        self._rows, self._unsettled = Rows(), Rows()
        self._valid_since.clear()
        self._size_bytes = self._keys_gone = 0
        self._tally.forget_all()

    # Rows.

    def _shows(self, row: Row) -> bool:
        tally = self._tally
        return tally.shows(row.stage) and not (
            tally.standing and tally.dooms(row.version.dot)
        )

    def _add(self, version: Version, stage: int) -> None:
        row = Row(
            version, version_hash(version), stage, 0 if stage else self._tally.serial
        )
        self._keys.setdefault(version.key, []).append(row)
        self._rows.put(row)
        if version.past or version.value is None:
            self._unsettled.put(row)
        if stage:
            self._stages.setdefault(stage, {})[version.dot] = row
        self._tally.enter(stage, rows=1, joined_hash=row.hash)
        self._size_bytes += _size(version)

    def _remove(self, dot: Dot) -> None:
        row = self._rows.get(dot)
        if row is None:
            return
        for snapshot in self._snapshots:
            snapshot.keep(row)
        version = row.version
        self._rows.drop(dot)
        self._unsettled.discard(dot)
        rows = self._keys[version.key]
        rows.remove(row)
        if not rows:
            self._drop_key(version.key)
        self._leave_stage(row)
        self._tally.leave(row.stage, row.hash)
        self._size_bytes -= _size(version)

    def _drop_key(self, key: str) -> None:
        del self._keys[key]
        self._keys_gone += 1
        if self._keys_gone > len(self._keys) + _DEAD_MIN:
            # A dictionary keeps the room of what was deleted from it.
            self._keys, self._keys_gone = dict(self._keys), 0

    def _let_go(self) -> None:
        for stage in self._valid_since.keys() - self._tally.valid.keys():
            del self._valid_since[stage]
        # The cursor of a snapshot finds its way by them.
        if not self._snapshots:
            self._rows.let_go()
            self._unsettled.let_go()

    def _leave_stage(self, row: Row) -> None:
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
    def rows(self) -> Rows:
        """All versions; another object after all were forgotten."""
        return self._rows

    def give_back(self, snapshot: MemorySnapshot) -> None:
        """Forget a snapshot that is closed."""
        self._snapshots.pop(snapshot, None)
        self._let_go()


class MemorySnapshot(Snapshot):
    """The rows of the store that were visible then, and those that went since."""

    def __init__(
        self, storage: MemoryStorage, state: ReplicaState, tally: Tally
    ) -> None:
        """Hold this instant of ``storage``."""
        self._storage = storage
        self._state = state
        self._tally = tally
        self._rows: Rows | None = storage.rows
        self._gone: defaultdict[Actor, dict[int, Row]] = defaultdict(dict)

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
        room, looks = bytes_max, versions_max * LOOKED_PER_LISTED
        for cursor, version in self._after(base, after):
            if version is None:
                looks -= 1
                if not looks:
                    return found, cursor
                continue
            room -= part_bytes(version)
            if found and (room < 0 or len(found) == versions_max):
                return found, last
            found.append(version)
            last = cursor
        return found, None

    def live(self, after: Cursor, *, dots_max: int) -> tuple[LiveDots, Cursor | None]:
        assert dots_max > 0
        found: LiveDots = {}
        last, room = after, dots_max
        for cursor, version in self._after({}, after):
            if not room:
                return found, last
            last, room = cursor, room - 1
            if version is not None:
                found.setdefault(version.actor, []).append(version.counter)
        return found, None

    def keep(self, row: Row) -> None:
        """A row goes from the store: note it if it is part of this instant."""
        if self._sees(row):
            self._gone[row.version.actor][row.version.counter] = row

    def close(self) -> None:
        self._rows = None
        self._gone.clear()
        self._storage.give_back(self)

    def _sees(self, row: Row) -> bool:
        tally = self._tally
        if row.stage not in tally.valid if row.stage else row.since > tally.serial:
            return False
        return not (tally.standing and tally.dooms(row.version.dot))

    def _after(
        self, base: VersionVector, after: Cursor
    ) -> Iterator[tuple[Cursor, Version | None]]:
        # None stands for one that is not to be seen.
        rows = self._rows
        if rows is None:
            raise SnapshotLost("the snapshot is gone, pull again")
        vv = self._state.vv
        for first, actor, of_actor in rows.ordered(vv):
            above = max(base.get(actor, 0), after - first)
            for counter, version in self._of_actor(actor, of_actor, above):
                if counter > vv[actor]:
                    break
                yield Cursor(first | counter), version

    def _of_actor(
        self, actor: Actor, rows: ActorRows, above: int
    ) -> Iterator[tuple[int, Version | None]]:
        gone = self._gone.get(actor, {})
        # What has gone was there; what is there of the same dot came later.
        there = (x for x in rows.between(above, STORED_COUNTER_MAX) if x[0] not in gone)
        went = sorted((x for x in gone.items() if x[0] > above), key=itemgetter(0))
        for counter, row in heapq.merge(there, went, key=itemgetter(0)):
            yield counter, row.version if self._sees(row) else None


def _size(version: Version) -> int:
    return len(version.key.encode()) + len(version.value or b"")
