"""
What a node knows of itself and its peers: the state that its parts share.

Who is alive, who is a replica, who serves; what each peer was last seen to have; and
the
one place where peers are asked, so that every signed word of a peer counts as evidence.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from .committer import Committer
from .core.causality import EMPTY, Actor, Name, VersionVector, join, leq
from .core.gossip import digest
from .core.liveness import Liveness
from .core.messages import Header, PeerAnswer, PeerRequest, Standing, Vectors
from .core.replica import Replica
from .core.retiring import NOTHING
from .core.settings import Settings
from .core.shrinking import grow, shrink
from .core.view import View
from .metrics import WriteAges
from .operations import PeerTransport, Reply
from .storage.api import Storage

ANEW_TOLD_S = 10.0
"""A peer that is started anew is told of in the log at most once in this time."""


@dataclass(slots=True)
class PeerRecord:
    """What a peer was last seen to have and to be."""

    boot_id: int = 0
    actor: Actor | None = None
    """Under whom it writes now."""
    retired: str = NOTHING
    """The generation of retired actors that it goes by (R20)."""
    standing: Standing = Standing.LAGGING
    holds_all: bool = False
    vv: VersionVector = field(default_factory=dict)
    """Grows only; starts again when the peer lost its state."""
    report: VersionVector | None = None
    """R12: what it has told to have when all of that was durable here, too; None: it
    has told nothing since it was started.  Its later writes come after it."""
    view: View = field(default_factory=View)
    """The view that it last told."""
    skip_until: float = 0.0
    """Not asked on behalf of clients before this moment (monotonic seconds)."""
    dialled: float = -1e9
    """When an exchange was last started."""
    told_anew: float = -1e9
    """When it was last told in the log that the peer was started anew."""
    exchanging: bool = False
    heard_header: bool = False


class Cluster:
    """One node's picture of itself and of the others."""

    _log = Logger()

    def __init__(
        self,
        *,
        me: Name,
        boot_id: int,
        settings: Settings,
        clock: IReactorTime,
        wall_us: Callable[[], int],
        rng: random.Random,
        replica: Replica,
        storage: Storage,
        transport: PeerTransport,
    ) -> None:
        """Start believing every member alive, and oneself lagging unless alone."""
        self.me = me
        self.boot_id = boot_id
        self.settings = settings
        self.clock = clock
        self.wall_us = wall_us
        self.rng = rng
        self.replica = replica
        self.storage = storage
        self.transport = transport
        self.committer: Committer
        self.liveness = Liveness(
            me, dead_after_s=settings.dead_after_s, probe_after_s=settings.probe_after_s
        )
        self.records: dict[Name, PeerRecord] = {}
        self.standing = Standing.LAGGING
        self.hash_mismatches = 0
        self.write_ages = WriteAges()
        self.pulling = True
        """False for a demoted replica that has stopped to pull (R15)."""
        self._digest: tuple[object, bytes] | None = None
        self.told_vv: Callable[[Name], None] = lambda peer: None
        """Called when a peer has just told what it has."""
        self.learned: Callable[[], None] = lambda: None
        """Called when a peer has told how it stands."""

    def now(self) -> float:
        """Monotonic seconds."""
        return float(self.clock.seconds())

    @property
    def view(self) -> View:
        """The view that the node goes by."""
        return self.replica.view

    @property
    def k(self) -> int:
        """How many replicas are wanted."""
        return self.replica.replica_count.k

    @property
    def alone(self) -> bool:
        """Whether there is no other member: nobody to catch up with or to ask."""
        return not (self.view.members - {self.me})

    @property
    def removed(self) -> bool:
        """Whether this node knows that it was removed from the view."""
        return self.view.removed(self.me)

    @property
    def peers(self) -> frozenset[Name]:
        """All other members, believed dead ones included."""
        return self.view.members - {self.me}

    def record(self, name: Name) -> PeerRecord:
        """What is known of a peer; made on first use."""
        found = self.records.get(name)
        if found is None:
            found = self.records[name] = PeerRecord()
        return found

    def forget_strangers(self) -> None:
        """Drop the records of names that the view never held."""
        for name in [n for n in self.records if not self.view.knows(n)]:
            del self.records[name]

    def alive(self) -> frozenset[Name]:
        """Members believed alive, this node among them."""
        return self.liveness.alive(self.now())

    def replicas(self) -> tuple[Name, ...]:
        """The first K live members in view order (R15); without a view, this node."""
        if not self.view.members:
            return () if self.removed else (self.me,)
        return self.view.replicas(self.k, self.alive())

    @property
    def is_replica(self) -> bool:
        """Whether this node is among the replicas now."""
        return self.me in self.replicas()

    @property
    def first_members(self) -> tuple[Name, ...]:
        """The first K members of the view, dead ones counted (R15)."""
        return self.view.order[: self.k]

    def skipped(self, name: Name) -> bool:
        """Whether a peer failed so lately that clients should not wait for it."""
        return self.record(name).skip_until > self.now()

    def skip(self, name: Name) -> None:
        """Do not ask a peer on behalf of clients for a while."""
        self.record(name).skip_until = self.now() + self.settings.peer_skip_s

    def serving_peers(self) -> list[Name]:
        """Live replicas that said that they serve, in view order, none skipped."""
        return [
            name
            for name in self.replicas()
            if name != self.me
            and self.record(name).standing is Standing.SERVING
            and not self.skipped(name)
        ]

    def digest(self) -> bytes:
        """Hash of what is durable: (VV, view, K)."""
        vv, view = self.replica.durable.vv, self.view
        retired = self.replica.durable.retired.head
        count = self.replica.replica_count if view.entries else None
        key = (vv, view, count, retired)
        if self._digest is None or self._digest[0] != key:
            self._digest = (key, digest(vv, view, count, retired=retired))
        return self._digest[1]

    def header(self) -> Header:
        """Tell how this node stands."""
        result = self.committer.result
        checkable = self.replica.holds_all and not result.unfolded
        return Header(
            actor=self.replica.actor,
            lamport=self.replica.durable.lamport,
            standing=self.standing,
            holds_all=self.replica.holds_all,
            digest=self.digest(),
            live_hash=result.live_hash if checkable else None,
            ages_ms=self.liveness.ages_ms(self.now()),
            retired=self.replica.durable.retired.head,
            whole=leq(self.replica.durable.dropped, self.replica.durable.vv),
        )

    def vectors(self, peer: Name) -> Vectors:
        """Tell a peer the durable vectors, the view, K, and who is retired."""
        durable = self.replica.durable
        same = self.record(peer).retired == durable.retired.head
        entries = self.view.entries
        return Vectors(
            vv=dict(durable.vv),
            clock=dict(durable.clock),
            view=dict(entries),
            replica_count=self.replica.replica_count if entries else None,
            retired=b"" if same else durable.retired.encode(),
            dropped=dict(durable.dropped),
        )

    @property
    def shared_generation(self) -> str:
        """
        The last generation that every member has said to know, for clients (R20).

        Who has said so once keeps it, unless it loses its disk: it flags its answers
        then, until it has met another.
        """
        return self.replica.shared_generation

    def note_shared(self) -> None:
        """See whether every member knows the generation that this node goes by."""
        head = self.replica.durable.retired.head
        if head != self.replica.shared_generation and all(
            self.record(peer).retired == head for peer in self.peers
        ):
            self.replica.share(head)
            self.committer.kick()

    def learn_header(self, peer: Name, boot_id: int, header: Header) -> None:
        """Take in what a peer says of itself."""
        self.heard(peer, boot_id)
        record = self.record(peer)
        record.standing = header.standing
        record.holds_all = header.holds_all
        record.actor = header.actor
        record.retired = header.retired
        record.heard_header = True
        self.liveness.heard_of(header.ages_ms, self.now())
        self.replica.hear_lamport(header.lamport)
        self.note_shared()
        if header.actor == self.replica.actor and boot_id != self.boot_id:
            self._log.error(
                "{peer} runs under our own actor {actor}: taking another",
                peer=peer,
                actor=header.actor,
            )
            self.replica.take_incarnation(self.rng)
        self.learned()

    def learn_vv(self, peer: Name, vv: VersionVector) -> None:
        """Take in what a peer has; detects dots of ours that we never minted (R1)."""
        self.record(peer).vv = vv
        self.notice_clash(peer, vv)
        self.told_vv(peer)

    def learn_report(self, peer: Name, vectors: Vectors) -> None:
        """
        Take what a peer has told of itself as its report, if all of it is here (R12).

        Both vectors are of one durable instant of the peer.  That the digest alone is
        told is not enough (hole H17): its own writes before it must be here, those
        included that it has dropped, while others had them and this node was away.
        """
        mine = self.replica.durable.vv
        if leq(vectors.vv, mine) and leq(vectors.dropped, mine):
            record = self.record(peer)
            record.report = vectors.vv
            if not record.holds_all:
                record.report = join(vectors.clock, vectors.vv)

    def lag_s(self, peer: Name) -> float | None:
        """
        Tell how old the oldest own write is that a peer has not said it has.

        :returns: seconds since it was durable here; 0.0 if there is none such; None for
            a proxy, which is not meant to have it.
        """
        record = self.record(peer)
        if not record.holds_all:
            return None
        return self.write_ages.oldest_lacking_s(record.vv, self.now())

    def notice_clash(self, peer: Name, vv: VersionVector) -> None:
        """Take another incarnation if a peer knows dots of ours never minted (R1)."""
        if self.replica.identity_clash(vv):
            self._log.error(
                "{peer} knows writes of {actor} that we never made: "
                "taking another incarnation",
                peer=peer,
                actor=self.replica.actor,
            )
            self.replica.take_incarnation(self.rng)

    def heard(self, peer: Name, boot_id: int) -> None:
        """Note a verified word of a peer."""
        if peer not in self.view.members:
            return
        self.liveness.heard(peer, self.now())
        record = self.record(peer)
        if record.boot_id != boot_id:
            record.skip_until = 0.0
            if record.boot_id:
                self._tell_anew(peer, record)
                record.standing = Standing.LAGGING
                record.vv = EMPTY
                record.report = record.actor = None
                record.retired = NOTHING
            record.boot_id = boot_id

    def _tell_anew(self, peer: Name, record: PeerRecord) -> None:
        # Two processes under one name seem to start anew with every message.
        if self.now() - record.told_anew >= ANEW_TOLD_S:
            record.told_anew = self.now()
            self._log.info("{peer} was started anew", peer=peer)

    def halt(self) -> None:
        """Ask nobody any more."""
        self.transport.close()

    async def ask(
        self, peer: Name, request: PeerRequest, *, connect_s: float, total_s: float
    ) -> PeerAnswer:
        """
        Ask a peer; its answer counts as evidence.

        :raises PeerError: as ``PeerTransport.ask`` does.
        """
        retired = self.replica.durable.retired
        shrunk = shrink(request, retired, self._known_to(peer))
        waiting: Deferred[Reply] = self.transport.ask(
            peer, shrunk, connect_s=connect_s, total_s=total_s
        )
        reply = await waiting
        self.heard(peer, reply.boot_id)
        # Both ways work again; that it was merely heard would not say so.
        self.record(peer).skip_until = 0.0
        header = getattr(reply.answer, "header", None)
        if isinstance(header, Header):
            self.learn_header(peer, reply.boot_id, header)
        return grow(reply.answer, self.replica.durable.retired)

    def _known_to(self, peer: Name) -> str:
        head = self.replica.durable.retired.head
        return head if self.record(peer).retired == head else NOTHING

    def shrunk(self, peer: Name, answer: PeerAnswer) -> PeerAnswer:
        """Write an answer with markers, where the peer can read them (R20)."""
        return shrink(answer, self.replica.durable.retired, self._known_to(peer))
