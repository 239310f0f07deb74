"""
Who belongs, who is a replica, who serves (R15, R16), and ``update_view``.

Roles follow the belief who is alive at once; data moves lazily behind them.  A node
serves after its first complete delta from a node that serves; where none can be reached
it answers provisionally and says so.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, ensureDeferred, gatherResults, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from .cluster import Cluster
from .core.causality import Name, actor_name, leq
from .core.errors import BadPeerMessage, BadRequest, Overloaded, PeerError
from .core.messages import (
    Hello,
    HelloAnswer,
    PeerAnswer,
    PeerRequest,
    Refused,
    Standing,
    Tell,
    Vectors,
)
from .core.view import ReplicaCount, View, may_adopt


class Membership:
    """Keeps role and standing of a node, and changes the view."""

    _log = Logger()

    def __init__(self, cluster: Cluster) -> None:
        """Keep those of ``cluster``."""
        self._cluster = cluster
        self._was_replica: bool | None = None
        self._alive: frozenset[Name] = frozenset()
        self._demoted_at: float | None = None
        self._covered_since: float | None = None
        """Since when all replicas have what this proxy wrote itself."""
        self._may_drop = False
        """It is time to drop all data, as soon as a replica says that it has them."""
        self._served_since_promotion = False
        self._met_first = False
        self._alone_since = 0
        """The commit with which this node began to serve for want of others."""
        self._looking: list[Deferred[None]] | None = None
        self._looks = 0
        self._hold: IDelayedCall | None = None
        self._announcing: IDelayedCall | None = None
        self.start_exchange: Callable[[Name], Deferred[bool]] = lambda _: succeed(False)
        """Set by the node: starts an exchange out of turn."""
        cluster.learned = self._learned
        cluster.told_vv = self._told_vv

    def start(self) -> None:
        """Begin lagging and look for a node that serves."""
        cluster = self._cluster
        cluster.liveness.watch(cluster.view.members, cluster.now())
        self._alive = cluster.alive()  # Only presumed: told when it turns out wrong.
        if cluster.is_replica:
            cluster.replica.set_holds_all(True)
        self._was_replica = None
        self.lag()
        self.settle()
        cluster.committer.kick()

    def settle(self) -> None:
        """
        Let the role follow who is believed alive; call on every change and beat.

        Promotion: start to pull.  Demotion: nothing at once, see ``step_down``.
        """
        cluster = self._cluster
        cluster.liveness.watch(cluster.view.members, cluster.now())
        self._tell_log(cluster.alive())
        is_replica = cluster.is_replica and not cluster.removed
        if is_replica and (not cluster.replica.holds_all or self._was_replica is False):
            # Also where a demoted node still has its data: others wrote meanwhile.
            cluster.replica.set_holds_all(True)
            cluster.committer.kick()
            cluster.pulling = True
            if self._looking is None:
                self.lag()
        if is_replica != self._was_replica:
            role = "a replica" if is_replica else "a proxy"
            self._log.info("{me} is {role} now", me=cluster.me, role=role)
            self._was_replica = is_replica
            self._demoted_at = None if is_replica else cluster.now()
        self.settle_standing()

    def _tell_log(self, alive: frozenset[Name]) -> None:
        members = self._cluster.view.members
        for name in sorted((self._alive - alive) & members):
            self._log.warn("{peer} is believed dead", peer=name)
        for name in sorted((alive - self._alive) & members):
            self._log.info("{peer} is alive", peer=name)
        self._alive = alive

    def settle_standing(self) -> None:
        """Serve at once where there is nobody to catch up with (R15)."""
        cluster = self._cluster
        if not cluster.is_replica:
            return
        if cluster.standing is Standing.SERVING:
            return
        first = cluster.first_members
        only_first = cluster.me in first and len(first) == 1
        if cluster.alone or only_first:
            self._alone_since = cluster.replica.last_commit
            self._serve("nobody to catch up with")
        elif self._looking is not None or cluster.serving_peers():
            cluster.standing = Standing.LAGGING
        elif self._met_first and not self._knows_one_that_serves():
            self._serve("met another of the first members, nobody serves yet")
        else:
            cluster.standing = Standing.PROVISIONAL

    def taken_back(self, durable: int) -> None:
        """
        What was applied after commit ``durable`` is dropped, as the disk is full.

        Who served since it had removed all others has them back, and lags.
        """
        if self._cluster.standing is Standing.SERVING and self._alone_since > durable:
            self._alone_since = 0
            self.lag()
            self.settle()

    def _knows_one_that_serves(self) -> bool:
        """Whether a live replica serves, be it one that clients should not wait for."""
        cluster = self._cluster
        return any(
            cluster.record(name).standing is Standing.SERVING
            for name in cluster.replicas()
            if name != cluster.me
        )

    def completed(self, peer: Name, standing: Standing) -> None:
        """A complete delta from ``peer``, which had this standing, is durable."""
        cluster = self._cluster
        if cluster.standing is Standing.SERVING or not cluster.is_replica:
            return
        if peer not in cluster.peers:
            # Who was removed has missed what the members wrote since.
            return
        first = cluster.first_members
        if standing is Standing.SERVING:
            self._serve(f"caught up with {peer}")
        elif cluster.me in first and peer in first:
            self._met_first = True
            self.settle_standing()

    def lag(self) -> None:
        """
        Be lagging: after a start, a promotion, an addition, or a loss of state.

        Looks for a node that serves: asks all members at once.
        """
        cluster = self._cluster
        cluster.standing = Standing.LAGGING
        self._served_since_promotion = self._met_first = False
        if cluster.alone:
            return
        self._looks += 1
        look = self._looks
        if self._looking is None:
            self._looking = []
        started = [self.start_exchange(peer) for peer in sorted(cluster.peers)]
        self._stop_looking()
        self._hold = cluster.clock.callLater(
            cluster.settings.start_hold_s, self._looked, look
        )
        gatherResults(started).addCallback(lambda _: self._looked(look))

    def looked(self) -> Deferred[None]:
        """Wait until one that serves was found, or all were asked, or 300 ms."""
        if self._looking is None:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._looking.append(waiter)
        return waiter

    def _learned(self) -> None:
        if self._looking is not None and self._cluster.serving_peers():
            self._looked(self._looks)

    def stop(self) -> None:
        """Cancel timers."""
        self._stop_looking()
        if self._announcing is not None and self._announcing.active():
            self._announcing.cancel()

    def _stop_looking(self) -> None:
        if self._hold is not None and self._hold.active():
            self._hold.cancel()

    def _looked(self, look: int) -> None:
        if self._looking is None or look != self._looks:
            return
        self._stop_looking()
        waiters, self._looking = self._looking, None
        self.settle_standing()
        for waiter in waiters:
            if not waiter.called:
                waiter.callback(None)

    def _serve(self, why: str) -> None:
        self._cluster.standing = Standing.SERVING
        self._served_since_promotion = True
        self._log.info("{me} serves: {why}", me=self._cluster.me, why=why)
        # In a turn of its own: the exchange that brought it may not have ended yet.
        self._announcing = self._cluster.clock.callLater(0, self._announce)

    def _announce(self) -> None:
        """Let all members know at once: proxies ask those that serve first."""
        for peer in sorted(self._cluster.peers):
            self.start_exchange(peer)

    def step_down(self) -> None:
        """Go on with a demotion (R15); call on every beat."""
        self._may_drop = False
        self._cluster.pulling = self._still_pulls()

    def _still_pulls(self) -> bool:
        cluster, replica = self._cluster, self._cluster.replica
        if cluster.is_replica or cluster.removed:
            return True
        if not replica.holds_all:
            self._may_drop = self._was_long_covered()
            return True
        cluster.standing = Standing.LAGGING
        own_only = all(actor_name(a) == cluster.me for a in replica.applied.vv)
        if not self._served_since_promotion and own_only:
            replica.set_holds_all(False)
            cluster.committer.kick()
            return False
        since = cluster.now() if self._demoted_at is None else self._demoted_at
        self._may_drop = cluster.now() - since >= cluster.settings.demotion_s
        return not self._may_drop

    def _was_long_covered(self) -> bool:
        """
        Tell whether all replicas have had what this proxy wrote itself for long enough.

        As a demoted replica waits: each drop takes an incarnation, and who was cut off
        once often is again.
        """
        cluster, now = self._cluster, self._cluster.now()
        if not cluster.replica.applied.vv or not self._covered():
            self._covered_since = None
        elif self._covered_since is None:
            self._covered_since = now
        since = self._covered_since
        return since is not None and now - since >= cluster.settings.demotion_s

    def _covered(self) -> bool:
        cluster = self._cluster
        vv, replicas = cluster.replica.applied.vv, cluster.replicas()
        return bool(replicas) and all(leq(vv, cluster.record(r).vv) for r in replicas)

    def _told_vv(self, peer: Name) -> None:
        """
        Drop all data, if it is time and a replica has just said that it has them.

        In that very turn: what a replica said before may have been on a disk that it
        has lost since, and this node may have the last copy.
        """
        cluster, replica = self._cluster, self._cluster.replica
        if not self._may_drop or peer not in cluster.replicas():
            return
        if self._covered() and replica.idle:
            self._log.info("{me} drops its data: all replicas have it", me=cluster.me)
            self._may_drop = False
            replica.forget_all(cluster.rng)
            # What they told was all here then.
            for record in cluster.records.values():
                record.report = None
            cluster.committer.kick()

    def adopt(self, peer: Name, vectors: Vectors) -> None:
        """Take in a peer's view and K, where R16 allows it."""
        self._adopt(View(vectors.view), vectors.replica_count)

    def _adopt(self, theirs: View, count: ReplicaCount | None) -> None:
        cluster, replica = self._cluster, self._cluster.replica
        mine = cluster.view
        if not theirs.entries or not may_adopt(mine, theirs, me=cluster.me):
            return
        view = mine.join(theirs)
        register = replica.replica_count
        if count is not None:
            register = register.join(count) if mine.entries else count
        self._change(view, register, by_peer=True)

    def _change(self, view: View, register: ReplicaCount, *, by_peer: bool) -> int:
        cluster, mine = self._cluster, self._cluster.view
        if view == mine and register == cluster.replica.replica_count:
            return cluster.replica.last_commit
        # Who makes a view of his own by adding another has nobody to catch up with.
        added = cluster.me not in mine.members and (by_peer or bool(mine.entries))
        commit = cluster.replica.set_view(view, register)
        self._log.info(
            "view of {me}: {members}, K={k}",
            me=cluster.me,
            members=", ".join(view.order),
            k=register.k,
        )
        if cluster.removed:
            self._log.warn("{me} was removed from the view", me=cluster.me)
        cluster.forget_strangers()
        cluster.committer.kick()
        cluster.liveness.watch(view.members, cluster.now())
        if added and cluster.me in view.members:
            self.lag()
        self.settle()
        return commit

    def told(self, peer: Name, tell: Tell) -> None:
        """Take in a view change; roles change at once."""
        cluster = self._cluster
        self._adopt(View(tell.view), tell.replica_count)
        if peer not in cluster.view.members and not cluster.removed:
            return  # Its view was refused: its dead are not ours.
        now = cluster.now()
        for name in tell.dead:
            if name != cluster.me:
                cluster.liveness.found_dead(name, now)
        self.settle()

    async def update_view(self, kind: str, name: Name) -> tuple[int, int]:
        """
        Add or remove a member; probes all members first, tells them after.

        :param kind: "add" or "remove".
        :returns: the number of ``name`` in the view, and how many members are alive.
        :raises BadRequest: where the change is none; nothing was changed.
        """
        cluster = self._cluster
        deadline = cluster.now() + cluster.settings.request_s
        if name == cluster.me and not cluster.view.entries and kind == "add":
            return 0, 1
        if kind == "remove":
            self._check_removable(name)
        adding = kind == "add" and name not in cluster.view.members
        probed = set(cluster.peers)
        if adding and name != cluster.me:
            probed.add(name)
        answers = await self._probe(sorted(probed), deadline)
        view = cluster.view
        if adding and name != cluster.me:
            view = self._checked_newcomer(name, answers[name])
        if adding and not view.entries:
            view = view.change(cluster.me, present=True)
        if kind == "add" and (adding or name not in view.members):
            view = view.change(name, present=True)
        elif kind == "remove":
            view = view.change(name, present=False)
        told = {n for n, a in answers.items() if isinstance(a, HelloAnswer)}
        dead = sorted(n for n in probed - told if n in view.members)
        commit = self._change(view, cluster.replica.replica_count, by_peer=False)
        for peer in dead:
            cluster.liveness.found_dead(peer, cluster.now())
        self.settle()
        try:
            # Those who are told should have time to answer.
            await cluster.committer.durable(commit).addTimeout(
                self._limit_s(deadline, share=2 / 3), cluster.clock
            )
        except DeferredTimeoutError:
            raise Overloaded(
                "the disk is slow: the change may or may not be kept, ask again"
            ) from None
        await self._tell(sorted(told), dead, deadline)
        # As of now: another node may have added one at the same time.
        number = cluster.view.numbers.get(name, 0)
        return number, len((told | {cluster.me}) & (view.members or {cluster.me}))

    def _check_removable(self, name: Name) -> None:
        view = self._cluster.view
        only = view.members == {name} or (not view.entries and name == self._cluster.me)
        if only:
            raise BadRequest(f"{name} is the last member, it cannot be removed")
        if not view.knows(name):
            raise BadRequest(f"{name} was never a member; members: {_list(view)}")

    def _checked_newcomer(self, name: Name, answer: PeerAnswer | PeerError) -> View:
        """Join the newcomer's view with ours, if they may be one cluster (R16)."""
        cluster = self._cluster
        if isinstance(answer, BadPeerMessage):
            raise BadRequest(f"{name} cannot be added: {answer}")
        if not isinstance(answer, HelloAnswer):
            why = answer.message if isinstance(answer, Refused) else str(answer)
            raise BadRequest(f"{name} cannot be added, no node answers there: {why}")
        mine = cluster.view
        theirs = mine if answer.vectors is None else View(answer.vectors.view)
        if theirs.entries and not theirs.shares_name(mine):
            raise BadRequest(
                f"{name} belongs to another view: {_list(theirs)}; "
                f"empty its data directory to add it here"
            )
        return mine.join(theirs)

    def _limit_s(self, deadline: float, *, share: float = 1.0) -> float:
        """Seconds that a step of ``update_view`` may take: a share of what is left."""
        left = deadline - self._cluster.now()
        return max(0.0, min(self._cluster.settings.probe_s, left * share))

    async def _probe(
        self, peers: list[Name], deadline: float
    ) -> dict[Name, PeerAnswer | PeerError]:
        hello = Hello(self._cluster.header())
        return await self._ask_all(peers, hello, self._limit_s(deadline))

    async def _tell(self, peers: list[Name], dead: list[Name], deadline: float) -> None:
        cluster = self._cluster
        tell = Tell(
            header=cluster.header(),
            view=dict(cluster.view.entries),
            replica_count=cluster.replica.replica_count,
            dead=dead,
        )
        await self._ask_all(peers, tell, self._limit_s(deadline))

    async def _ask_all(
        self, peers: list[Name], request: PeerRequest, limit_s: float
    ) -> dict[Name, PeerAnswer | PeerError]:
        cluster = self._cluster

        async def one(peer: Name) -> PeerAnswer | PeerError:
            try:
                return await cluster.ask(
                    peer,
                    request,
                    connect_s=limit_s,
                    total_s=limit_s,
                )
            except PeerError as error:
                return error

        asked: list[Deferred[PeerAnswer | PeerError]] = [
            ensureDeferred(one(peer)) for peer in peers
        ]
        answers = await gatherResults(asked)
        return dict(zip(peers, answers, strict=True))


def _list(view: View) -> str:
    return ", ".join(view.order) or "none"
