"""Peers whose host names lead to them, wherever they are."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from tests.peer_case import ANSWER, Peer, PeerCase
from twisted_kvs.addresses import FRESH_S, RETRY_S
from twisted_kvs.core.causality import Name
from twisted_kvs.core.errors import BadPeerMessage, PeerUnreachable
from twisted_kvs.operations import Reply
from twisted_kvs.peers import CONNECTION_IDLE_S


class NameTests(PeerCase):
    """Peers that are known by host name."""

    NAMED = Name("box_1:80")

    def setUp(self) -> None:
        """Let the peer have a name."""
        super().setUp()
        self.named = Peer(self.net, self.NAMED)
        self.net.listen("10.0.0.3", 80, self.named.site)
        self.names["box_1"] = ["10.0.0.3"]

    def test_named_peer_is_reached(self) -> None:
        """Also by names that are none in the DNS proper, as containers have."""
        self.assertEqual(self.successResultOf(self.ask(peer=self.NAMED)).answer, ANSWER)

    def test_unknown_name_is_unreachable(self) -> None:
        """A name without an address is a peer that is not there."""
        self.failureResultOf(self.ask(peer=Name("nowhere:80")), PeerUnreachable)

    def test_hanging_look_up_counts_as_connecting(self) -> None:
        """Dead DNS takes no longer than a connection may."""
        self.transport._wiring.addresses._lookup = lambda _: Deferred()
        asked = self.ask(peer=self.NAMED, connect_s=0.3)
        self.net.advance(0.4)
        self.failureResultOf(asked, PeerUnreachable)

    def test_second_address_is_tried_at_once(self) -> None:
        """A host with two addresses is reached by the one that answers."""
        self.names["box_1"] = ["fd00::9", "10.0.0.3"]
        self.successResultOf(self.ask(peer=self.NAMED))

    def test_an_address_that_never_answers_is_tried_last(self) -> None:
        """A host is reached at the next try, though its first address is dead."""
        self.names["box_1"] = ["fd00::9", "10.0.0.3"]
        self.net.dropped.add(("fd00::9", 80))
        self.failureResultOf(self.ask_for_a_while(1.0), PeerUnreachable)
        self.successResultOf(self.ask_for_a_while(0.3))
        # Also when it was looked up again, and the kept connections are closed.
        self.net.advance(FRESH_S + CONNECTION_IDLE_S)
        self.successResultOf(self.ask_for_a_while(0.3))
        self.successResultOf(self.ask_for_a_while(0.3))

    def ask_for_a_while(self, connect_s: float) -> Deferred[Reply]:
        """Ask the named peer, and let that time go by."""
        asked = self.ask(peer=self.NAMED, connect_s=connect_s)
        self.net.advance(connect_s + 0.1)
        return asked

    def test_peer_that_moved_is_found_again(self) -> None:
        """A container that got another address is reached there soon."""
        for silent in (False, True):
            self.names["box_1"] = ["10.0.0.3"]
            self.net.listen("10.0.0.3", 80, self.named.site)
            self.net.advance(FRESH_S)
            self.ask(peer=self.NAMED).addErrback(lambda _: None)
            self.net.advance(1.1)
            self.successResultOf(self.ask(peer=self.NAMED))
            # The host gets another address; the old one refuses, or says nothing.
            self.names["box_1"] = ["10.0.0.4"]
            self.net.listen("10.0.0.4", 80, self.named.site)
            if silent:
                self.net.dropped.add(("10.0.0.3", 80))
            else:
                self.net.stop("10.0.0.3", 80)
            for near, _ in self.net.connections:
                near.abortConnection()
            asked = self.ask(peer=self.NAMED, connect_s=0.3)
            self.net.advance(1.1)
            self.failureResultOf(asked, PeerUnreachable)
            # That it failed makes the name be looked up.
            asked = self.ask(peer=self.NAMED, connect_s=0.3)
            self.net.advance(0.4)
            asked.addErrback(lambda _: None)
            self.successResultOf(self.ask(peer=self.NAMED, connect_s=0.3))

    def test_peer_whose_address_another_node_got_is_found_again(self) -> None:
        """Who answers there under another name makes the peer's be looked up soon."""
        self.successResultOf(self.ask(peer=self.NAMED))
        other = Peer(self.net, Name("box_2:80"))
        self.net.listen("10.0.0.3", 80, other.site)
        self.net.listen("10.0.0.4", 80, self.named.site)
        self.names["box_1"] = ["10.0.0.4"]
        for near, _ in self.net.connections:
            near.abortConnection()
        self.failureResultOf(self.ask(peer=self.NAMED), BadPeerMessage)
        self.net.advance(RETRY_S + 0.1)
        self.successResultOf(self.ask(peer=self.NAMED))
