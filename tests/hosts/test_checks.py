"""The checkers of recorded histories: they see what is wrong, and nothing else."""

from __future__ import annotations

from pathlib import Path

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from .checks import SETTLES_S, check_file
from .history import Answered, Began, History, read_history
from .tale import FIRST, NODES, NOTHING, SECOND, Tale


class CheckCase(SynchronousTestCase):
    """A test with a history that is made up."""

    def setUp(self) -> None:
        """Begin one."""
        self.tale = Tale()

    def assert_broken(self, *promises: str) -> None:
        """Just these promises were broken."""
        self.assertEqual(self.tale.broken(), [*promises])


class SessionTests(CheckCase):
    """What a client has a right to."""

    def test_a_good_history_breaks_nothing(self) -> None:
        """Writes, reads by others, overwriting, concurrent writes, agreement."""
        tale = self.tale
        one = tale.put(FIRST, 1, "one")
        read = tale.get(one, at=1)
        two = tale.put(SECOND, 1, "two", given=read)
        tale.get(two, given=one)
        three = tale.put(FIRST, 2, "three", past={FIRST: 1})
        later = tale.put(SECOND, 2, "four", given=two)
        # A read names both siblings, and shows the later.
        tale.settle(tale.get(later, given=three))
        self.assert_broken()

    def test_a_read_of_what_was_replaced_is_seen(self) -> None:
        """Who knows a write is shown the one that it has replaced."""
        old = self.tale.put(FIRST, 1, "old")
        new = self.tale.put(FIRST, 2, "new", given=old)
        self.tale.get(old, given=new)
        self.assert_broken("sessions")

    def test_a_read_of_what_was_beaten_is_seen(self) -> None:
        """Of two concurrent writes the earlier is shown to who knows the later."""
        lower = self.tale.put(FIRST, 1, "lower")
        higher = self.tale.put(SECOND, 1, "higher")
        self.tale.get(higher, given=lower)
        self.assert_broken()
        self.tale.get(lower, given=higher)
        self.assert_broken("sessions")

    def test_a_missing_write_of_its_own_is_seen(self) -> None:
        """Who has written is told that there is nothing."""
        wrote = self.tale.put(FIRST, 1, "value")
        self.tale.get(NOTHING, given=wrote)
        self.assert_broken("sessions")

    def test_a_marked_answer_may_be_old(self) -> None:
        """But not when all has been well for some time."""
        wrote = self.tale.put(FIRST, 1, "value")
        self.tale.get(NOTHING, given=wrote, stale=True)
        self.assert_broken()
        self.tale.phase = "quiet"
        self.tale.done("heal")
        self.tale.get(NOTHING, given=wrote, stale=True)
        self.assert_broken()
        self.tale.pass_by(SETTLES_S)
        self.tale.get(NOTHING, given=wrote, stale=True)
        self.assert_broken("staleness")

    def test_a_write_that_does_not_follow_what_was_read_is_seen(self) -> None:
        """Its past lacks what its client knows."""
        wrote = self.tale.put(FIRST, 1, "one")
        self.tale.put(SECOND, 1, "two", given=wrote, past={})
        self.assert_broken("sessions")

    def test_writes_through_one_node_that_are_not_ordered_are_seen(self) -> None:
        """The second is not after the first; only a restart is an excuse."""
        self.tale.through = 0
        self.tale.put(FIRST, 1, "one")
        self.tale.put(SECOND, 1, "two")
        self.assert_broken("sessions")
        self.tale.done("kill", NODES[0])
        self.tale.done("ready", NODES[0])
        self.tale.put(SECOND, 2, "three")
        self.assert_broken("sessions")

    def test_what_was_not_answered_may_be_there_or_not(self) -> None:
        """Unless its reader knows what has replaced it."""
        old = self.tale.put(FIRST, 1, "old")
        self.tale.done("kill", NODES[0])
        self.tale.lose("perhaps", given=old)
        self.tale.done("ready", NODES[0])
        self.tale.pass_by(1)
        self.tale.get(old, given=old)
        perhaps = self.tale.loose("perhaps", FIRST, 2)
        self.tale.get(perhaps, given=old)
        self.assert_broken()
        new = self.tale.put(SECOND, 1, "new", past={FIRST: 2})
        self.tale.get(perhaps, given=new)
        self.assert_broken("sessions")


