"""What every store promises of deletes and compaction; a mixin run for each of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import msgspec

from twisted_kvs.core.causality import Dot, VersionVector, make_actor
from twisted_kvs.core.messages import CommitResult
from twisted_kvs.core.versions import Version
from twisted_kvs.storage.api import (
    LOOKED_PER_LISTED,
    START,
    SnapshotLost,
    part_bytes,
)

from .commits import (
    NAME,
    A,
    B,
    C,
    as_live,
    dots,
    fence_of,
    fields,
    hash_of,
    listed,
    listing,
    live_dots,
    run_of,
    tombstone,
    unsettled,
    version,
)
from .contract import StorageCase


class DeletesContract(StorageCase):
    """The tests; not run by itself."""

    def join_fully(
        self,
        stage: int,
        versions: Iterable[Version],
        *,
        claim: VersionVector,
        live: Iterable[Dot],
    ) -> CommitResult:
        """Take a full join in: two parts, and it becomes valid."""
        spared = sorted(live)
        half = len(spared) // 2
        self.finish(self.commits.part(stage, versions, spared[:half]))
        self.finish(self.commits.part(stage, (), spared[half:]))
        fence = fence_of(claim, spared)
        return self.finish(self.commits.validate(stage, claim, fence))

    def fold_to_the_end(self, slice_: int = 2) -> int:
        """Fold until nothing is left; tells in how many commits."""
        for turn in range(10_000):
            if not self.storage.result.unfolded:
                return turn
            self.finish(self.commits.of(fold=slice_))
        raise AssertionError("folding does not end")

    # Parts.

    def test_pasts_count_in_parts(self) -> None:
        """A past of many actors takes room in a message, too, and time."""
        long = {make_actor(NAME, n): 1 for n in range(1, 100)}
        self.put(*(version(A, n, f"{n}", past=long) for n in range(1, 5)))
        snapshot = self.storage.snapshot()
        bytes_each = part_bytes(version(A, 1, past=long))
        self.assertGreater(bytes_each, 8 * len(long))
        parts = listing(snapshot, bytes_max=2 * bytes_each)
        self.assertEqual([len(part) for part in parts], [2, 2])
        snapshot.close()

    def test_a_listing_does_not_look_at_everything_in_one_turn(self) -> None:
        """Where a full join has doomed much that is not removed yet."""
        self.put(*run_of(A, range(1, 101)))
        live = [(A, 50), (B, 1)]
        self.join_fully(1, [version(B, 1, "b")], claim={A: 100, B: 1}, live=live)
        snapshot = self.storage.snapshot()
        parts = listing(snapshot, versions_max=2)
        self.assertGreaterEqual(len(parts), 98 // (2 * LOOKED_PER_LISTED))
        self.assertEqual(dots(x for part in parts for x in part), live)
        snapshot.close()

    # Retired actors.

    def test_who_is_retired_comes_back(self) -> None:
        """As the last commit had it, whether that changed it or not."""
        for n, known in enumerate((b"", b"some", b"some", b"some more"), 1):
            commit = self.commits.of(insert=[version(A, n, f"{n}")])
            state = msgspec.structs.replace(commit.state, retired=known)
            self.finish(replace(commit, state=state))
            self.restart()
            assert self.stored is not None
            self.assertEqual((self.stored.retired, self.stored.vv), (known, state.vv))
            self.commits.number = 0

    # Tombstones.

    def test_tombstones_come_back_whole(self) -> None:
        """A delete and a seal are read as they were stored, also after a restart."""
        stored = [
            tombstone(A, 1, "deleted", past={B: 3}),
            tombstone(A, 2, "sealed", past={B: 4}, seal=True),
        ]
        self.put(*stored)
        for again in (False, True):
            if again:
                self.restart()
            for one in stored:
                (found,) = self.storage.versions(one.key)
                self.assertEqual(fields(found), fields(one))
            self.assertEqual(
                [fields(x) for x in self.visible()], [fields(x) for x in stored]
            )
        self.assertEqual(self.storage.count(), 2)

    def test_seals_do_not_count_in_the_hash(self) -> None:
        """Replicas may hold a seal or have dropped it: their check sums are equal."""
        first = self.put(version(A, 1), tombstone(B, 1, "other"))
        self.assertEqual(
            first.live_hash, hash_of([version(A, 1), tombstone(B, 1, "other")])
        )
        seal = tombstone(A, 2, "gone", seal=True)
        self.assertEqual(self.put(seal), first)
        self.assertEqual(self.put(remove=[seal.dot]), first)

    # Forgotten pasts.

    def test_pasts_are_forgotten(self) -> None:
        """A version loses its past and nothing else, for good."""
        one = version(A, 1, past={B: 3, C: 1})
        other = version(B, 1, "other", past={A: 1})
        before = self.put(one, other)
        result = self.finish(self.commits.of(forget_pasts=[one.dot]))
        self.assertEqual(result, before)
        for again in (False, True):
            if again:
                self.restart()
            (found,) = self.storage.versions("k")
            self.assertEqual(fields(found), fields(version(A, 1)))
            (left,) = self.storage.versions("other")
            self.assertEqual(left.past, {A: 1})
        self.assertEqual(sorted(x.past == {} for x in self.visible()), [False, True])

    def test_forgetting_what_is_not_there_is_fine(self) -> None:
        """A version that went, or never had a past, is left as it is."""
        self.put(version(A, 1), version(A, 2, "other", past={A: 1}))
        self.finish(
            self.commits.of(
                remove=[(A, 2)], forget_pasts=[(A, 1), (A, 2), (B, 7), (C, 1)]
            )
        )
        self.assertEqual(dots(self.visible()), [(A, 1)])
        self.assertEqual(fields(self.visible()[0]), fields(version(A, 1)))

    def test_forgotten_past_unhides_nothing(self) -> None:
        """What a version had overwritten and nobody folded does not come back."""
        self.put(version(A, 1))
        last = version(B, 1, past={A: 1})
        self.stage(1, last, version(B, 2, "other"))
        self.finish(self.commits.validate(1, {B: 2}))
        self.finish(self.commits.of(forget_pasts=[last.dot]))
        self.assertEqual(self.held(), [(B, 1)])
        self.fold_all()
        self.assertEqual(dots(self.visible()), [(B, 1), (B, 2)])
        self.assertEqual(self.storage.result.live_hash, hash_of(self.visible()))

    def test_snapshot_remembers_pasts(self) -> None:
        """A delta under way goes with the pasts of its instant, as its floor does."""
        one, staged = version(A, 1, past={C: 1}), version(B, 1, "b", past={C: 2})
        self.put(one)
        self.stage(1, staged)
        self.finish(self.commits.validate(1, {B: 1}))
        snapshot = self.storage.snapshot()
        self.finish(self.commits.of(forget_pasts=[one.dot, staged.dot]))
        self.fold_all()
        later = self.storage.snapshot()
        self.assertEqual([x.past for x in listed(snapshot)], [{C: 1}, {C: 2}])
        self.assertEqual([x.past for x in listed(later)], [{}, {}])
        snapshot.close()
        later.close()

    # What is to be settled.

    def test_unsettled_are_pasts_and_tombstones(self) -> None:
        """Found is what has a past or is deleted, as far as asked for, and no more."""
        self.put(
            version(A, 1, "plain"),
            version(A, 2, "past", past={B: 1}),
            tombstone(A, 3, "deleted"),
            tombstone(A, 4, "sealed", past={B: 1}, seal=True),
            version(A, 5, "above", past={B: 1}),
            version(B, 1, "past", past={A: 2}),
            version(C, 1, "unknown", past={A: 2}),
        )
        self.assertEqual(
            unsettled(self.storage, {A: 4, B: 9}), [["past", "deleted", "sealed"]]
        )
        self.finish(
            self.commits.of(
                remove=[(B, 1)], forget_pasts=[(A, 2), (A, 3), (A, 4), (A, 5)]
            )
        )
        everything = {A: 9, B: 9, C: 9}
        self.assertEqual(
            unsettled(self.storage, everything), [["deleted", "sealed", "unknown"]]
        )
        self.restart()
        self.assertEqual(
            unsettled(self.storage, everything), [["deleted", "sealed", "unknown"]]
        )
        self.put(remove=[(A, 3), (A, 4), (C, 1)])
        self.assertEqual(unsettled(self.storage, everything), [[]])
        self.assertEqual(unsettled(self.storage, {}), [[]])

    def test_unsettled_come_in_parts(self) -> None:
        """Parts are bounded by versions and by bytes, and end in time."""
        self.put(*(version(A, n, f"{n}", past={C: 1}) for n in range(1, 8)))
        upto = {A: 7}
        wanted = [str(n) for n in range(1, 8)]
        for size in (1, 2, 6, 7, 8):
            parts = unsettled(self.storage, upto, versions_max=size)
            self.assertEqual([key for part in parts for key in part], wanted)
            self.assertEqual(len(parts), -(-7 // size), "no empty part at the end")
        self.put(version(A, 8, "8", past={C: 1}, value=b"1" * 100))
        room = len(version(A, 7).value or b"") + 1
        parts = unsettled(self.storage, {A: 9}, bytes_max=3 * room)
        self.assertEqual(
            parts, [["1", "2", "3"], ["4", "5", "6"], ["7"], ["8"]], "one at least"
        )

    def test_unsettled_go_on_in_the_face_of_commits(self) -> None:
        """What comes after a place is found, whatever is written in between."""
        self.put(*(version(A, n, f"{n}", past={C: 1}) for n in range(1, 5)))
        ask = {A: 9, B: 9}
        first, cursor = self.storage.unsettled(
            ask, START, versions_max=2, bytes_max=999
        )
        assert cursor is not None
        self.put(
            version(A, 5, "5", past={C: 1}),
            version(B, 1, "6", past={C: 1}),
            remove=[(A, 1), (A, 2), (A, 3)],
        )
        rest, end = self.storage.unsettled(ask, cursor, versions_max=100, bytes_max=999)
        self.assertEqual((first, rest), (["1", "2"], ["4", "5", "6"]))
        self.assertIsNone(end)

    def test_unsettled_are_visible(self) -> None:
        """Nothing is found in a stage that is filled; all is in one that is valid."""
        self.put(version(A, 1, "a", past={C: 1}))
        self.stage(1, *(version(B, n, f"b{n}", past={C: 1}) for n in range(1, 6)))
        ask = {A: 9, B: 9}
        self.assertEqual(unsettled(self.storage, ask), [["a"]])
        self.finish(self.commits.validate(1, {B: 5}))
        for _ in range(3):
            found = unsettled(self.storage, ask, versions_max=2)
            self.assertEqual([len(part) for part in found], [2, 2, 2])
            self.assertEqual(
                [key for part in found for key in part],
                ["a", "b1", "b2", "b3", "b4", "b5"],
            )
            self.finish(self.commits.of(fold=2))
        fence = fence_of({A: 1, B: 5, C: 1}, [(A, 1), (B, 2)])
        self.finish(self.commits.validate(2, {A: 1, B: 5, C: 1}, fence))
        found = unsettled(self.storage, ask, versions_max=2)
        self.assertEqual([key for part in found for key in part], ["a", "b2"])

    # Lists of what is live.

    def test_live_is_all_that_is_visible(self) -> None:
        """The list holds each visible dot once, in bounded parts."""
        self.put(*run_of(A, range(1, 8)), *run_of(B, [3, 5]), tombstone(C, 2, "c"))
        self.stage(1, *run_of(B, range(10, 13)))
        self.stage(2, version(C, 9, "staged"))
        self.finish(self.commits.validate(1, {B: 12}))
        self.put(remove=[(A, 3)])
        snapshot = self.storage.snapshot()
        wanted = [
            *((A, n) for n in (1, 2, 4, 5, 6, 7)),
            *((B, n) for n in (3, 5, 10, 11, 12)),
            (C, 2),
        ]
        for size in (1, 5, 11, 12, 13):
            parts = live_dots(snapshot, dots_max=size)
            self.assertEqual(sorted(dot for part in parts for dot in part), wanted)
            self.assertEqual({len(part) for part in parts[:-1]} | {size}, {size})
            self.assertEqual(len(parts), -(-12 // size), "no empty part at the end")
        self.put(remove=[(A, 1)])
        self.assertEqual(sorted(live_dots(snapshot)[0]), wanted)
        snapshot.close()
        with self.assertRaises(SnapshotLost):
            snapshot.live(START, dots_max=1)

    # Full joins.

    def test_full_join_leaves_what_is_live(self) -> None:
        """What the sender no longer has goes; what it did not know stays (R10)."""
        for slice_ in (1, 2, 100):
            self.finish(self.commits.of(forget_all=True))
            self.put(*run_of(A, range(1, 6)), *run_of(B, range(1, 4)))
            new = version(C, 3, "key 1")
            claim = {A: 4, B: 3, C: 3}
            live = [(A, 2), (B, 3), (C, 3)]
            result = self.join_fully(1, [new], claim=claim, live=live)
            self.assertGreater(result.unfolded, 1)
            left = [(A, 2), (A, 5), (B, 3), (C, 3)]
            for again in (False, True):
                if again:
                    self.fold_to_the_end(slice_)
                self.assertEqual(dots(self.visible()), left)
                self.assertEqual(self.held("key 1"), [(C, 3)])
                self.assertEqual(self.held("key 2"), [(A, 2)])
                self.assertEqual(self.held("key 3"), [(B, 3)])
                snapshot = self.storage.snapshot()
                self.assertEqual(sorted(live_dots(snapshot)[0]), left)
                snapshot.close()
            self.assertEqual(self.storage.count(), 4)
            self.assertEqual(self.storage.result.live_hash, hash_of(self.visible()))

    def test_doomed_versions_hide_nothing(self) -> None:
        """A version that a full join removes takes no other with it."""
        self.put(version(A, 1), version(B, 1, past={A: 1}))
        self.join_fully(1, [version(C, 1)], claim={B: 1, C: 1}, live=[(C, 1)])
        self.assertEqual(self.held(), [(A, 1), (C, 1)])
        self.fold_to_the_end()
        self.assertEqual(self.held(), [(A, 1), (C, 1)])
        self.assertEqual(self.storage.result.live_hash, hash_of(self.visible()))

    def test_full_join_is_finished_after_a_crash(self) -> None:
        """Killed at any point, a node goes on with the list that it has stored."""
        self.put(*run_of(A, range(1, 60)), *run_of(B, range(1, 60)))
        live = [*((A, n) for n in range(1, 60, 3)), *((C, n) for n in range(1, 9))]
        claim = {A: 55, B: 58, C: 8}
        self.join_fully(1, run_of(C, range(1, 9)), claim=claim, live=live)
        left = sorted([*live, *((A, n) for n in (56, 57, 59)), (B, 59)])
        turns = 0
        while self.storage.result.unfolded:
            self.restart()
            self.assertEqual(dots(self.visible()), left)
            self.finish(self.commits.of(fold=3))
            turns += 1
        self.assertGreater(turns, 30)
        self.restart()
        self.assertEqual(dots(self.visible()), left)
        self.assertEqual(self.storage.count(), len(left))
        self.assertEqual(self.storage.result, CommitResult(hash_of(self.visible()), 0))

    def test_removals_go_in_slices(self) -> None:
        """A commit removes no more than it is told, and looks at not much more."""
        self.put(*run_of(A, range(1, 501)))
        keep = [(A, n) for n in range(1, 301)]
        self.join_fully(1, (), claim={A: 500}, live=keep)
        counts = []
        while self.storage.result.unfolded:
            before = self.storage.count()
            self.finish(self.commits.of(fold=5))
            counts.append(before - self.storage.count())
        self.assertLessEqual(max(counts), 5)
        self.assertEqual(sum(counts), 200)
        self.assertEqual(counts[:2], [0, 0], "a hundred of those that stay")
        self.assertLess(len(counts), 50)

    def test_full_join_without_versions(self) -> None:
        """A full join may bring nothing but the news of what has gone."""
        self.put(version(A, 1), version(A, 2, "other"))
        result = self.join_fully(1, (), claim={A: 2, B: 7}, live=[(A, 2)])
        self.assertEqual(result.unfolded, 1)
        self.assertEqual((self.held(), self.held("other")), ([], [(A, 2)]))
        self.assertEqual(self.fold_to_the_end(), 1)
        self.assertEqual(self.storage.count(), 1)

    def test_several_fences_stand_at_once(self) -> None:
        """A full join may follow on another that is not folded yet."""
        self.put(*run_of(A, range(1, 10)))
        self.join_fully(
            1,
            run_of(B, range(1, 5)),
            claim={A: 5, B: 4},
            live=[*((A, n) for n in (1, 2)), *((B, n) for n in range(1, 5))],
        )
        self.stage(2, version(C, 1, "plain"))
        self.finish(self.commits.validate(2, {C: 1}))
        claim = {A: 8, B: 4, C: 2}
        self.join_fully(
            3, [version(C, 2, "c")], claim=claim, live=[(A, 2), (B, 1), (C, 2)]
        )
        left = [(A, 2), (A, 9), (B, 1), (C, 2)]
        self.assertEqual(dots(self.visible()), left)
        while self.storage.result.unfolded:
            self.finish(self.commits.of(fold=1))
            self.assertEqual(dots(self.visible()), left)
            self.restart()
        self.assertEqual(self.storage.count(), 4)
        self.assertEqual(self.storage.result.live_hash, hash_of(self.visible()))

    def test_writes_go_on_beside_a_fence(self) -> None:
        """Writes above a full join's claim are kept, and overwrite as ever."""
        self.put(version(A, 1), version(A, 2, "other"), version(A, 3, "third"))
        self.join_fully(1, (), claim={A: 3}, live=[(A, 2)])
        self.put(version(A, 4), version(B, 1, "other", past={A: 2}), remove=[(A, 2)])
        left = [(A, 4), (B, 1)]
        self.assertEqual(dots(self.visible()), left)
        # What a fence dooms may be removed before its turn.
        self.put(remove=[(A, 3)])
        self.fold_to_the_end(1)
        self.assertEqual(dots(self.visible()), left)
        self.assertEqual(self.storage.result.live_hash, hash_of(self.visible()))
        self.assertEqual(self.storage.count(), 2)

    def test_snapshot_keeps_its_fences(self) -> None:
        """Listings show what a full join left, or had not touched yet, to the end."""
        self.put(*run_of(A, range(1, 5)))
        before = self.storage.snapshot()
        self.join_fully(1, [version(B, 1, "b")], claim={A: 4, B: 1}, live=[(B, 1)])
        during = self.storage.snapshot()
        self.finish(self.commits.of(fold=1))
        halfway = self.storage.snapshot()
        self.fold_to_the_end()
        everything = [(A, n) for n in range(1, 5)]
        for snapshot, wanted in (
            (before, everything),
            (during, [(B, 1)]),
            (halfway, [(B, 1)]),
        ):
            self.assertEqual(dots(listed(snapshot)), wanted)
            self.assertEqual(sorted(live_dots(snapshot)[0]), wanted)
            snapshot.close()

    def test_broken_off_full_join_leaves_nothing(self) -> None:
        """Dropped, or under way in a crash, a full join has not happened."""
        self.put(version(A, 1))
        before = self.storage.result
        self.finish(self.commits.part(1, [version(B, 1)], [(B, 1)]))
        self.finish(self.commits.drop(1))
        self.finish(self.commits.part(2, [version(B, 1)], [(B, 1)]))
        self.restart()
        self.assertEqual(self.storage.result, before)
        self.assertEqual(dots(self.visible()), [(A, 1)])
        # The next one has the same number and another list.
        self.join_fully(2, [version(B, 2)], claim={A: 1, B: 2}, live=[(A, 1), (B, 2)])
        self.restart()
        self.fold_to_the_end()
        self.assertEqual(dots(self.visible()), [(A, 1), (B, 2)])

    def test_forgetting_all_forgets_fences(self) -> None:
        """A demoted replica that had a full join begins anew."""
        self.put(*run_of(A, range(1, 5)))
        self.join_fully(1, [version(B, 1)], claim={A: 4, B: 1}, live=[(B, 1)])
        result = self.finish(self.commits.of(forget_all=True))
        self.assertEqual(result, CommitResult(0, 0))
        self.put(version(A, 3))
        self.assertEqual(self.held(), [(A, 3)])
        self.restart()
        self.assertEqual(dots(self.visible()), [(A, 3)])
        self.assertEqual(self.storage.result.unfolded, 0)

    def test_part_of_a_list_may_come_twice(self) -> None:
        """A part that is repeated adds nothing to the list that is stored."""
        self.put(*run_of(A, range(1, 9)))
        for _ in range(2):
            self.finish(self.commits.part(1, (), [(A, 2), (A, 3)]))
            self.finish(self.commits.part(1, (), [(A, 5)]))
        live = [(A, 2), (A, 3), (A, 5)]
        self.finish(self.commits.validate(1, {A: 8}, fence_of({A: 8}, live)))
        self.restart()
        self.assertEqual(dots(self.visible()), live)
        self.assertEqual(as_live(dots(self.visible())), {A: [2, 3, 5]})

    def test_fence_without_a_list_keeps_its_stage(self) -> None:
        """Where nothing is live, a later stage of the same number is another one."""
        self.put(version(A, 1), version(A, 2, "other"))
        self.join_fully(1, (), claim={A: 1}, live=())
        self.restart()
        self.stage(1, version(B, 1, "new"))
        self.assertEqual(dots(self.visible()), [(A, 2)])
        self.finish(self.commits.validate(1, {B: 1}))
        self.fold_to_the_end()
        self.assertEqual(dots(self.visible()), [(A, 2), (B, 1)])
