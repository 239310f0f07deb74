"""The route for peers: what reaches the node, what is refused, what is logged."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests.memory_network import MemoryNetwork
from tests.peer_case import ANSWER, ASK, KEY, ME, PEER, Peer
from twisted_kvs.core.causality import Name
from twisted_kvs.core.codec import Codec
from twisted_kvs.core.errors import Removed
from twisted_kvs.core.messages import PeerAnswer, PeerRequest, Refused
from twisted_kvs.signing import PEER_HEADER, PEER_PATH, Signer
from twisted_kvs.web.admission import PEER_REQUESTS_MAX
from twisted_kvs.web.peer_gate import COMPLAINT_INTERVAL_S

CODEC = Codec()


class Client(Protocol):
    """Keeps what the server says."""

    def __init__(self) -> None:
        """Hear nothing yet."""
        self.heard = b""

    def dataReceived(self, data: bytes) -> None:
        """Keep it."""
        self.heard += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Do nothing."""


class PeerApiCase(SynchronousTestCase):
    """A node that is asked by hand."""

    def setUp(self) -> None:
        """Listen, and read the log."""
        self.net = MemoryNetwork()
        self.there = Peer(self.net, PEER)
        self.net.listen("10.0.0.2", 80, self.there.site)
        self.warnings: list[LogEvent] = []

        @implementer(ILogObserver)
        def note(event: LogEvent) -> None:
            if event["log_level"] is LogLevel.warn:
                self.warnings.append(event)

        globalLogPublisher.addObserver(note)
        self.addCleanup(globalLogPublisher.removeObserver, note)

    def send(
        self,
        body: bytes,
        *,
        signed: bytes | None = None,
        receiver: Name = PEER,
        method: str = "POST",
        key: bytes = KEY,
    ) -> Client:
        """
        Send a message to the node.

        :param signed: the body that was signed, where that is another one.
        """
        self.signer = Signer(me=ME, boot_id=7, keys=[key])
        self.envelope, header = self.signer.sign_request(
            receiver, body if signed is None else signed, nonce=b"n" * 16
        )
        client = Client()
        transport = self.net.connect("10.0.0.2", 80, client)
        head = f"{method} {PEER_PATH} HTTP/1.1\r\nContent-Length: {len(body)}\r\n"
        transport.write(
            head.encode() + b"%b: %b\r\n\r\n" % (PEER_HEADER.encode(), header) + body
        )
        self.net.flush()
        return client

    def signed_answer(self, client: Client, *, sender: Name = PEER) -> PeerAnswer:
        """Verify and open the answer that a client got."""
        head, _, body = client.heard.partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.1 200 "), client.heard)
        headers = dict(
            line.decode().lower().split(": ", 1) for line in head.split(b"\r\n")[1:]
        )
        # The name of the node is in the answer, whoever the request was meant for.
        seal = head[head.lower().index(PEER_HEADER.lower().encode() + b": ") :]
        seal = seal.split(b": ")[1].split(b"\r\n")[0]
        request, _ = self.signer.sign_request(sender, b"", nonce=b"n" * 16)
        self.signer.verify_answer([seal], request)
        self.assertEqual(int(headers["content-length"]), len(body))
        return CODEC.decode_answer(body)

    def refusal(self, client: Client) -> Refused:
        """Take a signed refusal."""
        said = self.signed_answer(client)
        assert isinstance(said, Refused)
        return said

    def assert_unsigned_400(self, client: Client) -> None:
        """Check that the node said no, and signed nothing."""
        self.assertTrue(client.heard.startswith(b"HTTP/1.1 400 "), client.heard)
        self.assertNotIn(PEER_HEADER.lower().encode(), client.heard.lower())
        self.assertIn(b'"result": "error"', client.heard)

    def tearDown(self) -> None:
        """Check that nothing is left and nothing was logged as a bug."""
        for near, _ in self.net.connections:
            near.abortConnection()
        self.net.flush()
        lane = self.there.site.admission.peers
        self.assertEqual((lane.requests, lane.body_bytes), (0, 0))
        self.assertEqual(self.flushLoggedErrors(), [])


