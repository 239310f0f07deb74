"""A store that is killed at any instruction has lost nothing that it acknowledged."""

from __future__ import annotations

import random
import subprocess
import sys

from tests.storage.commits import NAME
from twisted_kvs.core.causality import Actor
from twisted_kvs.core.errors import StoreRefused
from twisted_kvs.storage.sqlite import SqliteStorage
from twisted_kvs.storage.thread import CallersThread

from . import harness
from .storing import FINGERPRINTS
from .surviving import check_store, last_said

ROUNDS = 8


class StoreKillTests(harness.ProcessCase):
    """Kills a process that commits, again and again, on one directory."""

    def setUp(self) -> None:
        """Have a directory, and chance."""
        super().setUp()
        self.path = self.directory / "store"
        self.chance = random.Random(1)

    def storing(self, turn: int) -> subprocess.Popen[str]:
        """Start a process that stores."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.process.storing", str(self.path), str(turn)],
            cwd=harness.PROJECT,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(self.end, process)
        return process

    def end(self, process: subprocess.Popen[str]) -> None:
        """Kill a process."""
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()

    def killed(self, turn: int) -> dict[str, int]:
        """Let a process store for a while and kill it; gives what it acknowledged."""
        process = self.storing(turn)
        assert process.stdout is not None
        lines = self.chance.randint(1, 100)
        said = [process.stdout.readline() for _ in range(lines)]
        process.kill()
        said += process.stdout.readlines()
        self.end(process)
        self.assertTrue(said, "the process stored nothing")
        return last_said(said)

    def test_acknowledged_commits_survive_kill(self) -> None:
        """After kill -9 all that was acknowledged is there, and no half delta."""
        said: dict[int, dict[str, int]] = {}
        known: set[Actor] = set()
        for turn in range(1, ROUNDS + 1):
            said[turn] = self.killed(turn)
            state = check_store(self.path, said)
            assert state is not None
            self.assertLess(known, set(state.vv), "earlier rounds are kept")
            known = set(state.vv)
        valid = sum(told.get("valid", 0) for told in said.values())
        self.assertGreater(valid, 0, "no delta was ever finished")

    def test_directory_is_free_after_a_kill(self) -> None:
        """A store in use by another process is refused, until that one is killed."""
        process = self.storing(1)
        assert process.stdout is not None
        process.stdout.readline()
        store = SqliteStorage(
            self.path, name=NAME, fingerprints=FINGERPRINTS, thread=CallersThread()
        )
        refused = self.assertRaises(StoreRefused, store.open)
        self.assertIn("in use", str(refused))
        self.end(process)
        self.assertIsNotNone(store.open())
        self.successResultOf(store.close())
