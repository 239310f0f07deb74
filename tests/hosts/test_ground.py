"""What the tests with hosts stand on: nothing is left behind, nothing passes unseen."""

from __future__ import annotations

import random
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from tests.process.harness import PROJECT, clean_environment, wait_until

from .host_case import HostCase
from .line import Quality, times
from .namespaces import NAMED, PREFIX, remove_left_over, run

WITHOUT_RIGHTS = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all")
A_TEST = f"{HostCase.__module__.rpartition('.')[0]}.test_clocks"
ENDS_S = 60


class LeftOverTests(HostCase):
    """A run that was killed leaves no host for long."""

    size = 1
    k = 1

    def test_what_a_killed_run_left_is_removed(self) -> None:
        """Its namespaces go, and what runs there; those of this run stay."""
        ended = subprocess.Popen(["true"])
        ended.wait()
        name = f"{PREFIX}{ended.pid}-host"
        run("ip", "netns", "add", name)
        left = subprocess.Popen(["ip", "netns", "exec", name, "sleep", f"{ENDS_S}"])
        wait_until("it is there", lambda: run("ip", "netns", "pids", name).split())
        remove_left_over(mine=False)
        left.wait(ENDS_S / 2)
        self.assertFalse((NAMED / name).exists())
        self.assertTrue(self.hosts[0].within.replicas())

    def test_what_is_missing_is_said(self) -> None:
        """Without the right to make hosts tests are skipped, or fail if required."""
        skipped = self.run_without_rights("1")
        self.assertIn("PASSED (skips=", skipped)
        self.assertIn("not possible here: ", skipped)
        self.assertIn("FAILED (failures=", self.run_without_rights("required"))

    def run_without_rights(self, wish: str) -> str:
        """Run tests with hosts as somebody who may not make any; give what is said."""
        trial = ("-m", "twisted.trial", "--temp-directory", self.directory / wish)
        done = subprocess.run(
            [*WITHOUT_RIGHTS, sys.executable, *trial, A_TEST],
            cwd=PROJECT,
            env=clean_environment({"KVS_HOST_TESTS": wish}),
            capture_output=True,
            text=True,
            timeout=ENDS_S,
            check=False,
        )
        return done.stdout + done.stderr


class LineTests(SynchronousTestCase):
    """What a bad line draws for each frame."""

    def draw(self, quality: Quality) -> list[list[float]]:
        """Send two thousand frames at moment 100."""
        rng = random.Random(1)
        return [times(quality, rng, 100.0) for _ in range(2000)]

    def test_a_good_line_carries_everything_at_once(self) -> None:
        """Without faults each frame arrives, once, when it was sent."""
        self.assertEqual(self.draw(Quality()), [[100.0]] * 2000)

    def test_a_bad_line_loses_and_doubles_as_often_as_it_says(self) -> None:
        """A fifth is lost; of the rest a tenth comes twice."""
        counts = [len(frame) for frame in self.draw(Quality(loss=20, doubled=10))]
        self.assertEqual(set(counts), {0, 1, 2})
        self.assertIn(counts.count(0), range(320, 480))
        self.assertIn(counts.count(2), range(110, 210))

    def test_a_slow_line_delays_each_frame_for_itself(self) -> None:
        """Within the range, and not in the order of sending."""
        moments = [moment for [moment] in self.draw(Quality(delay_ms=50, jitter_ms=20))]
        self.assertGreaterEqual(min(moments), 100.05)
        self.assertLessEqual(max(moments), 100.07)
        self.assertNotEqual(moments, sorted(moments))
