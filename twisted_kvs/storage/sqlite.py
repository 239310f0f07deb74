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

import os
import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from twisted.internet.defer import Deferred, ensureDeferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..core.causality import Name, VersionVector
from ..core.errors import DiskFull, StoreRefused
from ..core.messages import Commit, CommitResult, ReplicaState
from ..core.versions import Antichain, Version, maximal
from .api import START, Cursor, Snapshot, SnapshotLost, Storage
from .directory import StoreDirectory
from .rows import ActorNumbers
from .schema import (
    LOG_KEPT_BYTES,
    SELECT_VERSIONS,
    SNAPSHOT_CACHE_KIB,
    Record,
    connect,
    decode_record,
    look_over,
    read_record,
)
from .tally import Tally
from .thread import CallRunner
from .writing import CommitWriter, Due, work_off_log

WAL_BYTES_MAX = 2**30
BESIDE_BYTES = 32 * 2**20
"""Commits do not wait while a longer log is worked off: 0.1 s for 80 MB, and more on
slow disks."""
assert LOG_KEPT_BYTES < BESIDE_BYTES
IDLE_SNAPSHOTS_MAX = 4

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
        wal_bytes_max: int = WAL_BYTES_MAX,
    ) -> None:
        """
        Name a store; nothing is looked at before ``open``.

        :param directory: made if need be, with its parents; open to its owner only.
        :param name: the node whose store it is.
        :param fingerprints: of the node's secrets, the signing one first; the store
            must be of one of them, and belongs to the first afterwards.
        :param thread: where commits are written.
        :param wal_bytes_max: when the log is longer, all snapshots are lost.
        """
        self._directory = StoreDirectory(
            Path(directory), name=name, fingerprints=fingerprints
        )
        self._thread = thread
        self._wal_bytes_max = wal_bytes_max
        self._writer: CommitWriter | None = None
        self._tending = False
        self._tended: Deferred[None] = succeed(None)
        self._broken: Failure | None = None
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
            opened += [connect(path), connect(path)]
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
        self._tally = Tally() if record is None else record.tally()
        self._tend(self._writer.due)
        return None if record is None else record.state

    def close(self) -> Deferred[None]:
        writer, self._writer = self._writer, None
        if writer is None:
            return succeed(None)
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

    def versions(self, key: str) -> Antichain:
        rows = self._reader.execute(_OF_KEY, (key,)).fetchall()
        if not rows:
            return ()
        unpack = self._actors.unpack
        shows = self._tally.shows
        found = [unpack(key, row[:4]) for row in rows if shows(row[4])]
        return tuple(found) if len(found) < 2 else maximal(found)

    def staged(self, stage: int, key: str) -> Antichain:
        rows = self._reader.execute(_OF_KEY, (key,)).fetchall()
        wanted = self._first_stage + stage
        return maximal(
            self._actors.unpack(key, row[:4]) for row in rows if row[4] == wanted
        )

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
        snapshot = SqliteSnapshot(self, connection, self._known[1])
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

        def publish(written: tuple[Record, Due]) -> None:
            record, due = written
            self._tally = record.tally()
            self._tend(due)
            done.callback(self._tally.result)

        self._thread.run(partial(_written, writer, commit)).addCallbacks(
            publish, done.errback
        )
        return done

    def _tend(self, due: Due) -> None:
        if due and not self._tending:
            self._tending = True
            self._tended = ensureDeferred(self._tend_while(due))
            self._tended.addErrback(self._break)

    async def _tend_while(self, due: Due) -> None:
        try:
            # One slice at a time: commits go in between.
            while due and (writer := self._writer) is not None:
                if due is Due.SWEEP:
                    due = await self._thread.run(partial(_swept, writer))
                else:
                    due = await self._checkpoint(writer)
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

    def _break(self, failure: Failure) -> None:
        # The next commit fails with it: the node must not go on.
        self._log.failure("the store cannot be tended", failure=failure)
        self._broken = failure

    # For snapshots.

    def commits_since(self, serial: int) -> int:
        """Count the commits that were published after that one."""
        return max(0, self._tally.serial - serial)

    def unpack(
        self, key: str, columns: tuple[int, bytes, int, bytes | None]
    ) -> Version:
        """Make the version of a row."""
        return self._actors.unpack(key, columns)

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


class SqliteSnapshot(Snapshot):
    """A read transaction that is kept open."""

    def __init__(
        self, storage: SqliteStorage, connection: sqlite3.Connection, record: Record
    ) -> None:
        """
        Hold what ``connection`` sees.

        :param record: of the commit that it sees.
        """
        self._storage = storage
        self._connection: sqlite3.Connection | None = connection
        self._record = record
        stages = ", ".join(str(stage) for stage, _ in record.valid)
        shown = f"stage IN (0, {stages})" if stages else "stage = 0"
        self._select = (
            f"{SELECT_VERSIONS}"
            f" WHERE dot > ? AND dot <= ? AND {shown} ORDER BY dot LIMIT ?"
        )

    @property
    def state(self) -> ReplicaState:
        return self._record.state

    @property
    def result(self) -> CommitResult:
        return self._record.tally().result

    @property
    def age_commits(self) -> int:
        return self._storage.commits_since(self._record.serial)

    def missing(
        self,
        base: VersionVector,
        after: Cursor,
        *,
        versions_max: int,
        bytes_max: int,
    ) -> tuple[list[Version], Cursor | None]:
        assert versions_max > 0
        unpack = self._storage.unpack
        found: list[Version] = []
        last = START
        room = bytes_max
        # One row more than wanted tells whether there is another part.
        for row in self._rows(base, after, versions_max + 1):
            room -= len(row[0].encode()) + len(row[2])
            if found and (room < 0 or len(found) == versions_max):
                return found, last
            found.append(unpack(row[0], row[1:]))
            last = Cursor(row[1])
        return found, None

    def _rows(
        self, base: VersionVector, after: Cursor, limit: int
    ) -> Iterator[tuple[str, int, bytes, int, bytes | None]]:
        connection = self._connection
        if connection is None:
            raise SnapshotLost("the snapshot is gone, pull again")
        for above, upto in self._storage.spans(self._record.state.vv, base):
            if upto <= after:
                continue
            rows = connection.execute(self._select, (max(above, after), upto, limit))
            try:
                for row in rows:
                    limit -= 1
                    yield row
            finally:
                rows.close()
            if not limit:
                return

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._storage.give_back(self, connection)


def _written(writer: CommitWriter, commit: Commit) -> tuple[Record, Due]:
    return writer.apply(commit), writer.due


def _swept(writer: CommitWriter) -> Due:
    writer.sweep()
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
