"""Processes that are killed, paused, and started again, with their disk or without."""

from __future__ import annotations

import shutil
import time

from tests.process.asking import Answer
from tests.process.harness import start_all, wait_until

from .host_case import HostCase
from .network import Host
from .weather import disk


class LifeTests(HostCase):
    """What happens to one process is not felt by who asks the others."""

    def test_a_killed_replica_is_replaced_and_comes_back(self) -> None:
        """SIGKILL: a proxy takes its place, until it is back on the same disk."""
        killed, *others = self.hosts
        mine = self.write(self.network.over(killed), "mine", "mine")
        self.process(killed).kill()
        # At once and at every other node, what was acknowledged can be read.
        for host in others:
            access = self.network.over(host)
            self.assert_shows(access, "mine", "mine", mine.payload)
        for host in others:
            self.wait_replicas(host, self.names[1:])
        access = self.network.over(others[0])
        meanwhile = self.write(access, "mine", "new", mine.payload)

        start_all([self.process(killed)])
        self.assert_fresh_or_marked(killed, "mine", "new", meanwhile)
        self.assertEqual(self.wait_agreed(["mine"]), {"mine": "new"})
        self.wait_settled()
        self.assert_data_agree()

    def test_a_replica_that_lost_its_disk_gets_all_back(self) -> None:
        """Killed and started with nothing, it has all again, its own writes too."""
        killed, other, *_ = self.hosts
        keys = [f"key{n}" for n in range(50)]
        for n, key in enumerate(keys):
            last = self.write((killed, other)[n % 2].within, key, key)
        self.wait_agreed(keys[-2:])
        self.process(killed).kill()
        shutil.rmtree(disk(self.process(killed)))
        start_all([self.process(killed)])
        self.assert_shows(killed.within, "key0", "key0", last.payload)
        self.write(killed.within, "key1", "again", last.payload)
        shown = self.wait_agreed(keys)
        self.assertEqual(shown, {key: key for key in keys} | {"key1": "again"})
        self.assert_data_agree()

    def test_all_are_killed_at_once(self) -> None:
        """Who was told that a write is kept finds it when all are back."""
        expected = {}
        payload = ""
        for n in range(40):
            key = f"key{n % 10}"
            access = self.network.over(self.hosts[n % 4])
            payload = self.write(access, key, f"{n}", payload).payload
            expected[key] = f"{n}"
        for host in self.hosts:
            self.process(host).kill()
        start_all(self.nodes)
        self.assertEqual(self.wait_agreed(expected), expected)
        self.wait_settled()
        for host in self.hosts:
            for key, value in expected.items():
                self.assert_shows(host.within, key, value, payload)
        self.assert_data_agree()

    def test_a_paused_replica_wakes_up_to_the_present(self) -> None:
        """SIGSTOP for longer than the dead are silent: nothing old is sold as new."""
        paused, *others = self.hosts
        ways = [self.network.over(host) for host in others]
        last = self.write(ways[0], "key", "before")
        self.process(paused).pause()
        began = time.monotonic()
        count = 0
        while (
            time.monotonic() - began < 4
            or others[2].within.replicas() != (self.names[1:])
        ):
            way = ways[count % 3]
            last = self.write(way, "key", f"{count}", last.payload)
            self.assert_shows(way, "key", f"{count}", last.payload)
            count += 1
        self.process(paused).resume()
        self.assert_fresh_or_marked(paused, "key", f"{count - 1}", last)
        self.assertEqual(self.wait_agreed(["key"]), {"key": f"{count - 1}"})
        self.wait_settled()
        self.assert_data_agree()

    def assert_fresh_or_marked(
        self, host: Host, key: str, value: str, written: Answer
    ) -> None:
        """A node that was away shows a write to its writer, or says that it cannot."""

        def look() -> bool:
            answer = host.within.get(key, written.payload)
            self.assert_in_time(answer)
            if answer.stale:
                return False
            self.assertEqual(answer.fields.get("value"), value)
            return True

        wait_until(f"{host.name} is sure again", look)
