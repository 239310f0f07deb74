"""Deltas in parts between nodes: sessions, limits, and what breaks off (R7, R19)."""

from __future__ import annotations

from twisted.internet.defer import ensureDeferred

from tests.simulation.cluster_case import ClusterCase
from twisted_kvs.core.causality import Name, make_actor
from twisted_kvs.core.errors import BadPeerMessage
from twisted_kvs.core.messages import (
    Delta,
    Exchange,
    Hello,
    NextPart,
    PartAnswer,
    PeerAnswer,
    PeerRequest,
    Pull,
    PullAnswer,
    Refused,
    Standing,
)
from twisted_kvs.core.names import parse_name

STRANGER = parse_name("10.0.0.200:8080")


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

    def pull(self, *, one_part: bool = False, by: Name | None = None) -> Delta | None:
        """Ask for all."""
        header = self.node(1).cluster.header()
        answer = self.ask(Pull(header=header, base={}, one_part=one_part), by=by)
        assert isinstance(answer, PullAnswer)
        return answer.delta

    def part(self, session: int, index: int, *, by: Name | None = None) -> PeerAnswer:
        """Ask for a part."""
        return self.ask(NextPart(session=session, index=index), by=by)

    def test_a_delta_ends_with_the_process_that_began_it(self) -> None:
        """Found by `kvs simulate`: another run went on with a delta of its own."""
        first = self.pull()
        assert first is not None
        self.storm.do_restart(0)
        self.cluster.advance(0.5)
        second = self.pull()
        assert second is not None
        self.assertIsInstance(self.part(first.session, 1), Refused)
        self.assertIsInstance(self.part(second.session, 1), PartAnswer)

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
        self.assertIsNone(self.pull(by=STRANGER))
        self.assertEqual(self.node(0).sender.sending, 2)
        first = sessions[0]
        assert first is not None
        self.part(first.session, 1)
        self.part(first.session, 2)
        self.assertIsNotNone(self.pull(by=STRANGER))

    def test_who_gave_up_takes_nobodys_place(self) -> None:
        """Found by `kvs simulate`: a disk that was full, and all refused for 10 s."""
        first, second = self.pull(), self.pull()
        third = self.pull()
        assert first is not None and second is not None and third is not None
        self.assertEqual(self.node(0).sender.sending, 2)
        self.assertIsInstance(self.part(first.session, 1), Refused)
        self.assertIsInstance(self.part(second.session, 1), PartAnswer)
        self.cluster.advance(1.5)
        self.assertIsInstance(self.part(third.session, 1), PartAnswer)
        self.cluster.advance(1)
        self.assertIsNotNone(self.pull(by=STRANGER))
        self.assertIsInstance(self.part(second.session, 2), Refused)
        self.assertIsInstance(self.part(third.session, 2), PartAnswer)

    def test_what_nobody_asks_on_for_is_forgotten(self) -> None:
        """A receiver that died holds no snapshot for ever."""
        first = self.pull()
        assert first is not None
        self.cluster.advance(11)
        self.assertEqual(self.node(0).sender.sending, 0)
        self.assertIsInstance(self.part(first.session, 1), Refused)
        self.storm.calm()


class FullJoinTests(ClusterCase):
    """Sessions that only list what is live (R10)."""

    def pull(self) -> Delta | None:
        """Ask as a node that has lost its disk."""
        header = self.node(1).cluster.header()
        request = Pull(header=header, base={}, one_part=False)
        answer = self.cluster.wait(self.node(0).answer_peer(self.names[1], 5, request))
        assert isinstance(answer, PullAnswer)
        return answer.delta

    def test_who_gave_up_a_full_join_takes_nobodys_place(self) -> None:
        """Found by `kvs simulate`: whoever began two of them got nothing for 10 s."""
        self.start(2, k=2, delta_sessions_max=2)
        client = self.client()
        client.put(self.names[0], "k", "v")
        client.put(self.names[0], "k", "w")
        self.cluster.advance(20)
        for _ in range(3):
            delta = self.pull()
            assert delta is not None
            self.assertTrue(delta.full)
        self.assertEqual(self.node(0).sender.sending, 2)


class ReceiverTests(ClusterCase):
    """What a receiver makes of what it is given."""

    def test_a_delta_that_is_refused_is_not_under_way(self) -> None:
        """Else no other one in parts would ever be received."""
        self.start(2, k=2)
        node, peer = self.node(0), self.names[1]
        bad = Delta(
            base={},
            claim={},
            lamport=0,
            standing=Standing.SERVING,
            versions=[],
            session=1,
            floor={make_actor(peer, 1): 1},
        )
        taking = ensureDeferred(node.receiver.take(peer, bad))
        self.assertRaises(BadPeerMessage, self.cluster.wait, taking)
        self.assertIsNone(node.receiver.receiving)

    def test_a_report_ends_with_its_process_also_while_it_is_received(self) -> None:
        """R12: who lost its disk meanwhile has not what the process before it told."""
        self.start(2, k=2)
        one, two = self.names
        self.cluster.network.cut(one, two)
        self.client().put(two, "k", "v")
        node, peer = self.node(0), self.node(1)
        told = Exchange(
            header=peer.cluster.header(),
            vectors=peer.cluster.vectors(one),
            delta=peer.sender.make(one, node.replica.durable.vv, one_part=True),
            pull_me=False,
            one_part=False,
            wants=False,
        )
        waiting = node.answer_peer(two, 5, told)
        self.cluster.wait(node.answer_peer(two, 6, Hello(told.header)))
        self.cluster.wait(waiting)
        self.assertIsNone(node.cluster.record(two).report)
        self.cluster.wait(node.answer_peer(two, 6, told))
        self.assertEqual(node.cluster.record(two).report, told.vectors.vv)
