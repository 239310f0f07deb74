"""Whose a directory is, and what a store refuses to open."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from twisted_kvs.core.causality import Name
from twisted_kvs.core.errors import StoreRefused
from twisted_kvs.storage.api import STORE_FORMAT
from twisted_kvs.storage.sqlite import SqliteStorage, check_directory
from twisted_kvs.storage.thread import CallersThread

from .commits import NAME, A, Commits, run_of, version

DATABASE = "kvs.sqlite"
IDENTITY = "kvs.identity"


class DirectoryCase(SynchronousTestCase):
    """A directory with stores that are opened in it."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute()
        self.opened: list[SqliteStorage] = []
        self.addCleanup(self.close)

    def store(
        self,
        path: Path | None = None,
        *,
        name: Name = NAME,
        fingerprints: tuple[str, ...] = ("f1",),
    ) -> SqliteStorage:
        """Make a store that is not open."""
        store = SqliteStorage(
            path or self.path,
            name=name,
            fingerprints=fingerprints,
            thread=CallersThread(),
        )
        self.opened.append(store)
        return store

    def close(self) -> None:
        """Close all stores."""
        while self.opened:
            self.successResultOf(self.opened.pop().close())

    def fill(self) -> None:
        """Make a store with some versions in the directory, and close it."""
        store = self.store()
        store.open()
        self.successResultOf(
            store.commit(Commits().of(insert=run_of(A, range(1, 2000))))
        )
        self.close()

    def content(self, path: Path | None = None) -> dict[str, bytes]:
        """Read all files."""
        return {
            file.name: file.read_bytes()
            for file in sorted((path or self.path).iterdir())
        }

    def refusal(
        self, *, name: Name = NAME, fingerprints: tuple[str, ...] = ("f1",)
    ) -> str:
        """See that opening and checking refuse alike; gives the one line."""
        store = self.store(name=name, fingerprints=fingerprints)
        refused = self.assertRaises(StoreRefused, store.open)
        checked = self.assertRaises(
            StoreRefused,
            check_directory,
            self.path,
            name=name,
            fingerprints=fingerprints,
        )
        self.assertEqual(str(checked), str(refused))
        self.assertNotIn("\n", str(refused))
        return str(refused)

    def refused_untouched(
        self, *, name: Name = NAME, fingerprints: tuple[str, ...] = ("f1",)
    ) -> str:
        """See that what was refused is as it was."""
        before = self.content()
        message = self.refusal(name=name, fingerprints=fingerprints)
        self.assertEqual(self.content(), before)
        return message


class OwnerTests(DirectoryCase):
    """A directory belongs to one node of one cluster."""

    def test_directory_is_made_for_its_owner_only(self) -> None:
        """A data directory is made with its parents, and nobody else may look in."""
        self.path = self.path / "deep" / "down"
        self.fill()
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o700)
        for file in self.path.iterdir():
            self.assertEqual(file.stat().st_mode & 0o077, 0, file.name)

    def test_directory_that_is_there_is_used(self) -> None:
        """A directory with other things in it is used and left as it is otherwise."""
        self.path.mkdir(0o755)
        (self.path / "lost+found").mkdir()
        self.fill()
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o755)
        self.assertTrue((self.path / "lost+found").is_dir())

    def test_other_node_is_refused(self) -> None:
        """The store of another node is refused, with both names."""
        self.fill()
        message = self.refused_untouched(name=Name("10.0.0.2:8080"))
        for part in (str(self.path / IDENTITY), NAME, "10.0.0.2:8080"):
            self.assertIn(part, message)

    def test_other_cluster_is_refused(self) -> None:
        """A store that no secret of this node made is refused."""
        self.fill()
        message = self.refused_untouched(fingerprints=("f2", "f3"))
        self.assertIn(str(self.path / IDENTITY), message)
        self.assertIn("f1", message)

    def test_secret_can_be_changed(self) -> None:
        """A store of any of the secrets is taken, and is the first one's afterwards."""
        self.fill()
        check_directory(self.path, name=NAME, fingerprints=("f2", "f1"))
        self.refused_untouched(fingerprints=("f2",))
        self.store(fingerprints=("f2", "f1")).open()
        self.close()
        self.refused_untouched(fingerprints=("f1",))
        self.assertIsNotNone(self.store(fingerprints=("f2",)).open())

    def test_directory_in_use_is_refused(self) -> None:
        """Two stores never share a directory; the second one says so."""
        store = self.store()
        store.open()
        message = self.refusal()
        self.assertIn(str(self.path / "kvs.lock"), message)
        self.assertIn("in use", message)
        self.successResultOf(store.commit(Commits().of(insert=[version(A, 1)])))
        self.close()
        self.assertIsNotNone(self.store().open())

    def test_lock_file_left_over_stops_nothing(self) -> None:
        """After a crash the lock file is there and the lock is not."""
        self.fill()
        (self.path / "kvs.lock").write_text("1\n")
        self.assertIsNotNone(self.store().open())

    def test_refused_store_lets_go_of_the_directory(self) -> None:
        """A store that did not open can be opened when the fault is gone."""
        self.fill()
        database = self.path / DATABASE
        good = database.read_bytes()
        database.write_bytes(b"")
        store = self.store()
        self.assertRaises(StoreRefused, store.open)
        database.write_bytes(good)
        self.assertIsNotNone(store.open())


