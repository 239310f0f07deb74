"""What starts and stops in which order, and what beats."""

from __future__ import annotations

import random
from itertools import pairwise

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from twisted_kvs.core.causality import Name
from twisted_kvs.core.errors import StoreRefused
from twisted_kvs.core.messages import ReplicaState
from twisted_kvs.core.replica import Replica
from twisted_kvs.core.view import ReplicaCount, View
from twisted_kvs.logs import as_text
from twisted_kvs.options import DRAIN_DEFAULT_S
from twisted_kvs.services import (
    STOP_CONNECTIONS_S,
    STOP_S,
    GossipService,
    KVSService,
    NodeService,
    StartFailed,
    StoreService,
    end_process,
    start_line,
)


class FakeStorage:
    """Writes down when it is opened and closed."""

    def __init__(self, events: list[str]) -> None:
        self._events = events
        self.refuses: Exception | None = None
        self.state: ReplicaState | None = None
        self.closes: Deferred[None] = succeed(None)

    def open(self) -> ReplicaState | None:
        self._events.append("store opens")
        if self.refuses is not None:
            raise self.refuses
        return self.state

    def close(self) -> Deferred[None]:
        self._events.append("store closes")
        return self.closes


class FakePort(Service):
    """A listening port that may be taken."""

    def __init__(self, events: list[str]) -> None:
        self._events = events
        self.refuses: Exception | None = None
        self._open = False

    def privilegedStartService(self) -> None:
        self._events.append("port opens")
        if self.refuses is not None:
            raise self.refuses
        self._open = True

    def startService(self) -> None:
        super().startService()
        if not self._open:
            self.privilegedStartService()

    def stopService(self) -> Deferred[None]:
        self._events.append("port closes")
        return succeed(None)


class FakeNode:
    """A node that writes down what it is told."""

    def __init__(self, events: list[str]) -> None:
        self._events = events
        self.stored: ReplicaState | None = None
        self.stops: Deferred[None] = succeed(None)

    def start(self, stored: ReplicaState | None) -> None:
        self._events.append("node starts")
        self.stored = stored

    def gossip_round(self) -> None:
        self._events.append("round")

    def stop(self) -> Deferred[None]:
        self._events.append("node stops")
        return self.stops


class FakeClosing:
    """Something to close."""

    def __init__(self, events: list[str], name: str) -> None:
        self._events = events
        self._name = name
        self.closes: Deferred[None] = succeed(None)

    def close(self) -> Deferred[None]:
        self._events.append(f"{self._name} close")
        return self.closes


class Parts:
    """A whole node of fakes, on a clock."""

    def __init__(self, *, drain_s: float = 0) -> None:
        self.events: list[str] = []
        self.clock = Clock()
        self.leaving_fails: Exception | None = None
        self.storage = FakeStorage(self.events)
        self.port = FakePort(self.events)
        self.node = FakeNode(self.events)
        self.connections = FakeClosing(self.events, "connections")
        self.transport = FakeClosing(self.events, "peers")
        store = StoreService(self.storage)
        self.service = KVSService(
            store=store,
            port=self.port,
            listen_given="KVS_LISTEN (--listen): got 'tcp:80'",
            directory_given="KVS_DATA_DIR (--data-dir): got 'here'",
            node=NodeService(self.node, store, start_line="the line"),
            gossip=GossipService(
                self.node.gossip_round,
                clock=self.clock,
                rng=random.Random(1),
                interval_s=0.5,
                jitter=0.2,
            ),
            turns=Service(),
            close_connections=self.connections.close,
            close_transport=self.transport.close,
            leave=self.leave,
            drain_s=drain_s,
            clock=self.clock,
        )

    def leave(self) -> None:
        self.events.append("not ready")
        if self.leaving_fails is not None:
            raise self.leaving_fails


