"""
The writing side of a database: one commit, one transaction.

Invariant: after every transaction the record in ``meta`` is that of the last commit,
and its check sum and counts are those of the rows.  A transaction that fails leaves
neither rows nor anything in memory.

Rows of a stage that is dropped are removed a thousand at a time, beside the commits:
they are invisible, and one transaction for all would hold up every client.
"""

from __future__ import annotations

import enum
import math
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias, TypeVar

import msgspec

from ..core.causality import VersionVector, covers
from ..core.errors import DiskFull
from ..core.messages import Commit, StagePart, ValidateStage
from ..core.versions import Version
from .api import STORED_COUNTER_MAX
from .rows import COUNTER_BITS, HASH_MASK, ActorNumbers, Row, join_hashes
from .schema import PAGE_BYTES, Record, make_record
from .tally import Tally

T = TypeVar("T")
_Present: TypeAlias = tuple[int, int, int, str]
"""Dot, stage, hash and key of a row that is there."""

SWEEP_ROWS = 1000
CHECKPOINT_PAGES = 1000
"""About so many pages are written to the log before it is worked off: 8 MB, which
takes 5 to 15 ms once a file of 40 MB is written all over."""
_COMMIT_PAGES = 3
_ROW_BYTES = 100
_KEYS_OF_LEAF = 200
_ROW_COLUMNS = 7
_ROWS_AT_ONCE = (500, 50, 5, 1)
"""A statement lets go of the interpreter's lock once per row that it is given alone; a
busy reactor may give it back after 5 ms only.  So many rows share one statement."""

_FULL_CODES = frozenset(
    {
        sqlite3.SQLITE_FULL,
        # What a quota, a file size limit or a full disk make of a write, or of the room
        # for the index of the log.
        sqlite3.SQLITE_IOERR_WRITE,
        sqlite3.SQLITE_IOERR_SHMSIZE,
    }
)

_STAGED = "FROM version INDEXED BY version_stage WHERE stage = ? AND stage != 0"
_SLICE = f"SELECT dot {_STAGED} ORDER BY dot LIMIT ?"
_DELETE_SLICE = f"DELETE FROM version WHERE dot IN ({_SLICE})"  # noqa: S608  # constant
_SETTLE = (
    "UPDATE version INDEXED BY version_stage SET stage = 0"
    " WHERE stage = ? AND stage != 0 AND dot <= ?"
)
_OF_STAGES = (
    "SELECT dot, stage, hash, key, past FROM version INDEXED BY version_key"
    " WHERE stage IN"
)
_INSERT = "INSERT INTO version VALUES "
_ONE_ROW = "(?, ?, ?, ?, ?, ?, ?)"
assert _ONE_ROW.count("?") == _ROW_COLUMNS


class Due(enum.IntEnum):
    """What a store is to do beside commits."""

    NOTHING = 0
    SWEEP = 1
    """Remove rows of dropped stages."""
    CHECKPOINT = 2
    """Work off the log."""


