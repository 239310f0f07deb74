"""
Clients of a simulated cluster: sessions that roam, thread their payload, and try again.

Each operation is a method ``do_<name>`` with small numbers.  What a client is answered
is checked by the witness.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ..core.causality import Name, VersionVector, leq
from ..core.errors import Overloaded, Removed, SlowDisk, StorageFull
from ..core.messages import Operation, Standing
from ..core.retiring import has_marker
from ..core.settings import Settings
from ..node import Node
from ..operations import Answer
from .checkers import Asking, Session, Violation
from .cluster import STEP_S, Process
from .looking import tell
from .oracle import joined
from .weather import Weather, operation

ROAM_STEPS_MAX = 1000
EXCUSED_S = 1.5
"""What a disk's trouble may be felt for: it is tried once a second."""
PATIENCE_S = 1.5
"""A client waits so long, then tries the next node."""


class Clients(Weather):
    """A cluster, and clients of it."""

    def __init__(
        self,
        settings: Settings | None,
        *,
        seed: int,
        nodes: int,
        k: int,
        keys: int,
        clients: int,
    ) -> None:
        """Have so many keys and clients, who have read nothing yet."""
        super().__init__(settings, seed=seed, nodes=nodes, k=k)
        self.keys = [f"k{i}" for i in range(keys)]
        self.sessions = [Session() for _ in range(clients)]
        self.observe: Callable[[str], None] | None = None
        """Told, in words, of all that happens."""
        self._healthy = True
        """Nothing but clients has happened since all was well."""
        self._serial = 0

    @operation
    def do_advance(self, milliseconds: int) -> None:
        """Time passes."""
        self.cluster.advance(milliseconds / 1000)

    @operation
    def do_put(self, client: int, node: int, key: int) -> None:
        """A client writes."""
        self._serial += 1
        value = f'"{self._serial}"'.encode()
        self._ask(client, self.at(node), key, Operation.PUT, value=value)

    @operation
    def do_get(self, client: int, node: int, key: int) -> None:
        """A client reads."""
        self._ask(client, self.at(node), key, Operation.GET)

    @operation
    def do_delete(self, client: int, node: int, key: int) -> None:
        """A client deletes."""
        self._ask(client, self.at(node), key, Operation.DELETE)

    @operation
    def do_erase(self, client: int, key: int) -> None:
        """A client reads and deletes, all come together and forget it."""
        self.do_get(client, client, key)
        self.do_advance(60)
        self.do_delete(client, client, key)
        self.do_advance(4000)

    @operation
    def do_burst(self, client: int, node: int, key: int) -> None:
        """Several clients write and read here and next door, almost at once."""
        for offset in range(2):
            self.do_put(client + offset, node + offset, key)
            self.do_advance(2)
            self.do_get(client + offset, node + 1 - offset, key)

    @operation
    def do_tie(self, client: int, node: int, key: int) -> None:
        """Two clients write at two nodes at the same moment."""
        self.do_put(client, node, key)
        self.do_put(client + 1, node + 1, key)

    @operation
    def do_roam(self, client: int, node: int, key: int) -> None:
        """A client writes at one node, and reads at all others without any delay."""
        session = self.sessions[client % len(self.sessions)]
        self._until_answered(session)
        self.do_put(client, node, key)
        for offset in range(1, len(self.names)):
            self._until_answered(session)
            self.do_get(client, node + offset, key)

    def _until_answered(self, session: Session) -> None:
        for _ in range(ROAM_STEPS_MAX):
            if session.asking is None:
                return
            self.cluster.advance(STEP_S)

    @operation
    def do_everywhere(self, key: int) -> None:
        """Clients without history write at every node."""
        for index in range(len(self.names)):
            self.do_forget(index)
            self.do_put(index, index, key)

    @operation
    def do_forget(self, client: int) -> None:
        """A client without history comes."""
        index = client % len(self.sessions)
        if self.sessions[index].asking is None:
            self.sessions[index] = Session()

    def _ask(
        self,
        client: int,
        at: Name,
        key: int,
        operation: Operation,
        *,
        value: bytes | None = None,
    ) -> None:
        node = self._serving(at)
        free = [s for s in self.sessions if s.asking is None]
        if node is not None and free:
            session = self.sessions[client % len(self.sessions)]
            if session.asking is not None:
                session = free[client % len(free)]
            name = self.keys[key % len(self.keys)]
            self._send(session, node, name, operation, value=value)

    def _serving(self, at: Name) -> Node | None:
        """Choose who answers under a name; there may be two."""
        nodes = [self.cluster.nodes[at]] if at in self.cluster.nodes else []
        if at in self.cluster.twins:
            nodes.append(self.cluster.twins[at].node)
        if len(nodes) < 2:
            return nodes[0] if nodes else None
        return self.cluster.rng.choice(nodes)

    def _send(
        self,
        session: Session,
        node: Node,
        key: str,
        operation: Operation,
        *,
        value: bytes | None,
    ) -> None:
        process = self.cluster.process(node)
        assert process is not None
        asking = Asking(
            session=session,
            node=node,
            key=key,
            operation=operation,
            value=value,
            since=self.cluster.clock.seconds(),
            given=session.payload,
            token=session.token,
            comes_after=self.witness.last_write(process.boot_id),
            must_be_fresh=self._healthy and self._can_be_had(session),
            forwards=None,
        )
        session.asking = asking
        if self.observe is not None:
            told = "" if value is None else f"={value.decode()}"
            what = f"{operation.lower()} {key}{told}"
            client = self.sessions.index(session)
            self.observe(f"  client {client} asks {node.me}: {what}")
        network = self.cluster.network
        if not network.held_up(process.boot_id, lambda: self._arrive(asking)):
            self._arrive(asking)

    def _reads_itself(self, node: Node) -> bool:
        serves = node.cluster.standing is Standing.SERVING
        spread = self.cluster.settings.spread
        return serves and node.cluster.is_replica and not spread

    def _can_be_had(self, session: Session) -> bool:
        """Tell whether somebody has all that a payload names, and can read it."""
        if not leq(session.payload.vector, self._known()):
            return False
        nodes = list(self.cluster.nodes.values())
        given = nodes[0].payloads.decode(session.token).vector
        read = (node.replica.durable.retired.unpack(given) for node in nodes)
        return not all(map(has_marker, read))

    def _known(self) -> VersionVector:
        """Join all that is durable at nodes that run."""
        nodes = self.cluster.nodes.values()
        return joined(*(node.replica.durable.vv for node in nodes))

    def _arrive(self, asking: Asking) -> None:
        node, payload = asking.node, asking.node.payloads.decode(asking.token)
        waiting: Deferred[Answer]
        if asking.operation is Operation.GET:
            if self._reads_itself(node):
                asking.forwards = self.cluster.network.forwards[node.me]
            waiting = node.get(asking.key, payload)
        elif asking.operation is Operation.DELETE:
            waiting = node.delete(asking.key, payload)
        else:
            assert asking.value is not None
            waiting = node.put(asking.key, asking.value, payload)
        waiting.addBoth(self._answered, asking).addErrback(self._failed)

    def _answered(self, result: Answer | Failure, asking: Asking) -> None:
        if asking.session.asking is not asking or not self._runs(asking.node):
            return  # It came too late, or its node died, and its client noticed.
        asking.session.asking = None
        if self.observe is not None:
            self.observe(f"  {asking.node.me} answers: {tell(result)}")
        if isinstance(result, Failure):
            result.trap(StorageFull, Overloaded, Removed, SlowDisk)
            self.events[f"answered {type(result.value).__name__}"] += 1
            assert result.value is not None
            if not self._may_refuse(asking, result.value):
                raise Violation("answers", f"{asking.node.me} refused: {result.value}")
            return
        asking.must_be_fresh = asking.must_be_fresh and self._healthy
        self.witness.answered(asking, result)

    def _may_refuse(self, asking: Asking, error: BaseException) -> bool:
        """Tell whether there is something other than the network to blame."""
        full, slow = self._disks_were(asking.since - EXCUSED_S)
        match error:
            case Removed():
                return self.events["view change asked"] > 0
            case StorageFull():
                # Who stood still learns late that there is room again.
                return full or bool(self._pauses)
            case SlowDisk():
                return full or slow or bool(self._pauses)
        # No load is simulated that would be too much.
        return asking.node.stopping

    def _runs(self, node: Node) -> bool:
        return self.cluster.process(node) is not None

    def _try_again(self, asking: Asking) -> None:
        """A client has no answer: it asks the next node the same."""
        asking.session.asking = None
        self.events["tried again"] += 1
        start = self.names.index(asking.node.me) + 1
        for name in (*self.names[start:], *self.names[:start]):
            node = self.cluster.nodes.get(name)
            if node is not None and node is not asking.node:
                self._send(
                    asking.session,
                    node,
                    asking.key,
                    asking.operation,
                    value=asking.value,
                )
                return

    def _lost_with(self, process: Process) -> None:
        for session in self.sessions:
            asking = session.asking
            if asking is not None and asking.node is process.node:
                session.asking = None
                self.events["request lost with its node"] += 1
                # Every other client is a patient one.
                if self.sessions.index(session) % 2:
                    self._try_again(asking)

    def _asked(self, process: Process) -> bool:
        asked = [s.asking for s in self.sessions if s.asking is not None]
        return any(asking.node is process.node for asking in asked)

    def _resumed(self, process: Process, paused_s: float) -> None:
        for session in self.sessions:
            if session.asking is not None and session.asking.node is process.node:
                session.asking.since += paused_s
