"""A disk that takes no more: reads go on, writes go elsewhere, nothing is lost."""

from __future__ import annotations

import os
import subprocess
from unittest import SkipTest

from tests.process.asking import Answer, get, put, status
from tests.process.harness import NodeProcess, free_names, start_all, wait_until

from .case import WorstCase
from .registers import Registers, number_of

DISK_BYTES = 24 * 2**20
WRITES = 150


class FullDiskTests(WorstCase):
    """One of two nodes has a small disk of its own."""

    def setUp(self) -> None:
        """Mount a disk, and start both nodes."""
        super().setUp()
        self.disk = self.directory / "disk"
        self.disk.mkdir()
        self.mount()
        names = free_names(2)
        view = ",".join(names)
        data = str(self.disk / "store")
        self.full = self.node(names[0], K="2", VIEW=view, KVS_DATA_DIR=data)
        self.other = self.node(names[1], K="2", VIEW=view)
        start_all(self.nodes)
        for node in self.nodes:
            self.serves(node.name)
        self.load = Registers(names[:1], writers=3)

    def mount(self) -> None:
        """Mount a file system in memory; unmounted after the nodes have ended."""
        size = f"size={DISK_BYTES}"
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", size, "none", str(self.disk)],
            capture_output=True,
            check=False,
        )
        if mounted.returncode:
            raise SkipTest("cannot mount a file system here: must be root")
        self.addCleanup(subprocess.run, ["umount", "-l", str(self.disk)], check=True)

    def serves(self, name: str) -> None:
        """Wait until a node answers as fresh."""
        wait_until("it serves", lambda: status(name)["standing"] == "serving")

    def fill(self) -> None:
        """Leave no byte on the disk."""
        with (self.disk / "ballast").open("ab", buffering=0) as file:
            for piece in (2**20, 4096, 1):
                try:
                    while True:
                        os.posix_fallocate(
                            file.fileno(), file.seek(0, os.SEEK_END), piece
                        )
                except OSError:
                    continue

    def make_room(self) -> None:
        """Give the disk its space back."""
        (self.disk / "ballast").unlink()

    def wait_for_writes(self) -> None:
        """Wait until some more writes were acknowledged."""
        wanted = len(self.load.dots()) + WRITES
        wait_until("writes", lambda: len(self.load.dots()) >= wanted, within_s=30)

    def is_full(self) -> bool:
        """Ask the node whether its disk is full."""
        return bool(status(self.full.name)["disk_full"])

    def assert_has_all(
        self, node: NodeProcess | None = None, least: dict[str, int] | None = None
    ) -> None:
        """
        Everything that was acknowledged is shown; by the full node if not said.

        :param least: what must be shown, if not all.
        """
        name = (node or self.full).name
        wanted = self.load.acknowledged() if least is None else least
        for key, number in wanted.items():
            answer = get(name, key)
            self.assertEqual(answer.status, 200, (key, number, answer))
            found = number_of(key, answer.fields["value"])
            self.assertTrue(number <= found <= self.load.tried()[key], (key, found))

    def test_writes_go_to_another_replica(self) -> None:
        """Clients notice nothing of a full disk where another replica can be asked."""
        with self.load.running():
            self.wait_for_writes()
            self.fill()
            wait_until("it is full", self.is_full)
            self.wait_for_writes()
            self.assertTrue(self.is_full())
            # Which cannot take in what was written elsewhere, but reads go on.
            self.assert_has_all(self.other)
            self.assertEqual(get(self.full.name, "w0k1").status, 200)
            self.make_room()
            wait_until("it takes writes", lambda: not self.is_full())
            self.wait_for_writes()
        # A write that was under way may have been told that its outcome is unknown.
        self.assertLessEqual(set(self.load.statuses), {200, 201, 503, 504})
        wait_until(
            "it has caught up",
            lambda: not status(self.other.name)["peers"][self.full.name]["lag_s"],
        )
        self.restart_and_check()

    def test_writes_are_refused_where_nobody_else_is(self) -> None:
        """Alone, a node with a full disk says 507 in time, reads, and recovers."""
        self.other.kill()
        with self.load.running():
            self.wait_for_writes()
            self.fill()
            refused = wait_until(
                "507", lambda: [a for a in [self.try_write()] if a.status == 507]
            )
            self.assert_in_time([refused[0].seconds])
            self.assert_has_all()
            self.make_room()
            wait_until("room", lambda: self.try_write().status in (200, 201))
            self.wait_for_writes()
        self.assertGreater(self.load.statuses[507], 0)
        self.restart_and_check()

    def test_a_start_on_a_full_disk(self) -> None:
        """A node that is killed while its disk is full starts, and shows all it has."""
        with self.load.running():
            self.wait_for_writes()
            self.fill()
            wait_until("it is full", self.is_full)
            self.full.kill()
        self.other.kill()
        start_all([self.full])
        # What it had handed on because it was full only the other one has.
        own = self.load.acknowledged_by(self.full.name)
        self.assert_has_all(least=own)
        self.assertEqual(self.try_write().status, 507)
        self.make_room()
        wait_until("room", lambda: self.try_write().status in (200, 201))
        self.restart_and_check(own)

    def try_write(self) -> Answer:
        """Write at the node whose disk is full."""
        return put(self.full.name, "probe", "x" * 9000)

    def restart_and_check(self, least: dict[str, int] | None = None) -> None:
        """After kill -9 the store is whole and has everything."""
        self.full.kill()
        start_all([self.full])
        self.assert_has_all(least=least)
        print(f"\n  answers: {self.load.statuses}")
