"""
What an operator gave at a start, against what the node has kept (R16).

The view and K that a node has kept are newer than VIEW and K.
"""

from __future__ import annotations

from twisted.logger import Logger

from .core.messages import ReplicaState
from .core.replica import Replica
from .core.view import ReplicaCount, View

_log = Logger()


def settle_configuration(
    replica: Replica,
    stored: ReplicaState | None,
    *,
    first_view: View,
    k_given: int | None,
) -> None:
    """
    Compare VIEW and K with what is kept; a changed K is a new K (R16).

    :param stored: what the storage held at this start; None: it is fresh.
    :param first_view: VIEW.
    :param k_given: K as given at this start; None: not given.
    """
    if stored is None:
        replica.set_started_with_k(k_given)
        return
    kept = replica.view
    if first_view.entries and kept.entries:
        if first_view.order != kept.order:
            _log.info(
                "VIEW differs from the view that was kept, which is newer: {kept}",
                kept=", ".join(kept.order),
            )
    elif first_view.entries:
        replica.set_view(first_view, replica.replica_count)
    if k_given is None:
        return
    count = replica.replica_count
    if replica.started_with_k is None and not kept.entries:
        count = ReplicaCount(1, k_given)
    elif k_given != replica.started_with_k:
        count = count.restarted_with(k_given)
        _log.info("K is {k} now, as given at this start", k=k_given)
    elif count.k != k_given:
        _log.info(
            "K={given} differs from the K that was kept, which is newer: {kept}",
            given=k_given,
            kept=count.k,
        )
    replica.set_view(replica.view, count)
    replica.set_started_with_k(k_given)
