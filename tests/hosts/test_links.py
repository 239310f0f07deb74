"""Networks that are cut, taken away, slow or bad: answers in time, and one state."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from tests.process.harness import wait_until
from twisted_kvs.core.settings import Settings

from .host_case import HostCase
from .line import Quality

DEAD_AFTER_S = Settings().dead_after_s


class CutTests(HostCase):
    """Links that carry nothing, both ways or one way."""

    def test_two_sides_of_a_cut_write_and_agree_afterwards(self) -> None:
        """Both sides answer in time; the later of two unrelated writes wins."""
        first, second, third, proxy = self.hosts
        left, *_, right = [self.network.over(host) for host in self.hosts]
        payload = self.write(left, "both", "before").payload
        self.assert_shows(right, "both", "before", payload)

        self.network.cut([first], [second, third, proxy])
        self.write(right, "both", "right", payload)
        self.write(left, "both", "left", payload)
        self.write(left, "left", "left")
        later = self.write(right, "right", "right")
        self.assert_shows(left, "right", None)
        # What the other side knows cannot be had here, and that is said in time.
        self.assert_shows(left, "right", None, later.payload, stale=True)
        self.wait_replicas(proxy, self.names[1:])
        self.wait_replicas(first, self.names[:1])
        self.assertGreater(self.network.dropped(), 0)

        self.network.heal()
        shown = self.wait_agreed(["both", "left", "right"])
        self.assertEqual(shown, {"both": "left", "left": "left", "right": "right"})
        self.wait_settled()
        self.assert_data_agree()

    def test_a_link_that_works_one_way_makes_nobody_dead(self) -> None:
        """Who is not heard by one is heard by others, who pass its writes on."""
        deaf, sender, *_ = self.hosts
        began = time.monotonic()
        self.network.cut_one_way(sender, deaf)
        written = self.write(self.network.over(sender), "key", "value")

        def arrived() -> bool:
            answer = deaf.within.get("key", written.payload)
            self.assert_in_time(answer)
            return not answer.stale and answer.fields.get("value") == "value"

        wait_until("a third node passes it on", arrived)
        self.write(self.network.over(deaf), "back", "value")
        self.assertGreater(deaf.dropped(), 0)
        wait_until(
            "the link is cut for longer than the dead are silent",
            lambda: time.monotonic() - began > DEAD_AFTER_S + 1,
        )
        for host in self.hosts:
            self.assertEqual(host.within.replicas(), self.names[:3], host.name)
        self.network.heal()
        self.wait_agreed(["key", "back"])
        self.assert_data_agree()

    def test_a_proxy_that_is_cut_off_takes_writes_itself(self) -> None:
        """Its answers are marked; its writes are handed over when it can."""
        proxy = self.hosts[3]
        access = self.network.over(proxy)
        old = self.write(access, "old", "old")
        self.network.cut([proxy], self.hosts[:3])
        written = self.write(access, "mine", "mine", old.payload)
        self.assert_shows(access, "mine", "mine", written.payload, stale=True)
        self.assert_shows(access, "old", None, written.payload, stale=True)
        self.network.heal()
        shown = self.wait_agreed(["old", "mine"])
        self.assertEqual(shown, {"old": "old", "mine": "mine"})
        for host in self.hosts:
            self.assert_shows(host.within, "mine", "mine", written.payload)


class InterfaceTests(HostCase):
    """A host whose interface is taken away, as ``docker network disconnect`` does."""

    def test_a_replica_without_interface_goes_on_alone(self) -> None:
        """Asked from within it takes writes; back with its address, all agree."""
        away, *others = self.hosts
        payload = self.write(self.network.over(away), "key", "old").payload
        self.assert_goes_on_without_network(0, payload)
        rest = self.network.over(others[0])
        elsewhere = self.write(rest, "key", "elsewhere", payload)
        self.assert_shows(away.within, "key", "old", payload)
        # The network knows of a write that nobody here has.
        self.assert_shows(away.within, "key", "old", elsewhere.payload, stale=True)
        self.wait_replicas(others[2], self.names[1:])

        self.network.connect(away)
        shown = self.wait_agreed(["key", "alone"])
        self.assertEqual(shown, {"key": "elsewhere", "alone": "alone"})
        self.wait_settled()
        self.assert_data_agree()

    def test_a_proxy_without_interface_goes_on_alone(self) -> None:
        """Asked from within it takes writes; back with its address, all agree."""
        payload = self.write(self.hosts[0].within, "key", "old").payload
        self.assert_goes_on_without_network(3, payload)
        self.network.connect(self.hosts[3])
        self.assertEqual(self.wait_agreed(["key", "alone"])["alone"], "alone")
        self.assert_data_agree()

    def test_all_interfaces_go_and_come_back(self) -> None:
        """Each goes on alone; of what all wrote to one key the last stands."""
        for host in self.hosts:
            self.network.disconnect(host)
        for host in self.hosts:
            self.write(host.within, "one", host.name)
            self.write(host.within, f"at {host.name}", "value")
        for host in self.hosts:
            self.network.connect(host)
        keys = ["one", *(f"at {name}" for name in self.names)]
        self.assertEqual(self.wait_agreed(keys)["one"], self.names[-1])
        self.wait_settled()
        self.assert_data_agree()

    def assert_goes_on_without_network(self, index: int, payload: str) -> None:
        """Take an interface away; the node answers from within, and only there."""
        away = self.hosts[index]
        self.network.disconnect(away)
        written = self.write(away.within, "alone", "alone", payload)
        is_proxy = index >= self.k
        self.assert_shows(
            away.within, "alone", "alone", written.payload, stale=is_proxy
        )
        with self.assertRaises(OSError):
            self.network.over(away).status()


class LineTests(HostCase):
    """A host whose line delays, loses, doubles, and lets frames overtake others."""

    def test_causal_reads_over_a_slow_line_are_fresh(self) -> None:
        """50 to 70 ms each way: what a payload names is fetched before the answer."""
        far, near = self.hosts[1], self.hosts[0]
        # There and back takes less than a connection may: 150 ms.
        self.network.spoil(far, Quality(delay_ms=50, jitter_ms=20))
        payload, slowest = "", 0.0
        for n in range(5):
            for writer, reader in ((near, far), (far, near)):
                written = self.write(writer.within, "k", f"{n}", payload)
                read = self.assert_shows(reader.within, "k", f"{n}", written.payload)
                payload = read.payload
                slowest = max(slowest, written.seconds, read.seconds)
        # One way at least was waited for.
        self.assertGreater(slowest, 0.05)
        self.network.mend(far)
        self.wait_agreed(["k"])

    def test_clients_of_a_far_proxy_get_fresh_answers(self) -> None:
        """100 ms each way to the replicas: connecting takes longer than it may."""
        proxy, clients = self.hosts[3], range(8)
        self.network.spoil(proxy, Quality(delay_ms=100))
        payloads = dict.fromkeys(clients, "")

        def is_fresh(client: int) -> bool:
            written = self.write(proxy.within, f"{client}", "v", payloads[client])
            read = proxy.within.get(f"{client}", written.payload)
            self.assert_in_time(read)
            payloads[client] = written.payload
            return read.status == 200 and not read.stale

        with ThreadPoolExecutor(len(clients)) as threads:
            wait_until(
                "what all of them read at once is fresh",
                lambda: all(threads.map(is_fresh, clients)),
            )

    def test_a_line_that_loses_and_doubles_breaks_nothing(self) -> None:
        """A fifth lost, a tenth twice, overtaking: answers in time, then one state."""
        bad, other = self.hosts[0], self.hosts[2]
        self.network.spoil(bad, Quality(delay_ms=1, jitter_ms=20, loss=20, doubled=10))
        for n in range(20):
            for host in (bad, other):
                self.write(host.within, f"key{n}", host.name)
        self.network.mend(bad)
        shown = self.wait_agreed([f"key{n}" for n in range(20)])
        self.assertEqual(set(shown.values()), {other.name})
        self.wait_settled()
        self.assert_data_agree()
