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
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias, TypeVar

import msgspec

from ..core.causality import Dot, VersionVector, covers
from ..core.errors import DiskFull
from ..core.fence import Fence
from ..core.messages import Commit, StagePart, ValidateStage
from ..core.versions import Version
from .api import STORED_COUNTER_MAX
from .heap import trim_heap
from .listed import drop_listed, listed_stages, read_fence, store_listed
from .rows import COUNTER_BITS, HASH_MASK, ActorNumbers, Row, join_hashes
from .schema import (
    BUSY_MS,
    FULL_CODES,
    PAGE_BYTES,
    Record,
    make_record,
    read_retired,
)
from .tally import Tally

T = TypeVar("T")
_Present: TypeAlias = tuple[int, int, int, str]
"""Dot, stage, hash and key of a row that is there."""

SWEEP_ROWS = 1000
CHECKPOINT_PAGES = 1000
"""About so many pages are written to the log before it is worked off: 8 MB, which
takes 5 to 15 ms once a file of 40 MB is written all over."""
LOOKED_PER_REMOVED = 20
"""A slice of a full join's removals looks at so many versions for each it may remove:
most often nearly all of them stay."""
FREE_PAGES = 128
FREE_SHARE = 10
"""While commits go on, pages are given back when so many and a tenth of all are free:
they would be used again.  At rest all are given back."""
GIVEN_BACK_S = 0.004
"""Commits wait for about so long while pages are given back."""
GIVEN_BACK_PAGES = 16
PACKED_BYTES_MAX = 8 * 2**20
"""A file up to this size is written anew at rest, when many of its rows have gone: the
pages that are left may be filled by a third.  Takes 60 ms, on a busy machine 120."""
PACKED_SHARE = 4
_COMMIT_PAGES = 3
_ROW_BYTES = 100
_KEYS_OF_LEAF = 200
_ROW_COLUMNS = 7
_ROWS_AT_ONCE = (500, 50, 5, 1)
"""A statement lets go of the interpreter's lock once per row that it is given alone; a
busy reactor may give it back after 5 ms only.  So many rows share one statement."""

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
_DOTS = (
    "SELECT json_group_array(dot) FROM"
    " (SELECT dot FROM version WHERE dot > ? AND dot <= ? ORDER BY dot LIMIT ?)"
)
"""In one row: see ``_ROWS_AT_ONCE``."""
_KEYS_OF = "SELECT key FROM version WHERE dot IN (SELECT value FROM json_each(?))"
_FORGET_PASTS = (
    "UPDATE version SET past = NULL"
    " WHERE dot IN (SELECT value FROM json_each(?)) AND past IS NOT NULL"
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
    GIVE_BACK = 3
    """Give free pages back."""
    PACK = 4
    """Write a small file anew."""
    CUT = 5
    """Work off the log and cut it off."""
    REST = 6
    """Plan to give all room back: nobody writes."""


class CommitWriter:
    """Writes one database; used by one thread at a time."""

    def __init__(self, connection: sqlite3.Connection, record: Record | None) -> None:
        """
        Go on from a database's last commit.

        :param connection: the only one that writes; closed by ``close``.
        """
        self._connection = connection
        self._actors = ActorNumbers(connection)
        self._retired = read_retired(connection)
        self.fences: dict[int, Fence] = {}
        """Those that stand, by stage."""
        self._tally = Tally()
        if record is not None:
            for stage, _, claim in record.fences:
                fence = read_fence(connection, self._actors, stage=stage, claim=claim)
                self.fences[stage] = fence
            self._tally = record.tally(self.fences)
        found = {*self._stages_found(), *listed_stages(connection)}
        self._garbage = sorted(found - self._tally.valid.keys())
        self.first_stage = max(found | self._tally.valid.keys(), default=0)
        """Stages of this run are numbered from here, past those still there."""
        self._pages = 0
        self._free_max: int | None = None
        """Pages are given back until no more are free; None: they are not."""
        self._given_back_pages = GIVEN_BACK_PAGES
        self._gone = max(1, self._tally.rows) if record is not None else 0
        """Rows that went or shrank since the file was written anew; at the start: as
        many as may have, since what was done before is not known any more."""
        self._pack_wanted = self._cut = False
        parameters_max = connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)
        self._chunks = [n for n in _ROWS_AT_ONCE if n * _ROW_COLUMNS <= parameters_max]

    def apply(self, commit: Commit) -> Record:
        """
        Make one change durable.

        :returns: the record that is stored with it.
        :raises DiskFull: if the disk takes no more; nothing is stored.
        """
        record = self._in_transaction(lambda: self._apply(commit))
        self._retired = commit.state.retired
        return record

    def close(self) -> None:
        """Close the connection; the last one of a database works off its log."""
        self._connection.close()

    @property
    def due(self) -> Due:
        """Tell what is to be done beside commits."""
        if self._pages >= CHECKPOINT_PAGES:
            return Due.CHECKPOINT
        if self._garbage:
            return Due.SWEEP
        if self._free_max is not None:
            return Due.GIVE_BACK
        if self._pack_wanted:
            return Due.PACK
        return Due.CUT if self._cut else Due.NOTHING

    def tend(self, due: Due) -> None:
        """
        Do a slice of what is due, the log apart.

        :raises DiskFull: if the disk takes no more.
        """
        match due:
            case Due.SWEEP:
                self.sweep()
            case Due.GIVE_BACK:
                self.give_back()
            case Due.PACK:
                self.pack()
            case Due.CUT:
                self.cut()
            case Due.REST:
                self.rest()

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
        log_bytes = work_off_log(self._connection)
        free, pages = self._free_pages()
        if free > FREE_PAGES and free * FREE_SHARE > pages and self._free_max is None:
            self._free_max = FREE_PAGES // 2
        return log_bytes

    def rest(self) -> None:
        """Plan to give all room back: nobody writes."""
        self._free_max = 0
        self._pack_wanted = self._gone * PACKED_SHARE > self._tally.rows
        self._cut = True

    def give_back(self) -> None:
        """
        Give a slice of the free pages back.

        The file shrinks when the log is worked off.

        :raises DiskFull: if the disk takes no more.
        """
        wanted, (free, _) = self._free_max, self._free_pages()
        if wanted is None or free <= wanted:
            self._free_max = None
            return
        pages = min(free - wanted, self._given_back_pages)
        began = time.monotonic()
        with _full_disk_told():
            # As a script: it lets go of the interpreter's lock once, not for each page.
            self._connection.executescript(f"PRAGMA incremental_vacuum({pages})")
        took = time.monotonic() - began
        if took > GIVEN_BACK_S:
            self._given_back_pages = max(1, self._given_back_pages // 2)
        elif took < GIVEN_BACK_S / 2:
            self._given_back_pages += 1 + self._given_back_pages // 4
        self._pages += 2 * pages
        if self._free_pages()[0] >= free:
            # It cannot: a file that an older program made and nobody could write anew.
            self._free_max = None

    def pack(self) -> None:
        """
        Write the file anew if it is small.

        :raises DiskFull: if the disk takes no more.
        """
        self._pack_wanted = False
        if self._free_pages()[1] * PAGE_BYTES <= PACKED_BYTES_MAX:
            with _full_disk_told():
                self._connection.execute("VACUUM")
            self._gone = 0

    def cut(self) -> None:
        """
        Work off the log and cut it off, unless a snapshot needs it; trim the heap.

        :raises DiskFull: if the disk takes no more.
        """
        self._cut = False
        with _full_disk_told():
            self._connection.execute("PRAGMA busy_timeout = 0")
            try:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            finally:
                self._connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        trim_heap()

    def _free_pages(self) -> tuple[int, int]:
        (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        return free, pages

    # Transactions.

    def _in_transaction(self, change: Callable[[], T]) -> T:
        before, fences = self._tally, self.fences
        self._tally, self.fences = before.copy(), dict(fences)
        garbage = list(self._garbage)
        try:
            with _full_disk_told():
                self._connection.execute("BEGIN IMMEDIATE")
                result = change()
                self._connection.execute("COMMIT")
        except BaseException:
            self._tally, self.fences, self._garbage = before, fences, garbage
            # Some errors have rolled it back already.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        finally:
            self._actors.settle()
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
        if commit.forget_pasts:
            self._forget_pasts(commit.forget_pasts)
        if commit.validate is not None:
            self._validate(commit.validate)
        tally.serial += 1
        self._pages += _COMMIT_PAGES
        record = make_record(commit.state, tally)
        self._actors.store_new()
        rows = [("record", msgspec.msgpack.encode(record))]
        if commit.state.retired != self._retired:
            rows.append(("retired", commit.state.retired))
        self._connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)
        return record

    def _change(self, commit: Commit) -> None:
        if self._tally.standing:
            assert not any(self._tally.claims(v.dot) for v in commit.insert)
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
        if part.live:
            bytes_ = store_listed(
                self._connection, self._actors, stage=stage, live=part.live
            )
            self._pages += 1 + bytes_ // PAGE_BYTES

    def _drop(self, stage: int) -> None:
        self._tally.drop(stage)
        self._garbage.append(stage)
        self._sweep()

    def _validate(self, validate: ValidateStage) -> None:
        stage = self.first_stage + validate.stage
        self._delete(self._covered(stage, validate.covered))
        self._tally.validate(stage, validate.fence)
        if validate.fence is not None:
            self.fences[stage] = validate.fence

    def _forget_pasts(self, dots: Iterable[Dot]) -> None:
        rows = [row for dot in dots if (row := self._actors.dot(dot)) is not None]
        encoded = msgspec.json.encode(rows)
        if self._tally.valid:
            # What these dominate is only hidden, and would come to light.
            select = f"{self._visible()} AND key IN ({_KEYS_OF})"
            self._drop_dominated(select, (encoded,))
        self._pages += 1 + 2 * len(rows) * _ROW_BYTES // PAGE_BYTES
        self._gone += self._connection.execute(_FORGET_PASTS, (encoded,)).rowcount

    def _covered(self, stage: int, covered: VersionVector) -> list[_Present]:
        found = []
        for above, upto in self._actors.spans(covered, {}):
            found += self._connection.execute(
                f"SELECT dot, stage, hash, key {_STAGED} AND dot > ? AND dot <= ?",
                (stage, above, upto),
            ).fetchall()
        return found

    def _fold(self, count: int) -> None:
        stage, left = next(iter(self._tally.valid.items()))
        if not left:
            self._remove_doomed(stage, count)
            return
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

    def _remove_doomed(self, stage: int, count: int) -> None:
        standing = self._tally.standing[stage]
        room, looked, doomed = count * LOOKED_PER_REMOVED, standing.looked, []
        for above, upto in self._actors.spans(standing.fence.claim, {}):
            if upto <= looked:
                continue
            (encoded,) = self._connection.execute(
                _DOTS, (max(above, looked), upto, room)
            ).fetchone()
            dots = msgspec.json.decode(encoded, type=list[int])
            actor = self._actors.name(upto >> COUNTER_BITS)
            for looked in dots:
                if standing.fence.dooms((actor, looked & STORED_COUNTER_MAX)):
                    doomed.append(looked)
                if len(doomed) == count:
                    break
            room -= len(dots)
            if not room or len(doomed) == count:
                self._tally.look(stage, looked)
                break
        else:
            self._tally.look(stage, None)
            del self.fences[stage]
            self._garbage.append(stage)
        gone = self._present(doomed)
        self._delete([row for row in gone if self._tally.shows(row[1])])

    def _visible(self) -> str:
        stages = ", ".join(map(str, (0, *self._tally.valid)))
        return f"{_OF_STAGES} ({stages})"

    def _drop_dominated(self, select: str, parameters: tuple[object, ...]) -> None:
        chains = defaultdict(list)
        standing = self._tally.standing
        for dot, stage, hash_, key, past in self._connection.execute(
            select, parameters
        ):
            if not (standing and self._tally.dooms(self._actors.named(dot))):
                chains[key].append(((dot, stage, hash_, key), past))
        for chain in chains.values():
            if len(chain) > 1:
                pasts = [self._actors.unpack_past(past) for _, past in chain]
                self._delete(
                    [row for row, _ in chain if self._is_covered(row[0], pasts)]
                )

    def _is_covered(self, dot: int, vectors: Sequence[VersionVector]) -> bool:
        named = self._actors.named(dot)
        return any(covers(vector, named) for vector in vectors)

    def _forget_all(self) -> None:
        self._connection.execute("DELETE FROM version")
        self._connection.execute("DELETE FROM listed")
        self.fences = {}
        self._tally.forget_all()
        self._garbage = []

    def _sweep(self) -> None:
        rows = SWEEP_ROWS
        while rows and self._garbage:
            gone = self._connection.execute(
                _DELETE_SLICE, (self._garbage[0], rows)
            ).rowcount
            rows -= gone
            self._gone += gone
            self._pages += self._scattered(gone)
            if rows:
                if not drop_listed(self._connection, self._garbage[0]):
                    return
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
        self._gone += len(rows)
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
        if error.sqlite_errorcode in FULL_CODES:
            raise DiskFull(f"the disk takes no more: {error}") from error
        raise
