"""
How a node asks its peers: treq, over a few connections that are kept.

Invariants.  Every question ends within its limits, request and answer with their bodies
included, with an answer that was verified or with one of three errors: certainly not
sent, perhaps sent, not understood.  What was cut off leaves no connection behind that
could be used again.  Nothing is sent twice that does harm twice: only a question that
is idempotent is repeated, when a kept connection proves to have been closed.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from functools import partial
from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import Deferred, ensureDeferred, fail
from twisted.internet.defer import TimeoutError as DeferredTimeoutError

from .addresses import AddressBook, Lookup, thread_lookup
from .connections import Connections, PeerPool, peer_agent
from .conversation import Conversation, Question, Wiring
from .core.causality import Name
from .core.codec import Codec
from .core.errors import PeerTimedOut, PeerUnreachable
from .core.messages import Forward, Operation, PeerRequest, Tell
from .core.settings import Settings
from .metrics import Traffic
from .operations import Reply
from .signing import NONCE_BYTES, Signer

CONNECTIONS_KEPT_MAX = 16
"""Idle ones, per peer; more are made when more questions are under way."""
CONNECTION_IDLE_S = 30
"""Shorter than what the other end keeps them, so that it is us who close."""
QUESTIONS_MAX = 64
"""Under way to one peer; others wait for their turn.  Of connections, as many are being
made at most, some of them for questions that wait no more."""
PEERS_MAX = 64
"""Whose connections are kept, besides those in use."""


class _Peer:
    """What is kept of one peer: connections, and what is under way."""

    def __init__(self, reactor: Any) -> None:
        self.pool = PeerPool(
            reactor,
            kept_max=CONNECTIONS_KEPT_MAX,
            making_max=QUESTIONS_MAX,
            idle_s=CONNECTION_IDLE_S,
        )
        self.conversations: set[Conversation] = set()
        self.waiting: dict[Deferred[None], None] = {}
        """Questions that wait for the end of another, the first to come first."""


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
        self.traffic = Traffic()
        """Questions sent, answers received."""
        self._wiring = Wiring(
            reactor=reactor,
            client=HTTPClient(peer_agent(reactor)),
            signer=signer,
            codec=codec,
            addresses=AddressBook(reactor, lookup=lookup or thread_lookup(reactor)),
            making_s=settings.gossip_connect_s,
            progress_s=settings.gossip_progress_s,
            new_nonce=partial(secrets.token_bytes, NONCE_BYTES),
            connections=self._connections,
            traffic=self.traffic,
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
        question = Question(
            peer=peer,
            body=self._codec.encode(request),
            repeatable=_is_repeatable(request),
            connect_s=connect_s,
            total_s=total_s,
        )
        if len(known.conversations) >= QUESTIONS_MAX or known.waiting:
            return ensureDeferred(self._in_turn(known, question))
        return self._converse(known, question)

    def _converse(self, known: _Peer, question: Question) -> Deferred[Reply]:
        conversation = Conversation(question, pool=known.pool, wiring=self._wiring)
        known.conversations.add(conversation)

        def over(result: Any) -> Any:
            known.conversations.discard(conversation)
            if known.waiting:
                # In a turn of its own: where all fail at once the next may, too.
                self._reactor.callLater(0, self._next, known)
            return result

        return conversation.start().addBoth(over)

    def _next(self, known: _Peer) -> None:
        if known.waiting:
            next(iter(known.waiting)).callback(None)

    async def _in_turn(self, known: _Peer, question: Question) -> Reply:
        """Wait for a place, which counts as connecting: a burst is no failure."""
        began = self._reactor.seconds()
        turn: Deferred[None] = Deferred()
        known.waiting[turn] = None
        turn.addBoth(_leave, known.waiting, turn)
        try:
            await turn.addTimeout(
                min(question.connect_s, question.total_s), self._reactor
            )
        except DeferredTimeoutError:
            raise PeerUnreachable(f"{QUESTIONS_MAX} questions are under way") from None
        waited = self._reactor.seconds() - began
        return await self._converse(
            known,
            replace(
                question,
                connect_s=question.connect_s - waited,
                total_s=question.total_s - waited,
            ),
        )

    def close(self) -> Deferred[None]:
        """
        Break off all questions and drop all connections.

        :returns: fires when they are gone.
        """
        self._closed = True
        for peer in self._peers.values():
            for turn in list(peer.waiting):
                turn.errback(PeerUnreachable("this node is stopping"))
            for conversation in list(peer.conversations):
                conversation.stop(
                    PeerTimedOut("this node is stopping")
                    if conversation.connected
                    else PeerUnreachable("this node is stopping")
                )
            peer.pool.close()
        return self._connections.gone()

    def _known(self, peer: Name) -> _Peer:
        known = self._peers.pop(peer, None) or _Peer(self._reactor)
        # The order of the dict is that of use.
        unused = [
            name for name, other in self._peers.items() if not other.conversations
        ]
        for name in unused[: max(0, len(self._peers) + 1 - PEERS_MAX)]:
            self._peers.pop(name).pool.close()
        self._peers[peer] = known
        return known


def _leave(result: Any, waiting: dict[Deferred[None], None], turn: Any) -> Any:
    del waiting[turn]
    return result


def _is_repeatable(request: PeerRequest) -> bool:
    if isinstance(request, Forward):
        return request.operation is Operation.GET
    return not isinstance(request, Tell)
