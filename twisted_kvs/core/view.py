"""
The view: who is a member, in which order, under which number (rules R15, R16).

Invariant: joining views is commutative, associative and idempotent, so nodes that have
exchanged their views agree on members, order, numbers and roles, whatever was added and
removed where.  ``n`` is a Lamport counter over the whole view: a change made in the
knowledge of another wins over it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Annotated, TypeAlias

import msgspec

from .causality import COUNTER_MAX, Name
from .names import is_name, name_order

_Natural: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=COUNTER_MAX)]


class Member(msgspec.Struct, frozen=True, array_like=True):
    """What a view says of one name."""

    n: _Natural
    """When it was last added or removed; the greater wins, at a tie removed wins."""
    present: bool
    """False for one that was removed."""
    first: tuple[_Natural, _Natural]
    """When it was first added and its place then; the smaller wins."""

    def join(self, other: Member) -> Member:
        """Take the newer statement about membership, and the older number."""
        newer = max(self, other, key=lambda member: (member.n, not member.present))
        return Member(newer.n, newer.present, min(self.first, other.first))


class View:
    """
    An immutable value: two views with the same entries are equal.

    A view knows names for ever: removed ones stay known, with their number.
    """

    def __init__(self, entries: Mapping[Name, Member] | None = None) -> None:
        """Make a view of these entries; of none for a node that serves alone."""
        given = entries or {}
        # Sorted, so that equal views are also written and hashed equally.
        self._entries = {name: given[name] for name in sorted(given)}

    @classmethod
    def start(cls, names: Sequence[Name]) -> View:
        """
        Make the view of the first nodes, numbered in this order.

        :param names: all different.
        """
        assert len(set(names)) == len(names)
        return cls({name: Member(1, True, (1, i)) for i, name in enumerate(names)})

    @property
    def entries(self) -> dict[Name, Member]:
        """All that is known of any name, sorted by name; not to be changed."""
        return self._entries

    @cached_property
    def members(self) -> frozenset[Name]:
        """Those present."""
        return frozenset(name for name, x in self._entries.items() if x.present)

    @cached_property
    def order(self) -> tuple[Name, ...]:
        """
        Those present, the longest present first.

        Newcomers and returners come last, so they displace no replica.
        """
        entries = self._entries
        return tuple(
            sorted(
                self.members,
                key=lambda x: (entries[x].n, entries[x].first, name_order(x)),
            )
        )

    @cached_property
    def numbers(self) -> Mapping[Name, int]:
        """
        Number of every name ever seen: 0, 1, 2 ... in the order of first additions.

        Kept on removal and return, never reused; can shift only where two sides of a
        partition have added different nodes.
        """
        entries = self._entries
        names = sorted(entries, key=lambda x: (entries[x].first, name_order(x)))
        return {name: number for number, name in enumerate(names)}

    def knows(self, name: Name) -> bool:
        """Tell whether a name was ever in the view."""
        return name in self._entries

    def removed(self, name: Name) -> bool:
        """Tell whether a name was in the view and is not any more."""
        return name in self._entries and not self._entries[name].present

    def shares_name(self, other: View) -> bool:
        """Tell whether both know some name, be it removed."""
        return not self._entries.keys().isdisjoint(other._entries)

    def change(self, name: Name, *, present: bool) -> View:
        """
        Add or remove a name.

        :returns: this very view, if it is already so; a name never seen is absent.
        """
        old = self._entries.get(name)
        if (old is not None and old.present) == present:
            return self
        n = 1 + max((member.n for member in self._entries.values()), default=0)
        first = (n, 0) if old is None else old.first
        return View({**self._entries, name: Member(n, present, first)})

    def join(self, other: View) -> View:
        """
        Take in what another node's view says.

        :returns: this very view, if the other says nothing new.
        """
        entries = dict(self._entries)
        for name, theirs in other._entries.items():
            mine = entries.get(name)
            entries[name] = theirs if mine is None else mine.join(theirs)
        return self if entries == self._entries else View(entries)

    def replicas(self, k: int, alive: Collection[Name]) -> tuple[Name, ...]:
        """
        List who is a replica: the first ``k`` live members, in view order (R15).

        :param k: number of replicas wanted, > 0; fewer are listed in degraded mode.
        :param alive: who is believed alive; others than members do not count.
        """
        assert k > 0
        return tuple(name for name in self.order if name in alive)[:k]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, View):
            return NotImplemented
        return self._entries == other._entries

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(frozenset(self._entries.items()))

    def __bool__(self) -> bool:
        """Tell whether any name was ever in it: False for a node without a view."""
        return bool(self._entries)

    def __repr__(self) -> str:
        return f"View({self._entries!r})"


class ReplicaCount(msgspec.Struct, frozen=True, array_like=True):
    """K as the cluster knows it: the greater ``n`` wins, then the greater K (R16)."""

    n: _Natural
    """Raised by each start of a node with another K than at its last start."""
    k: Annotated[int, msgspec.Meta(ge=1, le=COUNTER_MAX)]
    """Number of replicas wanted."""

    def join(self, other: ReplicaCount) -> ReplicaCount:
        """Take the newer of two."""
        return max(self, other, key=lambda count: (count.n, count.k))

    def restarted_with(self, k: int) -> ReplicaCount:
        """
        Set another K, in the knowledge of this one.

        :param k: what the operator wants now, > 0.
        """
        assert k > 0
        return ReplicaCount(self.n + 1, k)


REPLICA_COUNT_DEFAULT = ReplicaCount(0, 3)
"""Of a node to which nobody gave one; an option counts as ``ReplicaCount(1, K)``."""


def may_adopt(mine: View, theirs: View, *, me: Name) -> bool:
    """
    Tell whether a peer's view may be joined with ours (R16).

    Without a view of its own a node takes one only if it names the node; with one it
    refuses a view that neither names it nor shares a name with its own: two clusters
    would fuse.  A view with a name that is none is refused by all, or every node would
    soon try to dial it.
    """
    if not (theirs.knows(me) or (mine and mine.shares_name(theirs))):
        return False
    return all(map(is_name, theirs.entries))
