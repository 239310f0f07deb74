"""
How a node asks its peers: treq, over a few connections that are kept.

Invariants.  Every question ends within its limits, request and answer with their bodies
included, with an answer that was verified or with one of three errors: certainly not
sent, perhaps sent, not understood.  What was cut off leaves no connection behind that
could be used again.  Nothing is sent twice that does harm twice: only a question that
is idempotent is repeated, once, when a kept connection proves to have been closed.
"""

from __future__ import annotations

import secrets
from functools import partial
from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import Deferred, fail

from .addresses import AddressBook, Lookup, thread_lookup
from .connections import Connections, PeerPool, peer_agent
from .conversation import Conversation, Question, Wiring
from .core.causality import Name
from .core.codec import Codec
from .core.errors import PeerTimedOut, PeerUnreachable
from .core.messages import Forward, Operation, PeerRequest, Tell
from .core.settings import Settings
from .operations import Reply
from .signing import NONCE_BYTES, Signer

CONNECTIONS_KEPT_MAX = 8
"""Idle ones, per peer; more are made when more questions are under way."""
CONNECTION_IDLE_S = 30
"""Shorter than what the other end keeps them, so that it is us who close."""
QUESTIONS_MAX = 64
"""Under way to one peer."""
PEERS_MAX = 64
"""Whose connections are kept, besides those in use."""


class _Peer:
    """What is kept of one peer: connections, and what is under way."""

    def __init__(self, reactor: Any) -> None:
        self.pool = PeerPool(reactor, persistent=True)
        self.pool.maxPersistentPerHost = CONNECTIONS_KEPT_MAX
        self.pool.cachedConnectionTimeout = CONNECTION_IDLE_S
        # Twisted would repeat what it takes for idempotent; see Conversation.
        self.pool.retryAutomatically = False
        self.conversations: set[Conversation] = set()


class TreqTransport:
    """The ``PeerTransport`` of a real network."""

    def __init__(
        self,
        reactor: Any,
        *,
        signer: Signer,
        codec: Codec,
        settings: Settings,
        lookup: Lookup | None = None,
    ) -> None:
        """
        Take what belongs to this process; nothing is connected yet.

        :param reactor: provides IReactorTCP and IReactorTime, and IReactorFromThreads
            where ``lookup`` is absent.
        :param lookup: finds the addresses of hosts; absent: the operating system.
        """
        self._reactor = reactor
        self._codec = codec
        self._connections = Connections()
        self._wiring = Wiring(
            reactor=reactor,
            client=HTTPClient(peer_agent(reactor)),
            signer=signer,
            codec=codec,
            addresses=AddressBook(reactor, lookup=lookup or thread_lookup(reactor)),
            progress_s=settings.gossip_progress_s,
            new_nonce=partial(secrets.token_bytes, NONCE_BYTES),
            connections=self._connections,
        )
        self._peers: dict[Name, _Peer] = {}
        self._closed = False

    def ask(
        self, peer: Name, request: PeerRequest, *, connect_s: float, total_s: float
    ) -> Deferred[Reply]:
        """Ask a peer; see ``PeerTransport``."""
        if self._closed:
            return fail(PeerUnreachable("this node is stopping"))
        known = self._known(peer)
        if len(known.conversations) >= QUESTIONS_MAX:
            return fail(PeerUnreachable(f"{QUESTIONS_MAX} questions are under way"))
        conversation = Conversation(
            Question(
                peer=peer,
                body=self._codec.encode(request),
                repeatable=_is_repeatable(request),
                connect_s=connect_s,
                total_s=total_s,
            ),
            pool=known.pool,
            wiring=self._wiring,
        )
        known.conversations.add(conversation)

        def over(result: Any) -> Any:
            known.conversations.discard(conversation)
            return result

        return conversation.start().addBoth(over)

    def close(self) -> Deferred[None]:
        """
        Break off all questions and drop all connections.

        :returns: fires when they are gone.
        """
        self._closed = True
        for peer in self._peers.values():
            for conversation in list(peer.conversations):
                conversation.stop(
                    PeerTimedOut("this node is stopping")
                    if conversation.connected
                    else PeerUnreachable("this node is stopping")
                )
            peer.pool.closeCachedConnections()
        return self._connections.gone()

    def _known(self, peer: Name) -> _Peer:
        known = self._peers.pop(peer, None) or _Peer(self._reactor)
        # The order of the dict is that of use.
        unused = [
            name for name, other in self._peers.items() if not other.conversations
        ]
        for name in unused[: max(0, len(self._peers) + 1 - PEERS_MAX)]:
            self._peers.pop(name).pool.closeCachedConnections()
        self._peers[peer] = known
        return known


def _is_repeatable(request: PeerRequest) -> bool:
    if isinstance(request, Forward):
        return request.operation is Operation.GET
    return not isinstance(request, Tell)
