"""Limits and times of a node."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twisted_kvs.core.errors import BadConfiguration
from twisted_kvs.core.settings import MIB, Settings


class SettingsTests(SynchronousTestCase):
    """``Settings``."""

    def refused(self, **changes: Any) -> str:
        """Expect that settings are refused, and tell why."""
        return str(self.assertRaises(BadConfiguration, replace, Settings(), **changes))

    def test_every_number_is_above_zero(self) -> None:
        """A limit or time of zero, below it, or that is none names its field."""
        for field in fields(Settings):
            if isinstance(getattr(Settings(), field.name), bool | tuple):
                continue
            for bad in (0, -1, float("nan"), float("inf")):
                self.assertIn(field.name, self.refused(**{field.name: bad}))

    def test_settings_make_sense_together(self) -> None:
        """Limits that contradict each other stop the start in one line."""
        for changes in (
            {"value_bytes_max": 16 * MIB + 1},
            {"gossip_jitter": 1.0},
            {"answer_reserve_s": 0.9},
            {"request_s": 0.91},
            {"probe_after_s": 3.0},
            {"read_hedge_s": 0.4},
        ):
            said = self.refused(**changes)
            self.assertIn(next(iter(changes)), said)
            self.assertNotIn("\n", said)

    def test_limits_may_be_reached(self) -> None:
        """The greatest allowed values are allowed."""
        settings = Settings(value_bytes_max=16 * MIB, request_s=0.9)
        self.assertEqual(settings.body_bytes_max, 48 * MIB + 128 * 1024)

    def test_the_promise_of_one_second_holds_by_arithmetic(self) -> None:
        """The steps of a request fit into its deadline, and that into a second."""
        settings = Settings()
        self.assertLessEqual(settings.request_s + settings.answer_reserve_s, 1.0)
        work = settings.request_s - settings.answer_reserve_s
        self.assertLessEqual(sum(settings.write_try_s), work)
        self.assertLessEqual(settings.causal_read_s, work)
        self.assertLessEqual(settings.put_wait_s + settings.push_ack_s, work)
        self.assertLessEqual(settings.read_hedge_s + settings.read_try_s, work)
        self.assertLess(settings.causal_read_spread_s, settings.causal_read_s)

    def test_gossip_converges_within_the_promise(self) -> None:
        """Noticing a healed link, and a few rounds, take less than ten seconds."""
        settings = Settings()
        beat = settings.gossip_interval_s * (1 + settings.gossip_jitter)
        self.assertLess(settings.suspect_dial_s + 2 * beat, settings.dead_after_s + 1)
        self.assertGreater(settings.demotion_s, settings.dead_after_s)

    def test_settings_do_not_change(self) -> None:
        """A node that runs keeps its limits."""
        with self.assertRaises(FrozenInstanceError):
            Settings().spread = True  # type: ignore[misc] # that it cannot is the test
