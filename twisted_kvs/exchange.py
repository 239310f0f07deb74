"""
Gossip: one exchange with one peer, both directions (R19).

First a hash; only where it differs the vectors, and with them what either side lacks:
the asker pushes what the peer lacks and pulls what it lacks itself.  One exchange is
under way per peer; the loop starts exchanges and does not wait for them.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, ensureDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from .cluster import Cluster
from .core.causality import Name, VersionVector, leq, restrict
from .core.errors import DiskFull, KVSError, PeerError, PeerTimedOut, PeerUnreachable
from .core.gossip import Deck
from .core.messages import (
    Delta,
    Exchange,
    ExchangeAnswer,
    Header,
    Hello,
    HelloAnswer,
    PeerAnswer,
    Pull,
    PullAnswer,
    Push,
    PushAnswer,
    Refused,
    Standing,
    Vectors,
)
from .core.retiring import Retired
from .core.view import View
from .deltas import DeltaReceiver, DeltaSender, Pulls
from .metrics import Outcome


class Exchanges:
    """Starts and answers exchanges."""

    _log = Logger()

    def __init__(
        self,
        cluster: Cluster,
        *,
        sender: DeltaSender,
        receiver: DeltaReceiver,
        pulls: Pulls,
        adopt: Callable[[Name, Vectors], None],
        completed: Callable[[Name, Standing], None],
    ) -> None:
        """
        Exchange on behalf of ``cluster``.

        :param adopt: takes in a peer's view and K, where R16 allows it.
        :param completed: told a peer and its standing after an empty or whole delta.
        """
        self._cluster = cluster
        self._sender = sender
        self._receiver = receiver
        self._pulls = pulls
        self._adopt = adopt
        self._completed = completed
        self._deck = Deck()
        self._warned: dict[Name, float] = {}
        self.exchanges = 0
        self.outcomes = dict.fromkeys(Outcome, 0)
        """Of the exchanges that have ended."""
        self.pushed = 0
        """Versions taken from pushes."""

    def round(self) -> None:
        """Start this beat's exchanges: the next of the deck, and the silent ones."""
        cluster = self._cluster
        if cluster.removed and self._offered():
            return
        now = cluster.now()
        targets = []
        drawn = self._deck.draw(cluster.peers, cluster.rng)
        if drawn is not None:
            targets.append(drawn)
        suspects = set(cluster.liveness.suspects(now))
        for name in cluster.liveness.quiet(now):
            wait = (
                cluster.settings.suspect_dial_s
                if name in suspects
                else (cluster.settings.probe_after_s / 2)
            )
            if name in cluster.peers and now - cluster.record(name).dialled >= wait:
                targets.append(name)
        for name in targets:
            self.start(name)

    def _offered(self) -> bool:
        """Whether a member has all that this node, which was removed, has (R16)."""
        cluster = self._cluster
        mine, view = cluster.replica.applied.vv, cluster.view
        records = [cluster.record(peer) for peer in cluster.peers]
        return any(leq(mine, r.vv) and r.view.join(view) == r.view for r in records)

    def start(self, peer: Name) -> Deferred[bool]:
        """
        Exchange with a peer, unless an exchange with it is under way.

        :returns: fires with whether it went through to the end; never fails.
        """
        record = self._cluster.record(peer)
        if record.exchanging:
            return succeed(False)
        record.exchanging = True
        record.dialled = self._cluster.now()
        self.exchanges += 1

        def done(result: bool | Failure) -> bool:
            record.exchanging = False
            if isinstance(result, Failure):
                self.outcomes[Outcome.FAILED] += 1
                self._log.failure("an exchange failed", failure=result)
                return False
            return result

        return ensureDeferred(self._exchange(peer)).addBoth(done)

    async def _exchange(self, peer: Name) -> bool:
        try:
            outcome = await self._exchange_with(peer)
        except PeerUnreachable:
            outcome = Outcome.UNREACHABLE  # Told once, when it is believed dead.
        except DiskFull:
            outcome = Outcome.DISK_FULL
            self._log.debug("no room for what {peer} sent", peer=peer)
        except PeerError as error:
            timed_out = isinstance(error, PeerTimedOut)
            outcome = Outcome.TIMED_OUT if timed_out else Outcome.BAD
            self.warn(peer, error)
        self.outcomes[outcome] += 1
        return outcome in (Outcome.EQUAL, Outcome.EXCHANGED)

    async def _exchange_with(self, peer: Name) -> Outcome:
        cluster = self._cluster
        mine, vv = cluster.header(), cluster.replica.durable.vv
        hello = await self._ask(peer, Hello(mine))
        if not isinstance(hello, HelloAnswer):
            return Outcome.REFUSED
        if hello.vectors is None:
            self._equal(peer, mine, hello.header, vv)
            return Outcome.EQUAL
        self._learn(peer, hello.vectors)
        delta, more = self._give(peer, hello.header, hello.vectors)
        answer = await self._ask(
            peer,
            Exchange(
                header=cluster.header(),
                vectors=cluster.vectors(peer),
                delta=delta,
                pull_me=more,
                one_part=self._receiver.receiving is not None,
                wants=cluster.replica.holds_all and cluster.pulling,
            ),
        )
        if not isinstance(answer, ExchangeAnswer):
            return Outcome.REFUSED
        self._learn(peer, answer.vectors)
        if answer.delta is not None:
            await self._take(peer, answer.delta, answer.vectors)
        return Outcome.EXCHANGED

    async def _ask(self, peer: Name, request: Hello | Exchange) -> PeerAnswer:
        settings = self._cluster.settings
        return await self._cluster.ask(
            peer,
            request,
            connect_s=settings.gossip_connect_s,
            total_s=settings.gossip_total_s,
        )

    def _give(
        self, peer: Name, header: Header, vectors: Vectors
    ) -> tuple[Delta | None, bool]:
        """Make the delta that a peer lacks; the flag says that it takes more parts."""
        if not header.holds_all:
            return None, False
        delta = self._sender.make(peer, vectors.vv, one_part=True)
        return delta, delta is None

    def answer_hello(self, peer: Name, request: Hello) -> HelloAnswer:
        """Compare hashes; give vectors only where they differ."""
        header = self._cluster.header()
        equal = request.header.digest == header.digest
        return HelloAnswer(header, None if equal else self._cluster.vectors(peer))

    def heard_hello(self, peer: Name, request: Hello) -> None:
        """Take the asker's word for an empty delta where the hashes are equal."""
        mine = self._cluster.header()
        if request.header.digest == mine.digest:
            vv = self._cluster.replica.durable.vv
            self._equal(peer, mine, request.header, vv)

    async def answer_exchange(self, peer: Name, request: Exchange) -> ExchangeAnswer:
        """Take what came, give what the asker lacks."""
        cluster = self._cluster
        self._learn(peer, request.vectors)
        if request.delta is not None:
            try:
                await self._take(peer, request.delta, request.vectors)
            except KVSError as error:
                self.warn(peer, error)
        if request.pull_me:
            self.pull(peer)
        delta = None
        if request.wants:
            delta = self._sender.make(
                peer, request.vectors.vv, one_part=request.one_part
            )
        return ExchangeAnswer(
            header=cluster.header(), vectors=cluster.vectors(peer), delta=delta
        )

    async def _take(self, peer: Name, delta: Delta, vectors: Vectors) -> None:
        """Take a delta; with it all is here that the vectors beside it told (R12)."""
        cluster = self._cluster
        boot_id = cluster.record(peer).boot_id
        await self._receiver.take(peer, delta)
        # A report ends with its process: another may run by now, on an empty disk.
        if cluster.record(peer).boot_id == boot_id:
            cluster.learn_report(peer, vectors)

    def answer_pull(self, peer: Name, request: Pull) -> PullAnswer:
        """Give what the asker lacks."""
        self._cluster.notice_clash(peer, request.base)
        delta = self._sender.make(peer, request.base, one_part=request.one_part)
        return PullAnswer(self._cluster.header(), delta)

    async def answer_push(self, peer: Name, request: Push) -> PushAnswer | Refused:
        """Take fresh writes that are in turn; pull where there is a gap."""
        cluster = self._cluster
        taken = cluster.replica.apply_push(request.versions, request.lamport)
        self.pushed += taken.taken
        if taken.gap:
            self.pull(peer)
        try:
            await cluster.committer.durable(taken.commit)
        except DiskFull as error:
            return Refused(error.status, str(error))
        actors = {version.actor for version in request.versions}
        return PushAnswer(dict(restrict(cluster.replica.durable.vv, sorted(actors))))

    def pull(self, peer: Name) -> None:
        """Pull from a peer soon; shares a pull that is under way."""
        if self._cluster.pulling and self._receiver.receiving is None:
            self._pulls.pull(peer, connect_s=self._cluster.settings.gossip_connect_s)

    def _learn(self, peer: Name, vectors: Vectors) -> None:
        cluster = self._cluster
        cluster.record(peer).view = View(vectors.view)
        if vectors.retired:
            known = cluster.replica.applied.retired
            cluster.replica.retire(Retired.decode(vectors.retired, known=known))
            cluster.committer.kick()
        self._adopt(peer, vectors)
        cluster.learn_vv(peer, vectors.vv)
        cluster.learn_report(peer, vectors)
        if not cluster.replica.holds_all:
            # A proxy follows clock and VV of every replica: the VV alone is not closed.
            cluster.replica.hear_clock(vectors.clock)
            cluster.replica.hear_clock(vectors.vv)
            # What it reports next is what is logged by then (R12).
            cluster.committer.kick()

    def _equal(
        self, peer: Name, mine: Header, theirs: Header, vv: VersionVector
    ) -> None:
        """Equal hashes: an empty delta, completely applied, whose claim is ``vv``."""
        cluster = self._cluster
        cluster.record(peer).view = cluster.view
        cluster.learn_vv(peer, vv)
        if theirs.whole:
            cluster.record(peer).report = vv
        checkable = mine.live_hash is not None and theirs.live_hash is not None
        if checkable and mine.live_hash != theirs.live_hash:
            cluster.hash_mismatches += 1
            self._log.error(
                "equal knowledge but different data here and on {peer}: a bug or "
                "a broken disk; empty the wrong node and let it pull (R17)",
                peer=peer,
            )
        if cluster.replica.holds_all and theirs.holds_all:
            self._completed(peer, theirs.standing)

    def warn(self, peer: Name, error: KVSError) -> None:
        """Log one line about a peer, at most every ten seconds."""
        now = self._cluster.now()
        if now - self._warned.get(peer, -1e9) >= 10:
            self._warned[peer] = now
            self._log.warn("trouble with {peer}: {error}", peer=peer, error=error)