class Start(SynchronousTestCase):
    """Nothing is asked of a part that is not there."""

    def test_order_under_twistd(self) -> None:
        """Store, port, then the node: no request comes before its data is there."""
        parts = Parts()
        parts.service.privilegedStartService()
        self.assertEqual(parts.events, ["store opens", "port opens"])
        parts.service.startService()
        self.assertEqual(parts.events, ["store opens", "port opens", "node starts"])

    def test_order_under_twist(self) -> None:
        """Under twist, which has no privileged start, the order is the same."""
        parts = Parts()
        parts.service.startService()
        self.assertEqual(parts.events, ["store opens", "port opens", "node starts"])

    def test_the_node_gets_what_was_stored(self) -> None:
        """A node goes on with what its store has."""
        parts = Parts()
        state = Replica.fresh_state(View.start([Name("a:1")]), ReplicaCount(1, 3))
        parts.storage.state = state
        parts.service.startService()
        self.assertIs(parts.node.stored, state)

    def test_a_refused_store_is_one_line(self) -> None:
        """A data directory that must not be used ends the start; no port opens."""
        parts = Parts()
        parts.storage.refuses = StoreRefused("/data/kvs.lock: in use\nby another")
        stop = self.assertRaises(StartFailed, parts.service.privilegedStartService)
        self.assertEqual(
            stop.code,
            "kvs: KVS_DATA_DIR (--data-dir): got 'here' (/data/kvs.lock: in use by "
            "another), want a directory that this node may write, its own or a new one",
        )
        self.assertEqual(parts.events, ["store opens"])

    def test_a_taken_port_is_one_line(self) -> None:
        """A port that somebody has ends the start, and the store is closed again."""
        for start in ("privilegedStartService", "startService"):
            parts = Parts()
            parts.port.refuses = CannotListenError("", 8080, OSError(98, "in use"))
            stop = self.assertRaises(StartFailed, getattr(parts.service, start))
            assert isinstance(stop.code, str)
            self.assertIn("8080", stop.code)
            self.assertIn("KVS_LISTEN (--listen): got 'tcp:80' (", stop.code)
            self.assertNotIn("\n", stop.code)
            self.assertEqual(parts.events[-1], "store closes")

    def test_a_place_that_is_none(self) -> None:
        """What the system says to a socket's path comes with who named the path."""
        parts = Parts()
        parts.port.refuses = FileNotFoundError(2, "No such file", "/no/x.lock")
        stop = self.assertRaises(StartFailed, parts.service.privilegedStartService)
        assert isinstance(stop.code, str)
        self.assertIn("KVS_LISTEN (--listen): got 'tcp:80' ([Errno 2]", stop.code)

    def test_a_daemon_that_fails_tells_its_parent(self) -> None:
        """Twistd tells a waiting shell of exceptions only, and exits for no others."""
        failed = StartFailed("kvs: no")
        self.assertIsInstance(failed, Exception)
        self.assertIsInstance(failed, SystemExit)
        self.assertEqual(failed.code, "kvs: no")


class Stop(SynchronousTestCase):
    """A node stops in order and in time."""

    def started(self, *, drain_s: float = 0) -> Parts:
        """Start a node and forget how."""
        parts = Parts(drain_s=drain_s)
        parts.service.privilegedStartService()
        parts.service.startService()
        parts.events.clear()
        return parts

    def test_order(self) -> None:
        """First nothing new, then nothing open, last the store."""
        parts = self.started()
        self.successResultOf(parts.service.stopService())
        wanted = [
            *("not ready", "port closes", "connections close", "node stops"),
            *("peers close", "store closes"),
        ]
        self.assertEqual(parts.events, wanted)
        self.assertFalse(parts.service.running)
        self.assertEqual(parts.clock.getDelayedCalls(), [])

    def test_everything_goes_on_while_clients_go_elsewhere(self) -> None:
        """Between the end of readiness and that of the port requests are answered."""
        parts = self.started(drain_s=1)
        stopped = parts.service.stopService()
        parts.clock.pump([0.1] * 9)
        self.assertEqual(set(parts.events), {"not ready", "round"})
        parts.clock.advance(0.2)
        self.successResultOf(stopped)
        self.assertEqual(parts.events[-1], "store closes")

    def test_who_is_told_again_to_stop_waits_no_longer(self) -> None:
        """A second signal ends the wait at once, and a third changes nothing."""
        parts = self.started(drain_s=300)
        parts.service.hurry()
        stopped = parts.service.stopService()
        parts.clock.advance(1)
        self.assertNoResult(stopped)
        parts.service.hurry()
        self.successResultOf(stopped)
        parts.service.hurry()
        self.assertEqual(parts.events[-1], "store closes")
        self.assertEqual(parts.clock.getDelayedCalls(), [])

    def test_leaving_that_fails(self) -> None:
        """A node that cannot even say that it leaves is stopped all the same."""
        parts = self.started()
        parts.leaving_fails = OSError("no")
        self.successResultOf(parts.service.stopService())
        self.assertEqual(parts.events[-1], "store closes")
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    def test_one_waits_for_the_other(self) -> None:
        """The store stays open until the node has finished what it acknowledged."""
        parts = self.started()
        parts.node.stops = Deferred()
        stopped = parts.service.stopService()
        self.assertNoResult(stopped)
        self.assertEqual(parts.events[-1], "node stops")
        parts.node.stops.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(parts.events[-1], "store closes")

    def test_what_hangs_is_given_up(self) -> None:
        """Whatever hangs, all parts are stopped and the process may end in 5 s."""
        parts = self.started(drain_s=DRAIN_DEFAULT_S)
        parts.connections.closes = Deferred()
        parts.node.stops = Deferred()
        parts.transport.closes = Deferred()
        parts.storage.closes = Deferred()
        stopped = parts.service.stopService()
        parts.clock.pump([0.05] * round((DRAIN_DEFAULT_S + STOP_S - 0.1) / 0.05))
        self.assertNoResult(stopped)
        parts.clock.pump([0.05] * 4)
        self.successResultOf(stopped)
        # The interpreter takes some time to end, too.
        self.assertLess(DRAIN_DEFAULT_S + STOP_S, 4.5)
        self.assertEqual(parts.events[-1], "store closes")

    def test_what_is_given_up_is_told(self) -> None:
        """Who is not waited for any more can drop what holds it up."""
        parts = self.started()
        told: list[str] = []
        parts.connections.closes = Deferred(lambda _: told.append("given up"))
        stopped = parts.service.stopService()
        parts.clock.advance(STOP_CONNECTIONS_S)
        self.successResultOf(stopped)
        self.assertEqual(told, ["given up"])

    def test_what_fails_is_logged(self) -> None:
        """A part that cannot be stopped does not keep the others from it."""
        parts = self.started()
        parts.transport.closes = fail(OSError("no"))
        self.successResultOf(parts.service.stopService())
        self.assertEqual(parts.events[-1], "store closes")
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    def test_no_round_after_the_stop(self) -> None:
        """A node that was stopped gossips no more."""
        parts = self.started()
        self.successResultOf(parts.service.stopService())
        parts.clock.pump([0.1] * 100)
        self.assertNotIn("round", parts.events)


