"""Versions, states and commits as tests of stores need them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from twisted_kvs.core.causality import (
    Actor,
    Dot,
    Name,
    VersionVector,
    join,
    make_actor,
)
from twisted_kvs.core.fence import Fence, LiveDots
from twisted_kvs.core.messages import (
    Commit,
    ReplicaState,
    StagePart,
    ValidateStage,
)
from twisted_kvs.core.versions import SEAL_TS, Version, version_hash
from twisted_kvs.core.view import Member, ReplicaCount
from twisted_kvs.storage.api import START, Cursor, Snapshot, Storage

NAME = Name("10.0.0.1:8080")
A, B, C = (make_actor(Name(f"10.0.0.{n}:8080"), n) for n in (1, 2, 3))


def state(vv: VersionVector, *, lamport: int = 0) -> ReplicaState:
    """Make a state record with this knowledge."""
    return ReplicaState(
        vv=dict(vv),
        clock=dict(vv),
        lamport=lamport,
        holds_all=True,
        view={NAME: Member(1, True, (1, 0))},
        replica_count=ReplicaCount(1, 3),
        started_with_k=3,
    )


def version(
    actor: Actor,
    counter: int,
    key: str = "k",
    *,
    past: VersionVector | None = None,
    value: bytes | None = None,
) -> Version:
    """Make a version; its value tells its dot if none is given."""
    return Version(
        actor,
        counter,
        key,
        b'"%s %d"' % (actor[7:8].encode(), counter) if value is None else value,
        1_700_000_000_000_000 + counter,
        dict(past or {}),
    )


def tombstone(
    actor: Actor,
    counter: int,
    key: str = "k",
    *,
    past: VersionVector | None = None,
    seal: bool = False,
) -> Version:
    """Make a tombstone or a seal."""
    ts = SEAL_TS if seal else 1_700_000_000_000_000 + counter
    return Version(actor, counter, key, None, ts, dict(past or {}))


def run_of(actor: Actor, counters: Iterable[int], *, keys: int = 1000) -> list[Version]:
    """Make versions of one actor, the keys taken in turn."""
    return [version(actor, n, f"key {n % keys}") for n in counters]


def dots(versions: Iterable[Version]) -> list[Dot]:
    """Tell the dots of versions, sorted."""
    return sorted(x.dot for x in versions)


def hash_of(versions: Iterable[Version]) -> int:
    """Compute the live hash of these versions from scratch."""
    joined = 0
    for one in versions:
        joined ^= version_hash(one)
    return joined


def as_live(dots: Iterable[Dot]) -> LiveDots:
    """List dots by actor."""
    live: LiveDots = {}
    for actor, counter in sorted(dots):
        live.setdefault(actor, []).append(counter)
    return live


def fence_of(claim: VersionVector, live: Iterable[Dot] = ()) -> Fence:
    """Make the fence of a full join."""
    fence = Fence(dict(claim))
    fence.spare(as_live(live))
    return fence


def fields(of: Version) -> tuple[object, ...]:
    """Tell all that a version is made of."""
    return of.actor, of.counter, of.key, of.value, of.ts, of.past


def listing(
    snapshot: Snapshot,
    base: VersionVector | None = None,
    *,
    versions_max: int = 1000,
    bytes_max: int = 2**20,
) -> list[list[Version]]:
    """Read all parts of what ``base`` lacks."""
    parts = []
    cursor: Cursor | None = START
    while cursor is not None:
        before = cursor
        part, cursor = snapshot.missing(
            base or {}, before, versions_max=versions_max, bytes_max=bytes_max
        )
        parts.append(part)
        assert cursor is None or cursor > before, "a listing that stands still"
    return parts


def listed(snapshot: Snapshot, base: VersionVector | None = None) -> list[Version]:
    """Read what ``base`` lacks, as one list."""
    return [x for part in listing(snapshot, base) for x in part]


def live_dots(snapshot: Snapshot, *, dots_max: int = 1000) -> list[list[Dot]]:
    """Read all parts of the list of what is live."""
    parts = []
    cursor: Cursor | None = START
    while cursor is not None:
        before = cursor
        live, cursor = snapshot.live(before, dots_max=dots_max)
        parts.append([(actor, n) for actor, found in live.items() for n in found])
        assert cursor is None or cursor > before, "a listing that stands still"
    return parts


def unsettled(
    storage: Storage,
    upto: VersionVector,
    *,
    versions_max: int = 1000,
    bytes_max: int = 2**20,
) -> list[list[str]]:
    """Read all parts of the list of keys with something to be settled."""
    parts = []
    cursor: Cursor | None = START
    while cursor is not None:
        before = cursor
        part, cursor = storage.unsettled(
            upto, before, versions_max=versions_max, bytes_max=bytes_max
        )
        parts.append(part)
        assert cursor is None or cursor > before, "a listing that stands still"
    return parts


@dataclass
class Commits:
    """Makes the commits of one store, with the state that belongs to each."""

    vv: VersionVector = field(default_factory=dict)
    number: int = 0

    def of(
        self,
        *,
        insert: Iterable[Version] = (),
        remove: Iterable[Dot] = (),
        forget_pasts: Iterable[Dot] = (),
        fold: int = 0,
        forget_all: bool = False,
    ) -> Commit:
        """Insert, remove, fold or forget; the VV covers what is inserted."""
        inserted = tuple(insert)
        self.vv = {} if forget_all else self.vv
        self.vv = join(self.vv, *({x.actor: x.counter} for x in inserted))
        return self._commit(
            insert=inserted,
            remove=tuple(remove),
            forget_pasts=tuple(forget_pasts),
            fold_versions=fold,
            forget_all=forget_all,
        )

    def part(
        self, stage: int, versions: Iterable[Version], live: Iterable[Dot] = ()
    ) -> Commit:
        """Bring a part of a stage in."""
        return self._commit(stage=StagePart(stage, tuple(versions), as_live(live)))

    def validate(
        self, stage: int, claim: VersionVector, fence: Fence | None = None
    ) -> Commit:
        """Make a stage valid; the VV covers ``claim`` afterwards."""
        covered = self.vv
        self.vv = join(self.vv, claim)
        return self._commit(validate=ValidateStage(stage, dict(covered), fence))

    def drop(self, stage: int) -> Commit:
        """Drop a stage."""
        return self._commit(drop_stage=stage)

    def _commit(self, **what: object) -> Commit:
        self.number += 1
        return Commit(
            number=self.number,
            state=state(self.vv, lamport=self.number),
            **what,  # type: ignore[arg-type]  # as the callers above give them
        )
