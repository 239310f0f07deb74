"""What every store promises; a mixin that is run for each of them."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from twisted_kvs.core.causality import DOT_COUNTER_MAX, Actor, Dot
from twisted_kvs.core.messages import Commit, CommitResult, ReplicaState
from twisted_kvs.core.versions import Version
from twisted_kvs.storage.api import (
    START,
    STORED_COUNTER_MAX,
    SnapshotLost,
    Storage,
)

from .commits import (
    A,
    B,
    C,
    Commits,
    dots,
    fields,
    hash_of,
    listed,
    listing,
    run_of,
    version,
)


class StorageCase(SynchronousTestCase):
    """A store under test, and how it is given commits, closed and broken off."""

    def setUp(self) -> None:
        """Open a fresh store."""
        self.storage = self.make()
        self.stored: ReplicaState | None = self.storage.open()
        self.addCleanup(self.close)
        self.commits = Commits()

    def make(self) -> Storage:
        """Make a store that is fresh and not open."""
        raise NotImplementedError

    def again(self) -> Storage:
        """Make another object for the store that was closed."""
        raise NotImplementedError

    def crash(self) -> Storage:
        """End the process as if by kill -9; gives a store that is not open."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the store under test."""
        self.successResultOf(self.storage.close())

    def give(self, commit: Commit) -> Deferred[CommitResult]:
        """Let the store make a commit durable, or fail."""
        return self.storage.commit(commit)

    def finish(self, commit: Commit) -> CommitResult:
        """Make a commit durable and published."""
        return self.successResultOf(self.give(commit))

    def reopen(self) -> None:
        """Close the store and open it again."""
        self.close()
        self.storage = self.again()
        self.stored = self.storage.open()

    def restart(self) -> None:
        """Crash, and open again."""
        self.storage = self.crash()
        self.stored = self.storage.open()

    def put(self, *versions: Version, remove: Sequence[Dot] = ()) -> CommitResult:
        """Store versions."""
        return self.finish(self.commits.of(insert=versions, remove=remove))

    def stage(self, number: int, *versions: Version) -> CommitResult:
        """Bring versions into a stage."""
        return self.finish(self.commits.part(number, versions))

    def fold_all(self, slice_: int = 2) -> None:
        """Fold until nothing is left to be folded."""
        while left := self.storage.result.unfolded:
            assert self.finish(self.commits.of(fold=slice_)).unfolded < left

    def held(self, key: str = "k") -> list[Dot]:
        """Tell the dots of a key's versions."""
        return dots(self.storage.versions(key))

    def visible(self) -> list[Version]:
        """List all visible versions."""
        snapshot = self.storage.snapshot()
        found = listed(snapshot)
        snapshot.close()
        return found


