"""
What is applied and not yet stored, collected into commits (R6).

Invariant: commits are numbered from 1 in the order of applying; the number of the one
that is being collected is known before anything is put into it.
"""

from __future__ import annotations

from collections.abc import Callable

from .causality import Dot
from .messages import Commit, ReplicaState, StagePart, ValidateStage
from .pending import PendingChains
from .versions import Version


class CommitCollector:
    """Collects one commit, and keeps those that were closed and not taken yet."""

    def __init__(
        self, pending: PendingChains, state: Callable[[], ReplicaState]
    ) -> None:
        """
        Begin with commit 1.

        :param pending: knows what a commit makes of a key.
        :param state: makes the state record as it is when a commit is closed.
        """
        self._pending = pending
        self._state = state
        self.number = 1
        """Of the commit that is being collected."""
        self._ready: list[Commit] = []
        self._clear()

    def _clear(self) -> None:
        self._touched: dict[str, None] = {}
        self._minted: list[Version] = []
        self._stage_part: StagePart | None = None
        self._drop_stage: int | None = None
        self._fold_versions = 0
        self._changed = False

    @property
    def dirty(self) -> bool:
        """Whether the commit that is being collected holds anything."""
        return bool(
            self._touched
            or self._stage_part
            or self._drop_stage
            or self._fold_versions
            or self._changed
        )

    @property
    def staging(self) -> bool:
        """Whether it holds a part of a stage, or drops a stage: there is no room for
        another of these.
        """
        return self._stage_part is not None or self._drop_stage is not None

    @property
    def filling(self) -> bool:
        """Whether it holds a part of a stage."""
        return self._stage_part is not None

    def state_changed(self) -> None:
        """The state record has changed."""
        self._changed = True

    def touch(self, key: str) -> None:
        """The antichain of a key has changed."""
        self._touched[key] = None

    def minted(self, version: Version) -> None:
        """A write was minted: it is to be pushed."""
        self._minted.append(version)

    def stage(self, part: StagePart) -> None:
        """Store a part of a stage."""
        self._stage_part = part

    def drop_stage(self, stage: int) -> None:
        """Drop a stage."""
        self._drop_stage = stage

    def fold(self, versions: int) -> None:
        """Fold a slice."""
        self._fold_versions = versions

    def close(
        self, validate: ValidateStage | None = None, *, forget_all: bool = False
    ) -> int:
        """
        Close the commit and begin the next.

        :returns: the number of the one that was closed.
        """
        number = self.number
        come: list[Version] = []
        go: list[Dot] = []
        forget: list[Dot] = []
        conflicts = 0
        for key in self._touched:
            difference = self._pending.difference(key, number)
            come += difference.come
            go += difference.go
            forget += difference.forget
            conflicts += bool(difference.come) and len(self._pending.applied(key)) > 1
        self._ready.append(
            Commit(
                number=number,
                state=self._state(),
                insert=tuple(come),
                remove=tuple(go),
                forget_pasts=tuple(forget),
                stage=self._stage_part,
                validate=validate,
                drop_stage=self._drop_stage,
                fold_versions=self._fold_versions,
                forget_all=forget_all,
                conflicts=conflicts,
                minted=tuple(self._minted),
            )
        )
        self._clear()
        self.number += 1
        return number

    @property
    def waiting(self) -> bool:
        """Whether a closed commit was not taken yet."""
        return bool(self._ready)

    def take(self) -> Commit | None:
        """Take the oldest closed commit."""
        return self._ready.pop(0) if self._ready else None

    def each_minted(self) -> list[Version]:
        """List the writes of all commits that were not taken."""
        closed = [version for commit in self._ready for version in commit.minted]
        return closed + self._minted

    def drop_all(self) -> int:
        """
        Drop what was not taken, after a failed commit; numbers are not used again.

        :returns: the last number that was in use.
        """
        self._ready.clear()
        self._clear()
        self.number += 1
        return self.number - 1
