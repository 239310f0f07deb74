"""The room on the disk: what is given back, and the stores of older programs."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import msgspec
from twisted.internet.task import Clock

from twisted_kvs.core.versions import version_hash
from twisted_kvs.storage import heap, writing
from twisted_kvs.storage.heap import trim_heap
from twisted_kvs.storage.rows import ActorNumbers, as_signed
from twisted_kvs.storage.sqlite import REST_S, SqliteStorage
from twisted_kvs.storage.thread import CallersThread

from . import test_sqlite
from .commits import (
    NAME,
    A,
    B,
    as_live,
    dots,
    fence_of,
    fields,
    hash_of,
    listed,
    run_of,
    state,
    tombstone,
    unsettled,
    version,
)

VALUE = b'"' + b"1" * 98 + b'"'
FIRST_FORMAT = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE actor (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE version (
    dot INTEGER PRIMARY KEY, -- actor's id << 43 | counter
    key TEXT NOT NULL,
    value BLOB NOT NULL,     -- JSON text
    ts INTEGER NOT NULL,     -- microseconds
    past BLOB,               -- MessagePack [actor's id, counter, ...]; NULL if empty
    stage INTEGER NOT NULL,  -- 0: ordinary
    hash INTEGER NOT NULL    -- of dot and value
);
CREATE INDEX version_key ON version (key);
CREATE INDEX version_stage ON version (stage) WHERE stage != 0;
PRAGMA user_version = 1;
"""


class _Room(test_sqlite.SqliteCase):
    def fill(self, counters: Sequence[int], *, size: int = 500) -> None:
        """Store versions of 100 bytes, each with a past, under keys of their own."""
        for start in range(0, len(counters), size):
            self.put(
                *(
                    version(A, n, f"key {n * 7919 % 100003}", past={B: 1}, value=VALUE)
                    for n in counters[start : start + size]
                )
            )

    def take_away(self, counters: Sequence[int], *, size: int = 500) -> None:
        """Remove them again."""
        for start in range(0, len(counters), size):
            self.put(remove=[(A, n) for n in counters[start : start + size]])

    def forget_pasts(self, counters: Sequence[int]) -> None:
        """Let them lose their pasts."""
        self.finish(self.commits.of(forget_pasts=[(A, n) for n in counters]))

    def database_bytes(self) -> int:
        return (self.path / "kvs.sqlite").stat().st_size


