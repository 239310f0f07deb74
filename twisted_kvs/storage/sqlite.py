"""
The durable store: SQLite with a write-ahead log, one writing thread.

Reads run on the reactor's thread and see the last durable commit; they never wait for
the writer.  A commit is synced before it is visible.  A snapshot is a connection with
an open read transaction; it keeps the log from being cut, so the store takes all
snapshots away when the log grows over its limit.

Invariant: which stages are visible changes on the reactor's thread, when a commit is
published; the rows of a stage that became valid need not be touched for it.
"""

from __future__ import annotations

import heapq
import os
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec
from twisted.internet.defer import Deferred, ensureDeferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..core.causality import Dot, Name, VersionVector
from ..core.errors import DiskFull, StoreRefused
from ..core.messages import Commit, CommitResult, ReplicaState
from ..core.versions import Antichain, Version, maximal
from .api import (
    Cursor,
    Storage,
)
from .directory import StoreDirectory
from .reading import is_damage, reads
from .rows import ActorNumbers
from .schema import (
    IS_UNSETTLED,
    LOG_KEPT_BYTES,
    SNAPSHOT_CACHE_KIB,
    Record,
    bring_up_to_date,
    connect,
    decode_record,
    look_over,
    read_record,
    read_retired,
)
from .snapshot import SqliteSnapshot
from .tally import Tally
from .thread import CallRunner
from .writing import CommitWriter, Due, work_off_log

WAL_BYTES_MAX = 2**30
BESIDE_BYTES = 32 * 2**20
"""Commits do not wait while a longer log is worked off: 0.1 s for 80 MB, and more on
slow disks."""
assert LOG_KEPT_BYTES < BESIDE_BYTES
IDLE_SNAPSHOTS_MAX = 4
REST_S = 5.0
"""When nothing was written for so long, all room is given back."""

_UNSETTLED = (
    "SELECT dot, key, length(value) FROM version INDEXED BY version_unsettled"  # noqa: S608  # constant
    f" WHERE stage = ? AND {IS_UNSETTLED} AND dot > ? AND dot <= ?"
    " ORDER BY dot LIMIT ?"
)
_OF_KEY = "SELECT dot, value, ts, past, stage FROM version WHERE key = ?"


def check_directory(
    directory: str | os.PathLike[str], *, name: Name, fingerprints: tuple[str, ...]
) -> None:
    """
    Tell whether a store could be opened, and change nothing: for before the fork.

    Everything is closed again when it returns, and no thread was started.

    :param fingerprints: of the node's secrets, the signing one first.
    :raises StoreRefused: with one line that names the file.
    """
    store = StoreDirectory(Path(directory), name=name, fingerprints=fingerprints)
    try:
        identity = store.hold()
        if identity is not None:
            look_over(store.database, identity.store)
    finally:
        store.release()


