"""A database as it was at one commit: for deltas, which are served part by part."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Protocol

import msgspec

from ..core.causality import Dot, VersionVector
from ..core.fence import LiveDots
from ..core.messages import CommitResult, ReplicaState
from ..core.versions import Version
from .api import (
    LOOKED_PER_LISTED,
    START,
    STORED_COUNTER_MAX,
    Cursor,
    Snapshot,
    SnapshotLost,
    part_bytes,
)
from .reading import Reader, reads
from .schema import SELECT_VERSIONS, Record
from .tally import Tally


class Source(Reader, Protocol):
    """The store that a snapshot is of."""

    def commits_since(self, serial: int) -> int:
        """Count the commits that were published after that one."""

    def unpack(
        self, key: str, columns: tuple[int, bytes, int, bytes | None]
    ) -> Version:
        """Make the version of a row."""

    def named(self, dot: int) -> Dot:
        """Tell the dot of a row."""

    def spans(
        self, wanted: VersionVector, known: VersionVector
    ) -> list[tuple[int, int]]:
        """List the rows that one vector covers and the other does not."""

    def give_back(
        self, snapshot: SqliteSnapshot, connection: sqlite3.Connection
    ) -> None:
        """Take the connection of a snapshot that is closed."""


class SqliteSnapshot(Snapshot):
    """A read transaction that is kept open."""

    def __init__(
        self,
        storage: Source,
        connection: sqlite3.Connection,
        *,
        record: Record,
        tally: Tally,
    ) -> None:
        """
        Hold what ``connection`` sees.

        :param record: of the commit that it sees.
        :param tally: that of the record.
        """
        self._storage = storage
        self._connection: sqlite3.Connection | None = connection
        self._record = record
        self._tally = tally
        stages = ", ".join(str(stage) for stage, _ in record.valid)
        shown = f"stage IN (0, {stages})" if stages else "stage = 0"
        where = f"WHERE dot > ? AND dot <= ? AND {shown} ORDER BY dot LIMIT ?"
        self._select = f"{SELECT_VERSIONS} {where}"
        self._select_dots = (
            f"SELECT json_group_array(dot) FROM (SELECT dot FROM version {where})"  # noqa: S608  # numbers
        )

    @property
    def state(self) -> ReplicaState:
        # Without who is retired: vectors are read by those who know that.
        return self._record.state

    @property
    def result(self) -> CommitResult:
        return self._tally.result

    @property
    def age_commits(self) -> int:
        return self._storage.commits_since(self._record.serial)

    @reads
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
        room, looks = bytes_max, versions_max * LOOKED_PER_LISTED
        # One row more than wanted tells whether there is another part.
        for row in self._rows(base, after, versions_max + 1):
            if self._tally.standing and self._dooms(row[1]):
                looks -= 1
                if not looks:
                    return found, Cursor(row[1])
                continue
            version = unpack(row[0], row[1:])
            room -= part_bytes(version)
            if found and (room < 0 or len(found) == versions_max):
                return found, last
            found.append(version)
            last = Cursor(row[1])
        return found, None

    @reads
    def live(self, after: Cursor, *, dots_max: int) -> tuple[LiveDots, Cursor | None]:
        assert dots_max > 0
        found: LiveDots = {}
        last, room = after, dots_max
        for above, upto in self._spans({}, after):
            # In one row: rows of their own take three times as long.
            (encoded,) = self._opened.execute(
                self._select_dots, (above, upto, room + 1)
            ).fetchone()
            dots = msgspec.json.decode(encoded, type=list[int])
            actor = self._storage.named(upto)[0]
            counters = [
                dot & STORED_COUNTER_MAX
                for dot in dots[:room]
                if not (self._tally.standing and self._dooms(dot))
            ]
            if counters:
                found[actor] = counters
            if dots[:room]:
                last = Cursor(dots[:room][-1])
            if len(dots) > room:
                return found, last
            room -= len(dots)
        return found, None

    def cannot_read(self, error: sqlite3.DatabaseError) -> None:
        """Take note that the database is damaged."""
        self._storage.cannot_read(error)

    def _dooms(self, dot: int) -> bool:
        return self._tally.dooms(self._storage.named(dot))

    @property
    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise SnapshotLost("the snapshot is gone, pull again")
        return self._connection

    def _spans(self, base: VersionVector, after: Cursor) -> list[tuple[int, int]]:
        _ = self._opened
        spans = self._storage.spans(self._record.state.vv, base)
        return [(max(first, after), last) for first, last in spans if last > after]

    def _rows(
        self, base: VersionVector, after: Cursor, limit: int
    ) -> Iterator[tuple[str, int, bytes, int, bytes | None]]:
        if self._tally.standing:
            # Some of them are not to be seen.
            limit = -1
        for above, upto in self._spans(base, after):
            rows = self._opened.execute(self._select, (above, upto, limit))
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
