"""
What goes wrong in a certain order: sequences that chance seldom brings about.

Each is one operation of a storm, drawn like any other and with everything else around
it.  Where the order hangs on something that nodes do by themselves, it is waited for.
"""

from __future__ import annotations

from ..core.causality import Name, leq
from ..core.names import name_order
from .clients import Clients
from .oracle import joined
from .weather import AMBUSH_S, RELIEVED_S, operation

HEARD_S = 0.3
"""So long a write takes to all who can be reached, and is acknowledged."""
READ_MS = 60
"""And so long a read takes."""
STRANDED_S = 5.0
"""After this replicas that cannot be heard are believed dead, and replaced."""
REPORTED_S = 3.0
"""After this all have told a node that is in reach what they have."""

EXILE_S = 6.0
"""Who is away for so long comes back to a cluster that has forgotten deletes."""


class Stories(Clients):
    """A cluster with clients, and what may become of both."""

    @operation
    def do_schism(self, one: int, target: int) -> None:
        """A node that is cut off, and the others, change the same member's place."""
        other, third = one + 1, target + 1
        self.do_partition(1 << one % len(self.names))
        self.do_view(one, third)
        self.do_view(other, target)
        self.cluster.advance(0.7)
        self.do_view(one, target)
        self.do_join(other, target)
        self.cluster.advance(0.7)
        self.do_heal()

    @operation
    def do_exile(self, target: int, key: int) -> None:
        """
        A member is cut off and removed, and comes back with all that it had.

        Meanwhile the others delete a key, and have time to forget that they did.
        """
        name = self.at(target)
        others = [n for n in self.names if n != name and n in self.cluster.nodes]
        if not others or name not in self.cluster.nodes:
            return
        self.do_put(0, target, key)
        self.cluster.advance(1.0)
        self.do_partition(1 << self.names.index(name))
        self.do_put(1, target, key + 1)
        at = self.names.index(others[0])
        self.do_view(at, target)
        self.cluster.advance(0.7)
        self.do_erase(at, key)
        self.cluster.advance(EXILE_S)
        removed = name not in self.cluster.nodes[others[0]].cluster.view.members
        alone = self._knows_alone(name)
        self.do_heal()
        self.do_join(at, target)
        self.cluster.advance(0.7)
        self.events["exiled"] += alone and removed

    def _knows_alone(self, name: Name) -> bool:
        """Tell whether a node has a write that nobody else has."""
        nodes = self.cluster.nodes
        others = [node.replica.durable.vv for n, node in nodes.items() if n != name]
        return name in nodes and not leq(
            nodes[name].replica.durable.vv, joined(*others)
        )

    @operation
    def do_strand(self, key: int) -> None:
        """Proxies are cut off together: they have nobody to catch up with (R15)."""
        proxies = [n for n in self.names if self._is_running_proxy(n)]
        at = self._least_replica()
        if len(proxies) < 2 or at is None:
            return
        self.do_put(0, at, key)
        self.cluster.advance(1.5)
        self.do_partition(sum(1 << self.names.index(name) for name in proxies))
        self.cluster.advance(STRANDED_S)
        for client, name in enumerate(proxies):
            self.do_get(client, self.names.index(name), key)
        self.cluster.advance(HEARD_S)
        self.do_heal()

    @operation
    def do_rift(self, alone: int, key: int) -> None:
        """
        One is cut off and writes; all others are started again, then one deletes.

        They have time to forget that, if they forget that the one has not reported.
        """
        name = self.at(alone)
        if name not in self.cluster.nodes or len(self.cluster.nodes) < 3:
            return
        self.do_partition(1 << self.names.index(name))
        self.do_put(0, alone, key)
        self.cluster.advance(0.3)
        for offset in range(1, len(self.names)):
            self.do_restart(alone + offset)
        self.cluster.advance(1.0)
        self.do_put(1, alone + 1, key)
        self.cluster.advance(0.1)
        self.do_erase(alone + 1, key)
        self.cluster.advance(EXILE_S)
        self.do_heal()

    @operation
    def do_crowd(self, node: int, other: int) -> None:
        """Two processes under a name write, and a node that was cut off pulls that."""
        self.do_twin(node, True)
        self.do_cut(node, other if self.at(node) != self.at(other) else node + 1)
        for client in range(6):
            self.do_put(client, node, client)
            self.cluster.advance(0.005)
        self.do_heal()

    # Deletions that are forgotten at the wrong moment.

    @operation
    def do_whisper(self, node: int, key: int) -> None:
        """
        A member writes beside a deletion; of that only its vectors get out (H17).

        It can be heard by nobody, and hears all, so the deletion gets there; then one
        answer of it arrives, and no more for some time.
        """
        name, at = self.at(node), self._least_replica(but=self.at(node))
        if at is None or name not in self.cluster.nodes:
            return
        self.do_put(0, at, key)
        self.cluster.advance(HEARD_S)
        others = [other for other in self.names if other != name]
        for other in others:
            self._cut(name, other, "one way")
        self.do_forget(1)
        self.do_put(1, node, key)
        self._until_answered(self.sessions[1])
        self._delete(at, key)
        link = (name, self.at(at))
        self.cluster.network.faults.cuts.discard(link)
        self._until_said(link, "HelloAnswer")
        self._cut(*link, "one way")
        self.cluster.advance(self._forgets_s)
        self.do_heal()

    @operation
    def do_hearsay(self, node: int, key: int) -> None:
        """
        Who is about to seal a deletion hears of a write that it cannot get (H18).

        A client has made it at a member that is cut off since then.
        """
        name, at = self.at(node), self._least_replica(but=self.at(node))
        if at is None or name not in self.cluster.nodes:
            return
        self.do_put(0, at, key)
        self.cluster.advance(HEARD_S)
        self._delete(at, key)
        sealer = self.cluster.nodes.get(self.at(at))
        if sealer is None:
            return
        known = sealer.replica.applied.vv
        self.cluster.advance(
            REPORTED_S, until=lambda: leq(known, sealer.compacting.stable)
        )
        self.do_partition(1 << self.names.index(name))
        self.do_forget(1)
        self.do_put(1, node, key)
        self._until_answered(self.sessions[1])
        self.do_put(1, at, key + 1)
        self.cluster.advance(self._forgets_s)
        self.do_heal()

    @operation
    def do_amnesia(self, node: int, key: int) -> None:
        """
        A proxy is killed as it tells that it has heard of a deletion (H20).

        It comes back, reaches nobody, and takes a write, while the others have had time
        to forget that anything was deleted.
        """
        proxies = [n for n in self.names if self._is_running_proxy(n)]
        at = self._least_replica()
        if not proxies or at is None:
            return
        proxy = proxies[node % len(proxies)]
        index = self.names.index(proxy)
        self.do_put(0, at, key)
        self.cluster.advance(HEARD_S)
        self._delete(at, key, heard_s=0.0)
        self._until_said((proxy, self.at(at)), "Exchange", "ExchangeAnswer")
        self.do_kill(index)
        self.do_partition(1 << index)
        self.cluster.advance(self._forgets_s)
        self.do_start(index)
        self.cluster.advance(HEARD_S)
        self.do_forget(1)
        self.do_put(1, index, key)
        self.cluster.advance(HEARD_S)
        self.do_heal()

    @operation
    def do_handover(self, node: int, key: int) -> None:
        """
        A proxy drops what it wrote alone, when all replicas have it but one (R12).

        That one is away meanwhile, and is back after the proxy has dropped it.
        """
        proxies = [n for n in self.names if self._is_running_proxy(n)]
        at = self._least_replica()
        if not proxies or at is None or len(self.names) < 3:
            return
        # The last ones are not promoted in the place of who is away.
        index = self.names.index(proxies[-1 - node % len(proxies)])
        self.do_put(0, at, key)
        self.cluster.advance(HEARD_S)
        self.do_partition(1 << index)
        self.do_forget(1)
        self.do_put(1, index, key)
        self._until_answered(self.sessions[1])
        self.do_put(2, at, key)
        self.cluster.advance(REPORTED_S / 2)
        self.do_heal()
        self.do_partition(1 << at)
        self.cluster.advance(2 * RELIEVED_S + self.cluster.settings.demotion_s)
        self.do_heal()
        self.cluster.advance(HEARD_S)

    @property
    def _forgets_s(self) -> float:
        """So long it takes until what is stable is sealed."""
        return 2 * self.cluster.settings.compact_interval_s

    def _is_running_proxy(self, name: Name) -> bool:
        return name in self.cluster.nodes and self._is_proxy(name)

    def _least_replica(self, *, but: Name | None = None) -> int | None:
        """Find who writes seals, if another one does not."""
        nodes = self.cluster.nodes.values()
        replicas = [n.me for n in nodes if n.cluster.is_replica and n.me != but]
        if not replicas:
            return None
        return self.names.index(min(replicas, key=name_order))

    def _delete(self, at: int, key: int, *, heard_s: float = HEARD_S) -> None:
        """Let a client read a key and delete it, at a node."""
        self.do_get(2, at, key)
        self.do_advance(READ_MS)
        self.do_delete(2, at, key)
        self.cluster.advance(heard_s)

    def _until_said(self, link: tuple[Name, Name], *kinds: str) -> None:
        """Wait, not for ever, until one tells the other something."""
        last_sent = self.cluster.network.last_sent
        last_sent.pop(link, None)
        self.cluster.advance(AMBUSH_S, until=lambda: last_sent.get(link) in kinds)