class CommitWriter:
    """Writes one database; used by one thread at a time."""

    def __init__(self, connection: sqlite3.Connection, record: Record | None) -> None:
        """
        Go on from a database's last commit.

        :param connection: the only one that writes; closed by ``close``.
        """
        self._connection = connection
        self._actors = ActorNumbers(connection)
        self._tally = Tally() if record is None else record.tally()
        found = self._stages_found()
        self._garbage = [s for s in found if s not in self._tally.valid]
        self.first_stage = max(found, default=0)
        """Stages of this run are numbered from here, past those still there."""
        self._pages = 0
        parameters_max = connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)
        self._chunks = [n for n in _ROWS_AT_ONCE if n * _ROW_COLUMNS <= parameters_max]

    def apply(self, commit: Commit) -> Record:
        """
        Make one change durable.

        :returns: the record that is stored with it.
        :raises DiskFull: if the disk takes no more; nothing is stored.
        """
        return self._in_transaction(lambda: self._apply(commit))

    def close(self) -> None:
        """Close the connection; the last one of a database works off its log."""
        self._connection.close()

    @property
    def due(self) -> Due:
        """Tell what is to be done beside commits."""
        if self._pages >= CHECKPOINT_PAGES:
            return Due.CHECKPOINT
        return Due.SWEEP if self._garbage else Due.NOTHING

    def sweep(self) -> None:
        """
        Remove a slice of the rows of dropped stages.

        :raises DiskFull: if the disk takes no more.
        """
        self._in_transaction(self._sweep)

    def checkpoint(self) -> int:
        """
        Work off the log, as far as no snapshot needs it.

        :returns: bytes of the log that are in use, worked off or not.
        :raises DiskFull: if the disk takes no more.
        """
        self._pages = 0
        return work_off_log(self._connection)

    # Transactions.

    def _in_transaction(self, change: Callable[[], T]) -> T:
        before = self._tally
        self._tally = before.copy()
        garbage = list(self._garbage)
        try:
            with _full_disk_told():
                self._connection.execute("BEGIN IMMEDIATE")
                result = change()
                self._connection.execute("COMMIT")
        except BaseException:
            self._tally, self._garbage = before, garbage
            # Some errors have rolled it back already.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._actors.committed()
        return result

    def _apply(self, commit: Commit) -> Record:
        tally = self._tally
        if commit.forget_all:
            self._forget_all()
        if commit.stage is not None:
            self._stage(commit.stage)
        if commit.drop_stage is not None:
            self._drop(self.first_stage + commit.drop_stage)
        # Folding comes before validating: a stage must not be seen before its commit is
        # published, not even as ordinary rows.
        if commit.fold_versions and tally.valid:
            self._fold(commit.fold_versions)
        if commit.insert or commit.remove:
            self._change(commit)
        if commit.validate is not None:
            self._validate(commit.validate)
        tally.serial += 1
        self._pages += _COMMIT_PAGES
        record = make_record(commit.state, tally)
        self._actors.store_new()
        self._connection.execute(
            "INSERT OR REPLACE INTO meta VALUES ('record', ?)",
            (msgspec.msgpack.encode(record),),
        )
        return record

    def _change(self, commit: Commit) -> None:
        rows = self._pack(commit.insert, 0)
        dots = [row[0] for row in rows]
        for removed in commit.remove:
            dot = self._actors.dot(removed)
            if dot is not None:
                dots.append(dot)
        # What comes replaces what is there of the same dot.
        gone = self._present(dots)
        self._delete(gone)
        self._insert(rows, 0)
        # What a row of a valid stage dominates is hidden, and goes when the key is
        # folded.  Without that row nobody would fold the key any more.
        for key in {row[3]: None for row in gone if row[1]}:
            self._drop_dominated(f"{self._visible()} AND key = ?", (key,))

    def _stage(self, part: StagePart) -> None:
        stage = self.first_stage + part.stage
        rows = self._pack(part.versions, stage)
        known = set()
        taken = []
        for present in self._present([row[0] for row in rows]):
            dot, where, _, _ = present
            if where == stage or self._tally.shows(where):
                known.add(dot)
            else:
                self._tally.rob(where)
                taken.append(present)
        self._delete(taken)
        self._insert([row for row in rows if row[0] not in known], stage)

    def _drop(self, stage: int) -> None:
        self._tally.drop(stage)
        self._garbage.append(stage)
        self._sweep()

    def _validate(self, validate: ValidateStage) -> None:
        stage = self.first_stage + validate.stage
        self._delete(self._covered(stage, validate.covered))
        self._tally.validate(stage)

    def _covered(self, stage: int, covered: VersionVector) -> list[_Present]:
        found = []
        for above, upto in self._actors.spans(covered, {}):
            found += self._connection.execute(
                f"SELECT dot, stage, hash, key {_STAGED} AND dot > ? AND dot <= ?",
                (stage, above, upto),
            ).fetchall()
        return found

    def _fold(self, count: int) -> None:
        stage = next(iter(self._tally.valid))
        slice_ = self._connection.execute(_SLICE, (stage, count)).fetchall()
        last = slice_[-1][0]
        # The keys of the slice with everything visible of them, in one statement.
        self._drop_dominated(
            f"{self._visible()} AND key IN (SELECT key {_STAGED} AND dot <= ?)",
            (stage, last),
        )
        moved = self._connection.execute(_SETTLE, (stage, last)).rowcount
        self._pages += moved * _ROW_BYTES // PAGE_BYTES
        if moved:
            self._tally.settle(stage, moved)

    def _visible(self) -> str:
        stages = ", ".join(map(str, (0, *self._tally.valid)))
        return f"{_OF_STAGES} ({stages})"

    def _drop_dominated(self, select: str, parameters: tuple[object, ...]) -> None:
        chains = defaultdict(list)
        for dot, stage, hash_, key, past in self._connection.execute(
            select, parameters
        ):
            chains[key].append(((dot, stage, hash_, key), past))
        for chain in chains.values():
            if len(chain) > 1:
                pasts = [self._actors.unpack_past(past) for _, past in chain]
                self._delete(
                    [row for row, _ in chain if self._is_covered(row[0], pasts)]
                )

    def _is_covered(self, dot: int, vectors: Sequence[VersionVector]) -> bool:
        named = self._actors.name(dot >> COUNTER_BITS), dot & STORED_COUNTER_MAX
        return any(covers(vector, named) for vector in vectors)

    def _forget_all(self) -> None:
        self._connection.execute("DELETE FROM version")
        self._tally.forget_all()
        self._garbage = []

    def _sweep(self) -> None:
        rows = SWEEP_ROWS
        while rows and self._garbage:
            gone = self._connection.execute(
                _DELETE_SLICE, (self._garbage[0], rows)
            ).rowcount
            rows -= gone
            self._pages += self._scattered(gone)
            if rows:
                self._garbage = self._garbage[1:]

    # Rows.

    def _pack(self, versions: Iterable[Version], stage: int) -> list[Row]:
        packed = (self._actors.pack(version, stage) for version in versions)
        # Each dot once: the same version may come twice.
        return list({row[0]: row for row in packed}.values())

    def _present(self, dots: list[int]) -> list[_Present]:
        if not dots:
            return []
        return self._connection.execute(
            "SELECT dot, stage, hash, key FROM version"
            " WHERE dot IN (SELECT value FROM json_each(?))",
            (msgspec.json.encode(dots),),
        ).fetchall()

    def _delete(self, rows: list[_Present]) -> None:
        if not rows:
            return
        for _, stage, hash_, _ in rows:
            self._tally.leave(stage, hash_ & HASH_MASK)
        self._pages += 2 * self._scattered(len(rows))
        self._connection.execute(
            "DELETE FROM version WHERE dot IN (SELECT value FROM json_each(?))",
            (msgspec.json.encode([row[0] for row in rows]),),
        )

    def _insert(self, rows: list[Row], stage: int) -> None:
        if not rows:
            return
        done = 0
        for size in self._chunks:
            statement = _INSERT + ", ".join([_ONE_ROW] * size)
            while len(rows) - done >= size:
                chunk = rows[done : done + size]
                self._connection.execute(
                    statement, [column for row in chunk for column in row]
                )
                done += size
        self._tally.enter(
            stage, rows=len(rows), joined_hash=join_hashes(row[6] for row in rows)
        )
        bytes_ = sum(len(row[1]) + len(row[2]) + _ROW_BYTES for row in rows)
        self._pages += bytes_ // PAGE_BYTES + self._scattered(len(rows))

    def _scattered(self, rows: int) -> int:
        # About how many leaves of the key index so many rows of random keys are on.
        leaves = 1 + self._tally.rows // _KEYS_OF_LEAF
        return math.ceil(leaves * -math.expm1(-rows / leaves))

    def _stages_found(self) -> list[int]:
        # One step of the index for each: there may be a million rows of one.
        found: list[int] = []
        stage = 0
        while True:
            (stage,) = self._connection.execute(
                "SELECT min(stage) FROM version INDEXED BY version_stage"
                " WHERE stage != 0 AND stage > ?",
                (stage,),
            ).fetchone()
            if stage is None:
                return found
            found.append(stage)


def work_off_log(connection: sqlite3.Connection) -> int:
    """
    Work off a database's log as far as no snapshot needs it; commits can go on.

    :returns: bytes of the log that are in use, worked off or not.
    :raises DiskFull: if the disk takes no more.
    """
    with _full_disk_told():
        checkpoint = connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        _, pages, _ = checkpoint.fetchone()
    return int(pages) * PAGE_BYTES


@contextmanager
def _full_disk_told() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode in _FULL_CODES:
            raise DiskFull(f"the disk takes no more: {error}") from error
        raise
