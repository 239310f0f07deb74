"""Plain counters: that they count what they say."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twisted_kvs.core.causality import Actor, Name
from twisted_kvs.core.versions import Version
from twisted_kvs.metrics import Histogram, Kind, RequestMetrics, TurnProbe, WriteAges

ACTOR, OTHER = Actor("a:1#0123456789abcdef"), Actor("a:1#fedcba9876543210")


def minted(*counters: int, actor: Actor = ACTOR) -> list[Version]:
    """Make writes."""
    return [Version(actor, counter, "k", b"1", 0, {}) for counter in counters]


class HistogramTests(SynchronousTestCase):
    """How often something was how great."""

    def test_bounds(self) -> None:
        """A bound counts what is equal to it; nothing is too great to be counted."""
        histogram = Histogram((1, 2))
        for value in (0, 1, 1.5, 2, 3, 4):
            histogram.observe(value)
        self.assertEqual(
            list(histogram.cumulative()), [(1, 2), (2, 4), (float("inf"), 6)]
        )
        self.assertEqual(histogram.total, 11.5)


class RequestTests(SynchronousTestCase):
    """Answers by kind and status."""

    def test_answers(self) -> None:
        """Each kind has its statuses and its times."""
        metrics = RequestMetrics()
        for status in (200, 404, 200):
            metrics.answered(Kind.GET, status, 0.5)
        of_get = metrics.kinds[Kind.GET]
        self.assertEqual(of_get.statuses, {200: 2, 404: 1, 503: 0})
        self.assertEqual(of_get.seconds.total, 1.5)
        self.assertEqual(metrics.kinds[Kind.OTHER].statuses, {})

    def test_what_was_refused_has_no_time(self) -> None:
        """Else an overloaded node would seem to be quick."""
        metrics = RequestMetrics()
        metrics.answered(Kind.PUT, 503, None)
        of_put = metrics.kinds[Kind.PUT]
        self.assertEqual((of_put.statuses[503], sum(of_put.seconds.counts)), (1, 0))


class WriteAgesTests(SynchronousTestCase):
    """How old the oldest write is that a peer lacks."""

    def setUp(self) -> None:
        self.ages = WriteAges()

    def test_nothing_written(self) -> None:
        """Nobody lacks anything."""
        self.assertEqual(self.ages.oldest_lacking_s({}, 5.0), 0.0)

    def test_the_oldest_counts(self) -> None:
        """Not the newest, and not when it was last seen to lack something."""
        for counter in range(1, 11):
            self.ages.durable(minted(counter), float(counter))
        for known in range(10):
            lag = self.ages.oldest_lacking_s({ACTOR: known}, 20.0)
            self.assertEqual(lag, 20.0 - (known + 1))
        self.assertEqual(self.ages.oldest_lacking_s({ACTOR: 10}, 20.0), 0.0)
        self.assertEqual(self.ages.oldest_lacking_s({ACTOR: 11}, 20.0), 0.0)

    def test_a_peer_close_behind_is_close_behind(self) -> None:
        """Under load a peer always lacks something, and never for long."""
        for counter in range(1, 10_000):
            now = counter * 0.01
            self.ages.durable(minted(counter), now)
            lag = self.ages.oldest_lacking_s({ACTOR: counter - 3}, now)
            self.assertLess(lag, 0.02 + WriteAges.STEP_S + 1e-9)

    def test_a_batch(self) -> None:
        """Writes of one commit are of one age."""
        self.ages.durable(minted(1, 2, 3), 1.0)
        self.ages.durable(minted(4, 5, 6), 2.0)
        for known, lag in ((0, 9.0), (2, 9.0), (3, 8.0), (5, 8.0), (6, 0.0)):
            self.assertEqual(self.ages.oldest_lacking_s({ACTOR: known}, 10.0), lag)

    def test_incarnations(self) -> None:
        """What was written before an incarnation was changed can be lacking, too."""
        self.ages.durable(minted(1), 1.0)
        self.ages.durable(minted(1, actor=OTHER), 2.0)
        self.assertEqual(self.ages.oldest_lacking_s({OTHER: 1}, 5.0), 4.0)
        self.assertEqual(self.ages.oldest_lacking_s({ACTOR: 1}, 5.0), 3.0)

    def test_what_was_written_before_the_start_counts(self) -> None:
        """From the start on: nobody knows how old it was then."""
        other = Actor("b:1#0123456789abcdef")
        self.ages.found({ACTOR: 3, other: 9}, Name("a:1"), 10.0)
        self.assertEqual(self.ages.oldest_lacking_s({ACTOR: 2}, 15.0), 5.0)
        self.assertEqual(self.ages.oldest_lacking_s({ACTOR: 3}, 15.0), 0.0)

    def test_a_dead_peer_costs_no_memory(self) -> None:
        """However long it is away; its lag is too great by a part at most."""
        count = 100 * WriteAges.MARKS_MAX
        for counter in range(1, count):
            self.ages.durable(minted(counter), float(counter))
        self.assertLessEqual(len(self.ages._marks[ACTOR]), WriteAges.MARKS_MAX)
        for known in (0, count // 100, count // 2, count - 100, count - 2):
            age = count - (known + 1)
            lag = self.ages.oldest_lacking_s({ACTOR: known}, float(count))
            self.assertGreaterEqual(lag, age)
            self.assertLess(lag, age * (1 + 2 * WriteAges.PART) + 2)


class TurnTests(SynchronousTestCase):
    """The longest turn of the reactor."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.probe = TurnProbe(self.clock)
        self.probe.startService()

    def test_idle(self) -> None:
        """A reactor that has nothing to do is never late."""
        self.clock.pump([0.01] * 200)
        self.assertLess(self.probe.longest_s, 0.011)

    def test_a_long_turn(self) -> None:
        """It is seen with its length, a step less at worst, for about a minute."""
        self.clock.advance(0.3)
        self.assertAlmostEqual(self.probe.longest_s, 0.25)
        self.clock.pump([0.05] * 49 * 20)
        self.assertAlmostEqual(self.probe.longest_s, 0.25)
        self.clock.pump([0.05] * 12 * 20)
        self.assertLess(self.probe.longest_s, 0.01)

    def test_the_longest_counts(self) -> None:
        """Shorter turns after it change nothing."""
        for turn in (0.2, 0.5, 0.1):
            self.clock.advance(turn)
        self.assertAlmostEqual(self.probe.longest_s, 0.45)

    def tearDown(self) -> None:
        """A probe that is stopped leaves nothing behind."""
        self.probe.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])