class IdentityTests(CheckCase):
    """Writes are what they are called."""

    def test_a_dot_that_is_used_twice_is_seen(self) -> None:
        """Two writes have one name."""
        self.tale.put(FIRST, 1, "one")
        self.tale.put(FIRST, 1, "two")
        self.assert_broken("identity", "sessions")

    def test_a_past_that_is_not_closed_is_seen(self) -> None:
        """A write comes after another, and not after what that comes after."""
        self.tale.put(FIRST, 1, "one")
        self.tale.put(SECOND, 1, "two", past={FIRST: 1})
        self.tale.put(FIRST, 2, "three", past={SECOND: 1})
        self.assert_broken()
        self.tale.put(SECOND, 2, "four", past={})
        self.assert_broken("identity", "sessions")

    def test_a_value_that_nobody_wrote_is_seen(self) -> None:
        """Nor may one be shown before it was written."""
        self.tale.get(self.tale.loose("made up", FIRST, 1))
        self.assert_broken("identity")

    def test_a_version_with_another_time_is_seen(self) -> None:
        """What was acknowledged at once, by its own node, is there only once."""
        self.tale.put(FIRST, 1, "value")
        self.tale.pass_by(5)
        self.tale.get(self.tale.loose("value", FIRST, 1))
        self.assert_broken("identity")


class DeleteTests(CheckCase):
    """Keys that are deleted."""

    def test_what_is_deleted_is_gone(self) -> None:
        """For everybody who knows of the delete; and nothing is shown in its place."""
        old = self.tale.put(FIRST, 1, "old")
        gone = self.tale.delete(SECOND, 1, given=old)
        self.tale.get(NOTHING, given=gone)
        self.tale.settle(self.tale.get(NOTHING, given=gone))
        self.assert_broken()
        self.tale.get(old, given=gone)
        self.assert_broken("sessions")

    def test_what_is_deleted_may_be_written_again(self) -> None:
        """A write that comes after is shown."""
        old = self.tale.put(FIRST, 1, "old")
        gone = self.tale.delete(SECOND, 1, given=old)
        new = self.tale.put(FIRST, 2, "new", given=gone)
        self.tale.settle(self.tale.get(new, given=gone))
        self.assert_broken()


class RetiredTests(CheckCase):
    """Tokens in which a marker stands for actors that write no more."""

    def test_a_marker_counts_for_the_actors_that_it_names(self) -> None:
        """A write comes after what its client knows, whichever way tokens say it."""
        old = self.tale.put(FIRST, 1, "old")
        self.tale.retire(FIRST, 1)
        new = self.tale.put(SECOND, 1, "new", given=old)
        self.tale.get(new, given=old)
        self.tale.tell_retired()
        self.assert_broken()
        self.tale.get(old, given=new)
        self.assert_broken("sessions")

    def test_a_marker_that_nobody_can_read_is_seen(self) -> None:
        """No node has stored whom it names."""
        old = self.tale.put(FIRST, 1, "old")
        self.tale.retire(FIRST, 1)
        self.tale.get(old)
        self.assertIn("identity", self.tale.broken())