class StorageContract(StorageCase):
    """The tests; not run by itself."""

    def test_fresh_store_is_empty(self) -> None:
        """A fresh store has no state, no versions, and the hash of nothing."""
        self.assertIsNone(self.stored)
        self.assertEqual(self.storage.result, CommitResult(0, 0))
        self.assertEqual(self.storage.count(), 0)
        self.assertEqual(self.storage.versions("k"), ())

    def test_versions_come_back_whole(self) -> None:
        """What is read of a key is what was stored, in every field."""
        stored = version(
            A, 7, "k", past={B: DOT_COUNTER_MAX, C: 1}, value=b'"\xc3\xa4\\u0000"'
        )
        self.put(stored)
        (found,) = self.storage.versions("k")
        self.assertEqual(fields(found), fields(stored))
        self.assertEqual(fields(self.visible()[0]), fields(stored))

    def test_keys_are_told_apart(self) -> None:
        """Keys are any text: case, accents, NULs and lengths make different keys."""
        keys = [
            "k",
            "K",
            "k\0",
            "k\0x",
            "\xe4",
            "a\u0308",
            "\U0001f600" * 200,
            " k",
            "%",
        ]
        self.put(*(version(A, n, key) for n, key in enumerate(keys, 1)))
        for n, key in enumerate(keys, 1):
            self.assertEqual(self.held(key), [(A, n)])
        self.reopen()
        for n, key in enumerate(keys, 1):
            self.assertEqual(self.held(key), [(A, n)])

    def test_siblings_stay_and_overwritten_versions_go(self) -> None:
        """Concurrent versions are kept side by side until one write replaces them."""
        self.put(version(A, 1), version(B, 1))
        self.assertEqual(self.held(), [(A, 1), (B, 1)])
        self.put(version(C, 1, past={A: 1, B: 1}), remove=[(A, 1), (B, 1)])
        self.assertEqual(self.held(), [(C, 1)])
        self.assertEqual(self.storage.count(), 1)
        self.assertEqual(dots(self.visible()), [(C, 1)])

    def test_removing_what_is_not_there_is_fine(self) -> None:
        """A commit may remove dots that were never stored."""
        self.put(version(A, 1), remove=[(A, 5), (C, 1)])
        self.assertEqual(self.storage.result.live_hash, hash_of([version(A, 1)]))

    def test_hash_is_that_of_all_versions(self) -> None:
        """The check sum follows every change, and equals one computed from scratch."""
        one, two, three = (
            version(A, 1),
            version(B, 1, "other"),
            version(A, 2, past={A: 1}),
        )
        self.assertEqual(self.put(one, two).live_hash, hash_of([one, two]))
        self.assertEqual(
            self.put(three, remove=[(A, 1)]).live_hash, hash_of([two, three])
        )
        self.assertEqual(self.put(three).live_hash, hash_of([two, three]))
        self.assertEqual(self.storage.result.live_hash, hash_of(self.visible()))

    def test_everything_is_there_after_a_restart(self) -> None:
        """Closed and opened again, the store is what it was."""
        commit = self.commits.of(insert=run_of(A, range(1, 30)))
        before = self.finish(commit)
        self.reopen()
        self.assertEqual(self.stored, commit.state)
        self.assertEqual(self.storage.result, before)
        self.assertEqual(self.storage.count(), 29)
        self.assertEqual(dots(self.visible()), [(A, n) for n in range(1, 30)])

    def test_everything_is_there_after_a_crash(self) -> None:
        """What was committed survives a kill, its state and its hash included."""
        commit = self.commits.of(insert=run_of(A, range(1, 30)))
        before = self.finish(commit)
        self.restart()
        self.assertEqual(self.stored, commit.state)
        self.assertEqual(self.storage.result, before)
        self.assertEqual(dots(self.visible()), [(A, n) for n in range(1, 30)])

    # Stages.

    def test_stage_is_invisible_until_it_is_valid(self) -> None:
        """Parts of a delta change nothing that can be seen, until all become valid."""
        self.put(version(A, 1))
        before = self.storage.result
        self.stage(1, version(B, 1))
        self.stage(1, version(B, 2, "other"))
        self.assertEqual(self.held(), [(A, 1)])
        self.assertEqual(dots(self.storage.staged(1, "k")), [(B, 1)])
        self.assertEqual(self.storage.staged(2, "k"), ())
        self.assertEqual(self.storage.result, before)
        self.assertEqual(self.storage.count(), 1)
        # Even a VV that covers them does not show them.
        self.finish(self.commits.of(insert=[version(B, 9, "last")]))
        self.assertEqual(dots(self.visible()), [(A, 1), (B, 9)])

        result = self.finish(self.commits.validate(1, {}))
        self.assertEqual(self.held(), [(A, 1)], "covered: it was overwritten meanwhile")
        self.assertEqual(result.unfolded, 0)

    def test_valid_stage_is_visible_at_once(self) -> None:
        """One commit shows all of a stage, before anything is folded."""
        self.put(version(A, 1))
        staged = [version(B, 1), version(B, 2, "other"), version(C, 1, past={A: 1})]
        self.stage(1, *staged)
        result = self.finish(self.commits.validate(1, {B: 2, C: 1}))
        self.assertEqual(result.unfolded, 3)
        self.assertEqual(self.held(), [(B, 1), (C, 1)])
        self.assertEqual(self.held("other"), [(B, 2)])
        self.assertEqual(self.storage.count(), 4)
        self.assertEqual(result.live_hash, hash_of([version(A, 1), *staged]))
        self.assertEqual(result.live_hash, hash_of(self.visible()))

    def test_covered_versions_leave_a_stage(self) -> None:
        """What arrived by other ways while a stage was filled is not taken from it."""
        self.stage(1, version(B, 1), version(B, 2, "other"), version(B, 3, "third"))
        # Pushed, and the first one overwritten again.
        self.put(version(B, 1))
        self.put(version(B, 2, "other"))
        self.put(version(A, 1, past={B: 1}), remove=[(B, 1)])
        result = self.finish(self.commits.validate(1, {B: 3}))
        self.assertEqual(result.unfolded, 1)
        self.assertEqual(self.held(), [(A, 1)])
        self.assertEqual(self.held("other"), [(B, 2)])
        self.assertEqual(self.held("third"), [(B, 3)])
        self.assertEqual(result.live_hash, hash_of(self.visible()))
        self.assertEqual(self.storage.count(), 3)

    def test_part_may_come_twice(self) -> None:
        """A part that is repeated adds nothing, to the hash neither."""
        for _ in range(2):
            self.stage(1, version(B, 1), version(B, 2, "other"))
        result = self.finish(self.commits.validate(1, {B: 2}))
        self.assertEqual(result.unfolded, 2)
        self.assertEqual(
            result.live_hash, hash_of([version(B, 1), version(B, 2, "other")])
        )

    def test_part_leaves_out_what_is_visible(self) -> None:
        """A version that is there already stays where it is."""
        self.put(version(B, 1))
        self.stage(1, version(B, 1), version(B, 2, "other"))
        self.assertEqual(self.storage.staged(1, "k"), ())
        self.finish(self.commits.drop(1))
        self.assertEqual(self.held(), [(B, 1)])

    def test_dropped_stage_leaves_nothing(self) -> None:
        """A delta that broke off leaves no version, and can be staged anew."""
        self.put(version(A, 1))
        before = self.storage.result
        self.stage(1, version(B, 1), version(B, 2, "other"))
        self.assertEqual(self.finish(self.commits.drop(1)), before)
        self.assertEqual(self.storage.staged(1, "k"), ())
        self.stage(2, version(B, 1))
        result = self.finish(self.commits.validate(2, {B: 1}))
        self.assertEqual(result.unfolded, 1)
        self.assertEqual(self.held(), [(A, 1), (B, 1)])
        self.assertEqual(result.live_hash, hash_of(self.visible()))

    def test_part_and_drop_in_one_commit_leave_nothing(self) -> None:
        """A commit that stages and drops only tries the room on the disk."""
        commit = self.commits.part(1, [version(A, STORED_COUNTER_MAX)])
        both = Commit(
            number=commit.number, state=commit.state, stage=commit.stage, drop_stage=1
        )
        self.assertEqual(self.finish(both), CommitResult(0, 0))
        self.assertEqual(self.storage.staged(1, "k"), ())

    def test_big_stage_is_dropped_beside_commits(self) -> None:
        """A dropped stage of any size is gone at once for all that can be seen."""
        self.stage(1, *run_of(B, range(1, 3001)))
        self.finish(self.commits.drop(1))
        self.stage(2, *run_of(B, range(1, 11)))
        result = self.finish(self.commits.validate(2, {B: 10}))
        self.assertEqual(result.unfolded, 10)
        self.assertEqual(len(self.visible()), 10)

    def test_later_stage_takes_versions_of_an_earlier_one(self) -> None:
        """A delta that is pulled again while the first lies about is valid whole."""
        self.stage(1, version(B, 1), version(B, 2, "other"))
        self.stage(2, version(B, 1), version(B, 2, "other"), version(B, 3, "third"))
        result = self.finish(self.commits.validate(2, {B: 3}))
        self.assertEqual(result.unfolded, 3)
        self.finish(self.commits.drop(1))
        self.assertEqual(dots(self.visible()), [(B, 1), (B, 2), (B, 3)])

    def test_stage_that_lost_versions_never_becomes_valid(self) -> None:
        """The claim of a delta whose versions are elsewhere is not believed."""
        self.stage(1, version(B, 1), version(B, 2, "other"))
        self.stage(2, version(B, 1))
        self.failureResultOf(self.give(self.commits.validate(1, {B: 2})), RuntimeError)
        self.assertEqual(self.held("other"), [])

    # Folding.

    def test_folding_keeps_what_is_not_dominated(self) -> None:
        """Folded in slices of any size, a stage leaves the antichain of every key."""
        for slice_ in (1, 2, 3, 100):
            self.finish(self.commits.of(forget_all=True))
            self.put(version(A, 1), version(A, 2, "other"), version(A, 3, "apart"))
            kept = [
                version(B, 1, past={A: 1}),
                version(B, 2, "other"),
                version(C, 2, "new", past={C: 1}),
            ]
            self.stage(1, *kept, version(C, 1, "new"))
            self.finish(self.commits.validate(1, {B: 2, C: 2}))
            seen = [self.held(key) for key in ("k", "other", "apart", "new")]
            self.fold_all(slice_)
            self.assertEqual(
                [self.held(key) for key in ("k", "other", "apart", "new")], seen
            )
            left = [*kept, version(A, 2, "other"), version(A, 3, "apart")]
            self.assertEqual(dots(self.visible()), dots(left))
            self.assertEqual(self.storage.result.live_hash, hash_of(left))

    def test_stages_are_folded_in_the_order_in_which_they_became_valid(self) -> None:
        """Two stages that wait are worked off one after the other."""
        self.stage(1, version(B, 1), version(B, 2, "other"))
        self.finish(self.commits.validate(1, {B: 2}))
        self.stage(2, version(C, 1, past={B: 1}), version(C, 2, "third"))
        self.assertEqual(self.finish(self.commits.validate(2, {C: 2})).unfolded, 4)
        self.assertEqual(self.held(), [(C, 1)])
        # The first stage: one version of it is dominated by one of the second.
        self.assertEqual(self.finish(self.commits.of(fold=100)).unfolded, 2)
        self.assertEqual(dots(self.visible()), [(B, 2), (C, 1), (C, 2)])
        self.assertEqual(self.finish(self.commits.of(fold=100)).unfolded, 0)

    def test_write_over_an_unfolded_version_unhides_nothing(self) -> None:
        """What a staged version had overwritten does not outlive that version."""
        self.put(version(A, 1))
        self.stage(1, version(B, 1, past={A: 1}), version(B, 2, "other"))
        self.finish(self.commits.validate(1, {B: 2}))
        last = version(A, 2, past={A: 1, B: 2})
        self.put(last, remove=[(B, 1)])
        self.assertEqual(self.held(), [(A, 2)])
        self.fold_all()
        self.assertEqual(dots(self.visible()), [(A, 2), (B, 2)])
        self.assertEqual(
            self.storage.result.live_hash, hash_of([last, version(B, 2, "other")])
        )

    def test_folding_a_version_of_an_overwritten_key(self) -> None:
        """A staged version that a newer write dominates is dropped by folding."""
        self.stage(1, version(B, 1))
        self.finish(self.commits.validate(1, {B: 1}))
        self.put(version(A, 1, past={B: 1}))
        self.fold_all()
        self.assertEqual(dots(self.visible()), [(A, 1)])

    def test_folding_nothing_is_fine(self) -> None:
        """A slice may be asked for when nothing is left."""
        self.assertEqual(self.finish(self.commits.of(fold=5)).unfolded, 0)

    def test_whole_stage_overwritten_needs_no_folding(self) -> None:
        """When every staged version was replaced by a write, nothing waits."""
        self.stage(1, version(B, 1))
        self.finish(self.commits.validate(1, {B: 1}))
        self.assertEqual(
            self.put(version(A, 1, past={B: 1}), remove=[(B, 1)]).unfolded, 0
        )
        self.assertEqual(dots(self.visible()), [(A, 1)])

    def test_empty_stage_becomes_valid(self) -> None:
        """A delta without versions moves the VV and nothing else."""
        self.stage(1)
        self.assertEqual(
            self.finish(self.commits.validate(1, {B: 1})), CommitResult(0, 0)
        )
        self.reopen()
        assert self.stored is not None
        self.assertEqual(self.stored.vv, {B: 1})

    # Stages and restarts.

    def test_half_a_stage_is_dropped_by_a_crash(self) -> None:
        """A delta that was under way when the process was killed leaves nothing."""
        self.put(version(A, 1))
        before = self.storage.result
        self.stage(1, version(B, 1), version(B, 2, "other"))
        self.restart()
        self.assertEqual(self.storage.result, before)
        self.assertEqual(self.storage.staged(1, "k"), ())
        self.assertEqual(dots(self.visible()), [(A, 1)])
        # A stage of the new process is another, whatever its number.
        self.stage(1, version(C, 1))
        self.assertEqual(dots(self.storage.staged(1, "k")), [(C, 1)])
        result = self.finish(self.commits.validate(1, {C: 1}))
        self.assertEqual(result.unfolded, 1)
        self.assertEqual(dots(self.visible()), [(A, 1), (C, 1)])
        self.assertEqual(result.live_hash, hash_of(self.visible()))

    def test_valid_stage_is_folded_after_a_crash(self) -> None:
        """A delta that became valid stays, and is folded by the next process."""
        self.put(version(A, 1))
        self.stage(1, *run_of(B, range(1, 6)), version(B, 6, past={A: 1}))
        before = self.finish(self.commits.validate(1, {B: 6}))
        self.finish(self.commits.of(fold=2))
        self.restart()
        self.assertEqual(
            self.storage.result, CommitResult(before.live_hash, before.unfolded - 2)
        )
        self.assertEqual(self.held(), [(B, 6)])
        # Another stage of the same number as one that waits is another stage.
        self.stage(1, version(C, 1))
        self.assertEqual(self.held(), [(B, 6)])
        self.finish(self.commits.validate(1, {C: 1}))
        self.fold_all()
        self.assertEqual(self.held(), [(B, 6), (C, 1)])
        self.assertEqual(len(self.visible()), 7)
        self.assertEqual(self.storage.result.live_hash, hash_of(self.visible()))

    # Forgetting.

    def test_forgotten_versions_can_come_again(self) -> None:
        """A demoted replica forgets all but its state, and can be filled anew."""
        self.put(version(A, 1), version(B, 1, "other"))
        self.stage(1, version(C, 1))
        self.finish(self.commits.validate(1, {C: 1}))
        self.stage(2, version(C, 2, "other"))
        result = self.finish(self.commits.of(forget_all=True))
        self.assertEqual(result, CommitResult(0, 0))
        self.assertEqual(self.storage.count(), 0)
        self.assertEqual((self.held(), self.held("other")), ([], []))
        self.assertEqual(self.storage.staged(2, "other"), ())
        self.put(version(A, 1))
        self.assertEqual(dots(self.visible()), [(A, 1)])
        self.reopen()
        self.assertEqual(dots(self.visible()), [(A, 1)])
        self.assertEqual(self.storage.result.live_hash, hash_of([version(A, 1)]))

    # Snapshots.

    def test_snapshot_stays_at_its_instant(self) -> None:
        """Writes, deltas, folding and forgetting leave a snapshot as it was."""
        self.put(version(A, 1), version(B, 1, "other"))
        self.stage(1, version(C, 1, past={A: 1}), version(C, 2, "new"))
        first = self.storage.snapshot()
        self.finish(self.commits.validate(1, {C: 2}))
        second = self.storage.snapshot()
        self.put(version(B, 2, "other", past={B: 1}), remove=[(B, 1)])
        self.put(version(A, 2, "new", past={C: 2}), remove=[(C, 2)])
        self.fold_all()
        third = self.storage.snapshot()
        self.finish(self.commits.of(forget_all=True))
        self.put(version(A, 1, "k"))
        wanted = {
            first: [(A, 1), (B, 1)],
            second: [(A, 1), (B, 1), (C, 1), (C, 2)],
            third: [(A, 2), (B, 2), (C, 1)],
        }
        for snapshot, expected in wanted.items():
            versions = listed(snapshot)
            self.assertEqual(dots(versions), expected)
            self.assertEqual(snapshot.result.live_hash, hash_of(versions))
        self.assertEqual(first.state.vv, {A: 1, B: 1})
        self.assertEqual(second.state.vv, {A: 1, B: 1, C: 2})
        self.assertEqual([first.result.unfolded, second.result.unfolded], [0, 2])
        self.assertGreater(first.age_commits, second.age_commits)
        for snapshot in wanted:
            snapshot.close()

    def test_snapshot_tells_its_age(self) -> None:
        """A snapshot knows how many commits were made since."""
        self.put(version(A, 1))
        snapshot = self.storage.snapshot()
        self.assertEqual(snapshot.age_commits, 0)
        self.put(version(A, 2, past={A: 1}), remove=[(A, 1)])
        self.put(version(A, 3, past={A: 2}), remove=[(A, 2)])
        self.assertEqual(snapshot.age_commits, 2)
        snapshot.close()

    def test_closed_snapshot_shows_nothing(self) -> None:
        """A snapshot may be closed twice; then it refuses to list."""
        self.put(version(A, 1))
        for _ in range(10):
            snapshot = self.storage.snapshot()
            snapshot.close()
            snapshot.close()
            self.assertRaises(
                SnapshotLost,
                snapshot.missing,
                {},
                START,
                versions_max=1,
                bytes_max=1,
            )

    def test_listing_gives_what_the_base_lacks(self) -> None:
        """A delta holds exactly what the asker does not cover, by actor in order."""
        self.put(*run_of(B, range(1, 5)), *run_of(A, [1, 2]), version(C, 5))
        snapshot = self.storage.snapshot()
        found = listed(snapshot, {B: 2, C: 5, Actor("10.0.0.9:1#0"): 9})
        self.assertEqual(dots(found), [(A, 1), (A, 2), (B, 3), (B, 4)])
        for actor in (A, B):
            counters = [x.counter for x in found if x.actor == actor]
            self.assertEqual(counters, sorted(counters))
        self.assertEqual(listed(snapshot, {A: 2, B: 9, C: 5}), [])
        snapshot.close()

    def test_nothing_above_the_claim_is_listed(self) -> None:
        """A delta never holds a version that its claim does not cover."""
        self.put(version(A, 1))
        above = self.commits.of()
        self.finish(
            Commit(number=9, state=above.state, insert=(version(A, 2), version(B, 1)))
        )
        self.assertEqual(dots(self.visible()), [(A, 1)])

    def test_listing_in_parts(self) -> None:
        """Parts have at most so many versions, follow on each other and end in time."""
        self.put(*run_of(A, range(1, 8)), *run_of(B, range(1, 6)))
        snapshot = self.storage.snapshot()
        whole = [x.dot for x in listed(snapshot)]
        self.assertEqual(len(whole), 12)
        for size in (1, 2, 5, 6, 11, 12, 13):
            parts = listing(snapshot, versions_max=size)
            self.assertEqual([x.dot for part in parts for x in part], whole)
            self.assertEqual({len(part) for part in parts[:-1]} | {size}, {size})
            self.assertEqual(len(parts), -(-12 // size), "no empty part at the end")
        snapshot.close()

    def test_listing_in_parts_of_bytes(self) -> None:
        """Parts stay below their bytes; a version that is larger comes alone."""
        sizes = (10, 10, 500, 10, 80, 10)
        self.put(
            *(
                version(A, n, f"{n}", value=b"1" * (size - 1))
                for n, size in enumerate(sizes, 1)
            )
        )
        snapshot = self.storage.snapshot()
        parts = listing(snapshot, bytes_max=100)
        self.assertEqual(
            [[x.counter for x in part] for part in parts], [[1, 2], [3], [4, 5, 6]]
        )
        parts = listing(snapshot, bytes_max=99)
        self.assertEqual(
            [[x.counter for x in part] for part in parts], [[1, 2], [3], [4, 5], [6]]
        )
        snapshot.close()

    # Limits.

    def test_greatest_counter(self) -> None:
        """Counters up to the limit are stored, one above it is refused."""
        last = version(A, DOT_COUNTER_MAX)
        self.put(last, version(B, 1, "other"))
        self.assertEqual(dots(self.visible()), dots([last, version(B, 1)]))
        before = self.storage.result
        above = version(C, STORED_COUNTER_MAX + 1)
        refused = Commit(number=9, state=self.commits.of().state, insert=(above,))
        self.failureResultOf(self.give(refused), ValueError)
        self.assertEqual(self.storage.result, before)
        self.put(version(A, 1, "more"), remove=[above.dot])
        self.assertEqual(len(self.visible()), 3)

    def test_size_grows_with_what_is_stored(self) -> None:
        """The size of a store tells how much there is."""
        self.put(version(A, 1))
        before = self.storage.size_bytes
        self.put(version(A, 2, "big", value=b"1" * 10**6))
        self.assertGreaterEqual(self.storage.size_bytes, before + 10**6)