class CheckTests(DirectoryCase):
    """What ``makeService`` asks before the process forks."""

    def test_check_makes_nothing(self) -> None:
        """A check of a directory that could be made does not make it."""
        check_directory(self.path, name=NAME, fingerprints=("f1",))
        self.assertFalse(self.path.exists())
        self.path.mkdir()
        check_directory(self.path, name=NAME, fingerprints=("f1",))
        self.assertEqual(self.content(), {})

    def test_check_changes_nothing(self) -> None:
        """A check of a store leaves its files, starts no thread and keeps no lock."""
        self.fill()
        before, threads = self.content(), threading.active_count()
        descriptors = len(os.listdir("/dev/fd"))
        check_directory(self.path, name=NAME, fingerprints=("f1",))
        self.assertEqual(self.content(), before)
        self.assertEqual(threading.active_count(), threads)
        self.assertEqual(len(os.listdir("/dev/fd")), descriptors)
        self.assertIsNotNone(self.store().open())

    def test_check_of_a_store_that_was_killed(self) -> None:
        """What is still in the log counts for the check, and stays in the log."""
        store = self.store()
        store.open()
        commit = Commits().of(insert=run_of(A, range(1, 50)))
        self.successResultOf(store.commit(commit))
        image = Path(self.mktemp())
        shutil.copytree(self.path, image)
        (image / f"{DATABASE}-shm").unlink()
        before = self.content(image)
        self.assertIn(f"{DATABASE}-wal", before)
        check_directory(image, name=NAME, fingerprints=("f1",))
        after = self.content(image)
        # SQLite's index of the log is not kept, it is made anew by who needs it.
        after.pop(f"{DATABASE}-shm", None)
        self.assertEqual(after, before)
        self.assertEqual(self.store(image).open(), commit.state)