class Gossip(SynchronousTestCase):
    """The beat of gossip."""

    def beats(self, seed: int, seconds: float) -> list[float]:
        """Let one beat, and tell when its rounds came."""
        clock, at = Clock(), list[float]()
        service = GossipService(
            lambda: at.append(clock.seconds()),
            clock=clock,
            rng=random.Random(seed),
            interval_s=0.5,
            jitter=0.2,
        )
        service.startService()
        clock.pump([0.005] * int(seconds / 0.005))
        service.stopService()
        self.assertEqual(clock.getDelayedCalls(), [])
        return at

    def test_every_interval_more_or_less(self) -> None:
        """Rounds are half a second apart, a fifth more or less, and keep their rate."""
        at = self.beats(1, 100)
        gaps = [b - a for a, b in pairwise(at)]
        self.assertGreaterEqual(min(gaps), 0.4 - 0.011)
        self.assertLessEqual(max(gaps), 0.6 + 0.011)
        self.assertGreater(max(gaps) - min(gaps), 0.1, "no jitter")
        self.assertAlmostEqual(len(at), 200, delta=2)

    def test_nodes_started_together_do_not_beat_together(self) -> None:
        """The first round comes after a random part of the interval."""
        first = [self.beats(seed, 1.2)[0] for seed in range(20)]
        self.assertLess(min(first), 0.2)
        self.assertGreater(max(first), 0.4)
        self.assertLessEqual(max(first), 0.6 + 0.011)

    def test_a_round_that_raises(self) -> None:
        """An exception is logged and the next round comes all the same."""
        clock, rounds = Clock(), list[int]()

        def failing() -> None:
            rounds.append(1)
            raise ValueError("a bug")

        service = GossipService(
            failing, clock=clock, rng=random.Random(1), interval_s=0.5, jitter=0.2
        )
        service.startService()
        clock.pump([0.1] * 50)
        service.stopService()
        self.assertGreater(len(rounds), 7)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), len(rounds))

    def test_a_reactor_that_was_held_up(self) -> None:
        """After a long pause there is one round, not one for each that was missed."""
        clock, rounds = Clock(), list[int]()
        service = GossipService(
            lambda: rounds.append(1),
            clock=clock,
            rng=random.Random(1),
            interval_s=0.5,
            jitter=0.2,
        )
        service.startService()
        clock.pump([0.1] * 20)
        before = len(rounds)
        clock.advance(60)
        clock.advance(0.11)
        self.assertLessEqual(len(rounds) - before, 2)
        clock.pump([0.1] * 50)
        self.assertGreater(len(rounds) - before, 8)
        service.stopService()

    def test_stopped_before_the_first_beat(self) -> None:
        """A node that is stopped at once leaves nothing behind."""
        self.assertEqual(self.beats(1, 0), [])


class Words(SynchronousTestCase):
    """What is said at start and end."""

    def test_start_line(self) -> None:
        """The log says who listens where, with which data, K and view."""
        line = start_line(
            me=Name("10.0.0.1:80"),
            listen="tcp:80",
            directory="/data",
            replica_count=3,
            first_view=[Name("10.0.0.1:80"), Name("10.0.0.2:80")],
        )
        self.assertEqual(
            line,
            "node 10.0.0.1:80 listens on tcp:80, data in /data, K 3, "
            "view 10.0.0.1:80,10.0.0.2:80",
        )
        line = start_line(
            me=Name("a:1"),
            listen="x",
            directory=None,
            replica_count=None,
            first_view=(),
        )
        self.assertIn("memory only", line)
        self.assertIn("K not given", line)
        self.assertIn("view not given", line)

    def test_end_process(self) -> None:
        """A node that must not go on logs why and ends at once with status 1."""
        statuses: list[int] = []
        end_process(Failure(OSError("disk")), exit_process=statuses.append)
        self.assertEqual(statuses, [1])
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    def test_end_without_a_store(self) -> None:
        """What happened to the store is told in one line, without a traceback."""
        lines: list[str] = []

        @implementer(ILogObserver)
        def observer(event: LogEvent) -> None:
            lines.append(as_text(event))

        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        failure = Failure(StoreRefused("/data/kvs.sqlite: was removed while in use"))
        end_process(failure, exit_process=lambda status: None)
        [line] = lines
        self.assertTrue(
            line.endswith(
                "this node must not go on: /data/kvs.sqlite: was removed while in use\n"
            ),
            line,
        )
