"""
All stores give the same answers in any sequence of commits, snapshots and crashes.

The commits are those of a replica that writes, is pushed to, pulls deltas in parts from
another one that may have reaped, folds, forgets pasts or all, and crashes.  What must
be seen is computed beside, from the rules alone and without any index.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twisted_kvs.core.causality import (
    Actor,
    Dot,
    VersionVector,
    actor_name,
    covers,
    join,
    leq,
    make_actor,
)
from twisted_kvs.core.messages import Commit, CommitResult, ReplicaState
from twisted_kvs.core.names import parse_name
from twisted_kvs.core.versions import Version, insert, maximal
from twisted_kvs.storage.api import Snapshot, Storage
from twisted_kvs.storage.memory import MemoryStorage
from twisted_kvs.storage.sqlite import SqliteStorage
from twisted_kvs.storage.thread import CallersThread

from .commits import (
    NAME,
    B,
    C,
    Commits,
    dots,
    fence_of,
    fields,
    hash_of,
    listed,
    live_dots,
    tombstone,
    unsettled,
    version,
)

KEYS = ("k", "other", "third")
GONE_NAME = parse_name("10.0.0.9:8080")


class _Writer:
    """Mints versions as R3 has it: every past is closed."""

    def __init__(self) -> None:
        self.clock: VersionVector = {}
        self._last: dict[Actor, Version] = {}

    def mint(
        self, actor: Actor, key: str, *, knowing: bool, deleted: bool = False
    ) -> Version:
        last = self._last.get(actor)
        own = {} if last is None else last.upto
        past = self.clock if knowing else own
        make = tombstone if deleted else version
        minted = make(actor, own.get(actor, 0) + 1, key, past=join(own, past))
        self._last[actor] = minted
        self.hear(minted)
        return minted

    def hear(self, heard: Version) -> None:
        self.clock = join(self.clock, heard.upto)


class _Far(_Writer):
    """Another replica, that never fails."""

    def __init__(self) -> None:
        super().__init__()
        self.vv: VersionVector = {}
        self.chains: dict[str, tuple[Version, ...]] = dict.fromkeys(KEYS, ())
        self.reaped = 0
        """How often something went without a trace."""

    def take(self, versions: list[Version], vv: VersionVector) -> None:
        for one in versions:
            self.hear(one)
            if not covers(self.vv, one.dot):
                self.chains[one.key] = insert(self.chains[one.key], one)
        self.vv = join(self.vv, vv)

    @property
    def live(self) -> list[Dot]:
        """All that is there, to be listed in a full join."""
        return dots(x for chain in self.chains.values() for x in chain)

    def reap(self, key: str) -> None:
        """Remove what there is of a key, as when its seal is dropped."""
        self.reaped += len(self.chains[key])
        self.chains[key] = ()

    def lacking(self, base: VersionVector) -> list[Version]:
        found = [x for chain in self.chains.values() for x in chain]
        return sorted(
            (x for x in found if not covers(base, x.dot)), key=lambda x: x.dot
        )


class _TwoStores:
    """One replica on both stores at once."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.path = self.directory / "0"
        self.starts = 0
        self.memory = MemoryStorage()
        self.sqlite = self.make_sqlite()
        self.far = _Far()
        self.near = _Writer()
        self.commits = Commits()
        self.stored: ReplicaState | None = None
        # The oracle: all that is visible, be it dominated.
        self.visible: dict[Dot, Version] = {}
        self.begun = 0
        """Deltas."""
        self.joined = 0
        """What of the other one's reaping is known here."""
        self.fenced = False
        self.snapshots: list[tuple[Snapshot, ReplicaState, list[Dot]]] = []
        self.start()
        self.finish(self.commits.of())

    def make_sqlite(self) -> SqliteStorage:
        return SqliteStorage(
            self.path, name=NAME, fingerprints=("f1",), thread=CallersThread()
        )

    def start(self) -> None:
        for store in (self.sqlite, self.memory):
            assert store.open() == self.stored
        self.starts += 1
        self.actor = make_actor(NAME, self.starts)
        self.commits.number = self.stage = 0
        self.whole: list[Version] | None = None

    def end(self) -> None:
        for store in self.stores:
            store.close()
        shutil.rmtree(self.directory)

    @property
    def stores(self) -> tuple[Storage, Storage]:
        return self.sqlite, self.memory

    def finish(self, commit: Commit) -> None:
        results: list[CommitResult] = []
        for store in self.stores:
            store.commit(commit).addCallback(results.append)
        assert results == [store.result for store in self.stores], "a commit failed"
        self.stored = commit.state

    def chain(self, key: str) -> tuple[Version, ...]:
        return maximal(x for x in self.visible.values() if x.key == key)

    def accept(self, one: Version) -> None:
        """Join a version into its key (R4)."""
        before = self.chain(one.key)
        after = insert(before, one)
        self.near.hear(one)
        self.commits.vv = join(self.commits.vv, {one.actor: one.counter})
        come = [one] if one in after else []
        gone = [x.dot for x in before if x not in after]
        self.finish(self.commits.of(insert=come, remove=gone))
        self.visible.update((x.dot, x) for x in come)
        for dot in gone:
            del self.visible[dot]

    def step(self, what: str, key: str, *, number: int, flag: bool) -> None:
        """Let one thing happen."""
        # They start anew, too: so stores meet names that they do not know.
        far_actor = make_actor(actor_name((B, C)[number % 2]), 100 + self.begun // 2)
        match what:
            case "write":
                self.write(key, knowing=flag, deleted=number > 2)
            case "write_far":
                keys = [key, *KEYS][: number + 1]
                self.write_far(far_actor, keys, knowing=flag)
            case "push":
                self.push(far_actor)
            case "far_pulls":
                self.far_pulls()
            case "pull":
                self.pull(key, far_actor, between=number, folded=2 * flag)
            case "begin":
                self.begin_delta()
            case "part" if self.whole is not None:
                self.part(number)
            case "finish" if self.whole is not None:
                self.finish_delta()
            case "drop" if self.whole is not None:
                self.drop_delta()
            case "fold":
                self.fold(1 + number)
            case "reap":
                self.far.reap(key)
            case "settle":
                self.settle(number)
            case "forget" if flag:
                self.forget()
            case "crash" if flag:
                self.crash()
            case "snapshot":
                self.take_snapshot()
            case "compare":
                self.compare_snapshots()

    # What happens to the replica.

    def write(self, key: str, *, knowing: bool, deleted: bool = False) -> None:
        """A client writes or deletes here."""
        minted = self.near.mint(self.actor, key, knowing=knowing, deleted=deleted)
        self.accept(minted)

    def write_far(self, actor: Actor, keys: list[str], knowing: bool) -> None:
        """A client writes at the other replica."""
        for key in keys:
            minted = self.far.mint(actor, key, knowing=knowing)
            self.far.take([minted], {actor: minted.counter})

    def push(self, actor: Actor) -> None:
        """The other replica pushes the next version of an actor (R8)."""
        turn = actor, self.commits.vv.get(actor, 0) + 1
        for one in self.far.lacking({}):
            if one.dot == turn:
                self.accept(one)

    def far_pulls(self) -> None:
        """The other replica takes all that is here."""
        snapshot = self.sqlite.snapshot()
        self.far.take(listed(snapshot, self.far.vv), snapshot.state.vv)
        snapshot.close()

    def pull(self, key: str, actor: Actor, *, between: int, folded: int) -> None:
        """A whole delta, with other versions arriving while it is under way."""
        self.begin_delta()
        self.part(2)
        if between in {1, 3}:
            self.push(actor)
        if between in {2, 3}:
            self.write(key, knowing=True)
        self.finish_delta()
        if folded:
            self.fold(folded)

    def begin_delta(self) -> None:
        """The replica begins to pull; a delta that was under way is left lying."""
        self.stage += 1
        self.begun += 1
        self.whole = self.far.lacking(self.commits.vv)
        # It also names somebody all of whose writes are overwritten: no row ever does.
        gone = make_actor(GONE_NAME, self.stage)
        self.far.vv = self.claim = join(self.far.vv, {gone: 1})
        self.came = self.told = 0
        self.reaped = self.far.reaped
        self.live = self.far.live if self.reaped > self.joined else None

    def part(self, size: int) -> None:
        """A part of the delta comes in; past the last one, the first comes again."""
        whole = self.whole or []
        part = whole[self.came : self.came + size]
        self.came += len(part)
        live = (self.live or [])[self.told : self.told + size]
        self.told += len(live)
        commit = self.commits.part(self.stage, part or whole[:size], live)
        # A slice of folding often comes with the same commit.
        self.finish(replace(commit, fold_versions=self.stage % 3))

    def finish_delta(self) -> None:
        """The rest of the delta comes in, and it becomes valid (R7)."""
        assert self.whole is not None
        rest = self.live or []
        self.finish(
            self.commits.part(self.stage, self.whole[self.came :], rest[self.told :])
        )
        covered = self.commits.vv
        fence = None if self.live is None else fence_of(self.claim, self.live)
        self.finish(self.commits.validate(self.stage, self.claim, fence))
        for one in self.whole:
            self.near.hear(one)
            if not covers(covered, one.dot):
                self.visible[one.dot] = one
        if self.live is not None:
            for dot in [d for d in self.visible if covers(self.claim, d)]:
                if dot not in self.live:
                    del self.visible[dot]
            self.fenced = True
            self.joined = self.reaped
        self.whole = None

    def drop_delta(self) -> None:
        """The delta breaks off."""
        self.finish(self.commits.drop(self.stage))
        self.whole = None

    def fold(self, count: int) -> None:
        """A slice is folded."""
        before = [store.result.unfolded for store in self.stores]
        self.finish(self.commits.of(fold=count))
        for store, left in zip(self.stores, before, strict=True):
            assert store.result.unfolded < left or not left or self.fenced
        self.fenced = self.fenced and any(s.result.unfolded for s in self.stores)

    def settle(self, count: int) -> None:
        """Versions that both have lose their pasts, when nothing waits (R11)."""
        if self.whole is None and not any(s.result.unfolded for s in self.stores):
            chains = [self.chain(key) for key in KEYS]
            self.visible = {x.dot: x for chain in chains for x in chain}
            stable = [
                dot
                for dot, one in sorted(self.visible.items())
                if leq(one.upto, self.far.vv) and leq(one.upto, self.commits.vv)
            ][: 1 + count]
            self.finish(self.commits.of(forget_pasts=stable))
            for dot in stable:
                one = self.visible[dot]
                self.visible[dot] = msgspec.structs.replace(one, past={})

    def forget(self) -> None:
        """The replica is demoted, when the other one has all (R15)."""
        self.far_pulls()
        self.finish(self.commits.of(forget_all=True))
        self.visible.clear()
        self.fenced = False
        self.starts += 1
        self.actor = make_actor(NAME, self.starts)
        self.whole = None

    def crash(self) -> None:
        """The process is killed and started again."""
        self.compare_snapshots()
        self.memory.crash()
        killed = self.path
        self.path = self.directory / str(self.starts)
        # What is on disk while the store is open is what a kill leaves.
        shutil.copytree(killed, self.path)
        self.sqlite.close()
        self.sqlite = self.make_sqlite()
        self.start()

    def take_snapshot(self) -> None:
        """A delta for somebody begins."""
        assert self.stored is not None
        for store in self.stores:
            snapshot = store.snapshot()
            self.snapshots.append((snapshot, self.stored, dots(listed(snapshot))))

    def compare_snapshots(self) -> None:
        """Deltas that were begun show what they showed, and end."""
        for snapshot, stored, seen in self.snapshots:
            assert dots(listed(snapshot)) == seen
            assert snapshot.state == stored
            snapshot.close()
        self.snapshots.clear()

    # What can be seen at any time.

    def check(self) -> None:
        """See that all is as it must be after every step."""
        self.shows_what_the_rules_say()
        self.equal_knowledge_is_equal_state()

    def shows_what_the_rules_say(self) -> None:
        """Every key reads right, and hash and count are those of what is there."""
        assert self.stored is not None
        chains = {key: dots(self.chain(key)) for key in KEYS}
        for store in self.stores:
            assert {key: dots(store.versions(key)) for key in KEYS} == chains
            snapshot = store.snapshot()
            seen = listed(snapshot)
            assert live_dots(snapshot)[0] == [x.dot for x in seen]
            snapshot.close()
            assert {x.dot for x in seen} <= self.visible.keys()
            assert all(fields(x) == fields(self.visible[x.dot]) for x in seen)
            assert all(covers(self.stored.vv, x.dot) for x in seen), "early versions"
            assert store.count() == len(seen) or self.fenced
            assert store.result.live_hash == hash_of(seen) or self.fenced
            (found,) = unsettled(store, self.stored.vv)
            wanted = {x.key for x in seen if x.past or x.value is None}
            assert sorted(found) == sorted(wanted)
            if not store.result.unfolded:
                left = [dot for chain in chains.values() for dot in chain]
                assert dots(seen) == sorted(left), "dominated versions were left"

    def equal_knowledge_is_equal_state(self) -> None:
        """Two replicas that know the same hold the same."""
        if self.commits.vv == self.far.vv and self.joined == self.far.reaped:
            for key in KEYS:
                assert dots(self.chain(key)) == dots(self.far.chains[key])


# What happens, the more frequent more often.
STEPS = (
    *["write", "write_far", "write_far", "push", "pull", "pull", "fold", "snapshot"],
    *["begin", "part", "part", "finish", "drop", "far_pulls", "compare"],
    *["crash", "forget", "reap", "reap", "settle", "settle"],
)


def _steps() -> st.SearchStrategy[list[tuple[str, str, int, bool]]]:
    step = st.tuples(
        st.sampled_from(STEPS),
        st.sampled_from(KEYS),
        st.integers(0, 4),
        st.booleans(),
    )
    return st.lists(step, min_size=40, max_size=60)


class AgreementTests(SynchronousTestCase):
    """Runs both stores through drawn histories."""

    @settings(max_examples=settings().max_examples // 3)
    @given(steps=_steps())
    def test_stores_agree_whatever_happens(
        self, steps: list[tuple[str, str, int, bool]]
    ) -> None:
        """The durable store and the one in memory show the same, and the right."""
        stores = _TwoStores()
        try:
            for what, key, number, flag in steps:
                stores.step(what, key, number=number, flag=flag)
                stores.check()
            stores.compare_snapshots()
        finally:
            stores.end()
