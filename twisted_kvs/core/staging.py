"""
Deltas in parts that are being received (R7): their numbers, what of them is on disk.

Invariant: no number is used twice, not even after a restart with a stage that is still
to be folded; what takes room on disk and will never be valid is known.
"""

from __future__ import annotations

import random

from .causality import EMPTY, VersionVector, covers, join, leq
from .collecting import CommitCollector
from .errors import BadPeerMessage
from .fence import Fence, LiveDots
from .messages import Commit, Delta, StagePart
from .outcomes import Stage
from .versions import Version

STAGE_BITS = 48


class Staging:
    """The stages of one replica."""

    def __init__(self, commits: CommitCollector, rng: random.Random) -> None:
        """
        Receive nothing yet.

        :param rng: draws where numbers begin.
        """
        self._commits = commits
        self._last = rng.getrandbits(STAGE_BITS)
        self._receiving: set[int] = set()
        self._stored: set[int] = set()
        """Stages that take room on disk and are not valid."""
        self._forgotten = 0
        """Up to here the parts were dropped with all else."""

    def begin(self, delta: Delta) -> Stage:
        """
        Begin to receive a delta.

        :raises BadPeerMessage: if the floor is above what it may be.
        """
        assert delta.session, "a whole delta is applied at once"
        refuse_floor(delta)
        self._last += 1
        self._receiving.add(self._last)
        return Stage(
            self._last,
            delta.base,
            delta.claim,
            delta.lamport,
            EMPTY,
            floor=delta.floor,
            fence=Fence(delta.claim) if delta.full else None,
        )

    def add(self, stage: Stage, versions: list[Version], live: LiveDots) -> int:
        """
        Store a part.

        :returns: the commit after which it is on disk.
        :raises BadPeerMessage: if a version is above the claim, or the list is not in
            order.
        """
        refuse_early(versions, stage.claim)
        if live:
            _spare(stage, live)
        if self._commits.filling:
            self._commits.close()
        self._commits.stage(StagePart(stage.number, tuple(versions), live))
        for version in versions:
            stage.upto = join(stage.upto, version.upto)
        stage.versions += len(versions)
        return self._commits.number

    def void(self, stage: Stage, vv: VersionVector) -> bool:
        """
        Tell whether a stage must not become valid.

        Its base is not covered any more (hole H5), or all was forgotten meanwhile.
        """
        return stage.number <= self._forgotten or not leq(stage.base, vv)

    def drop(self, stage: Stage) -> None:
        """Forget a delta that broke off; frees what its parts take on disk."""
        self._drop(stage.number)
        self._receiving.discard(stage.number)

    def drop_leftovers(self) -> None:
        """Drop stages whose own drop found no room, now that there is (R6)."""
        for number in sorted(self._stored - self._receiving):
            self._drop(number)

    def _drop(self, number: int) -> None:
        if self._commits.staging:
            self._commits.close()
        self._commits.drop_stage(number)

    def try_space(self, version: Version) -> int:
        """
        Ask for a commit that stores and one that drops a version, unseen.

        :returns: the commit after which there is certainly room for such.
        """
        self._last += 1
        if self._commits.filling:
            self._commits.close()
        self._commits.stage(StagePart(self._last, (version,)))
        self._commits.close()
        self._commits.drop_stage(self._last)
        return self._commits.close()

    def forget_all(self) -> None:
        """All parts are dropped with all else."""
        self._forgotten = self._last

    def committed(self, commit: Commit) -> None:
        """A commit is durable."""
        if commit.stage is not None:
            self._stored.add(commit.stage.stage)
        if commit.validate is not None:
            self._stored.discard(commit.validate.stage)
            self._receiving.discard(commit.validate.stage)
        if commit.drop_stage is not None:
            self._stored.discard(commit.drop_stage)
        if commit.forget_all:
            self._stored.clear()


def refuse_early(versions: list[Version], claim: VersionVector) -> None:
    """
    Check that what a delta lists is below what it claims: nothing early (R6).

    :raises BadPeerMessage: if it is not.
    """
    for version in versions:
        if not covers(claim, version.dot):
            raise BadPeerMessage(
                f"delta of {version.origin} lists a version above its claim"
            )


def refuse_floor(delta: Delta) -> None:
    """
    Check that who is below the sender's floor is told all that is live (R10).

    :raises BadPeerMessage: if it is not.
    """
    if not leq(delta.floor, delta.claim if delta.full else delta.base):
        raise BadPeerMessage("delta has a floor that its base does not cover")


def _spare(stage: Stage, live: LiveDots) -> None:
    if stage.fence is None:
        raise BadPeerMessage("a delta that is no full join lists what is live")
    try:
        stage.fence.spare(live)
    except ValueError as error:
        raise BadPeerMessage(str(error)) from None
