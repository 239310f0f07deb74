"""
A power cut loses nothing that was acknowledged, and damages no store.

A process is watched while it writes (see ``recorder``).  Then its disk is built as a
cut would have left it, at many moments, each in two ways: with nothing but what was
synced, and with a random part of the rest.  The store must open from all of them.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Mapping

from tests.process.asking import get
from tests.process.harness import free_names, start_all, wait_until
from tests.process.surviving import Said, check_store, last_said
from twisted_kvs.core.errors import StoreRefused

from .case import WorstCase, end, number_wanted
from .recorder import Disk, read_events, recorder_variables
from .registers import Registers, number_of
from .stores import check_registers, directory_of

CUTS = number_wanted("KVS_POWER_CUTS", 250)
ROUNDS = 3
NODE_CUTS = CUTS // 2
NODE_RESTARTS = 6
NODE_WRITES = 150
START_EVENTS = 40
"""The first of a process, after each of which the power is cut."""
LINES = 90
"""Told in each round before it is ended; several deltas are staged and folded."""


class StorePowerCutTests(WorstCase):
    """Cuts the power of a store that commits, stages and folds without end."""

    def setUp(self) -> None:
        """Watch a process that stores; killed and started again in between."""
        super().setUp()
        self.root = self.directory / "disk"
        self.root.mkdir()
        self.log = self.directory / "log"
        library = self.recorder()
        watched = recorder_variables(library, self.root, log=self.log)
        for turn in range(1, ROUNDS + 1):
            process = self.storing(self.root / "store", turn, watched)
            assert process.stdout is not None
            for _ in range(LINES):
                self.assertTrue(process.stdout.readline(), "it ended")
            end(process)

    def cuts(self, count: int, deaf_to: str = "") -> Iterator[Mapping[int, Said]]:
        """
        Cut the power at so many moments, twice each; the disk is at ``left`` then.

        Yields what had been acknowledged by then, in each round.
        """
        chance = random.Random(1)
        kinds = [event.kind for event in read_events(self.log)]
        starts = [n for n, kind in enumerate(kinds) if kind == "B"]
        moments = {n + after for n in starts for after in range(START_EVENTS)}
        rest = sorted(set(range(len(kinds))) - moments)
        moments.update(chance.sample(rest, count - len(moments)))
        disk = Disk(self.root, deaf_to=deaf_to)
        told: list[str] = []
        for number, event in enumerate(read_events(self.log)):
            disk.play(event)
            if event.kind == "B":
                told.append("")
            elif event.said:
                told[-1] += event.said
            if number in moments:
                said = {
                    turn: last_said(text.splitlines(keepends=True))
                    for turn, text in enumerate(told, start=1)
                }
                for luck in (None, chance):
                    self.left = self.directory / "left"
                    shutil.rmtree(self.left, ignore_errors=True)
                    disk.cut(self.left, luck)
                    yield said

    def test_acknowledged_commits_survive_power_cuts(self) -> None:
        """Whatever of the unsynced is left: all acknowledged is there, nothing half."""
        done = valid = 0
        for said in self.cuts(CUTS):
            check_store(self.left / "store", said)
            done += 1
            valid += any(told.get("valid") for told in said.values())
        self.assertEqual(done, 2 * CUTS)
        self.assertGreater(valid, done / 4, "hardly any cut was after a delta")
        print(f"{done} power cuts of a store: nothing lost, nothing damaged")

    def test_disks_that_lie_are_found_out(self) -> None:
        """With syncs that do nothing, of files or of directories, writes are lost."""
        for deaf_to in ("files", "directories"):
            found = 0
            for said in self.cuts(ROUNDS * START_EVENTS + 20, deaf_to):
                try:
                    check_store(self.left / "store", said)
                except (AssertionError, StoreRefused):
                    found += 1
            self.assertGreater(found, 20, f"{deaf_to}: cuts seemed to do no harm")


class NodePowerCutTests(WorstCase):
    """Cuts the power of a node in a cluster that is written to over HTTP."""

    def setUp(self) -> None:
        """Watch one of two nodes; it is stopped, and killed, and started again."""
        super().setUp()
        names = free_names(2)
        for name in names:
            self.node(name, K="2", VIEW=",".join(names))
        self.victim, self.other = self.nodes
        self.root = self.directory / "kvs-data"
        self.root.mkdir()
        self.log = self.directory / "log"
        plain = dict(self.victim.settings)
        self.victim.settings |= recorder_variables(
            self.recorder(), self.root, log=self.log
        )
        self.load = Registers(names, writers=3)
        start_all(self.nodes)
        with self.load.running():
            for ended in (self.victim.stop, self.victim.kill):
                self.wait_for_writes()
                ended()
                self.wait_for_writes()
                start_all([self.victim])
            self.wait_for_writes()
        self.victim.kill()
        self.other.kill()
        self.victim.settings = plain

    def wait_for_writes(self) -> None:
        """Wait until some more writes were acknowledged."""
        wanted = len(self.load.dots()) + NODE_WRITES
        wait_until("writes", lambda: len(self.load.dots()) >= wanted, within_s=30)

    def test_acknowledged_writes_survive_power_cuts(self) -> None:
        """What the node had answered, before the cut, is in its store and is shown."""
        chance = random.Random(1)
        events = sum(1 for _ in read_events(self.log))
        moments = set(chance.sample(range(events), NODE_CUTS))
        restarts = set(chance.sample(sorted(moments), NODE_RESTARTS))
        disk = Disk(self.root)
        answered = self.load.dots()
        least: dict[str, int] = {}
        for number, event in enumerate(read_events(self.log)):
            disk.play(event)
            key, written = answered.get(event.said.strip(), ("", 0))
            # Of what it only handed on it promised nothing itself.
            if event.said.strip().startswith(f"{self.victim.name}#") and key:
                least[key] = max(written, least.get(key, 0))
            if number not in moments:
                continue
            shutil.rmtree(self.root)
            # Every other time with nothing but what was synced.
            disk.cut(self.root, chance if number % 2 else None)
            path = directory_of(self.directory, self.victim.name)
            check_registers(path, self.victim.name, least)
            if number in restarts:
                self.check_restart(least)
        self.assertGreater(len(least), 50, "hardly anything was written")
        print(f"{NODE_CUTS} power cuts of a node: nothing lost, nothing damaged")

    def check_restart(self, least: Mapping[str, int]) -> None:
        """The node starts on what is left, and shows all that it had answered."""
        start_all([self.victim])
        for key, number in least.items():
            shown = get(self.victim.name, key).fields
            self.assertGreaterEqual(number_of(key, shown["value"]), number)
        self.victim.kill()
