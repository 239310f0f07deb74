"""
The node: where the replica, its storage and its peers meet.

Each operation of the contract exists once, here, apart from HTTP.  The node persists
before it answers or sends: a result of the replica names the commit that must be
durable first, and every path from there to a client or a peer waits for it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import Deferred, ensureDeferred, maybeDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from .answers import Answers
from .cluster import Cluster
from .committer import Committer
from .compacting import Compacting
from .configuration import settle_configuration
from .core.causality import EMPTY, Name, leq
from .core.errors import (
    DiskFull,
    KVSError,
    Overloaded,
    Removed,
    SlowDisk,
    StorageFull,
)
from .core.messages import (
    Commit,
    CommitResult,
    Exchange,
    Forward,
    ForwardAnswer,
    Hello,
    NextPart,
    Operation,
    PeerAnswer,
    PeerRequest,
    Pull,
    Push,
    Refused,
    ReplicaState,
    Standing,
    Tell,
    TellAnswer,
)
from .core.payload import Payload, PayloadCodec
from .core.replica import Replica
from .core.retiring import has_marker
from .core.settings import Settings
from .core.shrinking import grow
from .core.view import ReplicaCount, View
from .deltas import DeltaReceiver, DeltaSender, Pulls
from .exchange import Exchanges
from .forwarding import Forwarder, Request
from .membership import Membership
from .operations import Answer, PeerTransport
from .pushes import Pushes
from .reading import CausalFetch
from .status import describe
from .storage.api import Storage

_T = TypeVar("_T")
K_DEFAULT = 3
"""K of a node that was given none, until it learns the cluster's (R16)."""
NOT_SERVING = 421