class AnsweringTests(PeerApiCase):
    """Messages that are all right."""

    def test_message_reaches_the_node_and_its_answer_is_signed(self) -> None:
        """The node gets what was asked, by whom and by which process."""
        client = self.send(CODEC.encode(ASK))
        self.assertEqual(self.signed_answer(client), ANSWER)
        self.assertEqual(self.there.node.asked, [(ME, 7, ASK)])
        self.assertEqual(self.warnings, [])

    def test_hung_up_asker_does_not_stop_the_node(self) -> None:
        """What a peer asked for ends although the peer has gone."""
        held: Deferred[PeerAnswer] = Deferred()
        cancelled: list[Any] = []
        held.addErrback(cancelled.append)
        self.there.node.answer = lambda _: held
        self.send(CODEC.encode(ASK))
        self.assertEqual(self.there.api.answering, 1)
        self.net.connections[-1][0].abortConnection()
        self.net.flush()
        self.assertEqual(cancelled, [])
        self.assertEqual(self.there.api.answering, 1)
        held.callback(ANSWER)
        self.assertEqual(self.there.api.answering, 0)

    def test_askers_that_hang_up_still_count(self) -> None:
        """Asking and hanging up again and again is limited by what is under way."""
        held: list[Deferred[PeerAnswer]] = []

        def hold(_: PeerRequest) -> Deferred[PeerAnswer]:
            held.append(Deferred())
            return held[-1]

        self.there.node.answer = hold
        self.there.api._answering = PEER_REQUESTS_MAX - 1
        self.send(CODEC.encode(ASK))
        self.net.connections[-1][0].abortConnection()
        self.net.flush()
        self.assertEqual(self.refusal(self.send(CODEC.encode(ASK))).status, 503)
        held[0].callback(ANSWER)
        self.there.node.answer = lambda _: succeed(ANSWER)
        self.assertEqual(self.signed_answer(self.send(CODEC.encode(ASK))), ANSWER)

    def test_failure_of_the_node_is_a_signed_refusal(self) -> None:
        """Even a bug is answered, without details, and logged with them."""

        def raise_bug(_: PeerRequest) -> Deferred[PeerAnswer]:
            raise ZeroDivisionError("secret detail")

        for answer in (lambda _: fail(ZeroDivisionError("secret detail")), raise_bug):
            self.there.node.answer = answer
            refused = self.refusal(self.send(CODEC.encode(ASK)))
            self.assertEqual(refused.status, 500)
            self.assertNotIn("secret", refused.message)
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.there.api.answering, 0)

    def test_error_of_the_node_keeps_its_status(self) -> None:
        """An error that the node failed with is refused as what it is."""
        self.there.node.answer = lambda _: fail(Removed("removed"))
        self.assertEqual(self.refusal(self.send(CODEC.encode(ASK))).status, 410)

    def test_answer_that_cannot_be_written_is_refused(self) -> None:
        """An answer that is none leaves no peer waiting."""
        nonsense: Any = object()
        self.there.node.answer = lambda _: succeed(nonsense)
        self.assertEqual(self.refusal(self.send(CODEC.encode(ASK))).status, 500)
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)


class RefusingTests(PeerApiCase):
    """Messages that are not."""

    def test_tampered_body_is_refused(self) -> None:
        """A body that was changed on its way touches nothing."""
        body = CODEC.encode(ASK)
        changed = body[:-1] + bytes([body[-1] ^ 1])
        self.assert_unsigned_400(self.send(changed, signed=body))
        self.assertEqual(self.there.node.asked, [])
        self.assertEqual(len(self.warnings), 1)

    def test_message_for_another_node_is_refused_by_name(self) -> None:
        """Who asks the wrong node learns whom it has asked."""
        other = Name("10.0.0.3:80")
        refused = self.refusal(self.send(CODEC.encode(ASK), receiver=other))
        self.assertEqual(refused.status, 400)
        self.assertIn(PEER, refused.message)
        self.assertEqual(self.there.node.asked, [])

    def test_message_that_is_not_understood_is_refused_signed(self) -> None:
        """A message of a newer node is refused so that the node believes it."""
        for body in (
            b"",
            b"\0",
            b"\0garbage",
            b"\1garbage",
            b"\2",
            CODEC.encode(ANSWER),
        ):
            self.assertEqual(self.refusal(self.send(body)).status, 400)
        self.assertEqual(self.there.node.asked, [])

    def test_another_secret_is_refused_unsigned(self) -> None:
        """Strangers learn nothing, not even by a signature."""
        self.assert_unsigned_400(self.send(CODEC.encode(ASK), key=b"x" * 32))
        self.assertEqual(self.there.node.asked, [])

    def test_other_methods_are_refused(self) -> None:
        """There is one thing that peers do: POST."""
        for method in ("GET", "PUT", "DELETE"):
            refused = self.refusal(self.send(CODEC.encode(ASK), method=method))
            self.assertEqual(refused.status, 404)
        self.assertEqual(self.there.node.asked, [])


class ComplaintTests(PeerApiCase):
    """The log."""

    def test_each_bad_peer_is_logged_now_and_then(self) -> None:
        """A peer with another secret does not fill the log."""
        for _ in range(5):
            self.send(CODEC.encode(ASK), key=b"x" * 32)
        self.assertEqual(len(self.warnings), 1)
        self.assertEqual(self.warnings[0]["peer"], "10.9.9.9")
        self.send(b"\0garbage")
        self.assertEqual([event["peer"] for event in self.warnings], ["10.9.9.9", ME])
        self.net.advance(COMPLAINT_INTERVAL_S + 0.1)
        self.send(CODEC.encode(ASK), key=b"x" * 32)
        self.assertEqual(len(self.warnings), 3)
