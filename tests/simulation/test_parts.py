"""Deltas in parts between nodes: sessions, limits, and what breaks off (R7, R19)."""

from __future__ import annotations

from tests.simulation.cluster_case import ClusterCase
from twisted_kvs.core.causality import Name
from twisted_kvs.core.messages import (
    Delta,
    NextPart,
    PartAnswer,
    PeerAnswer,
    PeerRequest,
    Pull,
    PullAnswer,
    Refused,
)


class SessionTests(ClusterCase):
    """What a sender gives part by part."""

    def setUp(self) -> None:
        """Let one of two nodes hold seven versions that the other lacks."""
        self.start(2, k=2, delta_part_versions_max=3, delta_sessions_max=2)
        one, two = self.names
        self.cluster.network.cut(one, two)
        client = self.client()
        for number in range(7):
            client.put(one, f"k{number}", "v")
        self.cluster.advance(0.5)

    def ask(self, request: PeerRequest, *, by: Name | None = None) -> PeerAnswer:
        """Ask the node that has all, as the other."""
        answering = self.node(0).answer_peer(by or self.names[1], 5, request)
        return self.cluster.wait(answering)

    def pull(self, *, one_part: bool = False) -> Delta | None:
        """Ask for all."""
        header = self.node(1).cluster.header()
        answer = self.ask(Pull(header=header, base={}, one_part=one_part))
        assert isinstance(answer, PullAnswer)
        return answer.delta

    def part(self, session: int, index: int, *, by: Name | None = None) -> PeerAnswer:
        """Ask for a part."""
        return self.ask(NextPart(session=session, index=index), by=by)

    def test_parts_come_in_order_and_the_last_may_come_again(self) -> None:
        """Three, three and one; an answer that was lost can be asked for once more."""
        first = self.pull()
        assert first is not None
        self.assertEqual(len(first.versions), 3)
        second = self.part(first.session, 1)
        assert isinstance(second, PartAnswer)
        self.assertEqual((len(second.versions), second.more), (3, True))
        self.assertIs(self.part(first.session, 1), second)
        third = self.part(first.session, 2)
        assert isinstance(third, PartAnswer)
        self.assertEqual((len(third.versions), third.more), (1, False))
        self.assertIs(self.part(first.session, 2), third)
        dots = {v.dot for v in (*first.versions, *second.versions, *third.versions)}
        self.assertEqual(len(dots), 7)

    def test_what_is_not_next_is_refused(self) -> None:
        """Sessions belong to who began them, and parts are not skipped."""
        first = self.pull()
        assert first is not None
        for asked in (
            self.part(first.session, 2),
            self.part(first.session, 0),
            self.part(first.session + 1, 1),
            self.part(first.session, 1, by=self.names[0]),
        ):
            self.assertIsInstance(asked, Refused)

    def test_who_wants_one_part_gets_all_or_nothing(self) -> None:
        """A node that is receiving a delta in parts takes no second such."""
        self.assertIsNone(self.pull(one_part=True))

    def test_deltas_in_parts_are_few_at_a_time(self) -> None:
        """Each holds the store's past: beyond the limit, others wait."""
        sessions = [self.pull(), self.pull()]
        self.assertNotIn(None, sessions)
        self.assertIsNone(self.pull())
        self.assertEqual(self.node(0).sender.sending, 2)
        first = sessions[0]
        assert first is not None
        self.part(first.session, 1)
        self.part(first.session, 2)
        self.assertIsNotNone(self.pull())

    def test_what_nobody_asks_on_for_is_forgotten(self) -> None:
        """A receiver that died holds no snapshot for ever."""
        first = self.pull()
        assert first is not None
        self.cluster.advance(11)
        self.assertEqual(self.node(0).sender.sending, 0)
        self.assertIsInstance(self.part(first.session, 1), Refused)
        self.storm.calm()
