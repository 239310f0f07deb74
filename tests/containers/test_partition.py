"""Nodes whose network is taken away by ``docker network disconnect``."""

from __future__ import annotations

from collections.abc import Sequence

from tests.process.asking import Answer, get, put, replicas
from tests.process.harness import wait_until

from .harness import Container, ContainerCase

KEYS = [f"key{n}" for n in range(6)]


class DisconnectTests(ContainerCase):
    """Both sides go on, and agree when the network is back."""

    def setUp(self) -> None:
        """Start four nodes, with some keys."""
        super().setUp()
        self.nodes = self.cluster()
        self.names = [node.name for node in self.nodes]
        self.payload = ""
        for key in KEYS:
            self.payload = put(self.names[0], key, "before", self.payload).payload
        self.wait_agree(self.nodes, dict.fromkeys(KEYS, "before"))

    def test_replica_while_both_sides_write(self) -> None:
        """A replica is cut off; of two unrelated writes the later one wins."""
        self.assert_both_sides_go_on(self.nodes[1], is_proxy=False)

    def test_proxy_while_both_sides_write(self) -> None:
        """A proxy is cut off: it takes writes, and hands them over later."""
        self.assert_both_sides_go_on(self.nodes[3], is_proxy=True)

    def test_again_and_again(self) -> None:
        """A replica that comes and goes ends with what everybody has."""
        node, wanted = self.nodes[0], dict[str, str]()
        for n in range(3):
            node.disconnect()
            written = self.write_within(node, f"alone{n}", "a")
            self.assertEqual(written.status, 201)
            self.assertEqual(put(self.names[2], f"others{n}", "b").status, 201)
            wanted |= {f"alone{n}": "a", f"others{n}": "b"}
            node.connect()
        self.wait_agree(self.nodes, wanted)

    def assert_both_sides_go_on(self, alone: Container, *, is_proxy: bool) -> None:
        """Cut this one off, write on both sides, give the network back, compare."""
        others = [node for node in self.nodes if node is not alone]
        alone.disconnect()
        wanted, answers = self.write_on_both_sides(alone, others)
        self.assertEqual({answer.status for answer in answers}, {200, 201})
        lacking = put(others[0].name, "lacking", "value", self.payload)
        wanted["lacking"] = "value"
        # What only the others have cannot be had here; that is said in time.
        read = alone.ask_within(
            "GET", f"/kv-store/{KEYS[0]}", causal_payload=lacking.payload
        )
        self.assertEqual((read.status, read.stale), (200, True))
        self.assert_in_time([*answers, lacking, read])
        if not is_proxy:
            left = [name for name in self.names if name != alone.name]
            wait_until(
                "the proxy takes the place of the replica that is cut off",
                lambda: replicas(self.names[3]) == left,
            )
        alone.connect()
        self.wait_agree(self.nodes, wanted)
        wait_until(
            "roles are as before",
            lambda: all(replicas(name) == self.names[:3] for name in self.names),
        )
        # Who replaces what it has read is followed everywhere, whoever it asks.
        seen = get(alone.name, KEYS[0])
        replaced = put(others[-1].name, KEYS[0], "after", seen.payload)
        last = get(alone.name, KEYS[0], replaced.payload)
        self.assertEqual((last.fields["value"], last.stale), ("after", False))

    def write_on_both_sides(
        self, alone: Container, others: Sequence[Container]
    ) -> tuple[dict[str, str], list[Answer]]:
        """
        Write the same keys here and there, in turn one or the other side last.

        :returns: what all must have in the end, and all answers.
        """
        wanted, answers = dict[str, str](), list[Answer]()
        for n, key in enumerate(KEYS):
            other = others[n % len(others)].name
            if n % 2:
                answers.append(self.write_within(alone, key, "alone"))
            answers.append(put(other, key, "others", self.payload))
            if n % 2 == 0:
                answers.append(self.write_within(alone, key, "alone"))
            wanted[key] = "others" if n % 2 else "alone"
            answers.append(self.write_within(alone, f"alone{n}", "alone"))
            answers.append(put(other, f"others{n}", "others"))
            wanted |= {f"alone{n}": "alone", f"others{n}": "others"}
        return wanted, answers

    def write_within(self, node: Container, key: str, value: str) -> Answer:
        """Write at a node that is cut off."""
        path = f"/kv-store/{key}"
        form = {"val": value, "causal_payload": self.payload}
        return node.ask_within("PUT", path, **form)
