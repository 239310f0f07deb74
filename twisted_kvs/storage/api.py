"""
What a node wants of its storage: the same for the durable and the in-memory one.

Invariants, checked by one contract suite for all implementations:

* A commit is atomic, and commits become durable in the order in which they were given.
* ``versions``, ``staged`` and ``snapshot`` show committed state only, never what a
  crash could take back.
* A snapshot shows one instant: versions and state record of the same commit.
* What a stage holds is seen by ``staged`` alone, until the commit that makes it valid
  is published: its Deferred fires.
"""

from __future__ import annotations

from typing import NewType, Protocol

from twisted.internet.defer import Deferred

from ..core.causality import DOT_COUNTER_MAX, VersionVector
from ..core.errors import KVSError
from ..core.messages import Commit, CommitResult, ReplicaState
from ..core.reader import VersionReader
from ..core.versions import Version

Cursor = NewType("Cursor", int)
"""Where a snapshot's listing stands; opaque."""
START = Cursor(-1)

STORE_FORMAT = 1
"""Raised when an older program cannot read what this one writes."""

STORED_COUNTER_MAX = 2**43 - 1
"""A dot with a greater counter cannot be stored; nobody writes that often."""
assert STORED_COUNTER_MAX > DOT_COUNTER_MAX, "one more, to test for room"


class SnapshotLost(KVSError):
    """The store took a snapshot away, because its log grew too long: pull again."""

    code = "snapshot_lost"
    status = 503


class Snapshot(Protocol):
    """One instant of the store, unaffected by later commits until it is closed."""

    @property
    def state(self) -> ReplicaState:
        """The state record of that instant."""

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
        :param bytes_max: of keys and values; a first version that is larger comes
        alone.
        :returns: the part, and where the next begins; None after the last.
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