class GiveBackTests(_Room):
    """A file that shrinks."""

    def size_of_fresh_store(self, counters: Sequence[int]) -> int:
        """Tell what a store takes that never held anything else."""
        used, self.path = self.path, Path(self.mktemp())
        other, self.storage = self.storage, self.in_directory(CallersThread())
        self.storage.open()
        self.fill(counters)
        self.forget_pasts(counters)
        self.storage.rest()
        size = self.storage.size_bytes
        self.close()
        self.storage, self.path = other, used
        return size

    def test_at_rest_the_heap_is_trimmed(self) -> None:
        """What commits have taken of it stays taken otherwise, as it is scattered."""
        trims: list[str] = []
        self.patch(writing, "trim_heap", lambda: trims.append("trimmed"))
        self.put(version(A, 1, "k"))
        self.assertEqual(trims, [])
        self.storage.rest()
        self.assertEqual(trims, ["trimmed"])

    def test_a_heap_can_be_trimmed(self) -> None:
        """Or cannot, where the C library does not: then nothing happens."""
        trim_heap()
        self.patch(heap, "_trim", None)
        trim_heap()

    def test_store_shrinks_to_what_is_live(self) -> None:
        """Written and deleted ten times over, a store is as small as a fresh one."""
        kept: list[int] = []
        for turn in range(10):
            counters = list(range(1 + 1000 * turn, 1001 + 1000 * turn))
            self.fill(counters)
            # Scattered over all pages, most of them in the last turn.
            kept += counters[turn :: 2 if turn == 9 else 20]
            left = set(kept)
            self.take_away([n for n in counters if n not in left])
        self.forget_pasts(kept)
        before = self.storage.size_bytes
        self.storage.rest()
        fresh = self.size_of_fresh_store(kept)
        self.assertLess(self.storage.size_bytes, 1.1 * fresh)
        self.assertGreater(before, 4 * fresh)
        self.assertEqual(dots(self.visible()), [(A, n) for n in kept])
        self.take_away(kept)
        self.storage.rest()
        self.assertLess(self.storage.size_bytes, 1.1 * self.size_of_fresh_store([]))
        self.restart()
        self.assertEqual(self.visible(), [])

    def test_forgetting_all_gives_the_room_back(self) -> None:
        """A demoted node that dropped its data takes no room for it any more."""
        self.fill(range(1, 5001))
        self.finish(self.commits.of(forget_all=True))
        self.storage.rest()
        self.assertLess(self.storage.size_bytes, 1.1 * self.size_of_fresh_store([]))

    def test_room_is_given_back_while_commits_go_on(self) -> None:
        """A busy node need not rest for its file to shrink."""
        self.fill(range(1, 20001))
        full = self.database_bytes()
        self.take_away(range(1, 18001))
        for n in range(20001, 20801):
            self.fill([n])
        self.assertLess(self.database_bytes(), 0.8 * full)
        self.assertEqual(len(self.visible()), 2800)
        self.assertEqual(self.storage.result.live_hash, hash_of(self.visible()))

    def test_snapshot_stays_while_room_is_given_back(self) -> None:
        """A delta under way is served from the pages that were moved."""
        self.fill(range(1, 3001))
        snapshot = self.storage.snapshot()
        self.take_away(range(1, 3001))
        self.storage.rest()
        self.put(version(B, 1))
        self.assertEqual(len(listed(snapshot)), 1000 * 3)
        snapshot.close()
        full = self.storage.size_bytes
        self.storage.rest()
        self.assertLess(self.storage.size_bytes, full / 4)
        self.assertEqual(dots(self.visible()), [(B, 1)])

    def test_settled_store_has_an_empty_index(self) -> None:
        """When nothing is left to be settled, nothing has to be looked through."""
        self.fill(range(1, 2001))
        self.forget_pasts(range(1, 2001))
        self.assertEqual(unsettled(self.storage, {A: 2000}), [[]])
        connection = sqlite3.connect(self.path / "kvs.sqlite")
        (plan,) = connection.execute(
            "EXPLAIN QUERY PLAN SELECT dot FROM version INDEXED BY version_unsettled"
            " WHERE stage = 0 AND (past IS NOT NULL OR length(value) = 0)"
            " AND dot > 5 AND dot <= 9 ORDER BY dot"
        ).fetchall()
        connection.close()
        self.assertIn("(stage=? AND rowid>? AND rowid<?)", plan[3])

    def test_lists_of_full_joins_are_dropped(self) -> None:
        """A list takes no room when nothing is left that it dooms, or after a crash."""

        def parts() -> int:
            connection = sqlite3.connect(self.path / "kvs.sqlite")
            (count,) = connection.execute("SELECT count(*) FROM listed").fetchone()
            connection.close()
            return int(count)

        self.put(*run_of(A, range(1, 100)))
        live = [(A, n) for n in range(1, 100, 2)]
        for start in range(0, 50, 2):
            self.finish(self.commits.part(1, (), live[start : start + 2]))
        self.finish(self.commits.part(2, (), [(B, 1)]))
        self.finish(self.commits.validate(1, {A: 99}, fence_of({A: 99}, live)))
        self.assertEqual(parts(), 26)
        self.restart()
        self.assertEqual(parts(), 25, "of the stage that was never valid")
        self.finish(self.commits.of(fold=1000))
        self.assertEqual(parts(), 0)
        self.assertEqual(as_live(dots(self.visible())), as_live(live))


class RestTests(_Room):
    """Room is given back when nobody writes."""

    def make(self) -> SqliteStorage:
        self.clock = Clock()
        return SqliteStorage(
            self.path,
            name=NAME,
            fingerprints=("f1",),
            thread=CallersThread(),
            clock=self.clock,
        )

    def test_room_is_given_back_at_rest(self) -> None:
        """Writes put it off, an open snapshot does, and closing ends it."""
        self.fill(range(1, 3001))
        self.take_away(range(1, 3001))
        full = self.storage.size_bytes
        self.clock.advance(REST_S)
        self.assertEqual(self.storage.size_bytes, full, "just written")
        self.put(version(B, 1))
        self.clock.advance(REST_S)
        self.assertGreaterEqual(self.storage.size_bytes, full, "written meanwhile")
        snapshot = self.storage.snapshot()
        self.clock.advance(REST_S)
        self.assertGreaterEqual(self.storage.size_bytes, full, "somebody reads")
        snapshot.close()
        self.clock.advance(REST_S)
        self.assertLess(self.storage.size_bytes, full / 10)
        self.assertEqual(self.clock.getDelayedCalls(), [], "until it is written again")
        self.put(version(B, 2, "other"))
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class FullDiskAtRestTests(_Room):
    """Without room to give room back."""

    def test_full_disk_stops_nothing_but_giving_back(self) -> None:
        """The file stays as it is; when there is room again it shrinks."""
        self.put(*run_of(A, range(1, 3001)))
        self.put(version(B, 1, "big", value=b"1" * 2**22), remove=[(B, 1)])
        self.put(remove=[(A, n) for n in range(1, 3000)])
        # It keeps the log from being started anew, where there would be room.
        snapshot = self.storage.snapshot()
        full = self.storage.size_bytes
        with self.file_size_limit(self.storage.wal_bytes):
            self.storage.rest()
            self.assertEqual(self.storage.size_bytes, full)
        self.assertEqual(dots(self.visible()), [(A, 3000), (B, 1)])
        snapshot.close()
        self.put(remove=[(B, 1)])
        self.storage.rest()
        self.assertLess(self.storage.size_bytes, full / 20)
        self.assertEqual(dots(self.visible()), [(A, 3000)])


