"""
The seams between the node and its edges: what HTTP calls, and how peers are asked.

Each operation exists once, in the node, apart from HTTP; a route only parses, calls and
answers.  So a simulation, a test or a faster lane can call the same code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from twisted.internet.defer import Deferred

from .core.causality import Name
from .core.messages import PeerAnswer, PeerRequest
from .core.payload import Payload, PayloadCodec
from .core.settings import Settings


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client gets; also what a forwarder passes on unchanged."""

    status: int
    body: bytes
    """JSON."""
    headers: tuple[tuple[str, str], ...] = ()
    """``KVS-*``, ``Allow`` and ``Retry-After`` only."""


class Operations(Protocol):
    """A node, as its edges see it.  Every Deferred fires within the time budget."""

    @property
    def settings(self) -> Settings:
        """The limits that the edge applies."""

    @property
    def payloads(self) -> PayloadCodec:
        """Verifies causal payloads before anything else is done."""

    def get(self, key: str, payload: Payload) -> Deferred[Answer]:
        """Read a key (R14): 200 or 404; fails with a ``KVSError`` only."""

    def put(self, key: str, value: bytes, payload: Payload) -> Deferred[Answer]:
        """
        Write a key (R3): 200 or 201; fails with a ``KVSError`` only.

        The Deferred is not to be cancelled; a client that hangs up must not do so.

        :param value: JSON text, UTF-8.
        """

    def delete(self, key: str, payload: Payload) -> Deferred[Answer]:
        """
        Delete a key (R9): 200; 404, and nothing written, if there is nothing to delete.

        That is: nothing is visible, and the payload is covered.  Fails with a
        ``KVSError`` only.  Cancelling the Deferred does not undo the delete.
        """

    def node_details(self) -> Answer:
        """Tell whether this node is a replica."""

    def all_replicas(self) -> Answer:
        """List the replicas in view order."""

    def update_view(self, kind: str, name: Name) -> Deferred[Answer]:
        """Change the view: ``kind`` is "add" or "remove" (checked by the caller)."""

    def answer_peer(
        self, sender: Name, boot_id: int, request: PeerRequest
    ) -> Deferred[PeerAnswer]:
        """
        Answer a peer whose signature was verified; never fails, refuses instead.

        :param boot_id: of the sender's process (R1).
        """


class Reply(NamedTuple):
    """A verified answer of a peer."""

    boot_id: int
    answer: PeerAnswer


class PeerTransport(Protocol):
    """Asks peers.  Carries bytes, knows nothing of causality."""

    def ask(
        self, peer: Name, request: PeerRequest, *, connect_s: float, total_s: float
    ) -> Deferred[Reply]:
        """
        Ask once.

        Nothing is repeated, but for one case: a kept connection proves to be closed
        before any of the answer came, and the request is not a forwarded write or a
        ``Tell``.

        :param connect_s: to have a connection, the name look-up included.
        :param total_s: for the whole, body included; a transfer without progress for
            ``gossip_progress_s`` is given up earlier.
        :returns: fires with the peer's answer, ``Refused`` included; fails with
            ``PeerUnreachable`` (certainly not sent), ``PeerTimedOut`` (sent, or
            perhaps) or ``BadPeerMessage`` (garbage, unsigned, another secret).  May be
            cancelled.
        """

    def close(self) -> Deferred[None]:
        """Drop all connections; fires when they are gone."""
