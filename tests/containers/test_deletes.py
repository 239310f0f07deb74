"""Deletes while a container's network is taken away."""

from __future__ import annotations

from tests.process.asking import delete, get, put, status
from tests.process.harness import wait_until

from .harness import ContainerCase

COMPACT_WITHIN_S = 30.0


class DeleteTests(ContainerCase):
    """What is deleted stays deleted, also by who was away."""

    def test_delete_while_a_replica_is_cut_off(self) -> None:
        """It shows the old value to nobody when it is back, and nothing is kept."""
        nodes = self.cluster()
        away, other = nodes[1], nodes[0]
        written = put(other.name, "key", "value")
        self.wait_agree(nodes, {"key": "value"})
        away.disconnect()
        self.assertEqual(delete(other.name, "key", written.payload).status, 200)
        self.assertEqual(get(nodes[3].name, "key").status, 404)
        old = away.ask_within("GET", "/kv-store/key")
        self.assertEqual((old.status, old.fields["value"]), (200, "value"))
        away.kill()
        away.connect()
        away.start()
        wait_until(
            "all know of the delete",
            lambda: all(get(node.name, "key").status == 404 for node in nodes),
        )
        wait_until(
            "nothing is left of it",
            lambda: all(status(node.name)["versions"] == 0 for node in nodes[:3]),
            COMPACT_WITHIN_S,
        )