class SqliteStorage(Storage):
    """A store in a directory."""

    _log = Logger()

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        name: Name,
        fingerprints: tuple[str, ...],
        thread: CallRunner,
        clock: IReactorTime | None = None,
        wal_bytes_max: int = WAL_BYTES_MAX,
    ) -> None:
        """
        Name a store; nothing is looked at before ``open``.

        :param directory: made if need be, with its parents; open to its owner only.
        :param name: the node whose store it is.
        :param fingerprints: of the node's secrets, the signing one first; the store
            must be of one of them, and belongs to the first afterwards.
        :param thread: where commits are written.
        :param clock: tells when nobody writes; None: ``rest`` is called.
        :param wal_bytes_max: when the log is longer, all snapshots are lost.
        """
        self._directory = StoreDirectory(
            Path(directory), name=name, fingerprints=fingerprints
        )
        self._thread = thread
        self._clock = clock
        self._resting: IDelayedCall | None = None
        self._wrote = False
        self._wal_bytes_max = wal_bytes_max
        self._writer: CommitWriter | None = None
        self._tending = False
        self._tended: Deferred[None] = succeed(None)
        self._broken: Failure | None = None
        self._tell_broken: Callable[[Failure], None] = lambda failure: None
        self._snapshots: dict[SqliteSnapshot, None] = {}
        self._idle: list[sqlite3.Connection] = []

    # Life.

    def open(self) -> ReplicaState | None:
        assert self._writer is None, "open already"
        identity = self._directory.acquire()
        path = self._directory.database
        opened: list[sqlite3.Connection] = []
        try:
            record = look_over(path, identity.store)
            opened.append(connect(path))
            bring_up_to_date(opened[0])
            opened.append(connect(path))
            self._writer = CommitWriter(opened[0], record)
            self._reader = opened[1]
            self._actors = ActorNumbers(self._reader)
            self._directory.adopt(identity)
        except BaseException as error:
            self._writer = None
            for connection in opened:
                connection.close()
            self._directory.release()
            if isinstance(error, sqlite3.Error):
                raise StoreRefused(f"{path}: cannot be used: {error}") from error
            raise
        self._broken = None
        self._first_stage = self._writer.first_stage
        self._known: tuple[bytes, Record] | None = None
        # Those of the writer, and of stages that are to become valid.
        self._fences = self._writer.fences
        self._tally = Tally() if record is None else record.tally(self._fences)
        self._tend(self._writer.due)
        self._await_rest()
        if record is None:
            return None
        retired = read_retired(self._reader)
        return msgspec.structs.replace(record.state, retired=retired)

    def close(self) -> Deferred[None]:
        writer, self._writer = self._writer, None
        if writer is None:
            return succeed(None)
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        for snapshot in list(self._snapshots):
            snapshot.close()
        for connection in (*self._idle, self._reader):
            connection.close()
        self._idle.clear()
        return ensureDeferred(self._close(writer))

    async def _close(self, writer: CommitWriter) -> None:
        try:
            await self._tended
            # The last connection works off the log: not on the reactor's thread.
            await self._thread.run(writer.close)
            await self._thread.stop()
        finally:
            self._directory.release()

    # Reading.

    @property
    def result(self) -> CommitResult:
        return self._tally.result

    @property
    def size_bytes(self) -> int:
        return _size(self._directory.database) + self.wal_bytes

    @property
    def wal_bytes(self) -> int:
        """Bytes of the log's file; some of them may not be in use any more."""
        database = self._directory.database
        return _size(database.with_name(database.name + "-wal"))

    def count(self) -> int:
        return self._tally.visible

    @reads
    def versions(self, key: str) -> Antichain:
        rows = self._reader.execute(_OF_KEY, (key,)).fetchall()
        if not rows:
            return ()
        unpack = self._actors.unpack
        shows = self._tally.shows
        found = [unpack(key, row[:4]) for row in rows if shows(row[4])]
        if self._tally.standing:
            found = [x for x in found if not self._tally.dooms(x.dot)]
        return tuple(found) if len(found) < 2 else maximal(found)

    @reads
    def staged(self, stage: int, key: str) -> Antichain:
        rows = self._reader.execute(_OF_KEY, (key,)).fetchall()
        wanted = self._first_stage + stage
        return maximal(
            self._actors.unpack(key, row[:4]) for row in rows if row[4] == wanted
        )

    @reads
    def unsettled(
        self,
        upto: VersionVector,
        after: Cursor,
        *,
        versions_max: int,
        bytes_max: int,
    ) -> tuple[list[str], Cursor | None]:
        assert versions_max > 0
        tally = self._tally
        keys: dict[str, None] = {}
        looked, last, room = 0, after, bytes_max
        # One row more than wanted tells whether there is another part.
        for dot, key, length in self._unsettled(upto, after, versions_max + 1):
            room -= len(key.encode()) + length
            if looked and (room < 0 or looked == versions_max):
                return list(keys), last
            if not (tally.standing and tally.dooms(self._actors.named(dot))):
                keys[key] = None
            looked, last = looked + 1, Cursor(dot)
        return list(keys), None

    def _unsettled(
        self, upto: VersionVector, after: Cursor, limit: int
    ) -> Iterator[tuple[int, str, int]]:
        stages = 0, *self._tally.valid
        for first, last in self._actors.spans(upto, {}):
            if last > after:
                span = max(first, after), last, limit
                yield from heapq.merge(
                    *(
                        self._reader.execute(_UNSETTLED, (stage, *span)).fetchall()
                        for stage in stages
                    )
                )

    @reads
    def snapshot(self) -> SqliteSnapshot:
        connection = (
            self._idle.pop()
            if self._idle
            else connect(self._directory.database, cache_kib=SNAPSHOT_CACHE_KIB)
        )
        try:
            connection.execute("BEGIN")
            stored = read_record(connection)
            assert stored is not None, "no snapshot before the first commit"
        except BaseException:
            connection.close()
            raise
        if self._known is None or self._known[0] != stored:
            self._known = stored, decode_record(stored)
        record = self._known[1]
        snapshot = SqliteSnapshot(
            self, connection, record=record, tally=record.tally(self._fences)
        )
        self._snapshots[snapshot] = None
        return snapshot

    # Writing.

    def commit(self, commit: Commit) -> Deferred[CommitResult]:
        if self._broken is not None:
            return fail(self._broken)
        writer = self._writer
        assert writer is not None, "not open"
        # Another Deferred than the writer's: to cancel it must not undo a commit.
        done: Deferred[CommitResult] = Deferred()
        if commit.validate is not None and commit.validate.fence is not None:
            # A snapshot may show the commit before it is published.
            stage = self._first_stage + commit.validate.stage
            self._fences = {**self._fences, stage: commit.validate.fence}

        def publish(written: tuple[Record, Due]) -> None:
            record, due = written
            self._tally = record.tally(self._fences)
            if len(self._fences) > len(self._tally.standing):
                self._fences = {s: x.fence for s, x in self._tally.standing.items()}
            self._wrote = True
            self._await_rest()
            self._tend(due)
            done.callback(self._tally.result)

        def fail_with(failure: Failure) -> None:
            done.errback(self._judged(failure))

        write = partial(_written, writer, commit, self._directory)
        self._thread.run(write).addCallbacks(publish, fail_with)
        return done

    def rest(self) -> None:
        """
        Give all room back that nothing needs: nobody writes.

        In slices; what is written goes in between.  Snapshots keep some of the room.
        """
        self._tend(Due.REST)

    def _await_rest(self) -> None:
        if self._clock is not None and self._resting is None:
            self._resting = self._clock.callLater(REST_S, self._perhaps_rest)

    def _perhaps_rest(self) -> None:
        self._resting = None
        if self._wrote or self._tending or self._snapshots:
            self._wrote = False
            self._await_rest()
        else:
            self.rest()

    def _tend(self, due: Due) -> None:
        if due and not self._tending:
            self._tending = True
            self._tended = ensureDeferred(self._tend_while(due))
            self._tended.addErrback(self._untended)

    async def _tend_while(self, due: Due) -> None:
        try:
            # One slice at a time: commits go in between.
            while due and (writer := self._writer) is not None:
                if due is Due.CHECKPOINT:
                    due = await self._checkpoint(writer)
                else:
                    due = await self._thread.run(partial(_tended, writer, due))
        except DiskFull as error:
            self._log.warn("the log of the store waits: {error}", error=error)
        finally:
            self._tending = False

    async def _checkpoint(self, writer: CommitWriter) -> Due:
        if self.wal_bytes > BESIDE_BYTES:
            # Takes so long that commits must not wait for it; it leaves little to do.
            path = self._directory.database
            await self._thread.run_beside(partial(_work_off_beside, path))
        log_bytes, due = await self._thread.run(partial(_worked_off, writer))
        if log_bytes > self._wal_bytes_max:
            self._lose_snapshots(log_bytes)
        return due

    def _untended(self, failure: Failure) -> None:
        failure = self._judged(failure)
        if not failure.check(StoreRefused):
            self._log.failure("the store cannot be tended", failure=failure)
        self._break(failure)

    def _judged(self, failure: Failure) -> Failure:
        """Say in words of a failure that it is damage, or the files' removal, if so."""
        error, path = failure.value, self._directory.database
        if isinstance(error, sqlite3.DatabaseError):
            if is_damage(error):
                return Failure(StoreRefused(f"{path}: damaged: {error}"))
            if not os.path.exists(path):
                return Failure(StoreRefused(f"{path}: was removed while in use"))
        return failure

    def cannot_read(self, error: sqlite3.DatabaseError) -> None:
        """Take note that the database is damaged."""
        self._break(self._judged(Failure(error)))

    def _break(self, failure: Failure) -> None:
        # Commits fail with it, too.
        if self._broken is None:
            self._broken = failure
            self._tell_broken(failure)

    def when_broken(self, told: Callable[[Failure], None]) -> None:
        self._tell_broken = told
        if self._broken is not None:
            told(self._broken)

    # For snapshots.

    def commits_since(self, serial: int) -> int:
        """Count the commits that were published after that one."""
        return max(0, self._tally.serial - serial)

    def unpack(
        self, key: str, columns: tuple[int, bytes, int, bytes | None]
    ) -> Version:
        """Make the version of a row."""
        return self._actors.unpack(key, columns)

    def named(self, dot: int) -> Dot:
        """Tell the dot of a row."""
        return self._actors.named(dot)

    def spans(
        self, wanted: VersionVector, known: VersionVector
    ) -> list[tuple[int, int]]:
        """List the rows that one vector covers and the other does not."""
        return self._actors.spans(wanted, known)

    def give_back(
        self, snapshot: SqliteSnapshot, connection: sqlite3.Connection
    ) -> None:
        """Take the connection of a snapshot that is closed."""
        self._snapshots.pop(snapshot, None)
        connection.execute("ROLLBACK")
        if self._writer is not None and len(self._idle) < IDLE_SNAPSHOTS_MAX:
            self._idle.append(connection)
        else:
            connection.close()

    def _lose_snapshots(self, log_bytes: int) -> None:
        if self._snapshots:
            self._log.warn(
                "the log of the store has {bytes} bytes: deltas being sent break off",
                bytes=log_bytes,
            )
        for snapshot in list(self._snapshots):
            snapshot.close()


def _written(
    writer: CommitWriter, commit: Commit, directory: StoreDirectory
) -> tuple[Record, Due]:
    record = writer.apply(commit)
    # What is in a file without a name is gone with the process.
    directory.check_in_place()
    return record, writer.due


def _tended(writer: CommitWriter, due: Due) -> Due:
    writer.tend(due)
    return writer.due


def _worked_off(writer: CommitWriter) -> tuple[int, Due]:
    return writer.checkpoint(), writer.due


def _work_off_beside(path: Path) -> None:
    connection = connect(path)
    try:
        work_off_log(connection)
    finally:
        connection.close()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
