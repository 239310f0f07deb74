"""Networks that are gone or cut: every node answers, and later all agree."""

from __future__ import annotations

import time
from collections.abc import Sequence

from .asking import Answer, get, put, replicas, status
from .harness import ProcessCase, free_names, start_all, wait_serving, wait_until
from .network import Network


def same_everywhere(names: Sequence[str], keys: Sequence[str]) -> bool:
    """Tell whether all nodes answer with the same values, none of them as stale."""
    for key in keys:
        answers = [get(name, key) for name in names]
        if any(answer.stale or answer.status != 200 for answer in answers):
            return False
        if len({answer.fields["value"] for answer in answers}) != 1:
            return False
    return True


class SilentPeersTests(ProcessCase):
    """A node whose peers can be connected to, and say nothing."""

    def setUp(self) -> None:
        """Start three replicas and a proxy, with a key."""
        super().setUp()
        self.names = free_names(4)
        self.cluster(self.names, 3)
        written = put(self.names[0], "old", "old")
        for name in self.names:
            self.assertEqual(get(name, "old", written.payload).status, 200)
        self.payload = written.payload

    def test_a_replica_without_network_answers_in_time(self) -> None:
        """Reads and writes get their answer within a second; later all have all."""
        self.assert_goes_on_alone(self.names[0])

    def test_a_proxy_without_network_answers_in_time(self) -> None:
        """It takes reads and writes itself, and hands the writes over later."""
        self.assert_goes_on_alone(self.names[3])

    def test_a_write_tried_elsewhere_does_not_come_back(self) -> None:
        """What a paused replica was asked to do, and another did, is not done again."""
        paused, second, _, proxy = self.names
        self.named(paused).pause()
        keys = list[str]()
        # A replica that did not answer is left alone for a second.
        give_up_at = time.monotonic() + 4
        while time.monotonic() < give_up_at:
            keys.append(f"key{len(keys)}")
            written = put(proxy, keys[-1], "old")
            self.assertEqual(written.status, 201)
            replaced = put(second, keys[-1], "new", written.payload)
            self.assertEqual(replaced.status, 200)
            self.assert_in_time([written.seconds, replaced.seconds])
        self.named(paused).resume()
        wait_serving(paused)
        wait_until("all agree", lambda: same_everywhere(self.names, keys))
        for key in keys:
            self.assertEqual(get(second, key).fields["value"], "new", key)

    def assert_goes_on_alone(self, alone: str) -> None:
        """Pause all others, ask this one, let them go on, ask all."""
        others = [name for name in self.names if name != alone]
        for name in others:
            self.named(name).pause()
        keys = [f"key{n}" for n in range(4)]
        payload, answers = self.payload, list[Answer]()
        for key in keys:
            written = put(alone, key, "alone", payload)
            self.assertEqual(written.status, 201)
            read = get(alone, key, written.payload)
            self.assertEqual((read.status, read.fields["value"]), (200, "alone"))
            missing = get(alone, f"no-{key}", read.payload)
            self.assertEqual(missing.status, 404)
            payload = read.payload
            answers += [written, read, missing]
        is_proxy = alone == self.names[3]
        # It has what a replica has, or nothing but its own writes.
        old = get(alone, "old", payload)
        self.assertEqual(old.status, 404 if is_proxy else 200)
        self.assertEqual(old.stale, is_proxy)
        self.assert_in_time(answer.seconds for answer in [*answers, old])
        for name in others:
            self.named(name).resume()
        wait_until(
            "all have what one wrote alone",
            lambda: same_everywhere(self.names, [*keys, "old"]),
        )
        for name in self.names:
            read = get(name, keys[-1], payload)
            self.assertEqual((read.fields["value"], read.stale), ("alone", False))


class PartitionTests(ProcessCase):
    """Two sides that hear nothing of each other."""

    def setUp(self) -> None:
        """Start three replicas and a proxy behind a network that can be cut."""
        super().setUp()
        self.names = free_names(4)
        self.at = dict(zip(self.names, free_names(4), strict=True))
        self.network = Network(self.at)
        self.network.start()
        self.addCleanup(self.network.stop)
        view = ",".join(self.names)
        for name in self.names:
            host, port = self.at[name].split(":")
            listen = f"tcp:{port}:interface={host}"
            self.node(name, at=self.at[name], K="3", VIEW=view, KVS_LISTEN=listen)
        start_all(self.nodes)
        for name in self.names[:3]:
            wait_serving(self.at[name])

    def test_both_sides_write_and_agree_afterwards(self) -> None:
        """Both sides answer in time; then the later of two unrelated writes wins."""
        first, second, third, proxy = (self.at[name] for name in self.names)
        everywhere = [first, second, third, proxy]
        before = [put(first, f"key{n}", "before") for n in range(8)]
        self.network.cut(self.names[:1], self.names[1:])
        began = time.monotonic()
        answers = []
        expected = {}
        payloads = [answer.payload for answer in before]
        for n in range(8):
            # In turn, the left or the right side is the later one.
            sides = [(first, "left"), ((second, third, proxy)[n % 3], "right")]
            for name, value in sides if n % 2 else reversed(sides):
                answers.append(put(name, f"key{n}", value, payloads[n]))
                self.assertEqual(answers[-1].status, 200)
                expected[f"key{n}"] = value
            answers.append(put(first, f"left{n}", "left"))
            answers.append(put(third, f"right{n}", "right"))
            expected |= {f"left{n}": "left", f"right{n}": "right"}
        right = put(second, "later", "right")
        # What the other side knows cannot be had here, and that is said in time.
        ahead = get(first, "key0", right.payload)
        self.assertEqual((ahead.status, ahead.stale), (200, True))
        self.assert_in_time(answer.seconds for answer in [*answers, right, ahead])
        self.assertGreater(self.network.held, 0)
        wait_until(
            "the proxy takes the place of the replica that is out of reach",
            lambda: replicas(proxy) == self.names[1:],
        )
        wait_until(
            "the other side sees itself alone",
            lambda: replicas(first) == self.names[:1],
        )
        self.assertGreater(time.monotonic() - began, 2.0)

        self.network.heal()
        expected["later"] = "right"
        wait_until(
            "all agree",
            lambda: (
                same_everywhere(everywhere, list(expected))
                and all(replicas(name) == self.names[:3] for name in everywhere)
            ),
        )
        for key, value in expected.items():
            self.assertEqual(get(first, key).fields["value"], value, key)
        hashes = {status(name)["hash_mismatches"] for name in everywhere}
        self.assertEqual(hashes, {0})
