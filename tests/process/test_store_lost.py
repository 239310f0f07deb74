"""Files that a running node loses, or that are damaged: it ends, and says why."""

from __future__ import annotations

import shutil

from . import harness
from .asking import get, put

KEYS = 300
PAGE_BYTES = 8192


class StoreLostTests(harness.ProcessCase):
    """A node alone; what it cannot keep or read it does not answer for."""

    def setUp(self) -> None:
        """Start a node that has some keys."""
        super().setUp()
        [name] = harness.free_names(1)
        self.one = self.node(name)
        harness.start_all([self.one])
        for n in range(KEYS):
            self.assertEqual(put(name, f"k{n}", "v" * 2000).status, 201)

    def assert_ended(self, why: str) -> None:
        """It has ended by itself, with one line."""
        self.assertEqual(self.one.ended(), 1)
        said = [line for line in self.one.log_text.splitlines() if "must not" in line]
        self.assertEqual(len(said), 1, said)
        self.assertIn(f"{self.one.data}/kvs.sqlite: {why}", said[0])
        self.assertNotIn("Traceback", self.one.log_text)
        self.one.log.unlink()

    def test_a_directory_that_is_removed(self) -> None:
        """No write is acknowledged that no start would find again."""
        shutil.rmtree(self.one.data)
        self.assertRaises(OSError, put, self.one.name, "k0", "new")
        self.assert_ended("was removed while in use")
        harness.start_all([self.one])
        self.assertEqual(get(self.one.name, "k0").status, 404)

    def test_a_database_that_is_damaged(self) -> None:
        """Who reads it ends; it is not started on that again."""
        self.one.stop()
        harness.start_all([self.one])
        database = self.one.data / "kvs.sqlite"
        pages = database.stat().st_size // PAGE_BYTES
        with database.open("r+b") as file:
            file.seek(PAGE_BYTES)
            file.write(bytes(range(256)) * (PAGE_BYTES // 256) * (pages - 1))
        with self.assertRaises(OSError):
            for n in range(KEYS):
                get(self.one.name, f"k{n}")
        self.assert_ended("damaged")
        self.one.start()
        self.assertNotEqual(self.one.ended(), 0)
        self.assertIn("kvs.sqlite", self.one.log_text)
