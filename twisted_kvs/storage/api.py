"""
What a node wants of its storage: the same for the durable and the in-memory one.

Invariants, checked by one contract suite for all implementations:

* A commit is atomic, and commits become durable in the order in which they were given.
* ``versions``, ``staged`` and ``snapshot`` show committed state only, never what a
  crash could take back.
* A snapshot shows one instant: versions and state record of the same commit.
* What a stage holds is seen by ``staged`` alone, until the commit that makes it valid
  is published: its Deferred fires.
* What the fence of a valid stage dooms is never seen again, whether it is removed yet
  or not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NewType, Protocol

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ..core.causality import DOT_COUNTER_MAX, VersionVector
from ..core.errors import KVSError
from ..core.fence import LiveDots
from ..core.messages import Commit, CommitResult, ReplicaState
from ..core.reader import VersionReader
from ..core.versions import Version

Cursor = NewType("Cursor", int)
"""Where a snapshot's listing stands; opaque."""
START = Cursor(-1)

STORE_FORMAT = 2
"""Raised when an older program cannot read what this one writes."""

_PAST_ENTRY_BYTES = 8

STORED_COUNTER_MAX = 2**43 - 1
"""A dot with a greater counter cannot be stored; nobody writes that often."""
assert STORED_COUNTER_MAX > DOT_COUNTER_MAX, "one more, to test for room"


LOOKED_PER_LISTED = 10
"""A part of a listing looks at so many versions for each that it may hold."""


def part_bytes(version: Version) -> int:
    """
    Tell what a version counts for in a part of a listing.

    Each entry of its past counts as what it takes on disk.  A message holds about 40
    bytes for it, so a part of 256 KiB becomes one of 1.3 MiB at worst.
    """
    values = len(version.key.encode()) + len(version.value or b"")
    return values + _PAST_ENTRY_BYTES * len(version.past)


class SnapshotLost(KVSError):
    """The store took a snapshot away, because its log grew too long: pull again."""

    code = "snapshot_lost"
    status = 503


class Snapshot(Protocol):
    """One instant of the store, unaffected by later commits until it is closed."""

    @property
    def state(self) -> ReplicaState:
        """The state record of that instant; who is retired may be left out."""

    @property
    def result(self) -> CommitResult:
        """Hash and unfolded count of that instant."""

    @property
    def age_commits(self) -> int:
        """How many commits were made since."""

    def missing(
        self,
        base: VersionVector,
        after: Cursor,
        *,
        versions_max: int,
        bytes_max: int,
    ) -> tuple[list[Version], Cursor | None]:
        """
        List visible versions that ``base`` does not cover, a bounded part of them.

        Versions of one actor come in the order of their counters.  Versions that are
        dominated and not yet folded may be among them; none is above the snapshot's VV.

        :param after: ``START``, or what the last call returned.
        :param versions_max: at most so many, > 0.
        :param bytes_max: of ``part_bytes``; a first version that is larger comes alone.
        :returns: the part, which may be empty where much that is not to be seen stands
            between, and where the next begins; None after the last.
        :raises SnapshotLost: if the store needed the room that the snapshot holds.
        """

    def live(self, after: Cursor, *, dots_max: int) -> tuple[LiveDots, Cursor | None]:
        """
        List the dots of all visible versions, a bounded part of them (R10).

        As ``missing`` does: what is dominated and not yet folded may be among them.

        :param after: ``START``, or what the last call returned.
        :param dots_max: at most so many, > 0.
        :returns: counters by actor, ascending, and where the next part begins; None
            after the last.
        :raises SnapshotLost: if the store needed the room that the snapshot holds.
        """

    def close(self) -> None:
        """Let go of it; safe to call twice."""


class Storage(VersionReader, Protocol):
    """A store of versions.  All calls on the reactor's thread."""

    def open(self) -> ReplicaState | None:
        """
        Open it; stages that were never made valid are dropped.

        :returns: the state record of the last commit; None for a fresh store.
        :raises StoreRefused: if it is in use, damaged, another node's or cluster's, or
            of a newer format; the message names the file and nothing was changed.
        """

    @property
    def result(self) -> CommitResult:
        """Hash and unfolded count of the last published commit."""

    @property
    def size_bytes(self) -> int:
        """Bytes that the store takes on disk (or of keys and values in memory)."""

    def count(self) -> int:
        """Count the visible versions, those that wait to be folded included; cheap."""

    def unsettled(
        self,
        upto: VersionVector,
        after: Cursor,
        *,
        versions_max: int,
        bytes_max: int,
    ) -> tuple[list[str], Cursor | None]:
        """
        List keys of visible versions that still have a past, or are tombstones.

        Of the last published commit.  Costs as much as it finds, not as much as there
        is.

        :param upto: only versions whose dots it covers.
        :param after: ``START``, or what the last call returned, also in the face of
            commits in between: what comes after that place is found.
        :param versions_max: looks at no more than so many of these versions, > 0.
        :param bytes_max: of keys and values of these; at least one is looked at.
        :returns: the keys, each once, in the order of their versions' dots; and where
            the next part begins, None after the last.
        """

    def when_broken(self, told: Callable[[Failure], None]) -> None:
        """
        Tell somebody, once, if the store proves unusable beside commits.

        The node must not go on then.  A store that has no such end tells nobody.
        """
        return

    def commit(self, commit: Commit) -> Deferred[CommitResult]:
        """
        Make one change durable.

        The node gives one commit at a time and waits for it.  Until its Deferred fires,
        keys that it touches may read as before or as after it, all others read the
        same.

        Several stages may be filled at once, but a dot is in one place only: a part
        leaves out what is visible, and takes from another stage what that has of the
        same dots.  A stage that lost versions so can only be dropped.

        :returns: fires on the reactor's thread when it is durable and visible; fails
            with ``DiskFull`` (nothing of it is stored, the store can be used on) or
            with anything else (the node must not go on).
        """

    def snapshot(self) -> Snapshot:
        """
        Hold the last committed instant, until it is closed.

        That may be a commit that is durable and not yet published.  Only after the
        first commit: a fresh store has no state to show.
        """

    def close(self) -> Deferred[None]:
        """Finish the commit under way, close; fires when the directory is free."""
