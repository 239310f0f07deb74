"""
The state of one replica: what it knows, what it writes, what it takes from others.

Pure: messages in, results out.  What has to be stored is collected into ``Commit``s
(``take_commit``); a result names the number of the commit that must be durable before
the result may leave the node, so the node persists before it answers or sends.

Invariants (R3, R6), checked by ``simulation.invariants`` after every step:

* closure: a dot that VV covers is live here, or dominated by something live here, or
  was reaped here, in a history that ended in a seal below the floor;
* nothing early: nothing live here is above VV;
* antichain: the live versions of a key are pairwise concurrent;
* every vector that is minted or handed out is closed.

Two states (R6): *applied* for minting and merging, *durable* for all that leaves.

After Almeida, Shoker, Baquero, "Delta state replicated data types" (arXiv 1603.01529),
with one causal context for the whole node as in DottedDB (SRDS 2017).
"""

from __future__ import annotations

import random
from dataclasses import replace

from . import compaction
from .causality import (
    COUNTER_MAX,
    DOT_COUNTER_MAX,
    EMPTY,
    INCARNATION_BITS,
    Actor,
    Name,
    VersionVector,
    covers,
    including,
    join,
    leq,
    make_actor,
    own_writes,
    restrict,
)
from .collecting import CommitCollector
from .fence import LiveDots
from .messages import (
    Commit,
    Delta,
    ReplicaState,
    ValidateStage,
)
from .outcomes import Compacted, Frontier, Read, Stage, Taken, Written
from .payload import Payload
from .pending import PendingChains
from .reader import VersionReader
from .retiring import NOTHING, Retired
from .staging import Staging, refuse_early, refuse_floor
from .versions import SEAL_TS, Antichain, Version, WireVector, insert, winner
from .view import ReplicaCount, View

COUNTER_PROBE = DOT_COUNTER_MAX + 1
"""A counter that no write reaches: names the version that tests for room."""


