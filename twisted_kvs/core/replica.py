"""
The state of one replica: what it knows, what it writes, what it takes from others.

Pure: messages in, results out.  What has to be stored is collected into ``Commit``s
(``take_commit``); a result names the number of the commit that must be durable before
the result may leave the node, so the node persists before it answers or sends.

Invariants (R3, R6), checked by ``core.invariants`` after every step of the tests:

* closure: a dot that VV covers is live here, or dominated by something live here;
* nothing early: nothing live here is above VV;
* antichain: the live versions of a key are pairwise concurrent;
* every vector that is minted or handed out is closed.

Two states (R6): *applied* for minting and merging, *durable* for all that leaves.

After Almeida, Shoker, Baquero, "Delta state replicated data types" (arXiv 1603.01529),
with one causal context for the whole node as in DottedDB (SRDS 2017).
"""

from __future__ import annotations

import random

from .causality import (
    COUNTER_MAX,
    DOT_COUNTER_MAX,
    EMPTY,
    INCARNATION_BITS,
    Actor,
    Dot,
    Name,
    VersionVector,
    actor_name,
    covers,
    including,
    join,
    leq,
    make_actor,
    restrict,
)
from .errors import BadPeerMessage
from .messages import (
    Commit,
    Delta,
    ReplicaState,
    StagePart,
    ValidateStage,
)
from .outcomes import Frontier, Read, Stage, Taken, Written
from .payload import Payload
from .pending import PendingChains
from .reader import VersionReader
from .versions import Antichain, Version, WireVector, insert, winner
from .view import ReplicaCount, View