class UpgradeTests(_Room):
    """A store that an older program made."""

    def setUp(self) -> None:
        super().setUp()
        self.put(tombstone(A, 1))
        self.reopen()
        self.close()
        self.database = self.path / "kvs.sqlite"
        source = sqlite3.connect(self.database)
        (store,) = source.execute(
            "SELECT value FROM meta WHERE name = 'store'"
        ).fetchone()
        source.close()
        self.database.unlink()
        self.old = [version(A, n, f"{n}", past={B: n}) for n in range(1, 1001)]
        connection = sqlite3.connect(self.database, isolation_level=None)
        connection.execute("PRAGMA page_size = 8192")
        connection.executescript(f"BEGIN; {FIRST_FORMAT} COMMIT;")
        actors = ActorNumbers(connection)
        rows = [actors.pack(one, 0) for one in self.old]
        assert rows[0][6] == as_signed(version_hash(self.old[0]))
        connection.execute("BEGIN")
        actors.store_new()
        connection.executemany("INSERT INTO version VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        self.state = state({A: 1000})
        record = {
            "state": self.state,
            "serial": 7,
            "live_hash": hash_of(self.old),
            "visible": 1000,
            "valid": [],
        }
        connection.execute("INSERT INTO meta VALUES ('store', ?)", (store,))
        connection.execute(
            "INSERT INTO meta VALUES ('record', ?)", (msgspec.msgpack.encode(record),)
        )
        connection.execute("COMMIT")
        connection.close()

    def pragma(self, name: str) -> int:
        connection = sqlite3.connect(self.database)
        (value,) = connection.execute(f"PRAGMA {name}").fetchone()
        connection.close()
        return int(value)

    def check(self) -> None:
        """Open it, and see that all is there and can be used as in a new one."""
        self.storage = self.in_directory(CallersThread())
        self.assertEqual(self.storage.open(), self.state)
        self.assertEqual(
            [fields(x) for x in self.visible()], [fields(x) for x in self.old]
        )
        self.assertEqual(self.pragma("user_version"), 2)
        self.commits.vv = {A: 1000}
        self.forget_pasts(range(1, 999))
        self.assertEqual(unsettled(self.storage, {A: 1000}), [["999", "1000"]])
        live = [(A, 1), (A, 1000)]
        self.finish(self.commits.part(1, (), live))
        self.finish(self.commits.validate(1, {A: 1000}, fence_of({A: 1000}, live)))
        self.restart()
        while self.storage.result.unfolded:
            self.finish(self.commits.of(fold=500))
        self.assertEqual(dots(self.visible()), live)
        self.database = self.path / "kvs.sqlite"

    def test_old_store_is_brought_up_to_date(self) -> None:
        """Opened by this program, the store of the first one does all that is new."""
        self.check()
        self.assertEqual(self.pragma("auto_vacuum"), 2)
        full = self.storage.size_bytes
        self.storage.rest()
        self.assertLess(self.storage.size_bytes, full / 2)

    def test_upgrade_goes_on_where_it_broke_off(self) -> None:
        """Killed when the file was written anew, before it got its new tables."""
        connection = sqlite3.connect(self.database)
        connection.execute("PRAGMA auto_vacuum = 2")
        connection.execute("VACUUM")
        connection.close()
        self.check()
        self.assertEqual(self.pragma("auto_vacuum"), 2)

    def test_upgrade_without_room_to_write_anew(self) -> None:
        """Too full a disk leaves a store that can be used, until there is room."""
        image = Path(self.mktemp())
        shutil.copytree(self.path, image)
        self.path, self.database = image, image / "kvs.sqlite"
        self.storage = self.in_directory(CallersThread())
        with self.file_size_limit(64 * 1024):
            self.assertEqual(self.storage.open(), self.state)
        pragmas = self.pragma("auto_vacuum"), self.pragma("user_version")
        self.assertEqual(pragmas, (0, 2))
        self.storage.rest()
        self.close()
        self.check()
        self.assertEqual(self.pragma("auto_vacuum"), 2)
