"""A node that is process 1 ends by SIGTERM before Twisted takes signals, too."""

from __future__ import annotations

import os
import signal
from types import FrameType

from twisted.trial.unittest import SynchronousTestCase

from twisted_kvs.first_process import EXIT_STATUS, die_of_signals_as_others


class FirstProcessTests(SynchronousTestCase):
    """``die_of_signals_as_others``; real ones are ended in ``tests/containers``."""

    def setUp(self) -> None:
        before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.addCleanup(signal.signal, signal.SIGTERM, before)
        self.ended: list[int] = []

    def take(self, pid: int) -> None:
        """Let a process take its signals."""
        die_of_signals_as_others(pid, exit_process=self.ended.append)

    def test_process_1_ends_at_once(self) -> None:
        """Which without a handler would not even notice."""
        self.take(1)
        os.kill(os.getpid(), signal.SIGTERM)
        self.assertEqual(self.ended, [EXIT_STATUS])

    def test_any_other_is_left_alone(self) -> None:
        """The kernel ends it."""
        self.take(2)
        self.assertIs(signal.getsignal(signal.SIGTERM), signal.SIG_DFL)

    def test_a_handler_that_is_there_stays(self) -> None:
        """Whoever runs a node inside something greater decides for himself."""

        def theirs(number: int, frame: FrameType | None) -> None:
            raise AssertionError("not called")

        signal.signal(signal.SIGTERM, theirs)
        self.take(1)
        self.assertIs(signal.getsignal(signal.SIGTERM), theirs)
