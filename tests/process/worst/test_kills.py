"""
kill -9 again and again under load: nothing acknowledged is lost, no store is damaged.

Processes are killed at any moment, also of their start and of a delta in parts; and,
watched by ``recorder``, in the midst of a random change of a file, half of it done.
``KVS_KILLS`` says how often in all.
"""

from __future__ import annotations

import random
import subprocess
import time
from collections import Counter
from pathlib import Path

from tests.process.asking import get
from tests.process.harness import NodeProcess, free_names, start_all, wait_until
from tests.process.surviving import check_store, last_said

from .case import WorstCase, end, number_wanted
from .recorder import Kill, recorder_variables
from .registers import Registers, number_of
from .stores import check_registers, directory_of

KILLS = number_wanted("KVS_KILLS", 200)
NODE_KILLS = KILLS // 2
STORE_KILLS = KILLS - NODE_KILLS
START_S = 0.6
"""About how long a node takes to start."""
LOADED_S = 0.4
DELTA_S = 0.03
PATIENCE_S = 60.0
"""Nothing is promised about how long a busy machine takes."""
MISSED = 150
"""Writes, each of 4 KiB: a delta of three parts."""
RECEIVING = "receiving a delta in parts"
CHANGES = 300
"""A node makes about so many changes of files in half a second of this load."""
STORE_CHANGES = 3000
CHECKPOINT_CHANGES = 200
WRITERS = 3


