"""Bytes between nodes, counted at both ends."""

from __future__ import annotations

from twisted.internet.defer import succeed

from tests.peer_case import PeerCase, version
from twisted_kvs.core.causality import Name
from twisted_kvs.core.errors import PeerUnreachable
from twisted_kvs.core.messages import PartAnswer, Push, PushAnswer


class TrafficTests(PeerCase):
    """What one end has sent the other has received."""

    def test_both_ends_agree(self) -> None:
        """Questions and answers, as they crossed the wire."""
        asker, answerer = self.transport.traffic, self.peer.gate.traffic
        self.successResultOf(self.ask())
        self.assertGreater(asker.sent, 0)
        self.assertGreater(asker.received, 0)
        self.assertEqual(asker.sent, answerer.received)
        self.assertEqual(asker.received, answerer.sent)
        before = asker.sent, asker.received
        self.peer.node.answer = lambda _: succeed(PushAnswer({}))
        self.successResultOf(
            self.ask(Push(lamport=0, versions=[version(1, size=5000)]))
        )
        self.assertTrue(5000 < asker.sent - before[0] < 6000)
        self.assertLess(asker.received - before[1], 100)
        part = PartAnswer(versions=[version(1, size=5000)], more=False)
        self.peer.node.answer = lambda _: succeed(part)
        self.successResultOf(self.ask())
        self.assertGreater(asker.received - before[1], 5000)
        self.assertEqual(
            (asker.sent, asker.received), (answerer.received, answerer.sent)
        )

    def test_nobody_there(self) -> None:
        """What cannot be sent does not count."""
        asked = self.ask(peer=Name("10.0.0.9:80"))
        self.failureResultOf(asked, PeerUnreachable)
        self.assertEqual(self.transport.traffic.sent, 0)
