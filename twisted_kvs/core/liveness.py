"""
Who is believed alive, and what counts as evidence (rules R15, R19).

Invariant: belief follows from the latest evidence alone, and evidence only moves
forward in time; what was merely presumed is never told as evidence.

Three things keep the dead dead.  A member that was just put in the view is presumed
alive, but not reported: or every restart of a node would revive its dead peers
everywhere.  What was learned from others is told on with ``relay_s`` added to its age:
each message makes an age too small by the time that it travels, and nodes that echo
each other would keep a dead member alive for as long as they talk.  And what others
heard revives a member that was found dead only if it is later by as much.

Moments are monotonic seconds.  When the clock goes on by hours at once (a process that
was paused), everybody is dead until the next evidence comes, which takes one exchange.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from .causality import Name

_NEVER = -math.inf


class _Evidence:
    """The latest moments of one watched member; ``_NEVER`` where there are none."""

    __slots__ = ("direct", "found_dead", "presumed", "relayed")

    def __init__(self, presumed: float) -> None:
        self.presumed = presumed
        self.direct = _NEVER
        self.relayed = _NEVER
        self.found_dead = _NEVER

    def last(self) -> float:
        return max(self.presumed, self.direct, self.relayed)


class Liveness:
    """What one node believes of the others; it never doubts itself."""

    def __init__(self, me: Name, *, dead_after_s: float, probe_after_s: float) -> None:
        """
        Begin with nobody to watch.

        :param dead_after_s: silence after which a member is believed dead, > 0.
        :param probe_after_s: silence after which it should be dialled, > 0.
        """
        assert dead_after_s > 0 and probe_after_s > 0
        self._me = me
        self._dead_after_s = dead_after_s
        self._probe_after_s = probe_after_s
        self.relay_s = dead_after_s / 10
        """What relaying adds to an age; more than a message normally takes."""
        self._watched: dict[Name, _Evidence] = {}

    def watch(self, members: Collection[Name], now: float) -> None:
        """Follow the view: presume new members alive now, forget those who left."""
        watched = self._watched
        self._watched = {
            name: watched.get(name) or _Evidence(now)
            for name in sorted(members)
            if name != self._me
        }

    def heard(self, name: Name, now: float) -> None:
        """Take note of a verified message from a member; strangers do not count."""
        evidence = self._watched.get(name)
        if evidence is not None:
            evidence.direct = max(evidence.direct, now)

    def heard_of(self, ages_ms: Mapping[Name, int], now: float) -> None:
        """
        Take in what a peer says of others.

        :param ages_ms: how long before ``now`` the peer had heard of each; what it says
            of strangers and of this node does not count, a negative age counts as 0.
        :param now: for an answer better the moment of the request, which is never later
            than that of the peer's words.
        """
        for name, age_ms in ages_ms.items():
            evidence = self._watched.get(name)
            if evidence is not None:
                moment = now - max(0, age_ms) / 1000
                if moment > evidence.found_dead + self.relay_s:
                    evidence.relayed = max(evidence.relayed, moment)

    def found_dead(self, name: Name, now: float) -> None:
        """Take note of a failed probe: dead until evidence later than ``now`` comes."""
        evidence = self._watched.get(name)
        if evidence is not None:
            evidence.found_dead = max(evidence.found_dead, now)

    def ages_ms(self, now: float) -> dict[Name, int]:
        """
        Tell how long ago there was evidence of each member, for peers.

        :returns: whole milliseconds, rounded up; without this node itself, and without
            those of whom there was no evidence yet.
        """
        ages: dict[Name, int] = {}
        for name, evidence in self._watched.items():
            moment = max(evidence.direct, evidence.relayed - self.relay_s)
            if moment > _NEVER:
                ages[name] = max(0, math.ceil((now - moment) * 1000))
        return ages

    def alive(self, now: float) -> frozenset[Name]:
        """Tell who is believed alive: some members, and always this node."""
        return frozenset(
            [self._me, *(x for x, e in self._watched.items() if self._lives(e, now))]
        )

    def suspects(self, now: float) -> list[Name]:
        """List the members believed dead, sorted."""
        return [x for x, e in self._watched.items() if not self._lives(e, now)]

    def quiet(self, now: float) -> list[Name]:
        """List the members to be dialled: not heard of for long, or dead; sorted."""
        return [
            name
            for name, evidence in self._watched.items()
            if now - evidence.last() >= self._probe_after_s
            or not self._lives(evidence, now)
        ]

    def last_heard_s(self, name: Name, now: float) -> float | None:
        """
        Tell how long ago a member was last heard of, seconds.

        :returns: since it is watched, if there was no evidence yet; 0.0 for this node;
            None for a stranger.
        """
        if name == self._me:
            return 0.0
        evidence = self._watched.get(name)
        return None if evidence is None else max(0.0, now - evidence.last())

    def _lives(self, evidence: _Evidence, now: float) -> bool:
        last = evidence.last()
        return last > evidence.found_dead and now - last < self._dead_after_s