class NodeKillTests(WorstCase):
    """Two nodes that are written to; one of them is killed, the other serves."""

    def setUp(self) -> None:
        """Prepare two nodes."""
        super().setUp()
        self.chance = random.Random(1)
        self.library = self.recorder()
        self.changes = 0
        self.seen: Counter[str] = Counter()
        names = free_names(2)
        for name in names:
            self.node(name, K="2", VIEW=",".join(names))
        self.load = Registers(names, writers=WRITERS)

    def test_kills_lose_nothing(self) -> None:
        """After each kill the store is whole and has all that its node acknowledged."""
        start_all(self.nodes)
        kinds = (
            self.kill_any_time,
            self.kill_in_a_change,
            self.kill_at_start,
            self.kill_in_a_delta,
        )
        with self.load.running():
            for turn in range(NODE_KILLS):
                victim = self.nodes[turn % 2]
                kinds[turn // 2 % len(kinds)](victim)
                self.check(victim)
                start_all([victim])
        self.check_answers()
        self.assertLessEqual(set(self.load.statuses), {200, 201, 503, 504})
        writes = self.written()
        print(f"{NODE_KILLS} kills of nodes, {writes} writes: {dict(self.seen)}")
        for moment in ("a start", "a commit", "a checkpoint", "a delta", "receiving"):
            self.assertGreater(self.seen[moment], 0, f"no kill was in {moment}")

    def kill_any_time(self, victim: NodeProcess) -> None:
        """Kill it while it answers."""
        time.sleep(self.chance.random() * LOADED_S)
        victim.kill()

    def kill_at_start(self, victim: NodeProcess) -> None:
        """Kill it before it answers, or just afterwards."""
        victim.kill()
        victim.start()
        time.sleep(self.chance.random() * START_S)
        self.seen["a start"] += 1
        victim.kill()

    def kill_in_a_change(self, victim: NodeProcess) -> None:
        """Start it again so that it dies in a change of a file, half of it done."""
        victim.kill()
        settings = dict(victim.settings)
        self.changes += 1
        kill = draw_kill(self.chance, self.directory, self.changes, most=CHANGES)
        store = directory_of(self.directory, victim.name)
        victim.settings |= recorder_variables(self.library, store, kill=kill)
        victim.start()
        victim.ended()
        victim.settings = settings
        self.seen[kill.moment()] += 1

    def kill_in_a_delta(self, victim: NodeProcess) -> None:
        """Let it miss so much that it comes in parts; kill it while it does."""
        victim.kill()
        written = self.written()
        wait_until(
            "writes to miss", lambda: self.written() > written + MISSED, PATIENCE_S
        )
        told_before = victim.log_text.count(RECEIVING)
        victim.start()
        wait_until(
            "a delta",
            lambda: victim.log_text.count(RECEIVING) > told_before,
            PATIENCE_S,
        )
        time.sleep(self.chance.random() * DELTA_S)
        self.seen["a delta"] += 1
        victim.kill()

    def written(self) -> int:
        """Count the writes that were acknowledged."""
        return self.load.statuses.get(200, 0) + self.load.statuses.get(201, 0)

    def check(self, victim: NodeProcess) -> None:
        """Look into the store that a killed node has left."""
        least = self.load.acknowledged_by(victim.name)
        path = directory_of(self.directory, victim.name)
        self.seen[check_registers(path, victim.name, least) or "at rest"] += 1

    def check_answers(self) -> None:
        """In the end both nodes show everything that was acknowledged by either."""
        tried = self.load.tried()
        for node in self.nodes:
            for key, number in self.load.acknowledged().items():
                found = number_of(key, get(node.name, key).fields["value"])
                self.assertTrue(number <= found <= tried[key], (key, number, found))


class StoreKillTests(WorstCase):
    """A store that commits, stages and folds without end."""

    def setUp(self) -> None:
        """Have a directory, and chance."""
        super().setUp()
        self.path = self.directory / "store"
        self.chance = random.Random(2)
        self.library = self.recorder()
        self.seen: Counter[str] = Counter()

    def test_kills_lose_nothing(self) -> None:
        """After each kill all that was acknowledged is there, and no half delta."""
        said = {}
        for turn in range(1, STORE_KILLS + 1):
            lines = self.killed(turn) if turn % 2 else self.killed_in_a_change(turn)
            said[turn] = last_said(lines)
            if lines:
                self.seen[lines[-1].split()[0]] += 1
            check_store(self.path, said)
        print(f"{STORE_KILLS} kills of a store, {dict(self.seen)}")
        for moment in ("part", "fold", "a commit", "a checkpoint"):
            self.assertGreater(self.seen[moment], 0, f"no kill was after {moment}")
        # Each of these is over soon.
        rare = sum(self.seen[x] for x in ("valid", "forgot", "sealed", "rested"))
        self.assertGreater(rare, 0, "no kill was in the midst of compaction")

    def killed(self, turn: int) -> list[str]:
        """Let it store for a while; gives what it told."""
        process = self.storing(self.path, turn, {})
        assert process.stdout is not None
        lines = self.chance.randint(1, 100)
        said = [process.stdout.readline() for _ in range(lines)]
        return said + told(process)

    def killed_in_a_change(self, turn: int) -> list[str]:
        """Let it die in a change of a file, half of it done; gives what it told."""
        kill = draw_kill(self.chance, self.directory, turn // 2, most=STORE_CHANGES)
        watched = recorder_variables(self.library, self.path, kill=kill)
        process = self.storing(self.path, turn, watched)
        assert process.stdout is not None
        said = process.stdout.readlines()
        self.seen[kill.moment()] += 1
        return said + told(process)


def draw_kill(
    chance: random.Random, directory: Path, number: int, *, most: int
) -> Kill:
    """
    Draw the change of a file to die in; every third one is of a checkpoint.

    :param most: the last change that may be drawn; early ones are more likely.
    """
    told_in = directory / f"killed {number}"
    if number % 3 == 0:
        return Kill(chance.randint(1, CHECKPOINT_CHANGES), told_in, "/kvs.sqlite")
    return Kill(int(most ** chance.random()), told_in)


def told(process: subprocess.Popen[str]) -> list[str]:
    """Kill a process and give what it told."""
    process.kill()
    assert process.stdout is not None
    said = process.stdout.readlines()
    end(process)
    return [line for line in said if line.endswith("\n")]
