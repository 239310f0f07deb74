"""
Deltas between stores: made from one snapshot, applied whole or not at all (R7).

A delta that fits into one part is one message.  A greater one is served part by part
from the snapshot that is held for it, and staged by its receiver: invisible until one
small commit makes all of it valid.  Neither side ever holds more than a part in memory.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from .cluster import Cluster
from .core.causality import Name, VersionVector, join, leq, restrict
from .core.errors import BadPeerMessage, DiskFull, KVSError, PeerError
from .core.messages import (
    Delta,
    NextPart,
    PartAnswer,
    PeerAnswer,
    Pull,
    PullAnswer,
    Refused,
    Standing,
)
from .core.outcomes import Frontier, Stage
from .core.versions import Version
from .storage.api import START, Cursor, Snapshot, SnapshotLost

SESSION_BITS = 48


@dataclass(slots=True)
class _Session:
    """A delta in parts that a peer is fetching."""

    peer: Name
    snapshot: Snapshot
    base: VersionVector
    cursor: Cursor | None
    index: int
    touched: float
    listed: Cursor | None = None
    """Of a full join: where its list of live dots goes on (R10); None: at its end."""
    last: PartAnswer | None = None

    @property
    def ended(self) -> bool:
        """Whether the last part was given."""
        return self.cursor is None and self.listed is None


class DeltaSender:
    """Makes deltas for peers."""

    _log = Logger()

    def __init__(self, cluster: Cluster) -> None:
        """Serve from the storage of ``cluster``."""
        self._cluster = cluster
        self._sessions: dict[int, _Session] = {}
        # Drawn, so that no other run of this node, and no second process under its
        # name, goes on with a delta that this one began.
        self._numbers = cluster.rng.getrandbits(SESSION_BITS)

    @property
    def sending(self) -> int:
        """Count the deltas in parts that are under way."""
        return sum(not s.ended for s in self._sessions.values())

    def make(self, peer: Name, asker: VersionVector, *, one_part: bool) -> Delta | None:
        """
        List what ``asker`` lacks of what is durable here.

        Who has not all that this node has forgotten the pasts of is told all that is
        live, besides: a full join (R10).

        :param asker: the VV of the asker.
        :param one_part: give nothing rather than the first of several parts.
        :returns: the delta or its first part; None if it takes more than one part and
            that is not wanted or too many such are under way.
        """
        cluster, replica = self._cluster, self._cluster.replica
        durable = replica.durable
        if leq(durable.vv, asker):
            # A proxy's delta needs a base even if it is empty: it claims what the asker
            # had when it asked and may have lost since (hole H5).
            base = asker if replica.holds_all else restrict(asker, sorted(durable.vv))
            return self._delta(base, durable)
        self.forget_idle()
        held = False
        snapshot = cluster.storage.snapshot()
        try:
            state = snapshot.state
            frontier = replica.frontier_of(state)
            base = replica.delta_base(asker, frontier, holds_all=state.holds_all)
            full = not leq(frontier.floor, base)
            versions, cursor = self._list(snapshot, base, START)
            if cursor is None and not full:
                return self._delta(base, frontier, versions=versions)
            if one_part or not self._has_place(peer):
                return None
            held = True
        finally:
            if not held:
                snapshot.close()
        self._numbers += 1
        self._sessions[self._numbers] = _Session(
            peer, snapshot, base, cursor, 0, cluster.now(), START if full else None
        )
        what = "a full join" if full else "a delta in parts"
        self._log.info("sending {what} to {peer}", what=what, peer=peer)
        return self._delta(
            base, frontier, versions=versions, session=self._numbers, full=full
        )

    def _has_place(self, peer: Name) -> bool:
        """
        Tell whether another delta in parts may begin.

        Where all places are taken one is freed: of those that their receivers have
        given up most likely, as they began another or make no progress, the one that
        was asked for least lately.
        """
        settings = self._cluster.settings
        if self.sending < settings.delta_sessions_max:
            return True
        limit = self._cluster.now() - settings.gossip_progress_s
        given_up = [
            (session.touched, number)
            for number, session in self._sessions.items()
            if not session.ended and (session.peer == peer or session.touched < limit)
        ]
        if not given_up:
            return False
        self._sessions.pop(min(given_up)[1]).snapshot.close()
        return True

    def next_part(self, peer: Name, asked: NextPart) -> PartAnswer | Refused:
        """Go on with a session; the last part may be asked for again."""
        self.forget_idle()
        session = self._sessions.get(asked.session)
        if session is None or session.peer != peer:
            return Refused(404, "no such delta is under way: pull again")
        session.touched = self._cluster.now()
        if session.last is not None and asked.index == session.index:
            return session.last
        if asked.index != session.index + 1 or session.ended:
            return Refused(400, f"part {asked.index} is not the next")
        try:
            part = self._part(session)
        except SnapshotLost as error:
            self._log.warn("gave up a delta to {peer}: {error}", peer=peer, error=error)
            del self._sessions[asked.session]
            return Refused(404, str(error))
        session.index += 1
        session.last = part
        if not part.more:
            session.snapshot.close()
        return part

    def _part(self, session: _Session) -> PartAnswer:
        """First all versions, then, for a full join, the list of what is live."""
        if session.cursor is not None:
            versions, session.cursor = self._list(
                session.snapshot, session.base, session.cursor
            )
            return PartAnswer(versions=versions, more=not session.ended)
        assert session.listed is not None
        live, session.listed = session.snapshot.live(
            session.listed, dots_max=self._cluster.settings.delta_part_dots_max
        )
        return PartAnswer(versions=[], more=not session.ended, live=live)

    def forget_idle(self) -> None:
        """Let go of the snapshots that nobody asks on for."""
        limit = self._cluster.now() - self._cluster.settings.delta_session_idle_s
        for number in [n for n, s in self._sessions.items() if s.touched < limit]:
            self._sessions.pop(number).snapshot.close()

    def stop(self) -> None:
        """Let go of all snapshots."""
        for session in self._sessions.values():
            session.snapshot.close()
        self._sessions.clear()

    def _list(
        self, snapshot: Snapshot, base: VersionVector, after: Cursor
    ) -> tuple[list[Version], Cursor | None]:
        settings = self._cluster.settings
        return snapshot.missing(
            base,
            after,
            versions_max=settings.delta_part_versions_max,
            bytes_max=settings.delta_part_bytes_max,
        )

    def _delta(
        self,
        base: VersionVector,
        frontier: Frontier,
        *,
        versions: list[Version] | None = None,
        session: int = 0,
        full: bool = False,
    ) -> Delta:
        return Delta(
            base=dict(base),
            claim=dict(frontier.vv),
            lamport=frontier.lamport,
            standing=self._cluster.standing,
            versions=versions or [],
            session=session,
            floor=dict(frontier.floor),
            full=full,
        )


class DeltaReceiver:
    """Applies deltas of peers; one in parts at a time (R19)."""

    _log = Logger()

    def __init__(
        self, cluster: Cluster, completed: Callable[[Name, Standing], None]
    ) -> None:
        """
        Apply to the replica of ``cluster``.

        :param completed: told the peer and its standing when a delta is durable.
        """
        self._cluster = cluster
        self._completed = completed
        self.receiving: Name | None = None
        """From whom a delta in parts is under way."""
        self.received = 0
        """Versions of that delta that are stored by now."""
        self.applied = 0
        """Versions of all deltas that were applied."""

    async def take(self, peer: Name, delta: Delta) -> bool:
        """
        Apply a delta; fetch the other parts first if it has any.

        :returns: whether it was applied and is durable; False if its base did not fit
            or another one in parts is under way.
        :raises KVSError: if the peer broke off or the disk is full; nothing is applied.
        """
        cluster = self._cluster
        if not cluster.replica.holds_all:
            return False
        # Before it is applied: our next write must not have a dot that it knows.
        cluster.notice_clash(peer, delta.claim)
        if delta.session:
            if self.receiving is not None:
                return False
            applied = await self._take_parts(peer, delta)
        else:
            commit = cluster.replica.apply_delta(delta)
            applied = commit is not None
            if commit is not None:
                self.applied += len(delta.versions)
                await cluster.committer.durable(commit)
        if applied:
            self._completed(peer, delta.standing)
        return applied

    async def _take_parts(self, peer: Name, delta: Delta) -> bool:
        cluster = self._cluster
        # First: what is refused here is not under way.
        stage = cluster.replica.begin_stage(delta)
        self.receiving, self.received = peer, 0
        what = "a full join" if delta.full else "a delta in parts"
        self._log.info("receiving {what} from {peer}", what=what, peer=peer)
        ended = False
        try:
            await self._fetch(peer, delta, stage)
            commit = cluster.replica.finish_stage(stage)
            if commit is None:
                ended = True
                return False
            self.applied += stage.versions
            await cluster.committer.durable(commit)
            ended = True
        finally:
            self.receiving = None
            if not ended:
                # Also where the commit that would have made it valid found no room.
                cluster.replica.drop_stage(stage)
            cluster.committer.kick()
        self._log.info(
            "received {versions} versions from {peer}",
            versions=stage.versions,
            peer=peer,
        )
        return True

    async def _fetch(self, peer: Name, delta: Delta, stage: Stage) -> None:
        """Store all parts: one is fetched while the one before is committed."""
        cluster, settings = self._cluster, self._cluster.settings
        versions, live, more, index = delta.versions, None, True, 0
        while True:
            commit = cluster.replica.add_part(stage, versions, live)
            stored = cluster.committer.durable(commit)
            index += 1
            fetched = None
            if more:
                fetched = await _quietly(
                    cluster.ask(
                        peer,
                        NextPart(session=delta.session, index=index),
                        connect_s=settings.gossip_connect_s,
                        total_s=settings.gossip_total_s,
                    )
                )
            await stored
            self.received = stage.versions
            if fetched is None:
                return
            if isinstance(fetched, KVSError):
                raise fetched
            if not isinstance(fetched, PartAnswer):
                raise BadPeerMessage(f"{peer} answered with no part: {fetched!r:.200}")
            versions, live, more = fetched.versions, fetched.live, fetched.more


async def _quietly(answer: Awaitable[PeerAnswer]) -> PeerAnswer | KVSError:
    """Turn a failure into a value, so that what runs beside can be awaited first."""
    try:
        return await answer
    except KVSError as error:
        return error


class Pulls:
    """Pulls out of turn: one under way per peer, callers share them (R14)."""

    _log = Logger()

    def __init__(self, cluster: Cluster, receiver: DeltaReceiver) -> None:
        """Pull for the replica of ``cluster``."""
        self._cluster = cluster
        self._receiver = receiver
        self._running: dict[Name, list[Deferred[bool]]] = {}
        self._queued: dict[Name, list[Deferred[bool]]] = {}
        self.pulls = 0

    @property
    def receiving(self) -> bool:
        """Whether a delta in parts is under way."""
        return self._receiver.receiving is not None

    def pull(self, peer: Name, *, connect_s: float) -> Deferred[bool]:
        """
        Pull from a peer: a pull that *begins* after this call.

        Who comes while one is under way shares the next one.

        :returns: fires with whether there is no more to be had from the peer now: it
            gave all it has, or cannot be reached; False if it or this node was busy
            with a delta in parts.  Never fails.
        """
        waiter: Deferred[bool] = Deferred()
        if peer in self._running:
            self._queued.setdefault(peer, []).append(waiter)
        else:
            self._start(peer, [waiter], connect_s)
        return waiter

    def _start(
        self, peer: Name, waiters: list[Deferred[bool]], connect_s: float
    ) -> None:
        self._running[peer] = waiters
        self.pulls += 1
        ensureDeferred(self._pull(peer, connect_s)).addErrback(
            self._crashed
        ).addCallback(self._finished, peer, connect_s)

    def _crashed(self, failure: Failure) -> bool:
        self._log.failure("a pull failed", failure=failure)
        return False

    def _finished(self, given: bool, peer: Name, connect_s: float) -> None:
        waiters = self._running.pop(peer)
        queued = self._queued.pop(peer, None)
        if queued:
            self._start(peer, queued, connect_s)
        for waiter in waiters:
            if not waiter.called:
                waiter.callback(given)

    async def _pull(self, peer: Name, connect_s: float) -> bool:
        cluster, settings = self._cluster, self._cluster.settings
        if not cluster.replica.holds_all:
            return True
        try:
            answer = await cluster.ask(
                peer,
                Pull(
                    header=cluster.header(),
                    base=dict(cluster.replica.durable.vv),
                    one_part=self._receiver.receiving is not None,
                ),
                connect_s=connect_s,
                total_s=settings.gossip_progress_s,
            )
            if isinstance(answer, PullAnswer) and answer.delta is not None:
                # Whether or not it can be taken in here.
                known = cluster.record(peer).vv
                cluster.learn_vv(peer, join(known, answer.delta.claim))
                return await self._receiver.take(peer, answer.delta)
        except PeerError as error:
            self._log.debug("no pull from {peer}: {error}", peer=peer, error=error)
            cluster.skip(peer)
            return True
        except DiskFull:
            self._log.debug("a pull from {peer} found no room", peer=peer)
        return False
