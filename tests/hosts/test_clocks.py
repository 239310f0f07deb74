"""Wall clocks that are wrong by an hour and are set back: causality decides first."""

from __future__ import annotations

from tests.process.asking import Answer

from .host_case import HostCase
from .network import Host

HOUR_S = 3600


class ClockTests(HostCase):
    """One node's clock is wrong; the machine's and all others are right."""

    def test_a_clock_that_is_ahead_wins_only_what_is_concurrent(self) -> None:
        """It wins against who knew nothing of it, and loses to who did."""
        ahead, other, *rest = self.hosts
        self.set_clock(ahead, HOUR_S)
        self.network.cut([ahead], [other, *rest])
        first = self.write(ahead.within, "concurrent", "ahead")
        second = self.write(other.within, "concurrent", "right")
        self.assertGreater(timestamp(first) - timestamp(second), HOUR_S - 60)
        self.network.heal()
        self.assertEqual(self.wait_agreed(["concurrent"]), {"concurrent": "ahead"})
        seen = self.assert_shows(other.within, "concurrent", "ahead")
        replaced = self.write(other.within, "concurrent", "replaced", seen.payload)
        self.assertLess(timestamp(replaced), timestamp(first))
        self.assertEqual(self.wait_agreed(["concurrent"]), {"concurrent": "replaced"})
        self.assert_data_agree()

    def test_a_clock_that_is_set_back_takes_nothing_back(self) -> None:
        """Writes go on replacing what came before them; nodes keep their beat."""
        wrong, other, *_ = self.hosts
        old = self.write(wrong.within, "key", "old")
        self.set_clock(wrong, -2 * HOUR_S)
        new = self.write(wrong.within, "key", "new")
        self.assertLess(timestamp(new), timestamp(old) - HOUR_S)
        self.assert_shows(wrong.within, "key", "new")
        self.assert_shows(other.within, "key", "new", new.payload)
        self.assertEqual(self.wait_agreed(["key"]), {"key": "new"})
        # Who does not wait by it still finds the dead in time, and the living.
        self.network.disconnect(other)
        left = [name for name in self.names if name != other.name]
        self.wait_replicas(wrong, left)
        self.network.connect(other)
        self.wait_settled()
        self.assert_data_agree()

    def set_clock(self, host: Host, offset_s: int) -> None:
        """Set the clock of a running node, which goes by it at once."""
        before = timestamp(self.write(host.within, "clock", "right"))
        self.clocks[host.name].set(offset_s)
        now = timestamp(self.write(host.within, "clock", "set"))
        self.assertLess(abs(now - before - offset_s), 60)


def timestamp(answer: Answer) -> float:
    """Read the wall clock of the node that took a write."""
    return float(answer.fields["timestamp"])
