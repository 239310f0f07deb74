"""
What may be forgotten, and when (R9, R11, R12).

Stable is what every member has reported to have.  A report promises that every later
write of its node comes after it, so what is stable is causally before all that is still
to come (causal stability: Baquero, Almeida, Shoker, arXiv 1710.04469).  Then nobody
needs the past of a stable version any more; a stable deletion can be sealed, that is
said to beat nothing any more; and a stable seal can be dropped.

Two steps, since a tombstone that each node forgets at its own time diverges or lets
deleted values rise again (hole H4): after the seal, which is replicated like any write,
forgetting changes no outcome, whatever arrives later.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from .causality import EMPTY, VersionVector, join, leq, meet
from .versions import Antichain, Version, winner


def stable(
    own: VersionVector, reports: Iterable[VersionVector | None]
) -> VersionVector:
    """
    Take the pointwise minimum of VV and all reports (R12).

    :param own: the durable VV.
    :param reports: of every other member; None of one that has not reported: then
        nothing is stable.
    """
    low = own
    for report in reports:
        if report is None:
            return EMPTY
        low = meet(low, report)
    return low


def settled(chain: Antichain, upto: VersionVector) -> tuple[Antichain, VersionVector]:
    """
    Forget the pasts of stable versions, and drop stable seals (R9, R11).

    :param upto: what is stable.
    :returns: what is left, ``chain`` itself if it changes nothing; and what the floor
        must cover from here on.
    """
    left: list[Version] = []
    floor: VersionVector = EMPTY
    for version in chain:
        if (version.past or version.is_seal) and leq(version.upto, upto):
            floor = join(version.upto, floor)
            if version.is_seal:
                continue
            version = msgspec.structs.replace(version, past={})
        left.append(version)
    return (tuple(left), floor) if floor else (chain, EMPTY)


def awaits_seal(chain: Antichain, upto: VersionVector) -> bool:
    """Tell whether a deletion won, and all that it won against is stable, too (R9)."""
    won = winner(chain)
    return (
        won is not None
        and won.value is None
        and not won.is_seal
        and all(leq(version.upto, upto) for version in chain)
    )