class DamageTests(DirectoryCase):
    """A store that is damaged is refused by name, and never silently emptied."""

    def setUp(self) -> None:
        super().setUp()
        self.fill()
        self.database = self.path / DATABASE
        self.identity = self.path / IDENTITY

    def names(self, file: Path, message: str) -> None:
        """See that a message names the file."""
        self.assertTrue(message.startswith(f"{file}: "), message)

    def test_missing_database(self) -> None:
        """A store whose database is gone is not taken for a fresh one."""
        self.database.unlink()
        message = self.refused_untouched()
        self.names(self.database, message)
        self.assertIn("says that there was one", message)

    def test_missing_identity(self) -> None:
        """A database that nobody vouches for is not taken for ours."""
        self.identity.unlink()
        message = self.refused_untouched()
        self.names(self.identity, message)
        self.assertIn("missing", message)

    def test_empty_database(self) -> None:
        """A file of no bytes is a lost database, not a fresh one."""
        self.database.write_bytes(b"")
        self.names(self.database, self.refused_untouched())

    def test_no_database(self) -> None:
        """A file that is something else is refused."""
        self.database.write_bytes(b"not a database at all\n" * 10_000)
        self.names(self.database, self.refused_untouched())

    def test_truncated_database(self) -> None:
        """A database that was cut off anywhere is refused."""
        whole = self.database.read_bytes()
        for size in (100, 8192, 5 * 8192, len(whole) // 2, len(whole) - 8192):
            self.database.write_bytes(whole[:size])
            self.names(self.database, self.refused_untouched())

    def test_overwritten_pages(self) -> None:
        """A page of zeros or noise anywhere in the tables is found before the start."""
        whole = self.database.read_bytes()
        pages = len(whole) // 8192
        found = 0
        for page in range(pages):
            for junk in (bytes(8192), bytes(range(256)) * 32):
                self.database.write_bytes(
                    whole[: page * 8192] + junk + whole[(page + 1) * 8192 :]
                )
                self.names(self.database, self.refused_untouched())
                found += 1
        self.assertGreater(found, 20)

    def test_damaged_state_record(self) -> None:
        """A state record that cannot be decoded is refused."""
        connection = sqlite3.connect(self.database)
        connection.execute("UPDATE meta SET value = x'81' WHERE name = 'record'")
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        message = self.refused_untouched()
        self.names(self.database, message)
        self.assertIn("state record", message)

    def test_newer_database(self) -> None:
        """A database of a newer format is refused with both formats."""
        connection = sqlite3.connect(self.database)
        connection.execute(f"PRAGMA user_version = {STORE_FORMAT + 1}")
        connection.close()
        message = self.refused_untouched()
        self.names(self.database, message)
        self.assertIn(f"format {STORE_FORMAT + 1}", message)

    def test_newer_identity(self) -> None:
        """An identity of a newer format is refused, whatever else it says."""
        self.identity.write_text(f'{{"format": {STORE_FORMAT + 1}, "node": 7}}')
        message = self.refused_untouched()
        self.names(self.identity, message)
        self.assertIn(f"format {STORE_FORMAT + 1}", message)

    def test_damaged_identity(self) -> None:
        """An identity that cannot be read is refused."""
        for content in (b"", b"\0" * 126, b"{", b"[]", b'{"format": 1}'):
            self.identity.write_bytes(content)
            self.names(self.identity, self.refused_untouched())

    def test_database_of_another_directory(self) -> None:
        """A database that was put beside the identity of another one is refused."""
        other = Path(self.mktemp())
        store = self.store(other)
        store.open()
        self.close()
        shutil.copy(other / DATABASE, self.database)
        self.names(self.database, self.refused_untouched())

    def test_unfinished_store_is_made_anew(self) -> None:
        """A store whose making was broken off has never held anything."""
        text = self.identity.read_text()
        self.identity.write_text(text.replace("true", "false"))
        (self.path / f"{DATABASE}.new").write_bytes(b"half of it")
        for left in (self.database.read_bytes(), b"", None):
            if left is None:
                self.database.unlink()
            else:
                self.database.write_bytes(left)
            check_directory(self.path, name=NAME, fingerprints=("f1",))
            self.assertIsNone(self.store().open())
            self.close()
            self.identity.write_text(text.replace("true", "false"))


class UnusableTests(DirectoryCase):
    """A place where there can be no store is told in one line."""

    def test_file_in_the_way(self) -> None:
        """A data directory that is a file, or below one, is refused."""
        self.path.write_text("a file")
        self.assertIn(str(self.path), self.refusal())
        file, self.path = self.path, self.path / "below"
        self.assertIn(str(file), self.refusal())
        self.assertEqual(file.read_text(), "a file")

    def test_unreadable_identity(self) -> None:
        """A file of ours that cannot be read is named."""
        self.fill()
        (self.path / IDENTITY).unlink()
        (self.path / IDENTITY).mkdir()
        self.assertIn(str(self.path / IDENTITY), self.refusal())

    def test_directory_that_cannot_be_written(self) -> None:
        """A directory that takes no files is refused."""
        if not Path("/proc/self").exists():
            raise SkipTest("no directory here that takes no files of root")
        self.path = Path("/proc/self/kvs")
        self.assertIn("/proc", self.refusal())
