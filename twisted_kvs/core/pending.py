"""
Antichains that were changed and are not yet durable (R6, "applied and durable").

Writes and merges work on the *applied* state, everything that leaves the node shows the
last *durable* one.  Both differ only at the keys that commits under way touch; those
are here, all others are read from the store, where they are the same in either state.

Invariant: for a key that is here, the first step is what is durable and the steps'
commit numbers ascend; a key is here as long as one of its steps is not durable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .causality import Dot, VersionVector, covers
from .fence import Fence
from .reader import VersionReader
from .versions import Antichain, Version, maximal


@dataclass(frozen=True, slots=True)
class _Validation:
    """A stage that is applied as valid by a commit that is not durable yet."""

    commit: int
    stage: int
    covered: VersionVector
    fence: Fence | None


@dataclass(frozen=True, slots=True)
class Difference:
    """What a commit changes at a key."""

    come: list[Version]
    go: list[Dot]
    forget: list[Dot]
    """Versions that lose their past (R11)."""


class PendingChains:
    """The steps of every key that commits under way touch."""

    def __init__(self, reader: VersionReader) -> None:
        """
        Start with nothing under way.

        :param reader: shows what is durable.
        """
        self._reader = reader
        self._steps: dict[str, list[tuple[int, Antichain]]] = {}
        self._validations: list[_Validation] = []
        self._forgotten: int | None = None
        """The commit under way that drops all that was stored before it."""

    def __len__(self) -> int:
        """Count the keys that are not durable in their applied state."""
        return len(self._steps)

    def applied(self, key: str) -> Antichain:
        """Read a key as of now, with what is not durable."""
        steps = self._steps.get(key)
        if steps is not None:
            return steps[-1][1]
        if self._forgotten is not None:
            return ()
        chain = self._reader.versions(key)
        for validation in self._validations:
            chain = self._with_staged(validation, key, chain)
        return chain

    def durable(self, key: str) -> Antichain:
        """Read a key as it was at the last durable commit."""
        steps = self._steps.get(key)
        return self._reader.versions(key) if steps is None else steps[0][1]

    def change(
        self,
        key: str,
        chain: Antichain,
        commit: int,
        *,
        before: Antichain | None = None,
    ) -> None:
        """
        Note what commit ``commit`` makes of a key; it is the newest commit.

        :param before: what ``applied`` gave in this turn; None: it is read.
        """
        steps = self._steps.get(key)
        if steps is None:
            steps = self._steps[key] = self._steps_from(key, before)
        assert steps[-1][0] <= commit, "commits are applied in order"
        if steps[-1][0] == commit:
            steps[-1] = (commit, chain)
        else:
            steps.append((commit, chain))

    def _steps_from(
        self, key: str, applied: Antichain | None
    ) -> list[tuple[int, Antichain]]:
        under_way = self._forgotten is not None or self._validations
        if applied is not None and not under_way:
            # Then it is durable: not read again.
            return [(0, applied)]
        steps = [(0, self._reader.versions(key))]
        if self._forgotten is not None:
            steps.append((self._forgotten, ()))
        for validation in self._validations:
            staged = self._with_staged(validation, key, steps[-1][1])
            steps.append((validation.commit, staged))
        return steps

    @property
    def validating(self) -> bool:
        """Whether a commit under way makes a stage valid."""
        return bool(self._validations)

    def difference(self, key: str, commit: int) -> Difference:
        """
        Tell what commit ``commit``, the newest, changes at a key.

        What came and went within the commit is in nothing of it.
        """
        steps = self._steps[key]
        assert steps[-1][0] == commit and len(steps) > 1
        before, after = steps[-2][1], steps[-1][1]
        old, new = {v.dot: v for v in before}, {v.dot for v in after}
        return Difference(
            come=[v for v in after if v.dot not in old],
            go=[v.dot for v in before if v.dot not in new],
            forget=[
                v.dot for v in after if not v.past and v.dot in old and old[v.dot].past
            ],
        )

    def validate(
        self,
        stage: int,
        covered: VersionVector,
        *,
        commit: int,
        fence: Fence | None = None,
    ) -> None:
        """
        Apply a stage as valid, in commit ``commit``; its parts are durable.

        :param fence: of a full join: what it dooms is gone (R10).
        """
        validation = _Validation(commit, stage, covered, fence)
        for key, steps in self._steps.items():
            before = steps[-1][1]
            after = self._with_staged(validation, key, before)
            if after is not before:
                steps.append((commit, after))
        self._validations.append(validation)

    def forget_all(self, commit: int) -> None:
        """Drop all in commit ``commit``; nothing else is under way."""
        assert not self._steps and not self._validations
        self._forgotten = commit

    def published(self, commit: int) -> None:
        """Commit ``commit`` is durable, and so are all before it."""
        if self._forgotten is not None and self._forgotten <= commit:
            self._forgotten = None
        self._validations = [v for v in self._validations if v.commit > commit]
        done = []
        for key, steps in self._steps.items():
            index = 0
            while index + 1 < len(steps) and steps[index + 1][0] <= commit:
                index += 1
            if index + 1 == len(steps):
                done.append(key)
            elif index:
                del steps[:index]
        for key in done:
            del self._steps[key]

    def clear(self) -> None:
        """Drop all that is not durable (a commit failed, R6)."""
        self._steps.clear()
        self._validations.clear()
        self._forgotten = None

    def each_applied(self, visit: Callable[[str, Antichain], None]) -> None:
        """Show every pending key and its applied antichain; for checks."""
        for key, steps in self._steps.items():
            visit(key, steps[-1][1])

    def _with_staged(
        self, validation: _Validation, key: str, chain: Antichain
    ) -> Antichain:
        fence = validation.fence
        if fence is not None and any(fence.dooms(version.dot) for version in chain):
            chain = tuple(v for v in chain if not fence.dooms(v.dot))
        staged = [
            version
            for version in self._reader.staged(validation.stage, key)
            if not covers(validation.covered, version.dot)
        ]
        if not staged:
            return chain
        return maximal((*chain, *staged))