STAGE_BITS = 48
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
        self._collecting = 1
        self._ready: list[Commit] = []
        self._touched: dict[str, None] = {}
        self._minted: list[Version] = []
        self._stage_part: StagePart | None = None
        self._drop_stage: int | None = None
        self._fold_versions = 0
        self._changed = False
        # Stages of an earlier start may be valid and unfolded: numbers must differ.
        self._stages = rng.getrandbits(STAGE_BITS)
        self._receiving: set[int] = set()
        """Stages that are being received."""
        self._stored_stages: set[int] = set()
        """Stages that take room on disk and are not valid."""
        self._forgotten_stages = 0
        """Up to here the parts of stages were dropped with all else."""
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
        clock = join(stored.clock, stored.vv, self.seen)
        self.durable = Frontier(
            stored.vv, join(stored.clock, stored.vv), stored.lamport
        )
        self._vv: VersionVector = stored.vv
        self._clock = clock
        self._lamport = stored.lamport
        self._holds_all = stored.holds_all
        self._view = View(stored.view)
        self._replica_count = stored.replica_count
        self._started_with_k = stored.started_with_k

    @property
    def applied(self) -> Frontier:
        """VV, clock and L with what is not durable yet."""
        return Frontier(self._vv, self._clock, self._lamport)

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
        return self.durable_commit == self._collecting - 1 and not self._dirty

    @property
    def last_commit(self) -> int:
        """The commit after which everything applied by now is durable."""
        return self._collecting if self._dirty else self._collecting - 1

    @property
    def _dirty(self) -> bool:
        return bool(
            self._touched
            or self._stage_part
            or self._drop_stage
            or self._fold_versions
            or self._changed
        )

    def read(self, key: str, payload: Payload) -> Read:
        """
        Read the durable state (R14); counts L up.

        :returns: the winner, and a payload greater than the one that came.
        """
        chain = self._pending.durable(key)
        upto = [version.upto for version in chain]
        fresh = leq(payload.vector, self.durable.vv) or leq(
            payload.vector, join(self.durable.vv, *upto)
        )
        self._lamport = max(self._lamport, payload.lamport) + 1
        return Read(
            version=winner(chain),
            payload=Payload(join(payload.vector, *upto), self._lamport),
            fresh=fresh,
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

    def put(self, key: str, value: bytes, payload: Payload, *, wall_us: int) -> Written:
        """
        Mint a write (R2, R3): it comes after all that this node and the client know.

        :param wall_us: the wall clock, microseconds since the epoch.
        """
        past = join(self._clock, self._vv, self.seen, payload.vector)
        self._counter += 1
        dot = (self.actor, self._counter)
        version = Version(
            actor=self.actor,
            counter=self._counter,
            key=key,
            value=value,
            ts=min(max(wall_us, 0), COUNTER_MAX),
            past=_as_dict(past),
        )
        chain = self._pending.applied(key)
        self._lamport = max(self._lamport, payload.lamport) + 1
        self._merge(version, chain)
        self._minted.append(version)
        self._vv = including(self._vv, dot)
        self._clock = including(past, dot)
        return Written(
            version=version,
            created=not chain,
            payload=Payload(self._clock, self._lamport),
            commit=self._collecting,
        )

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
        """
        self._clock = join(self._clock, vector)

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
        :raises BadPeerMessage: if a version is above the claim; nothing is changed.
        """
        assert not delta.session, "a delta in parts is staged"
        _refuse_early(delta.versions, delta.claim)
        if not self._holds_all or not leq(delta.base, self._vv):
            return None
        before = self._vv
        self.hear_lamport(delta.lamport)
        for version in delta.versions:
            if not covers(before, version.dot):
                self._accept(version)
        self._know(join(before, delta.claim))
        return self.last_commit

    def begin_stage(self, delta: Delta) -> Stage:
        """
        Begin to receive a delta in parts; nothing of it is visible until finished.
        """
        assert delta.session, "a whole delta is applied at once"
        self._stages += 1
        self._receiving.add(self._stages)
        return Stage(self._stages, delta.base, delta.claim, delta.lamport, EMPTY)

    def add_part(self, stage: Stage, versions: list[Version]) -> int:
        """
        Store a part aside.

        :returns: the commit after which the part is on disk.
        :raises BadPeerMessage: if a version is above the claim; the stage is to be
            dropped then.
        """
        _refuse_early(versions, stage.claim)
        if self._stage_part is not None:
            self._seal()
        self._stage_part = StagePart(stage.number, tuple(versions))
        for version in versions:
            stage.upto = join(stage.upto, version.upto)
        stage.versions += len(versions)
        return self._collecting

    def finish_stage(self, stage: Stage) -> int | None:
        """
        Make all parts valid in one turn: VV, clock and L move with them (R7).

        All parts must be durable.

        :returns: the commit that does it; None if the base is not covered any more, or
            all was forgotten meanwhile: then the stage is dropped.
        """
        void = not self._holds_all or stage.number <= self._forgotten_stages
        if void or not leq(stage.base, self._vv):
            self.drop_stage(stage)
            return None
        if self._dirty:
            self._seal()
        covered = self._vv
        self.hear_lamport(stage.lamport)
        self._pending.validate(stage.number, covered, commit=self._collecting)
        self._clock = join(self._clock, stage.upto)
        self._know(join(covered, stage.claim))
        return self._seal(ValidateStage(stage.number, _as_dict(covered)))

    def drop_stage(self, stage: Stage) -> None:
        """Forget a delta that broke off; frees what its parts take on disk."""
        if self._drop_stage is not None or self._stage_part is not None:
            self._seal()
        self._drop_stage = stage.number
        self._receiving.discard(stage.number)

    def drop_leftovers(self) -> None:
        """Drop stages whose own drop found no room, now that there is (R6)."""
        for number in sorted(self._stored_stages - self._receiving):
            if self._drop_stage is not None or self._stage_part is not None:
                self._seal()
            self._drop_stage = number

    def fold(self, versions: int) -> None:
        """Ask for a slice of folding with the next commit."""
        self._fold_versions = versions

    def delta_base(self, asker: VersionVector, state: ReplicaState) -> VersionVector:
        """
        Tell the base of a delta for ``asker``: for a proxy, its own actors only (R13).

        :param state: the state record of the snapshot that the delta is made from.
        """
        return asker if state.holds_all else restrict(asker, sorted(state.vv))

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
            self._changed = True
        return self.last_commit

    def set_started_with_k(self, k: int | None) -> None:
        """Remember the operator's K of this start (R16)."""
        if k != self._started_with_k:
            self._started_with_k, self._changed = k, True

    def set_holds_all(self, holds_all: bool) -> None:
        """
        Become a replica that lags (True), or stop pulling before a drop (R13, R15).
        """
        if holds_all != self._holds_all:
            self._holds_all, self._changed = holds_all, True

    def forget_all(self, rng: random.Random) -> int:
        """
        Drop all data, keep the clock, be a proxy under a new incarnation (R15).

        Only while ``idle``, and when every replica covers what this one has.
        """
        assert self.idle, "versions under way would be dropped"
        self._clock = join(self._clock, self._vv)
        self._vv = EMPTY
        self._holds_all = False
        self.take_incarnation(rng)
        self._pending.forget_all(self._collecting)
        self._forgotten_stages = self._stages
        return self._seal(forget_all=True)

    def take_commit(self) -> Commit | None:
        """Take the next change to be stored; None if there is none."""
        if not self._ready and self._dirty:
            self._seal()
        return self._ready.pop(0) if self._ready else None

    def committed(self, commit: Commit) -> None:
        """A commit is durable: what it holds may leave the node."""
        assert commit.number == self.durable_commit + 1, "durable in order (R6)"
        self.durable_commit = commit.number
        if commit.stage is not None:
            self._stored_stages.add(commit.stage.stage)
        if commit.validate is not None:
            self._stored_stages.discard(commit.validate.stage)
            self._receiving.discard(commit.validate.stage)
        if commit.drop_stage is not None:
            self._stored_stages.discard(commit.drop_stage)
        if commit.forget_all:
            self._stored_stages.clear()
        state = commit.state
        self.durable = Frontier(state.vv, state.clock, state.lamport)
        self._pending.published(commit.number)

    def reload(self, stored: ReplicaState, rng: random.Random) -> None:
        """
        Drop the applied state after a failed commit; go on from what is durable (R6).

        Takes a new incarnation if it minted anything.  Commits that were not taken yet
        are dropped, their numbers are not used again.
        """
        self._ready.clear()
        self._touched.clear()
        self._minted.clear()
        self._stage_part = self._drop_stage = None
        self._fold_versions, self._changed = 0, False
        self._pending.clear()
        self.durable_commit = self._collecting
        self._collecting += 1
        self._load(stored)
        if self._counter:
            self.take_incarnation(rng)

    def try_space(self, value_bytes: int) -> int:
        """
        Ask for a commit that stores and one that drops a version of this size, unseen.

        For a node whose disk was full, before it mints again (R6).

        :returns: the commit after which there is certainly room.
        """
        self._stages += 1
        version = Version(self.actor, COUNTER_PROBE, "space", bytes(value_bytes), 0, {})
        if self._stage_part is not None:
            self._seal()
        self._stage_part = StagePart(self._stages, (version,))
        self._seal()
        self._drop_stage = self._stages
        return self._seal()

    def _seal(
        self, validate: ValidateStage | None = None, *, forget_all: bool = False
    ) -> int:
        number = self._collecting
        come: list[Version] = []
        go: list[Dot] = []
        for key in self._touched:
            new, old = self._pending.difference(key, number)
            come += new
            go += old
        self._ready.append(
            Commit(
                number=number,
                state=self._state(),
                insert=tuple(come),
                remove=tuple(go),
                stage=self._stage_part,
                validate=validate,
                drop_stage=self._drop_stage,
                fold_versions=self._fold_versions,
                forget_all=forget_all,
                minted=tuple(self._minted),
            )
        )
        self._touched.clear()
        self._minted.clear()
        self._stage_part = self._drop_stage = None
        self._fold_versions, self._changed = 0, False
        self._collecting += 1
        return number

    def _state(self) -> ReplicaState:
        return ReplicaState(
            vv=_as_dict(self._vv),
            clock=_as_dict(join(self._clock, self._vv)),
            lamport=self._lamport,
            holds_all=self._holds_all,
            view=dict(self._view.entries),
            replica_count=self._replica_count,
            started_with_k=self._started_with_k,
        )

    def _accept(self, version: Version) -> None:
        self._merge(version, self._pending.applied(version.key))
        self._clock = join(self._clock, version.upto)

    def _merge(self, version: Version, chain: Antichain) -> None:
        self._changed = True
        joined = insert(chain, version)
        if joined is not chain:
            self._pending.change(version.key, joined, self._collecting, before=chain)
            self._touched[version.key] = None

    def _know(self, vv: VersionVector) -> None:
        if vv is not self._vv:
            self._vv, self._changed = vv, True


def _as_dict(vector: VersionVector) -> WireVector:
    return vector if isinstance(vector, dict) else dict(vector)


def _refuse_early(versions: list[Version], claim: VersionVector) -> None:
    """Nothing early (R6): what a delta lists is below what it claims."""
    for version in versions:
        if not covers(claim, version.dot):
            raise BadPeerMessage(
                f"delta of {actor_name(version.actor)} lists a version above its claim"
            )
