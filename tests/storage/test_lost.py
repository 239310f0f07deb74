"""A store in a directory whose files are removed, replaced or damaged while in use."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from errno import EACCES
from pathlib import Path

from twisted.python.failure import Failure

from twisted_kvs.core.errors import StoreRefused
from twisted_kvs.storage import sqlite
from twisted_kvs.storage.api import START
from twisted_kvs.storage.reading import is_damage
from twisted_kvs.storage.writing import Due

from .commits import A, B, listed, run_of, version
from .test_sqlite import SqliteCase


class LostStoreTests(SqliteCase):
    """What is done to the files of a store that is in use."""

    def setUp(self) -> None:
        super().setUp()
        self.told: list[Failure] = []
        self.storage.when_broken(self.told.append)

    def test_a_commit_to_a_directory_that_was_removed_fails(self) -> None:
        """Nothing is acknowledged that no start would find again."""
        self.put(version(A, 1))
        shutil.rmtree(self.path)
        failure = self.failureResultOf(self.storage.commit(self.commits.of()))
        self.assertIn(f"{self.path}/kvs.sqlite: was removed", str(failure.value))

    def test_so_does_one_to_files_that_were_removed(self) -> None:
        """Each of them; also where the rest is there, or is made anew."""
        for name in ("kvs.sqlite", "kvs.sqlite-wal"):
            self.put(version(A, 1, name))
            (self.path / name).rename(self.path / "away")
            self.assert_refused("was removed")
            (self.path / "away").rename(self.path / name)
        self.put(version(A, 1))
        (self.path / "kvs.lock").unlink()
        (self.path / "kvs.lock").touch()
        self.assert_refused("kvs.lock: was removed")

    def test_so_does_one_to_a_database_that_was_replaced(self) -> None:
        """As when a backup is put there while the store is in use."""
        self.put(version(A, 1))
        database = self.path / "kvs.sqlite"
        shutil.copy(database, self.path / "backup")
        (self.path / "backup").rename(database)
        self.assert_refused("was replaced")

    def test_what_is_put_there_while_it_is_closed_is_used(self) -> None:
        """As a backup should be."""
        self.put(version(A, 1))
        self.close()
        database = self.path / "kvs.sqlite"
        shutil.copy(database, self.path / "backup")
        (self.path / "backup").rename(database)
        self.storage.open()
        self.put(version(A, 2))

    def test_and_one_to_files_that_cannot_be_looked_at(self) -> None:
        """Whatever the system says."""
        self.put(version(A, 1))
        self.patch(os, "stat", self.denied)
        self.assert_refused("Permission denied")

    def denied(self, path: str | Path) -> None:
        """Be a disk that is broken."""
        raise PermissionError(EACCES, os.strerror(EACCES), str(path))

    def assert_refused(self, why: str) -> None:
        """A commit fails, and says why."""
        commit = self.commits.of()
        failure = self.failureResultOf(self.storage.commit(commit), StoreRefused)
        self.assertIn(why, str(failure.value))
        self.assertIn(str(self.path), str(failure.value))

    def damage(self) -> None:
        """Write other things over nearly all of the database, which nobody has read."""
        for n in range(1, 300):
            self.put(version(A, n, f"k{n}", value=b"1" * 500))
        self.restart()
        self.told.clear()
        self.storage.when_broken(self.told.append)
        database = self.path / "kvs.sqlite"
        pages = database.stat().st_size // 8192
        with database.open("r+b") as file:
            file.seek(8192)
            file.write(bytes(range(256)) * 32 * (pages - 1))

    def assert_told(self) -> None:
        """Damage was told once, and no commit goes on."""
        [failure] = self.told
        self.assertIn(f"{self.path}/kvs.sqlite: damaged", str(failure.value))
        self.failureResultOf(self.storage.commit(self.commits.of()), StoreRefused)

    def test_who_reads_damaged_pages_tells(self) -> None:
        """Once, however often it is read; who comes later to listen is told, too."""
        self.damage()
        for key in ("k7", "k8"):
            self.assertRaises(sqlite3.DatabaseError, self.storage.versions, key)
        self.assert_told()
        later: list[Failure] = []
        self.storage.when_broken(later.append)
        self.assertEqual(later, self.told)

    def test_other_errors_are_no_damage(self) -> None:
        """They are the caller's; the store is used on."""
        self.put(version(A, 1))
        reader = self.storage._reader
        self.storage._reader = sqlite3.connect(":memory:")
        self.assertRaises(sqlite3.OperationalError, self.storage.versions, "k")
        self.storage._reader.close()
        self.storage._reader = reader
        self.assertEqual((self.told, self.held()), ([], [(A, 1)]))

    def test_whoever_it_is_tells(self) -> None:
        """Readers of keys, of stages, of what is not settled, and of deltas."""
        self.damage()
        whole = self.path / "kvs.sqlite"
        damaged = whole.read_bytes()
        reads: list[Callable[[], object]] = [
            lambda: self.storage.versions("k7"),
            lambda: self.storage.staged(1, "k9"),
            lambda: self.storage.unsettled(
                {A: 1000}, START, versions_max=9, bytes_max=9999
            ),
            lambda: listed(self.storage.snapshot()),
            lambda: self.storage.snapshot().live(START, dots_max=9),
        ]
        for number, read in enumerate(reads):
            self.told.clear()
            self.storage._broken = None
            self.assertRaises(sqlite3.DatabaseError, read)
            self.assertEqual(len(self.told), 1, number)
        self.assertEqual(whole.read_bytes(), damaged)

    def test_a_snapshot_that_cannot_be_made_tells(self) -> None:
        """Also where the record is gone."""
        self.put(version(A, 1))
        self.storage.rest()
        database = self.path / "kvs.sqlite"
        size = database.stat().st_size
        for snapshot in list(self.storage._idle):
            snapshot.close()
        self.storage._idle.clear()
        with database.open("r+b") as file:
            file.write(b"x" * size)
        self.assertRaises(sqlite3.DatabaseError, self.storage.snapshot)
        self.assertEqual(len(self.told), 1)

    def test_a_commit_that_meets_damage_says_so(self) -> None:
        """Not SQLite's words alone: they name no file."""
        self.damage()
        over = [version(B, n, f"k{n}", past={A: 1000}) for n in range(1, 50)]
        gone = [(A, n) for n in range(1, 50)]
        failure = self.failureResultOf(
            self.storage.commit(self.commits.of(insert=over, remove=gone))
        )
        self.assertIsInstance(failure.value, StoreRefused)
        self.assertIn("damaged", str(failure.value))

    def test_tending_that_meets_damage_says_so(self) -> None:
        """It breaks the store as a read does."""
        self.stage(1, *run_of(B, range(1, 3000)))
        self.finish(self.commits.drop(1))
        self.damage()
        self.storage.rest()
        self.assert_told()

    def test_tending_that_misses_the_files_says_so(self) -> None:
        """Not SQLite's words alone: that it cannot open a file."""
        self.patch(sqlite, "BESIDE_BYTES", -1)
        self.put(version(A, 1))
        shutil.rmtree(self.path)
        self.storage._tend(Due.CHECKPOINT)
        [failure] = self.told
        self.assertIn(f"{self.path}/kvs.sqlite: was removed", str(failure.value))

    def test_what_is_damage(self) -> None:
        """Damage, and a disk that cannot be read; no want of room, locks or memory."""
        for name, wanted in (
            ("CORRUPT", True),
            ("CORRUPT_VTAB", True),
            ("NOTADB", True),
            ("IOERR_READ", True),
            ("IOERR_SHORT_READ", True),
            ("IOERR_WRITE", False),
            ("IOERR_SHMSIZE", False),
            ("FULL", False),
            ("BUSY", False),
            ("NOMEM", False),
        ):
            error = sqlite3.DatabaseError(name)
            error.sqlite_errorcode = getattr(sqlite3, f"SQLITE_{name}")
            self.assertEqual(is_damage(error), wanted, name)
        self.assertFalse(is_damage(sqlite3.DatabaseError("of Python's own")))
