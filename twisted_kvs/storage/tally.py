"""
What a store knows of itself beside its versions: check sum, counts, stages.

Invariant: after every commit ``live_hash`` is the XOR of ``version_hash`` over all
visible versions (R17), and the counts are those of the versions.  Visible is what is in
no stage (stage 0) or in a valid one; while a fence stands, what it dooms is counted
until it is removed, though nobody sees it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..core.causality import Dot, covers
from ..core.fence import Fence
from ..core.messages import CommitResult


@dataclass(frozen=True, slots=True)
class Filling:
    """A stage whose parts are coming in."""

    rows: int = 0
    hash: int = 0
    """XOR over its versions: joins the live hash when the stage becomes valid."""
    robbed: bool = False
    """A later stage took some of its versions: it must not become valid."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The fence of a valid stage, until all that it dooms is removed."""

    fence: Fence
    looked: int = -1
    """Up to here the store has looked for what is doomed, in its order of dots."""


@dataclass(slots=True)
class Tally:
    """Counts one store; copied before a commit, lest a failed one leave a trace."""

    serial: int = 0
    """Number of commits since the store was made."""
    live_hash: int = 0
    visible: int = 0
    valid: dict[int, int] = field(default_factory=dict)
    """Versions left to be folded, by stage; in the order in which they became valid."""
    standing: dict[int, Standing] = field(default_factory=dict)
    """Fences, by stage; each is one of ``valid``, be it with no version left."""
    filling: dict[int, Filling] = field(default_factory=dict)

    @property
    def result(self) -> CommitResult:
        """What a commit answers."""
        unfolded = sum(self.valid.values()) + len(self.standing)
        return CommitResult(self.live_hash, unfolded)

    @property
    def rows(self) -> int:
        """Count all versions, those of stages included."""
        return self.visible + sum(filling.rows for filling in self.filling.values())

    def copy(self) -> Tally:
        """Make one that can be changed and thrown away."""
        return replace(
            self,
            valid=dict(self.valid),
            standing=dict(self.standing),
            filling=dict(self.filling),
        )

    def shows(self, stage: int) -> bool:
        """Tell whether the versions of a stage are visible, doomed ones apart."""
        return not stage or stage in self.valid

    def dooms(self, dot: Dot) -> bool:
        """Tell whether a fence that stands dooms a version."""
        return any(s.fence.dooms(dot) for s in self.standing.values())

    def claims(self, dot: Dot) -> bool:
        """Tell whether a fence that stands decides about a version."""
        return any(covers(s.fence.claim, dot) for s in self.standing.values())

    def enter(self, stage: int, *, rows: int, joined_hash: int) -> None:
        """
        Versions come into stage 0 or into one that is being filled.

        :param joined_hash: XOR over them, 64 bits.
        """
        if not stage:
            self.visible += rows
            self.live_hash ^= joined_hash
        else:
            assert stage not in self.valid, "a valid stage takes no more parts"
            self._fill(stage, rows, joined_hash)

    def leave(self, stage: int, version_hash: int) -> None:
        """A version goes; one of a stage that was dropped does not count."""
        if self.shows(stage):
            self.visible -= 1
            self.live_hash ^= version_hash
            if stage:
                self.settle(stage, 1)
        elif stage in self.filling:
            self._fill(stage, -1, version_hash)

    def rob(self, stage: int) -> None:
        """A later stage takes versions of this one, if it is still being filled."""
        if stage in self.filling:
            self.filling[stage] = replace(self.filling[stage], robbed=True)

    def settle(self, stage: int, rows: int) -> None:
        """So many versions of a valid stage are ordinary now, or gone."""
        self.valid[stage] -= rows
        assert self.valid[stage] >= 0
        self._end(stage)

    def look(self, stage: int, upto: int | None) -> None:
        """
        What a stage's fence dooms is removed up to there.

        :param upto: a place in the store's order of dots; None: all of it.
        """
        if upto is None:
            del self.standing[stage]
            self._end(stage)
        else:
            self.standing[stage] = replace(self.standing[stage], looked=upto)

    def validate(self, stage: int, fence: Fence | None = None) -> None:
        """
        Make a stage valid, after what was covered left it.

        :param fence: stands until ``look`` came to its end.
        :raises RuntimeError: if the stage is not whole.
        """
        now = self.filling.pop(stage, Filling())
        if now.robbed:
            raise RuntimeError(f"stage {stage} lost versions to a later one")
        self.visible += now.rows
        self.live_hash ^= now.hash
        if now.rows or fence is not None:
            self.valid[stage] = now.rows
        if fence is not None:
            self.standing[stage] = Standing(fence)

    def drop(self, stage: int) -> None:
        """Forget a stage that is being filled."""
        assert stage not in self.valid, "a valid stage is folded, not dropped"
        self.filling.pop(stage, None)

    def _end(self, stage: int) -> None:
        if not self.valid[stage] and stage not in self.standing:
            del self.valid[stage]

    def _fill(self, stage: int, rows: int, joined_hash: int) -> None:
        now = self.filling.get(stage, Filling())
        self.filling[stage] = replace(
            now, rows=now.rows + rows, hash=now.hash ^ joined_hash
        )

    def forget_all(self) -> None:
        """Every version is gone."""
        self.live_hash = self.visible = 0
        self.valid.clear()
        self.standing.clear()
        self.filling.clear()
