"""Who is believed alive (rules R15, R19)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import strategies as kvs
from twisted_kvs.core.causality import Name
from twisted_kvs.core.liveness import Liveness

ME, PEER, OTHER, STRANGER = sorted(kvs.NAMES)[:4]
START = 1000.0


def liveness(*members: Name, me: Name = ME, now: float = START) -> Liveness:
    """Watch these members from ``now`` on: dead after 3 s, dialled after 1.5 s."""
    made = Liveness(me, dead_after_s=3.0, probe_after_s=1.5)
    made.watch(members, now)
    return made


class EvidenceTests(SynchronousTestCase):
    """What keeps a member alive."""

    def test_a_new_member_is_presumed_alive(self) -> None:
        """A node that was just added has the time to say something."""
        watching = liveness(ME, PEER)
        self.assertEqual(watching.alive(START + 2.9), {ME, PEER})
        self.assertEqual(watching.suspects(START + 2.9), [])

    def test_silence_is_death(self) -> None:
        """A member that nobody hears of for three seconds is believed dead."""
        watching = liveness(ME, PEER)
        self.assertEqual(watching.alive(START + 3), {ME})
        self.assertEqual(watching.suspects(START + 3), [PEER])

    def test_a_message_keeps_a_member_alive(self) -> None:
        """Whoever speaks lives, from then on for three seconds."""
        watching = liveness(ME, PEER)
        watching.heard(PEER, START + 2)
        self.assertEqual(watching.alive(START + 4.9), {ME, PEER})
        self.assertEqual(watching.alive(START + 5), {ME})
        watching.heard(PEER, START + 60)
        self.assertEqual(watching.alive(START + 60), {ME, PEER})

    def test_what_a_peer_heard_keeps_a_member_alive(self) -> None:
        """A one-way cut between two nodes makes neither dead to the other."""
        watching = liveness(ME, PEER, OTHER)
        watching.heard_of({OTHER: 500}, START + 3)
        self.assertEqual(watching.alive(START + 5.4), {ME, OTHER})
        self.assertEqual(watching.alive(START + 5.5), {ME})

    def test_older_evidence_takes_nothing_back(self) -> None:
        """Messages that come late or in another order do not make anybody older."""
        watching = liveness(ME, PEER)
        watching.heard(PEER, START + 5)
        watching.heard(PEER, START + 4)
        watching.heard_of({PEER: 10_000}, START + 5)
        self.assertEqual(watching.last_heard_s(PEER, START + 6), 1.0)
        watching.heard_of({PEER: 250}, START + 6)
        watching.heard_of({PEER: 500}, START + 6)
        self.assertEqual(watching.last_heard_s(PEER, START + 6), 0.25)

    def test_nobody_was_heard_of_in_the_future(self) -> None:
        """A peer that counts wrongly cannot keep a dead member alive for long."""
        watching = liveness(ME, PEER)
        watching.heard_of({PEER: -(10**9)}, START)
        self.assertEqual(watching.last_heard_s(PEER, START), 0.0)
        self.assertEqual(watching.alive(START + 3), {ME})

    def test_a_node_never_doubts_itself(self) -> None:
        """A node counts itself alive, in the view or not, whatever others say."""
        for watching in (liveness(ME, PEER), liveness(PEER), liveness()):
            watching.found_dead(ME, START)
            watching.heard(ME, START)
            watching.heard_of({ME: 10**9}, START)
            later = START + 10**6
            self.assertEqual(watching.alive(later), {ME})
            self.assertNotIn(ME, watching.suspects(later) + watching.quiet(later))
            self.assertNotIn(ME, watching.ages_ms(later))
            self.assertEqual(watching.last_heard_s(ME, later), 0.0)

    def test_strangers_do_not_count(self) -> None:
        """Only members of the view are believed to be anything."""
        watching = liveness(ME, PEER)
        watching.heard(STRANGER, START)
        watching.heard_of({STRANGER: 0}, START)
        watching.found_dead(STRANGER, START)
        self.assertEqual(watching.alive(START), {ME, PEER})
        self.assertEqual(watching.ages_ms(START), {})
        self.assertIs(watching.last_heard_s(STRANGER, START), None)
        self.assertEqual(watching.quiet(START + 9), [PEER])

    def test_a_paused_process_believes_in_nobody_until_it_hears_them(self) -> None:
        """After a pause of hours one message of each member is enough."""
        watching = liveness(ME, PEER, OTHER)
        awake = START + 7200
        self.assertEqual(watching.suspects(awake), [PEER, OTHER])
        watching.heard(PEER, awake)
        watching.heard_of({OTHER: 100}, awake)
        self.assertEqual(watching.alive(awake), {ME, PEER, OTHER})


class WatchTests(SynchronousTestCase):
    """Following the view."""

    def test_who_leaves_is_forgotten(self) -> None:
        """A removed node is neither alive nor dead nor dialled."""
        watching = liveness(ME, PEER, OTHER)
        watching.heard(PEER, START)
        watching.watch([ME, OTHER], START + 1)
        self.assertEqual(watching.alive(START + 1), {ME, OTHER})
        self.assertEqual(watching.ages_ms(START + 1), {})
        self.assertIs(watching.last_heard_s(PEER, START + 1), None)
        self.assertEqual(watching.quiet(START + 9), [OTHER])

    def test_who_stays_keeps_what_is_known(self) -> None:
        """A change of the view revives no dead member."""
        watching = liveness(ME, PEER)
        watching.watch([ME, PEER, OTHER], START + 3)
        self.assertEqual(watching.alive(START + 3), {ME, OTHER})
        watching.found_dead(OTHER, START + 3)
        watching.watch([PEER, OTHER], START + 4)
        self.assertEqual(watching.suspects(START + 4), [PEER, OTHER])

    def test_who_returns_begins_anew(self) -> None:
        """A node that was removed and added again is presumed alive."""
        watching = liveness(ME, PEER)
        watching.found_dead(PEER, START)
        watching.watch([ME], START + 1)
        watching.watch([ME, PEER], START + 2)
        self.assertEqual(watching.alive(START + 2), {ME, PEER})
        self.assertEqual(watching.last_heard_s(PEER, START + 2.5), 0.5)


class FoundDeadTests(SynchronousTestCase):
    """What a failed probe means."""

    def test_a_failed_probe_is_death_at_once(self) -> None:
        """A node killed a moment ago is not counted."""
        watching = liveness(ME, PEER)
        watching.heard(PEER, START + 1)
        watching.found_dead(PEER, START + 1)
        self.assertEqual(watching.alive(START + 1), {ME})
        self.assertEqual(watching.suspects(START + 1), [PEER])
        self.assertEqual(watching.quiet(START + 1), [PEER])

    def test_a_later_message_is_life(self) -> None:
        """A node that was restarted at once is back with its first word."""
        watching = liveness(ME, PEER)
        watching.found_dead(PEER, START + 1)
        watching.heard(PEER, START + 0.5)
        self.assertEqual(watching.alive(START + 1), {ME})
        watching.heard(PEER, START + 1.01)
        self.assertEqual(watching.alive(START + 1.01), {ME, PEER})

    def test_earlier_evidence_that_arrives_later_is_no_life(self) -> None:
        """What a peer heard before the probe failed does not revive anybody."""
        watching = liveness(ME, PEER)
        watching.found_dead(PEER, START + 1)
        # As seen from here one moment after the probe, but the message travelled.
        watching.heard_of({PEER: 100}, START + 1.2)
        self.assertEqual(watching.alive(START + 1.2), {ME})
        watching.heard_of({PEER: 100}, START + 1.5)
        self.assertEqual(watching.alive(START + 1.5), {ME, PEER})

    def test_the_last_probe_counts(self) -> None:
        """A probe that was reported late takes back no later one."""
        watching = liveness(ME, PEER)
        watching.found_dead(PEER, START + 2)
        watching.found_dead(PEER, START + 1)
        watching.heard(PEER, START + 1.5)
        self.assertEqual(watching.suspects(START + 2), [PEER])


class ToldTests(SynchronousTestCase):
    """What peers are told."""

    def test_ages_are_told_rounded_up(self) -> None:
        """Nobody gets younger by being told of."""
        watching = liveness(ME, PEER, OTHER)
        watching.heard(PEER, START)
        watching.heard(OTHER, START + 1)
        self.assertEqual(watching.ages_ms(START + 1.0005), {PEER: 1001, OTHER: 1})
        # A clock that was read before the message came.
        self.assertEqual(watching.ages_ms(START + 0.5), {PEER: 500, OTHER: 0})

    def test_presumptions_are_not_told(self) -> None:
        """A node that restarts does not revive its dead peers everywhere."""
        restarted = liveness(ME, PEER, OTHER, now=START)
        self.assertEqual(restarted.ages_ms(START), {})
        other = liveness(ME, PEER, OTHER, me=OTHER, now=START - 9)
        other.heard_of(restarted.ages_ms(START), START)
        self.assertEqual(other.suspects(START), [ME, PEER])

    def test_what_was_told_is_told_on(self) -> None:
        """Word of a member reaches nodes that have no neighbour in common with it."""
        watching = liveness(ME, PEER, OTHER)
        watching.heard_of({PEER: 200}, START)
        age_ms = watching.ages_ms(START)[PEER]
        self.assertGreater(age_ms, 200)
        self.assertLess(age_ms, 1000)

    def test_the_younger_of_two_ages_is_told(self) -> None:
        """A fresh word from a peer counts more than an old one from the member."""
        watching = liveness(ME, PEER, OTHER)
        watching.heard(PEER, START)
        watching.heard_of({PEER: 100}, START + 2)
        self.assertLess(watching.ages_ms(START + 2)[PEER], 1000)
        watching.heard(PEER, START + 2)
        self.assertEqual(watching.ages_ms(START + 2)[PEER], 0)

    @given(
        st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=10),
        st.floats(0.001, 0.29),
    )
    def test_echoes_do_not_keep_the_dead_alive(
        self, talks: list[tuple[int, int]], travel_s: float
    ) -> None:
        """However much nodes tell each other of a dead member, it dies in time."""
        names = [ME, PEER, OTHER]
        nodes = [liveness(*names, STRANGER, me=name, now=START - 1) for name in names]
        for node in nodes:
            node.heard(STRANGER, START)
        now = START
        # As fast as messages travel: the worst case, since each gains by its travel.
        for source, target in talks * 30:
            said = nodes[source].ages_ms(now)
            now += travel_s
            nodes[target].heard_of(said, now)
        last = max(now - (node.last_heard_s(STRANGER, now) or 0.0) for node in nodes)
        self.assertLess(last, START + 0.3)
        for node in nodes:
            self.assertIn(STRANGER, node.suspects(START + 3.3))


class DialTests(SynchronousTestCase):
    """Who is dialled out of turn."""

    def test_quiet_members_and_suspects_are_dialled(self) -> None:
        """Silence is asked about before it is believed, and after that (H13)."""
        watching = liveness(ME, PEER, OTHER)
        self.assertEqual(watching.quiet(START + 1.4), [])
        watching.heard_of({PEER: 0}, START + 1.4)
        self.assertEqual(watching.quiet(START + 1.5), [OTHER])
        self.assertEqual(watching.quiet(START + 10**6), [PEER, OTHER])

    def test_lists_are_sorted(self) -> None:
        """The order does not depend on chance, so that a run can be repeated."""
        watching = liveness(*reversed(kvs.NAMES))
        others = sorted(set(kvs.NAMES) - {ME})
        for name in kvs.NAMES:
            watching.heard(name, START)
        self.assertEqual(watching.suspects(START + 3), others)
        self.assertEqual(watching.quiet(START + 3), others)
        self.assertEqual(list(watching.ages_ms(START)), others)

    def test_times_must_be_positive(self) -> None:
        """A node that believes nobody is a mistake."""
        for dead, probe in ((0.0, 1.0), (1.0, 0.0)):
            self.assertRaises(
                AssertionError,
                Liveness,
                ME,
                dead_after_s=dead,
                probe_after_s=probe,
            )