class Node:
    """One node of the cluster; implements ``Operations``."""

    _log = Logger()

    def __init__(
        self,
        *,
        me: Name,
        settings: Settings,
        storage: Storage,
        transport: PeerTransport,
        payloads: PayloadCodec,
        clock: IReactorTime,
        wall_us: Callable[[], int],
        rng: random.Random,
        boot_id: int,
        first_view: View,
        replica_count: int | None,
        fatal: Callable[[Failure], None],
    ) -> None:
        """
        Make a node; it does nothing before ``start``.

        :param wall_us: the wall clock, microseconds since the epoch; only timestamps of
            writes read it.
        :param boot_id: 64 random bits of this process (R1).
        :param first_view: VIEW; a view that the storage keeps is newer.
        :param replica_count: K as given at this start; None: not given.
        :param fatal: called when the process must end.
        """
        self.me = me
        self.settings = settings
        self.payloads = payloads
        self._storage = storage
        self._transport = transport
        self._clock = clock
        self._wall_us = wall_us
        self._rng = rng
        self._boot_id = boot_id
        self._first_view = first_view
        self._k_given = replica_count
        self._fatal = fatal
        self._stopping = False
        self._working = 0
        self._idle: list[Deferred[None]] = []
        self._folding: IDelayedCall | None = None
        self.cluster: Cluster

    def start(self, stored: ReplicaState | None) -> None:
        """
        Begin to work; looks for a node that serves.

        :param stored: what ``storage.open`` returned.
        """
        count = (
            ReplicaCount(0, K_DEFAULT)
            if self._k_given is None
            else ReplicaCount(1, self._k_given)
        )
        fresh = Replica.fresh_state(self._first_view, count)
        state = stored or fresh
        self.replica = Replica(
            name=self.me, reader=self._storage, stored=state, rng=self._rng
        )
        self.cluster = cluster = Cluster(
            me=self.me,
            boot_id=self._boot_id,
            settings=self.settings,
            clock=self._clock,
            wall_us=self._wall_us,
            rng=self._rng,
            replica=self.replica,
            storage=self._storage,
            transport=self._transport,
        )
        cluster.committer = Committer(
            self.replica,
            self._storage,
            stored=state,
            settings=self.settings,
            clock=self._clock,
            rng=self._rng,
            published=self._published,
            fatal=self._fatal,
        )
        settle_configuration(
            self.replica,
            stored,
            first_view=self._first_view,
            k_given=self._k_given,
        )
        cluster.write_ages.found(state.vv, self.me, cluster.now())
        self._connect_parts()
        if cluster.committer.result.unfolded:
            self._fold_soon()
        self.membership.start()

    def _connect_parts(self) -> None:
        cluster = self.cluster
        self.membership = Membership(cluster)
        cluster.committer.taken_back = self.membership.taken_back
        self.pushes = Pushes(cluster)
        self.sender = DeltaSender(cluster)
        self.receiver = DeltaReceiver(cluster, self.membership.completed)
        self.pulls = Pulls(cluster, self.receiver)
        self.exchanges = Exchanges(
            cluster,
            sender=self.sender,
            receiver=self.receiver,
            pulls=self.pulls,
            adopt=self.membership.adopt,
            completed=self.membership.completed,
        )
        self.membership.start_exchange = self.exchanges.start
        self.compacting = Compacting(cluster)
        self.answers = Answers(cluster, self.payloads)
        self.forwarder = Forwarder(cluster)
        self.fetch = CausalFetch(cluster, self.pulls)

    def gossip_round(self) -> None:
        """
        One beat: start exchanges, let roles follow; returns at once, never raises.
        """
        if self._stopping:
            return
        try:
            self.membership.settle()
            self.membership.step_down()
            self.sender.forget_idle()
            self.exchanges.round()
            # A forwarded write is in a proxy's clock and waits for no commit there.
            self.cluster.committer.kick()
            self.compacting.beat()
        except Exception:
            self._log.failure("a beat of gossip failed")

    async def _stop(self) -> None:
        self._stopping = True
        self._fold_no_more()
        self.compacting.stop()
        if self._working:
            idle: Deferred[None] = Deferred()
            self._idle.append(idle)
            timer = self._clock.callLater(self.settings.request_s, _fire, idle)
            await idle
            if timer.active():
                timer.cancel()
        # Not earlier: requests may wait for its timer.
        self.membership.stop()
        await self.cluster.committer.drained()
        self.cluster.committer.stop()
        self.sender.stop()

    def stop(self) -> Deferred[None]:
        """Refuse new requests, finish those under way; fires within about a second."""
        return ensureDeferred(self._stop())

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping

    def halt(self) -> None:
        """Be dead at once, as after kill -9: for simulations; nothing is finished."""
        self._stopping = True
        self._fold_no_more()
        self.compacting.stop()
        self.membership.stop()
        self.cluster.committer.stop()
        self.cluster.halt()

    def _published(self, commit: Commit, result: CommitResult) -> None:
        if commit.minted:
            self.cluster.write_ages.durable(commit.minted, self.cluster.now())
            self.pushes.push(commit.minted)
        if result.unfolded:
            self._fold_soon()

    def _fold_soon(self) -> None:
        # A turn for each slice: a store in memory would fold all of them in this one.
        if self._folding is None and not self._stopping:
            self._folding = self._clock.callLater(0, self._fold)

    def _fold(self) -> None:
        self._folding = None
        self.replica.fold(self.settings.fold_versions)
        self.cluster.committer.kick()

    def _fold_no_more(self) -> None:
        if self._folding is not None:
            self._folding.cancel()
            self._folding = None

    def get(self, key: str, payload: Payload) -> Deferred[Answer]:
        """Read a key: 200 or 404; fails with a ``KVSError`` only."""
        payload = self.read_payload(payload)
        if self._shows_at_once(key, payload):
            return maybeDeferred(self._show, key, payload)
        return self._work(self._request(self._parse(Operation.GET, key, None, payload)))

    def put(self, key: str, value: bytes, payload: Payload) -> Deferred[Answer]:
        """Write a key: 201 or 200; fails with a ``KVSError`` only."""
        request = self._parse(Operation.PUT, key, value, payload)
        return self._work(self._request(request))

    def delete(self, key: str, payload: Payload) -> Deferred[Answer]:
        """Delete a key: 200, or 404 for none; fails with a ``KVSError`` only."""
        request = self._parse(Operation.DELETE, key, None, payload)
        return self._work(self._request(request))

    def _parse(
        self, operation: Operation, key: str, value: bytes | None, payload: Payload
    ) -> Request:
        return Request(
            operation=operation,
            key=key,
            value=value,
            payload=self.read_payload(payload),
            deadline=self._clock.seconds() + self.settings.request_s,
        )

    async def _request(self, request: Request) -> Answer:
        """Answer here or let a replica answer."""
        cluster = self.cluster
        if self._stopping:
            raise Overloaded("this node is stopping")
        if cluster.removed:
            raise Removed(f"{self.me} was removed from the view, ask a member")
        await self.membership.looked()
        if cluster.is_replica and cluster.standing is not Standing.LAGGING:
            serving = cluster.standing is Standing.SERVING
            turn = serving and self.settings.spread
            if not turn and not self._must_hand_on(request):
                return await self._here_or_elsewhere(request)
            targets = self.forwarder.targets(and_me=turn)
            if turn and targets[:1] == [self.me] and not self._must_hand_on(request):
                return await self._here_or_elsewhere(request)
            targets = [name for name in targets if name != self.me]
        else:
            targets = self.forwarder.targets()
        answer = await self.forwarder.forward(request, targets)
        if answer is not None:
            return answer
        return await self._here(request)

    def _must_hand_on(self, request: Request) -> bool:
        return request.operation is not Operation.GET and self.cluster.committer.full

    async def _here_or_elsewhere(self, request: Request) -> Answer:
        try:
            return await self._here(request)
        except StorageFull:
            # Found by this very write, of which nothing is stored.
            answer = await self.forwarder.forward(request, self.forwarder.targets())
            if answer is None:
                raise
            return answer

    async def _here(self, request: Request) -> Answer:
        if request.operation is Operation.GET:
            return await self._read_here(request)
        return (await self._change_here(request))[0]

    async def _read_here(self, request: Request) -> Answer:
        """R14: wait for what the payload names, then show what is durable."""
        payload = request.payload
        if self.replica.lacks(request.key, payload.vector):
            await self.fetch.for_read(request.key, payload.vector, request.deadline)
            answer = await self._read_where_it_is(request)
            if answer is not None:
                return answer
        return self._show(request.key, payload)

    async def _read_where_it_is(self, request: Request) -> Answer | None:
        """
        Let a replica answer that has told to have what cannot be had here.

        A full disk keeps a node from taking it in, and a bad line large messages.
        """
        missing = self.replica.lacks(request.key, request.payload.vector)
        if not missing:
            return None
        targets = [
            name
            for name in self.forwarder.targets()
            if leq(missing, self.cluster.record(name).vv)
        ]
        try:
            return await self.forwarder.forward(request, targets)
        except Overloaded:
            return None

    async def _change_here(self, request: Request) -> tuple[Answer, Payload | None]:
        """
        Write or delete.

        A delete looks first, as a read does: 404 and no write only if nothing is shown
        and nothing that the client knows is missing (R9).

        :returns: the answer, and the payload of the write if there was one.
        """
        key, vector = request.key, request.payload.vector
        if request.operation is Operation.DELETE:
            if self.replica.lacks(key, vector):
                await self.fetch.for_read(key, vector, request.deadline)
            if not self.replica.shows(key) and not self.replica.lacks(key, vector):
                return self._show(key, request.payload), None
        elif self.replica.applied_lacks(key, vector):
            await self.fetch.for_write(key, vector, request.deadline)
        return await self._write_here(request)

    def _shows_at_once(self, key: str, payload: Payload) -> bool:
        """Most reads: nothing to wait for, nobody else to ask."""
        cluster = self.cluster
        return (
            cluster.standing is Standing.SERVING
            and cluster.is_replica
            and not self._stopping
            and not self.settings.spread
            and not self.replica.lacks(key, payload.vector)
        )

    def _show(self, key: str, payload: Payload) -> Answer:
        """R14: show what is durable, stale or not."""
        return self.answers.of_read(key, self.replica.read(key, payload))

    async def _write_here(self, request: Request) -> tuple[Answer, Payload]:
        """R3: mint, make durable, let one other replica have it, answer."""
        cluster, committer = self.cluster, self.cluster.committer
        if request.forwarded and cluster.now() >= request.deadline:
            raise Overloaded("too late: the asker has given up")
        if committer.full:
            raise StorageFull("the disk takes no more and no replica can be reached")
        size = len(request.value or b"")
        if committer.waiting_bytes + size > self.settings.commit_bytes_max:
            raise Overloaded("too many bytes wait for the disk")
        committer.waiting_bytes += size
        payload = self.read_payload(request.payload)
        unread = EMPTY
        if has_marker(payload.vector):
            # Only a node that has lost touch: to come after what cannot be read would
            # make a past that is not closed.
            unread, payload = payload.vector, Payload(EMPTY, payload.lamport)
        # Now, not when it came: a commit that failed meanwhile would have undone it.
        self.replica.hear_clock(request.seen)
        written = self.replica.put(
            request.key, request.value, payload, wall_us=self._wall_us()
        )
        left = request.deadline - cluster.now()
        try:
            await committer.durable(written.commit).addTimeout(
                max(left, 0), self._clock
            )
        except DiskFull as error:
            raise StorageFull(str(error)) from None
        except DeferredTimeoutError:
            raise SlowDisk(
                "the disk is slow: the write may or may not be kept"
            ) from None
        # Not before: S outlives a failed commit, and must not name what that took back.
        self.replica.answered(written.payload.vector)
        if not cluster.alone:
            await self.pushes.acknowledged(written.version.dot)
        return self.answers.of_write(written, unread=unread), written.payload

    def read_payload(self, payload: Payload) -> Payload:
        """Read a payload as ``Answers.read_payload`` does."""
        return self.answers.read_payload(payload)

    def node_details(self) -> Answer:
        """Tell whether this node is a replica."""
        replica = "Yes" if self.cluster.is_replica else "No"
        return _json(200, {"result": "success", "replica": replica})

    def all_replicas(self) -> Answer:
        """List the replicas in view order."""
        replicas = list(self.cluster.replicas())
        return _json(200, {"result": "success", "replicas": replicas})

    def update_view(self, kind: str, name: Name) -> Deferred[Answer]:
        """Change the view; fails with a ``KVSError`` only."""
        return self._work(self._update_view(kind, name))

    async def _update_view(self, kind: str, name: Name) -> Answer:
        if self._stopping:
            raise Overloaded("this node is stopping")
        number, alive = await self.membership.update_view(kind, name)
        fields: dict[str, object] = {"result": "success", "msg": "success"}
        if kind == "add":
            fields["node_id"] = number
        fields["number_of_nodes"] = alive
        return _json(200, fields)

    def status(self) -> dict[str, object]:
        """Describe the node for its operator; JSON-able."""
        return describe(self.cluster, self.compacting)

    def answer_peer(
        self, sender: Name, boot_id: int, request: PeerRequest
    ) -> Deferred[PeerAnswer]:
        """Answer a peer whose signature was verified; never fails, refuses instead."""
        answering = ensureDeferred(self._answer_grown(sender, boot_id, request))
        return answering.addErrback(self._refuse, sender)

    async def _answer_grown(
        self, sender: Name, boot_id: int, request: PeerRequest
    ) -> PeerAnswer:
        grown = grow(request, self.replica.durable.retired)
        answer = await self._answer_peer(sender, boot_id, grown)
        return self.cluster.shrunk(sender, answer)

    def _refuse(self, failure: Failure, sender: Name) -> PeerAnswer:
        error = failure.value
        if isinstance(error, KVSError):
            self.exchanges.warn(sender, error)
            return Refused(error.status, str(error))
        self._log.failure("could not answer {peer}", failure=failure, peer=sender)
        return Refused(500, "internal error")

    async def _answer_peer(
        self, sender: Name, boot_id: int, request: PeerRequest
    ) -> PeerAnswer:
        cluster = self.cluster
        if sender == self.me:
            if boot_id != self._boot_id:
                another = KVSError(f"another process runs under our name, {self.me}")
                self.exchanges.warn(self.me, another)
            return Refused(400, f"you use my name, {self.me}")
        if self._stopping:
            # Not 503: that would speak of load, and of all if there is no other.
            return Refused(NOT_SERVING, "this node is stopping")
        cluster.heard(sender, boot_id)
        header = getattr(request, "header", None)
        if header is not None:
            cluster.learn_header(sender, boot_id, header)
        match request:
            case Hello():
                answer = self.exchanges.answer_hello(sender, request)
                self.exchanges.heard_hello(sender, request)
                return answer
            case Exchange():
                return await self.exchanges.answer_exchange(sender, request)
            case Pull():
                return self.exchanges.answer_pull(sender, request)
            case NextPart():
                return self.sender.next_part(sender, request)
            case Push():
                return await self.exchanges.answer_push(sender, request)
            case Forward():
                return await self._work(self._answer_forward(request))
            case Tell():
                self.membership.told(sender, request)
                await cluster.committer.durable(self.replica.last_commit)
                return TellAnswer(cluster.header())

    async def _answer_forward(self, forward: Forward) -> PeerAnswer:
        """Answer for another node, or refuse: one hop at most (R13)."""
        cluster = self.cluster
        if cluster.removed:
            return Refused(Removed.status, f"{self.me} was removed from the view")
        if not cluster.view.entries:
            # Added, and not told yet: it would answer as the only member.
            return Refused(NOT_SERVING, f"{self.me} has no view")
        if not cluster.is_replica or cluster.standing is Standing.LAGGING:
            return Refused(NOT_SERVING, f"{self.me} does not serve")
        payload = Payload(forward.vector, forward.lamport)
        putting = forward.operation is Operation.PUT
        value = forward.value if putting else None
        request = self._parse(forward.operation, forward.key, value, payload)
        own = self._clock.seconds() + forward.budget_ms / 1000
        limit = min(request.deadline, own)
        request = replace(
            request, deadline=limit, forwarded=True, seen=dict(forward.seen)
        )
        minted = None
        if forward.operation is Operation.GET:
            answer = await self._read_here(request)
        else:
            answer, minted = await self._change_here(request)
        vector = dict(minted.vector) if minted else {}
        lamport = minted.lamport if minted else self.replica.durable.lamport
        return ForwardAnswer(
            status=answer.status,
            body=answer.body,
            headers=list(answer.headers),
            vector=vector,
            lamport=lamport,
        )

    def _work(self, coroutine: Coroutine[Deferred[Any], Any, _T]) -> Deferred[_T]:
        """Run an operation; ``stop`` waits for it."""
        self._working += 1

        def done(result: _T | Failure) -> _T | Failure:
            self._working -= 1
            if not self._working:
                waiting, self._idle = self._idle, []
                for idle in waiting:
                    _fire(idle)
            return result

        working: Deferred[_T] = ensureDeferred(coroutine)
        working.addBoth(done)
        return working


def _json(status: int, fields: dict[str, object]) -> Answer:
    return Answer(status, msgspec.json.encode(fields))


def _fire(waiting: Deferred[None]) -> None:
    if not waiting.called:
        waiting.callback(None)
