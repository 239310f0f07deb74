"""
What a node wants of its storage: the same for the durable and the in-memory one.

Invariants, checked by one contract suite for all implementations:

* A commit is atomic, and commits become durable in the order in which they were given.
* ``versions``, ``staged`` and ``snapshot`` show committed state only, never what a crash
  could take back.
* A snapshot shows one instant: versions and state record of the same commit.
"""

from __future__ import annotations

from typing import NewType, Protocol

from twisted.internet.defer import Deferred

from ..core.causality import VersionVector
from ..core.messages import Commit, CommitResult, ReplicaState
from ..core.reader import VersionReader
from ..core.versions import Version

Cursor = NewType("Cursor", int)
"""Where a snapshot's listing stands; opaque."""
START = Cursor(-1)

STORE_FORMAT = 1
"""Raised when an older program cannot read what this one writes."""


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
        dominated and not yet folded may be among them.

        :param after: ``START``, or what the last call returned.
        :param versions_max: at most so many, > 0.
        :param bytes_max: of keys and values; a first version that is larger comes alone.
        :returns: the part, and where the next begins; None after the last.
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
        """Hash and unfolded count of the last durable commit."""

    @property
    def size_bytes(self) -> int:
        """Bytes that the store takes on disk (or of keys and values in memory)."""

    def count(self) -> int:
        """Count the visible versions, roughly; cheap."""

    def commit(self, commit: Commit) -> Deferred[CommitResult]:
        """
        Make one change durable.

        The node gives one commit at a time and waits for it.

        :returns: fires on the reactor's thread when it is durable and visible; fails
            with ``DiskFull`` (nothing of it is stored, the store can be used on) or with
            anything else (the node must not go on).
        """

    def snapshot(self) -> Snapshot:
        """Hold the last committed instant, until it is closed."""

    def close(self) -> Deferred[None]:
        """Finish the commit under way, close; fires when the directory is free."""