class Replica:
    """All replication state of one process; several may live in one program."""

    def __init__(
        self,
        *,
        name: Name,
        reader: VersionReader,
        stored: ReplicaState,
        rng: random.Random,
    ) -> None:
        """
        Start from what is durable, under a fresh incarnation (R1).

        :param stored: the state record of the last commit, or ``fresh_state``.
        :param rng: draws the incarnation.
        """
        self.name = name
        self._reader = reader
        self._pending = PendingChains(reader)
        self.actor = self._draw_actor(rng)
        self._counter = 0
        self.seen: VersionVector = EMPTY
        """S of R13: join of the payload vectors of all writes answered since start."""
        self._commits = CommitCollector(self._pending, self._state)
        self._staging = Staging(self._commits, rng)
        self._load(stored)
        self.durable_commit = 0

    @staticmethod
    def fresh_state(view: View, replica_count: ReplicaCount) -> ReplicaState:
        """Make the state record of a node that has stored nothing."""
        return ReplicaState(
            vv={},
            clock={},
            lamport=0,
            holds_all=False,
            view=dict(view.entries),
            replica_count=replica_count,
            started_with_k=None,
        )

    def _draw_actor(self, rng: random.Random) -> Actor:
        return make_actor(self.name, rng.getrandbits(INCARNATION_BITS))

    def _load(self, stored: ReplicaState) -> None:
        self._retired = Retired.decode(stored.retired)
        known = self._retired.knows(stored.shared)
        self.shared_generation = stored.shared if known else NOTHING
        """The last one that every member was seen to know (R20)."""
        self._frontiers: dict[int, Frontier] = {}
        """Of the commits under way."""
        self.durable = frontier = self.frontier_of(stored)
        self._vv: VersionVector = frontier.vv
        self._clock = join(frontier.clock, self.seen)
        self._floor: VersionVector = frontier.floor
        self._dropped: VersionVector = frontier.dropped
        self._lamport = stored.lamport
        self._holds_all = stored.holds_all
        self._view = View(stored.view)
        self._replica_count = stored.replica_count
        self._started_with_k = stored.started_with_k

    @property
    def applied(self) -> Frontier:
        """VV, clock, L, floor and who is retired, with what is not durable yet."""
        return Frontier(
            self._vv,
            self._clock,
            self._lamport,
            self._floor,
            self._retired,
            self._dropped,
        )

    def frontier_of(self, state: ReplicaState) -> Frontier:
        """Read the vectors of a state record of this node's store."""
        return Frontier.of(state, self._retired)

    @property
    def holds_all(self) -> bool:
        """Whether it pulls all versions; False for a proxy (R13)."""
        return self._holds_all

    @property
    def view(self) -> View:
        """The view it goes by (R16)."""
        return self._view

    @property
    def replica_count(self) -> ReplicaCount:
        """The register of K (R16)."""
        return self._replica_count

    @property
    def started_with_k(self) -> int | None:
        """K as the operator gave it at the last start."""
        return self._started_with_k

    @property
    def idle(self) -> bool:
        """Whether everything applied is durable."""
        return self.durable_commit == self.last_commit

    @property
    def last_commit(self) -> int:
        """The commit after which everything applied by now is durable."""
        return self._commits.number if self._commits.dirty else self._commits.number - 1

    def uncommitted(self) -> list[Version]:
        """List writes that are in no commit that was taken; for checks."""
        return self._commits.each_minted()

    def read(self, key: str, payload: Payload) -> Read:
        """
        Read the durable state (R14); counts L up.

        The payload covers all siblings, the losers, too (hole H3), and the floor, for
        what was reaped and for pasts that were forgotten (hole H16).

        :returns: the winner unless that is a tombstone, and a payload greater than the
            one that came.
        """
        chain = self._pending.durable(key)
        upto = [version.upto for version in chain]
        fresh = leq(payload.vector, self.durable.vv) or leq(
            payload.vector, join(self.durable.vv, *upto)
        )
        self._lamport = max(self._lamport, payload.lamport) + 1
        vector = join(payload.vector, self.durable.floor, *upto)
        return Read(
            version=_visible(chain),
            payload=Payload(vector, self._lamport),
            fresh=fresh,
        )

    def shows(self, key: str) -> bool:
        """Tell whether the key has a value, in the durable or the applied state."""
        return bool(
            _visible(self._pending.durable(key)) or _visible(self._pending.applied(key))
        )

    def lacks(self, key: str, vector: VersionVector) -> VersionVector:
        """Tell which entries of a payload a read of ``key`` would have to wait for."""
        if leq(vector, self.durable.vv):
            return EMPTY
        chain = self._pending.durable(key)
        known = join(self.durable.vv, *(version.upto for version in chain))
        return {a: n for a, n in vector.items() if known.get(a, 0) < n}

    def applied_lacks(self, key: str, vector: VersionVector) -> bool:
        """Tell whether even the applied state does not cover a payload at ``key``."""
        if leq(vector, self._vv):
            return False
        chain = self._pending.applied(key)
        return not leq(vector, join(self._vv, *(version.upto for version in chain)))

    def put(
        self, key: str, value: bytes | None, payload: Payload, *, wall_us: int
    ) -> Written:
        """
        Mint a write (R2, R3): it comes after all that this node and the client know.

        :param value: JSON text; None deletes, by a tombstone (R9).
        :param wall_us: the wall clock, microseconds since the epoch.
        """
        chain = self._pending.applied(key)
        self._lamport = max(self._lamport, payload.lamport) + 1
        ts = min(max(wall_us, 0), COUNTER_MAX)
        version = self._mint(key, value, ts, chain, payload.vector)
        return Written(
            version=version,
            created=_visible(chain) is None,
            payload=Payload(self._clock, self._lamport),
            commit=self._commits.number,
        )

    def _mint(
        self,
        key: str,
        value: bytes | None,
        ts: int,
        chain: Antichain,
        payload: VersionVector = EMPTY,
    ) -> Version:
        past = join(self._clock, self._vv, self.seen, payload)
        self._counter += 1
        dot = (self.actor, self._counter)
        version = Version(
            actor=self.actor,
            counter=self._counter,
            key=key,
            value=value,
            ts=ts,
            past=_as_dict(past),
        )
        self._merge(version, chain)
        self._commits.minted(version)
        self._vv = including(self._vv, dot)
        self._clock = including(past, dot)
        return version

    def answered(self, vector: VersionVector) -> None:
        """
        Join the payload of a write that this node answers into S (R13).

        Of its own writes only when they are durable: S outlives a failed commit.
        """
        self.seen = join(self.seen, vector)

    def hear_lamport(self, lamport: int) -> None:
        """
        Follow the L that a message carries (R18, hole H19).

        Logged with the commit of the versions that came with it, or with the next.
        """
        if self._lamport < lamport < COUNTER_MAX:
            self._lamport = lamport

    def hear_clock(self, vector: VersionVector) -> None:
        """
        Follow a *closed* vector: a forwarded write's payload, a replica's clock (R13).

        The clock is part of every state record, so it is logged with the next commit.
        That of a proxy is what it reports, so it asks for one (R12, hole H20).
        """
        clock = join(self._clock, vector)
        if clock is not self._clock:
            self._clock = clock
            if not self._holds_all:
                self._commits.state_changed()

    def apply_push(self, versions: list[Version], lamport: int) -> Taken:
        """
        Take pushed versions that are next of their actor; others wait for a pull (R8).

        A proxy takes none.
        """
        taken, gap = 0, False
        for version in versions if self._holds_all else ():
            have = self._vv.get(version.actor, 0)
            if have == version.counter - 1:
                self._accept(version)
                self._vv = including(self._vv, version.dot)
                taken += 1
            elif have < version.counter:
                gap = True
        if taken:
            self.hear_lamport(lamport)
        return Taken(commit=self.last_commit, gap=gap, taken=taken)

    def apply_delta(self, delta: Delta) -> int | None:
        """
        Apply a whole delta of one part, or nothing of it (R7).

        :returns: the commit that makes it durable; None if it was thrown away, because
            its base is not covered (hole H5) or because this is a proxy.
        :raises BadPeerMessage: if a version or the floor is above what it may be;
            nothing is changed.
        """
        assert not delta.session, "a delta in parts is staged"
        refuse_early(delta.versions, delta.claim)
        refuse_floor(delta)
        if not self._holds_all or not leq(delta.base, self._vv):
            return None
        before = self._vv
        self.hear_lamport(delta.lamport)
        for version in delta.versions:
            if not covers(before, version.dot):
                self._accept(version)
        self._know(join(before, delta.claim), delta.floor)
        return self.last_commit

    def begin_stage(self, delta: Delta) -> Stage:
        """
        Begin to receive a delta in parts; nothing of it is visible until finished.

        :raises BadPeerMessage: if the floor is above what it may be.
        """
        return self._staging.begin(delta)

    def add_part(
        self, stage: Stage, versions: list[Version], live: LiveDots | None = None
    ) -> int:
        """
        Store a part aside.

        :param live: more dots of the list of a full join (R10).
        :returns: the commit after which the part is on disk.
        :raises BadPeerMessage: if a version is above the claim, or the list is not in
            order; the stage is to be dropped then.
        """
        return self._staging.add(stage, versions, live or {})

    def finish_stage(self, stage: Stage) -> int | None:
        """
        Make all parts valid in one turn: VV, clock and L move with them (R7).

        All parts must be durable.

        :returns: the commit that does it; None if it must not be (``Staging.void``):
            then the stage is dropped.
        """
        if not self._holds_all or self._staging.void(stage, self._vv):
            self.drop_stage(stage)
            return None
        if self._commits.dirty:
            self._commits.close()
        covered = self._vv
        self.hear_lamport(stage.lamport)
        self._pending.validate(
            stage.number, covered, commit=self._commits.number, fence=stage.fence
        )
        self._clock = join(self._clock, stage.upto)
        self._know(join(covered, stage.claim), stage.floor)
        return self._commits.close(
            ValidateStage(stage.number, _as_dict(covered), fence=stage.fence)
        )

    def drop_stage(self, stage: Stage) -> None:
        """Forget a delta that broke off; frees what its parts take on disk."""
        self._staging.drop(stage)

    def drop_leftovers(self) -> None:
        """Drop stages whose own drop found no room, now that there is (R6)."""
        self._staging.drop_leftovers()

    def fold(self, versions: int) -> None:
        """Ask for a slice of folding with the next commit."""
        self._commits.fold(versions)

    @property
    def compactable(self) -> bool:
        """Whether nothing stands in the way of compacting: no stage becomes valid."""
        return self._holds_all and not self._pending.validating

    @property
    def may_seal(self) -> bool:
        """
        Whether a seal would overwrite only what is here (hole H18).

        What the clock merely names is not.
        """
        return leq(self._clock, self._vv) and leq(self.seen, self._vv)

    def compact(
        self, keys: list[str], stable: VersionVector, *, seal: bool
    ) -> Compacted:
        """
        Forget pasts, drop seals and write seals, as far as may be (R9, R11).

        Only while ``compactable``.

        :param stable: what every member has reported to have (R12).
        :param seal: whether this node is the one that writes seals.
        """
        assert self.compactable, "staged versions may need the pasts"
        seal = seal and self.may_seal
        changed = seals = 0
        for key in keys:
            before = self._pending.applied(key)
            chain, floor = compaction.settled(before, stable)
            if chain is not before:
                self._change(key, chain, before)
                self._floor = join(self._floor, floor)
            sealed = seal and compaction.awaits_seal(before, stable)
            if sealed:
                self._mint(key, None, SEAL_TS, chain)
                seals += 1
            changed += sealed or chain is not before
        return Compacted(commit=self.last_commit, changed=changed, seals=seals)

    def delta_base(
        self, asker: VersionVector, frontier: Frontier, *, holds_all: bool
    ) -> VersionVector:
        """
        Tell the base of a delta for ``asker``: for a proxy, its own actors only (R13).

        :param frontier: of the snapshot that the delta is made from.
        :param holds_all: False: it is of a proxy.
        """
        return asker if holds_all else restrict(asker, sorted(frontier.vv))

    def retire(self, more: Retired) -> None:
        """Go by what is retired here or there (R20)."""
        both = self._retired.join(more)
        if both is not self._retired:
            self._retired = both
            self._commits.state_changed()

    def share(self, generation: str) -> None:
        """Note a generation that every member knows."""
        if generation != self.shared_generation:
            self.shared_generation = generation
            self._commits.state_changed()

    def identity_clash(self, vv: VersionVector) -> bool:
        """Tell whether a peer knows dots of our own actor that we never minted (R1)."""
        return vv.get(self.actor, 0) > self._counter

    def take_incarnation(self, rng: random.Random) -> None:
        """Mint under a new actor from now on (R1); the counter starts at 0."""
        self.actor = self._draw_actor(rng)
        self._counter = 0

    def set_view(self, view: View, replica_count: ReplicaCount) -> int:
        """
        Go by another view and K.

        :returns: the commit that keeps them.
        """
        if view != self._view or replica_count != self._replica_count:
            self._view, self._replica_count = view, replica_count
            self._commits.state_changed()
        return self.last_commit

    def set_started_with_k(self, k: int | None) -> None:
        """Remember the operator's K of this start (R16)."""
        if k != self._started_with_k:
            self._started_with_k = k
            self._commits.state_changed()

    def set_holds_all(self, holds_all: bool) -> None:
        """
        Become a replica that lags (True), or stop pulling before a drop (R13, R15).
        """
        if holds_all != self._holds_all:
            self._holds_all = holds_all
            self._commits.state_changed()

    def forget_all(self, rng: random.Random) -> int:
        """
        Drop all data, keep the clock, be a proxy under a new incarnation (R15).

        Only while ``idle``, and when every replica covers what this one has.
        """
        assert self.idle, "versions under way would be dropped"
        self._clock = join(self._clock, self._vv)
        # Who is retired every member has all of: nobody's report has to wait for that.
        retired = self._retired.entries(self._retired.head)
        dropped = join(self._dropped, own_writes(self._vv, self.name))
        self._dropped = {a: n for a, n in dropped.items() if retired.get(a, 0) < n}
        self._vv = self._floor = EMPTY
        self._holds_all = False
        self.take_incarnation(rng)
        self._pending.forget_all(self._commits.number)
        self._staging.forget_all()
        return self._commits.close(forget_all=True)

    def take_commit(self) -> Commit | None:
        """Take the next change to be stored; None if there is none."""
        if not self._commits.waiting and self._commits.dirty:
            self._commits.close()
        return self._commits.take()

    def committed(self, commit: Commit) -> None:
        """A commit is durable: what it holds may leave the node."""
        assert commit.number == self.durable_commit + 1, "durable in order (R6)"
        self.durable_commit = commit.number
        self._staging.committed(commit)
        self.durable = self._frontiers.pop(commit.number)
        self._pending.published(commit.number)

    def reload(self, stored: ReplicaState, rng: random.Random) -> None:
        """
        Drop the applied state after a failed commit; go on from what is durable (R6).

        Takes a new incarnation if it minted anything.  Commits that were not taken yet
        are dropped, their numbers are not used again.
        """
        self._pending.clear()
        self.durable_commit = self._commits.drop_all()
        self._load(stored)
        if self._counter:
            self.take_incarnation(rng)

    def try_space(self, value_bytes: int) -> int:
        """
        Ask for a commit that stores and one that drops a version of this size, unseen.

        For a node whose disk was full, before it mints again (R6).

        :returns: the commit after which there is certainly room.
        """
        value = bytes(max(value_bytes, 1))
        return self._staging.try_space(
            Version(self.actor, COUNTER_PROBE, "space", value, 0, {})
        )

    def _state(self) -> ReplicaState:
        retired = self._retired
        frontier = replace(self.applied, clock=join(self._clock, self._vv))
        self._frontiers[self._commits.number] = frontier
        return ReplicaState(
            vv=_as_dict(self._vv),
            clock=_as_dict(retired.pack(frontier.clock, retired.head)),
            lamport=self._lamport,
            holds_all=self._holds_all,
            view=dict(self._view.entries),
            replica_count=self._replica_count,
            started_with_k=self._started_with_k,
            floor=_as_dict(retired.pack(self._floor, retired.head)),
            retired=retired.encode(),
            shared=self.shared_generation,
            dropped=_as_dict(self._dropped),
        )

    def _accept(self, version: Version) -> None:
        self._merge(version, self._pending.applied(version.key))
        self._clock = join(self._clock, version.upto)

    def _merge(self, version: Version, chain: Antichain) -> None:
        self._commits.state_changed()
        joined = insert(chain, version)
        if joined is not chain:
            self._change(version.key, joined, chain)

    def _change(self, key: str, chain: Antichain, before: Antichain) -> None:
        self._pending.change(key, chain, self._commits.number, before=before)
        self._commits.touch(key)

    def _know(self, vv: VersionVector, floor: VersionVector) -> None:
        floor = join(self._floor, floor)
        if vv is not self._vv or floor is not self._floor:
            self._vv, self._floor = vv, floor
            self._commits.state_changed()


def _visible(chain: Antichain) -> Version | None:
    """Choose what a read shows; a tombstone shows nothing."""
    won = winner(chain)
    return None if won is None or won.value is None else won


def _as_dict(vector: VersionVector) -> WireVector:
    return vector if isinstance(vector, dict) else dict(vector)
