"""A store that is killed at any instruction has lost nothing that it acknowledged."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator

from tests.storage.commits import NAME, Commits, dots, hash_of, listed
from twisted_kvs.core.causality import Actor, VersionVector
from twisted_kvs.core.errors import StoreRefused
from twisted_kvs.core.versions import Version
from twisted_kvs.storage.sqlite import SqliteStorage, check_directory
from twisted_kvs.storage.thread import CallersThread

from . import harness
from .storing import DELTA, FINGERPRINTS, LIVE, delta, sender, writer, written

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
        said = [process.stdout.readline() for _ in range(self.chance.randint(1, 60))]
        process.kill()
        said += process.stdout.readlines()
        self.end(process)
        # The last line may have been cut off.
        pairs = [line.split() for line in said if line.endswith("\n")]
        self.assertTrue(pairs, "the process stored nothing")
        return {word: int(number) for word, number in pairs}

    def test_acknowledged_commits_survive_kill(self) -> None:
        """After kill -9 all that was acknowledged is there, and no half delta."""
        known: set[Actor] = set()
        valid = 0
        for turn in range(1, ROUNDS + 1):
            said = self.killed(turn)
            check_directory(self.path, name=NAME, fingerprints=FINGERPRINTS)
            store = SqliteStorage(
                self.path, name=NAME, fingerprints=FINGERPRINTS, thread=CallersThread()
            )
            state = store.open()
            assert state is not None
            self.assertGreaterEqual(state.vv.get(writer(turn), 0), said.get("wrote", 0))
            valid += said.get("valid", 0)
            if "valid" in said:
                self.assertIn(sender(turn, said["valid"]), state.vv)
            commits = Commits(vv=state.vv)
            self.assertLess(known, set(state.vv), "earlier rounds are kept")
            known = set(state.vv)
            shown = {key: set(dots(store.versions(key))) for key in self.keys(state.vv)}
            while store.result.unfolded:
                self.successResultOf(store.commit(commits.of(fold=500)))
            snapshot = store.snapshot()
            found = listed(snapshot)
            snapshot.close()
            self.assertEqual(dots(found), dots(self.live(state.vv)))
            self.assertEqual(store.result.live_hash, hash_of(found))
            for one in found:
                self.assertIn(one.dot, shown[one.key])
            self.successResultOf(store.close())
        self.assertGreater(valid, 0, "no delta was ever finished")

    def live(self, vv: VersionVector) -> Iterator[Version]:
        """Tell what must be there, whole, of what a VV covers."""
        for turn in range(1, ROUNDS + 1):
            last = vv.get(writer(turn), 0)
            for n in range(max(1, last - LIVE + 1), last + 1):
                yield written(turn, n)
            number = 1
            while sender(turn, number) in vv:
                self.assertEqual(vv[sender(turn, number)], DELTA)
                newest = sender(turn, number + 1) not in vv
                for one in delta(turn, number):
                    if newest or not one.counter % 2:
                        yield one
                number += 1

    def keys(self, vv: VersionVector) -> set[str]:
        """Tell the keys of all that must be there."""
        return {one.key for one in self.live(vv)}

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
