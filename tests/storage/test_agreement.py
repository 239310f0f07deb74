"""
All stores give the same answers in any sequence of commits, snapshots and crashes.

The commits are those of a replica that writes, is pushed to, pulls deltas in parts from
another one, folds, forgets and crashes.  What must be seen is computed beside, from the
rules alone and without any index.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from twisted_kvs.core.causality import (
    Actor,
    Dot,
    VersionVector,
    covers,
    join,
    make_actor,
)
from twisted_kvs.core.messages import Commit, CommitResult, ReplicaState
from twisted_kvs.core.versions import Version, insert, maximal
from twisted_kvs.storage.api import Snapshot, Storage
from twisted_kvs.storage.memory import MemoryStorage
from twisted_kvs.storage.sqlite import SqliteStorage
from twisted_kvs.storage.thread import CallersThread

from .commits import NAME, B, C, Commits, dots, hash_of, listed, version

KEYS = ("k", "other", "third")


class _Writer:
    """Mints versions as R3 has it: every past is closed."""

    def __init__(self) -> None:
        self.clock: VersionVector = {}
        self._last: dict[Actor, Version] = {}

    def mint(self, actor: Actor, key: str, *, knowing: bool) -> Version:
        last = self._last.get(actor)
        own = {} if last is None else last.upto
        past = self.clock if knowing else own
        minted = version(actor, own.get(actor, 0) + 1, key, past=join(own, past))
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

    def take(self, versions: list[Version], vv: VersionVector) -> None:
        for one in versions:
            self.hear(one)
            if not covers(self.vv, one.dot):
                self.chains[one.key] = insert(self.chains[one.key], one)
        self.vv = join(self.vv, vv)

    def lacking(self, base: VersionVector) -> list[Version]:
        found = [x for chain in self.chains.values() for x in chain]
        return sorted(
            (x for x in found if not covers(base, x.dot)), key=lambda x: x.dot
        )


class StoresMachine(RuleBasedStateMachine):
    """One replica on both stores at once."""

    def __init__(self) -> None:
        super().__init__()
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

    def teardown(self) -> None:
        self.check_snapshots()
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

    # What happens to the replica.

    @rule(key=st.sampled_from(KEYS), knowing=st.booleans())
    def write(self, key: str, knowing: bool) -> None:
        """A client writes here."""
        self.accept(self.near.mint(self.actor, key, knowing=knowing))

    @rule(
        actor=st.sampled_from([B, C]),
        keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=5),
        knowing=st.booleans(),
    )
    def write_far(self, actor: Actor, keys: list[str], knowing: bool) -> None:
        """A client writes at the other replica."""
        for key in keys:
            minted = self.far.mint(actor, key, knowing=knowing)
            self.far.take([minted], {actor: minted.counter})

    @rule(actor=st.sampled_from([B, C]))
    def push(self, actor: Actor) -> None:
        """The other replica pushes the next version of an actor (R8)."""
        turn = actor, self.commits.vv.get(actor, 0) + 1
        for one in self.far.lacking({}):
            if one.dot == turn:
                self.accept(one)

    @rule()
    def far_pulls(self) -> None:
        """The other replica takes all that is here."""
        snapshot = self.sqlite.snapshot()
        self.far.take(listed(snapshot, self.far.vv), snapshot.state.vv)
        snapshot.close()

    @rule()
    def begin_delta(self) -> None:
        """The replica begins to pull; a delta that was under way is left lying."""
        self.stage += 1
        self.whole = self.far.lacking(self.commits.vv)
        self.claim = self.far.vv
        self.came = 0

    @precondition(lambda self: self.whole is not None)
    @rule(size=st.integers(1, 4))
    def part(self, size: int) -> None:
        """A part of the delta comes in; past the last one, the first comes again."""
        assert self.whole is not None
        part = self.whole[self.came : self.came + size]
        self.came += len(part)
        self.finish(self.commits.part(self.stage, part or self.whole[:size]))

    @precondition(lambda self: self.whole is not None)
    @rule()
    def finish_delta(self) -> None:
        """The rest of the delta comes in, and it becomes valid (R7)."""
        assert self.whole is not None
        self.finish(self.commits.part(self.stage, self.whole[self.came :]))
        covered = self.commits.vv
        self.finish(self.commits.validate(self.stage, self.claim))
        for one in self.whole:
            self.near.hear(one)
            if not covers(covered, one.dot):
                self.visible[one.dot] = one
        self.whole = None

    @precondition(lambda self: self.whole is not None)
    @rule()
    def drop_delta(self) -> None:
        """The delta breaks off."""
        self.finish(self.commits.drop(self.stage))
        self.whole = None

    @rule(count=st.integers(1, 4))
    def fold(self, count: int) -> None:
        """A slice is folded."""
        before = [store.result.unfolded for store in self.stores]
        self.finish(self.commits.of(fold=count))
        for store, left in zip(self.stores, before, strict=True):
            assert store.result.unfolded < left or not left

    @rule()
    def forget(self) -> None:
        """The replica is demoted, when the other one has all (R15)."""
        self.far_pulls()
        self.finish(self.commits.of(forget_all=True))
        self.visible.clear()
        self.starts += 1
        self.actor = make_actor(NAME, self.starts)
        self.whole = None

    @rule()
    def crash(self) -> None:
        """The process is killed and started again."""
        self.check_snapshots()
        self.memory.crash()
        killed = self.path
        self.path = self.directory / str(self.starts)
        # What is on disk while the store is open is what a kill leaves.
        shutil.copytree(killed, self.path)
        self.sqlite.close()
        self.sqlite = self.make_sqlite()
        self.start()

    @rule()
    def take_snapshot(self) -> None:
        """A delta for somebody begins."""
        assert self.stored is not None
        for store in self.stores:
            snapshot = store.snapshot()
            self.snapshots.append((snapshot, self.stored, dots(listed(snapshot))))

    @rule()
    def check_snapshots(self) -> None:
        """Deltas that were begun show what they showed, and end."""
        for snapshot, stored, seen in self.snapshots:
            assert dots(listed(snapshot)) == seen
            assert snapshot.state == stored
            snapshot.close()
        self.snapshots.clear()

    # What can be seen at any time.

    @invariant()
    def shows_what_the_rules_say(self) -> None:
        """Every key reads right, and hash and count are those of what is there."""
        assert self.stored is not None
        chains = {key: dots(self.chain(key)) for key in KEYS}
        for store in self.stores:
            assert {key: dots(store.versions(key)) for key in KEYS} == chains
            snapshot = store.snapshot()
            seen = listed(snapshot)
            snapshot.close()
            assert {x.dot for x in seen} <= self.visible.keys()
            assert all(covers(self.stored.vv, x.dot) for x in seen), "early versions"
            assert store.count() == len(seen)
            assert store.result.live_hash == hash_of(seen)
            if not store.result.unfolded:
                left = [dot for chain in chains.values() for dot in chain]
                assert dots(seen) == sorted(left), "dominated versions were left"

    @invariant()
    def equal_knowledge_is_equal_state(self) -> None:
        """Two replicas that know the same hold the same."""
        if self.commits.vv == self.far.vv:
            for key in KEYS:
                assert dots(self.chain(key)) == dots(self.far.chains[key])


class AgreementTests(SynchronousTestCase):
    """Runs the machine."""

    def test_stores_agree_whatever_happens(self) -> None:
        """The durable store and the one in memory show the same, and the right."""
        quicker = settings(max_examples=40, stateful_step_count=40)
        random = not settings().derandomize
        run_state_machine_as_test(
            StoresMachine, settings=settings() if random else quicker
        )
