"""Deletes on real hosts: through a cut, and by a member that was away for long."""

from __future__ import annotations

from tests.process.harness import wait_until

from .host_case import HostCase

COMPACT_WITHIN_S = 30.0
"""Reports, the seal, and its dropping take three rounds of each."""


class DeleteTests(HostCase):
    """What is deleted stays deleted, and leaves nothing."""

    def test_a_host_that_was_away_deletes_too(self) -> None:
        """Cut off it shows the old value; back, nothing, and nothing is stored."""
        away, *others = self.hosts
        elsewhere = self.network.over(others[0])
        payload = self.write(elsewhere, "gone", "value").payload
        payload = self.write(elsewhere, "beaten", "value", payload).payload
        self.wait_agreed(["gone", "beaten"])
        self.network.disconnect(away)
        deleted = elsewhere.delete("gone", payload)
        self.assertEqual(deleted.status, 200, deleted.fields)
        self.assertEqual(elsewhere.delete("beaten", payload).status, 200)
        self.assert_shows(elsewhere, "gone", None, deleted.payload)
        self.assert_shows(away.within, "gone", "value", payload)
        # Concurrent with the delete, and later by the clock.
        self.write(away.within, "beaten", "later", payload)
        self.network.connect(away)
        wait_until(
            "the delete and the later write have reached all",
            lambda: all(
                host.within.get("gone").status == 404
                and host.within.get("beaten").fields.get("value") == "later"
                for host in self.hosts
            ),
        )
        self.assertEqual(elsewhere.delete("gone").status, 404)
        last = elsewhere.get("beaten")
        self.assertEqual(elsewhere.delete("beaten", last.payload).status, 200)
        replicas = self.hosts[: self.k]
        wait_until(
            "nothing is left on any replica",
            lambda: all(host.within.status()["versions"] == 0 for host in replicas),
            COMPACT_WITHIN_S,
        )
        self.assert_data_agree()