class AnswerTests(CheckCase):
    """Every node that can be reached answers within a second."""

    def test_a_late_answer_is_seen(self) -> None:
        """One and a half seconds are too long."""
        self.tale.get(NOTHING, seconds=1.5)
        self.assert_broken("answers")

    def test_a_paused_node_need_not_answer(self) -> None:
        """But the other must, and it must again when it goes on."""
        self.tale.done("pause", NODES[0])
        self.tale.get(NOTHING, seconds=1.5)
        self.assert_broken()
        self.tale.get(NOTHING, at=1, seconds=1.5)
        self.assert_broken("answers")
        self.tale.pass_by(2)
        self.tale.done("resume", NODES[0])
        self.tale.get(NOTHING, seconds=1.5)
        self.assert_broken("answers", "answers")

    def test_what_the_machine_is_late_is_taken_off(self) -> None:
        """As much as it was, and no more."""
        self.tale.late(2)
        self.tale.get(NOTHING, seconds=1.5)
        self.assert_broken()
        self.tale.get(NOTHING, seconds=2.5)
        self.assert_broken("answers")

    def test_no_answer_is_seen(self) -> None:
        """A node that can be reached has to answer."""
        self.tale.lose("value")
        self.assert_broken("answers")


class AgreementTests(CheckCase):
    """After all faults all nodes show what they should."""

    def test_a_lost_write_is_seen(self) -> None:
        """It was acknowledged, and is neither there nor replaced."""
        old = self.tale.put(FIRST, 1, "old")
        self.tale.put(SECOND, 1, "lost")
        self.tale.settle(self.tale.get(old))
        self.assert_broken("durability", "durability")

    def test_what_was_only_on_a_lost_disk_may_be_gone(self) -> None:
        """Until all were seen to agree; what is written there later has to stay."""
        old = self.tale.put(FIRST, 1, "old")
        self.tale.put(SECOND, 1, "lost")
        self.tale.pass_by(1)
        self.tale.done("wipe", NODES[1])
        self.tale.settle(self.tale.get(old))
        self.assert_broken()
        self.tale.put(SECOND, 2, "lost, too")
        self.tale.settle(self.tale.get(old))
        self.assertIn("durability", self.tale.broken())

    def test_nodes_that_differ_are_seen(self) -> None:
        """Both know both writes, and show another one."""
        lower = self.tale.put(FIRST, 1, "lower")
        higher = self.tale.put(SECOND, 1, "higher")
        self.tale.settle(
            self.tale.get(higher, given=lower), self.tale.get(lower, given=higher)
        )
        self.assertEqual(self.tale.broken(), ["sessions", "convergence", "convergence"])

    def test_the_wrong_winner_is_seen(self) -> None:
        """All show the same, but not the later of two unrelated writes."""
        lower = self.tale.put(FIRST, 1, "lower")
        higher = self.tale.put(SECOND, 1, "higher")
        wrong = self.tale.get(lower, given=higher, stale=True)
        self.tale.settle(wrong)
        self.assert_broken("convergence", "convergence")

    def test_late_agreement_is_seen(self) -> None:
        """Over ten seconds, or never."""
        wrote = self.tale.put(FIRST, 1, "value")
        self.tale.done("calm")
        self.tale.pass_by(11)
        self.tale.settle(wrote)
        self.assertIn("convergence", self.tale.broken())


class FileTests(SynchronousTestCase):
    """A history in a file."""

    def test_a_file_is_checked_again(self) -> None:
        """What was broken is shown with its lines; a line that is cut short is not."""
        tale = Tale()
        old = tale.put(FIRST, 1, "old")
        tale.get(old, given=tale.put(FIRST, 2, "new", given=old))
        history = History(Path(self.mktemp()))
        for record in tale.records:
            history.add(record)
        history.close()
        with history.path.open("ab") as file:
            file.write(b'{"type": "ask')
        figures, [text] = check_file(history.path)
        self.assertEqual((figures.requests, figures.writes), (3, 2))
        self.assertIn("sessions: ", text)
        last = tale.records[-1]
        assert isinstance(last, Answered)
        self.assertIn(f"7: {msgspec.json.encode(last).decode()}", text)

    def test_records_are_read_as_they_were_written(self) -> None:
        """Each kind of line gives the record that it was made of."""
        tale = Tale()
        tale.put(FIRST, 1, "old")
        tale.lose("new")
        tale.late(1)
        tale.settle(NOTHING)
        lines = [msgspec.json.encode(record) + b"\n" for record in tale.records]
        self.assertEqual(read_history(lines), tale.records)
        self.assertIsInstance(tale.records[0], Began)
