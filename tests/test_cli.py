"""The kvs command, with nodes in memory and processes that are none."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from errno import EPIPE
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.testing import CliRunner, Result
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.interfaces import IProcessTransport, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import URI
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from tests.test_client import WRITTEN, Network, Scripted
from twisted_kvs.cli import AgentRequests, main
from twisted_kvs.client import TIMEOUT_S, BadAnswer, KVSClient, NoNodeReached
from twisted_kvs.core.errors import BadConfiguration
from twisted_kvs.demo import (
    STOP_S,
    Demo,
    NodePlan,
    Plan,
    node_plans,
    run_demo,
    taken_port,
    things_to_try,
    welcome,
)
from twisted_kvs.status_table import status_table

_T = TypeVar("_T")

STATUS: dict[str, Any] = {
    "name": "10.0.0.1:80",
    "actor": "10.0.0.1:80#00ff",
    "boot_id": "00",
    "role": "replica",
    "removed": False,
    "standing": "serving",
    "replica_count": 2,
    "replicas": ["10.0.0.1:80", "10.0.0.3:80"],
    "view": ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"],
    "numbers": {"10.0.0.1:80": 0, "10.0.0.2:80": 1, "10.0.0.3:80": 4},
    "alive": ["10.0.0.1:80", "10.0.0.3:80"],
    "version_vector": {"10.0.0.1:80#00ff": 17, "10.0.0.2:80#0001": 4},
    "clock": {},
    "lamport": 3,
    "versions": 12,
    "size_bytes": 2_621_440,
    "unfolded": 0,
    "commits": 9,
    "disk_full": False,
    "hash_mismatches": 0,
    "peers": {
        "10.0.0.2:80": {
            "alive": False,
            "heard_s_ago": None,
            "standing": "lagging",
            "lag_s": None,
            "writes_behind": None,
            "equal": False,
        },
        "10.0.0.3:80": {
            "alive": True,
            "heard_s_ago": 0.31,
            "standing": "serving",
            "lag_s": 1.25,
            "writes_behind": 7,
            "equal": False,
        },
    },
}


class Commands(SynchronousTestCase):
    """Asking a node from a shell."""

    def setUp(self) -> None:
        self.node = Scripted()
        self.nodes: list[str] = []

    def run_kvs(self, *arguments: str, **environ: str) -> Result:
        """Run one command against ``self.node``."""

        def ask(nodes: Sequence[str], work: Callable[[KVSClient], Awaitable[_T]]) -> _T:
            self.nodes = list(nodes)
            client = KVSClient("10.0.0.1:80", Network(a=self.node), clock=Clock())

            async def main() -> _T:
                return await work(client)

            outcome = ensureDeferred(main())
            results: list[Any] = []
            outcome.addBoth(results.append)
            if isinstance(results[0], Failure):
                results[0].raiseException()
            return cast(_T, results[0])

        runner = CliRunner()
        return runner.invoke(main, arguments, obj=ask, env=environ)

    def assert_one_line(self, result: Result) -> str:
        """Check that a command failed with one line, and give it."""
        self.assertNotEqual(result.exit_code, 0)
        self.assertEqual(result.stdout, "")
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        return result.stderr

    def test_get(self) -> None:
        """The value alone is printed, as it is."""
        self.node.then(200, WRITTEN | {"value": "grüezi"})
        result = self.run_kvs("get", "k")
        self.assertEqual((result.exit_code, result.stdout), (0, "grüezi\n"))
        self.assertEqual(self.node.asked[0][1], "/kv-store/k")

    def test_get_what_colours_a_terminal(self) -> None:
        """A value is not changed, whoever reads it."""
        self.node.then(200, WRITTEN | {"value": "\x1b[31mred\x1b[0m"})
        self.assertEqual(self.run_kvs("get", "k").stdout, "\x1b[31mred\x1b[0m\n")

    def test_get_for_nobody(self) -> None:
        """Who reads no more is no error that is told."""

        def gone(*args: object, **kwargs: object) -> None:
            raise BrokenPipeError(EPIPE, "Broken pipe")

        self.patch(click, "echo", gone)
        self.node.then(200, WRITTEN | {"value": "v"})
        result = self.run_kvs("get", "k")
        self.assertEqual((result.exit_code, result.output), (1, ""))

    def test_get_other_values(self) -> None:
        """What is no text is printed as JSON."""
        self.node.then(200, WRITTEN | {"value": {"a": None}})
        self.assertEqual(self.run_kvs("get", "k").stdout, '{"a": null}\n')

    def test_get_json(self) -> None:
        """With --json all that the node said is there for a script."""
        self.node.then(200, WRITTEN | {"value": "v"}, KVS_Stale="true")
        result = self.run_kvs("get", "--json", "k")
        wanted = {
            "value": "v",
            "node_id": 2,
            "timestamp": "17.000001",
            "stale": True,
        }
        self.assertEqual(json.loads(result.stdout), wanted)

    def test_get_stale(self) -> None:
        """That a value may be old is said beside it, on standard error."""
        self.node.then(200, WRITTEN | {"value": "v"}, KVS_Stale="true")
        result = self.run_kvs("get", "k")
        self.assertEqual(result.stdout, "v\n")
        self.assertIn("not the newest", result.stderr)

    def test_get_nothing(self) -> None:
        """A key without a value is one line and a failure."""
        self.node.then(404, {"result": "error", "msg": "no such key"})
        self.assertIn("'k'", self.assert_one_line(self.run_kvs("get", "k")))

    def test_put(self) -> None:
        """A write says whether it is the first."""
        self.node.then(201, WRITTEN).then(200, WRITTEN)
        self.assertEqual(self.run_kvs("put", "k", "v").stdout, "created\n")
        self.assertEqual(self.run_kvs("put", "k", "w").stdout, "replaced\n")
        self.assertEqual(self.node.asked[1][2]["val"], "w")

    def test_delete(self) -> None:
        """A delete says so, or all that the node said as JSON."""
        self.node.then(200, WRITTEN).then(200, WRITTEN)
        result = self.run_kvs("delete", "a/b")
        self.assertEqual((result.exit_code, result.stdout), (0, "deleted\n"))
        self.assertEqual(self.node.asked[0][:2], ("DELETE", "/kv-store/a%2Fb"))
        shown = json.loads(self.run_kvs("delete", "--json", "k").stdout)
        self.assertEqual(shown, {"node_id": 2, "timestamp": "17.000001"})

    def test_delete_nothing(self) -> None:
        """To delete a key without a value is one line and a failure, as to get it."""
        for command in ("get", "delete"):
            self.node.then(404, {"result": "error", "msg": "no such key"})
            result = self.run_kvs(command, "k")
            self.assertEqual(result.exit_code, 1)
            self.assertEqual(self.assert_one_line(result), "Error: no value for 'k'\n")

    def test_payload_file(self) -> None:
        """Commands that share a file see what the others saw."""
        path = Path(self.mktemp())
        self.node.then(201, WRITTEN | {"causal_payload": "v1.a.b"})
        self.node.then(404, {"msg": "no"}, KVS_Causal_Payload="v1.c.d")
        self.run_kvs("put", "k", "v", "--payload", str(path))
        self.assertEqual(path.read_text(), "v1.a.b\n")
        self.run_kvs("get", "l", KVS_PAYLOAD_FILE=str(path))
        self.assertEqual(self.node.asked[1][2]["causal_payload"], "v1.a.b")
        self.assertEqual(path.read_text(), "v1.c.d\n")
        self.node.then(200, WRITTEN | {"causal_payload": "v1.e.f"})
        self.run_kvs("delete", "k", "--payload", str(path))
        self.assertEqual(self.node.asked[2][2]["causal_payload"], "v1.c.d")
        self.assertEqual(path.read_text(), "v1.e.f\n")

    def test_node(self) -> None:
        """Which node is asked: by option, by variable, or the usual ones."""
        self.node.then(200, {}).then(200, {}).then(200, {})
        self.run_kvs("status", "--json")
        usual = [f"127.0.0.1:{port}" for port in range(8080, 8085)]
        self.assertEqual(self.nodes, usual)
        self.run_kvs("status", "--json", KVS_NODE="a:1")
        self.assertEqual(self.nodes, ["a:1"])
        self.run_kvs("status", "--json", "--node", "b:1,c:1", KVS_NODE="a:1")
        self.assertEqual(self.nodes, ["b:1", "c:1"])

    def test_status(self) -> None:
        """The status is a table for people, or JSON for scripts."""
        self.node.then(200, STATUS).then(200, STATUS)
        self.assertIn("10.0.0.1:80  replica, serving", self.run_kvs("status").stdout)
        shown = self.run_kvs("status", "--json").stdout
        self.assertEqual(json.loads(shown), STATUS)

    def test_status_of_something_else(self) -> None:
        """What is no status is one line."""
        self.node.then(200, {"result": "hello"})
        self.assert_one_line(self.run_kvs("status"))

    def test_errors_are_one_line(self) -> None:
        """What the node refuses is told in its words."""
        self.node.then(413, {"result": "error", "msg": "key of over\n200 letters"})
        line = self.assert_one_line(self.run_kvs("get", "k"))
        self.assertIn("key of over 200 letters", line)
        self.assert_one_line(self.run_kvs("get", ""))
        self.node.then(404, {"msg": "no"}, KVS_Causal_Payload="v1.c.d")
        self.assert_one_line(self.run_kvs("get", "k", "--payload", "/no/such/place"))

    def test_a_payload_that_cannot_be_kept(self) -> None:
        """Nothing is changed that the next command would not know of."""
        path = Path(self.mktemp())
        for file in ("/no/such/place", path):
            result = self.run_kvs("put", "k", "v", "--payload", str(file))
            self.assert_one_line(result)
            path.write_bytes(b"\xff\xfe")
        self.assertEqual(self.node.asked, [])

    def test_a_soak_without_end(self) -> None:
        """Nan passes for a number, and no time is ever over it."""
        self.assertEqual(self.run_kvs("simulate", "--minutes", "nan").exit_code, 2)

    def test_help(self) -> None:
        """Each command explains itself."""
        for command in ("delete", "demo", "get", "put", "status"):
            result = self.run_kvs(command, "--help")
            self.assertEqual(result.exit_code, 0)
            self.assertIn(command, self.run_kvs("--help").stdout)
        self.assertIn("KVS_NODE", self.run_kvs("get", "--help").stdout)
        self.assertIn("kvs, version", self.run_kvs("--version").stdout)


class StatusTable(SynchronousTestCase):
    """What an operator reads."""

    def test_members(self) -> None:
        """Each member has a line: role, standing, when heard of, how far behind."""
        lines = [line.split() for line in status_table(STATUS).splitlines()]
        for wanted in (
            "0 10.0.0.1:80 replica serving itself - -",
            "1 10.0.0.2:80 dead - never - -",
            "4 10.0.0.3:80 replica serving 0.3 s ago 1.2 s 7 writes",
        ):
            self.assertIn(wanted.split(), lines)

    def test_a_proxy(self) -> None:
        """A proxy has no data to catch up with, so it has no standing either."""
        proxy = {"role": "proxy", "standing": "lagging", "replicas": ["10.0.0.3:80"]}
        table = status_table(STATUS | proxy)
        self.assertTrue(table.startswith("10.0.0.1:80  proxy\n"), table)
        self.assertNotIn("lagging", table)

    def test_knowledge(self) -> None:
        """The version vector is there, and which actor is this process."""
        table = status_table(STATUS)
        self.assertIn("17            10.0.0.1:80#00ff  (this process)", table)
        self.assertIn("4             10.0.0.2:80#0001\n", table + "\n")
        self.assertIn("12 versions, 2.5 MiB", table)

    def test_troubles(self) -> None:
        """What is wrong with a node stands out."""
        troubles = {
            "disk_full": (True, "DISK IS FULL"),
            "hash_mismatches": (2, "2 TIMES"),
            "removed": (True, "removed from the view"),
            "unfolded": (5, "5 versions"),
            "compaction": (
                {"held_up_s": {"10.0.0.2:80": 75.0}},
                "held up by 10.0.0.2:80, which has not reported for 75 s",
            ),
        }
        missing = {"missing": {"10.0.0.2:80#0001": 7}}
        self.assertIn(
            "the writes of 10.0.0.2:80#0001, up to 7, are missing",
            status_table(STATUS | {"compaction": missing}),
        )
        for field, (value, words) in troubles.items():
            self.assertIn(words, status_table(STATUS | {field: value}))
            self.assertNotIn(words, status_table(STATUS))

    def test_newer_nodes(self) -> None:
        """Fields that are not known yet do no harm; those missing are an error."""
        table = status_table(STATUS | {"since": "tomorrow"})
        self.assertEqual(table, status_table(STATUS))
        with self.assertRaises(BadAnswer):
            status_table({key: STATUS[key] for key in STATUS if key != "view"})


@implementer(IAgent)
class FakeAgent:
    """Keeps what it was asked, and never answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, URI]] = []

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        self.asked.append((method, URI.fromBytes(uri)))
        return Deferred()


class Requests(SynchronousTestCase):
    """What the command hands to Twisted."""

    def test_ipv6(self) -> None:
        """A node with an IPv6 address can be asked."""
        agent, clock = FakeAgent(), Clock()
        client = KVSClient("[::1]:8080", AgentRequests(agent), clock=clock)
        asked = ensureDeferred(client.status())
        [(method, uri)] = agent.asked
        self.assertEqual((method, uri.host, uri.port), (b"GET", b"::1", 8080))
        clock.advance(TIMEOUT_S)
        self.failureResultOf(asked, NoNodeReached)


class FakeProcess:
    """A process that only writes down what it is sent."""

    def __init__(self, protocol: ProcessProtocol, pid: int) -> None:
        self.protocol = protocol
        self.pid: int | None = pid
        self.signals: list[str] = []
        self.obeys = True

    def signalProcess(self, name: str) -> None:
        self.signals.append(name)
        if self.obeys or name == "KILL":
            self.end(2)

    def end(self, signal: int | None = None, status: int = 0) -> None:
        """Let it end."""
        self.pid = None
        reason = (
            ProcessTerminated(exitCode=status, signal=signal, status=None)
            if signal or status
            else ProcessDone(None)
        )
        self.protocol.processEnded(Failure(reason))


class RunningDemo(SynchronousTestCase):
    """The demo's life, on a clock."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.said: list[str] = []
        self.processes: list[FakeProcess] = []
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        plan = Plan(nodes=3, replicas=2, port=8081, directory=self.directory)
        self.plans = node_plans(plan, self.directory)
        self.node = Scripted()

    def begin(self, *, up: bool = True) -> tuple[Demo, Deferred[int]]:
        """Start a demo; its nodes answer at once if they are ``up``."""
        if up:
            for _ in self.plans:
                self.node.then(200, {})

        def spawn(protocol: ProcessProtocol, node: NodePlan) -> IProcessTransport:
            process = FakeProcess(protocol, 100 + len(self.processes))
            self.processes.append(process)
            return cast(IProcessTransport, process)

        def client_of(nodes: Sequence[str], reactor: IReactorTime) -> KVSClient:
            network = Network(a=self.node) if up else Network()
            return KVSClient("10.0.0.1:80", network, clock=reactor)

        demo = Demo(
            self.plans,
            replicas=2,
            reactor=self.clock,
            spawn=spawn,
            client_of=client_of,
            echo=self.said.append,
        )
        return demo, ensureDeferred(demo.run())

    def test_says_where_and_what(self) -> None:
        """When all answer, it says where they listen, their pids, and what to try."""
        _, ended = self.begin()
        self.assertNoResult(ended)
        text = self.said[-1]
        for plan, pid in zip(self.plans, (100, 101, 102), strict=True):
            self.assertIn(f"{plan.name}  ", text)
            self.assertIn(f"pid {pid}", text)
            self.assertIn(str(plan.log), text)
        self.assertIn("kill -9 100", text)
        self.assertEqual(text.count("curl"), 3)

    def test_a_death_is_told_and_the_others_go_on(self) -> None:
        """A node that is killed is reported, with what starts it again."""
        _, ended = self.begin()
        self.processes[1].end(signal=9)
        self.assertNoResult(ended)
        text = "\n".join(self.said)
        self.assertIn("127.0.0.1:8082 is gone: killed by signal 9", text)
        self.assertIn("IPPORT=127.0.0.1:8082", text)

    def test_the_last_death_ends_it(self) -> None:
        """When no node is left there is nothing to wait for."""
        _, ended = self.begin()
        for process in self.processes:
            process.end(status=1)
        self.assertEqual(self.successResultOf(ended), 1)
        self.assertIn("No node is left.", self.said)

    def test_stop(self) -> None:
        """Ctrl-C ends all nodes, and then the demo, with status 0."""
        demo, ended = self.begin()
        self.successResultOf(demo.stop())
        self.assertEqual(self.successResultOf(ended), 0)
        self.assertEqual([p.signals for p in self.processes], [["INT"]] * 3)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertNotIn("is gone", "\n".join(self.said))

    def test_a_node_that_does_not_stop_is_killed(self) -> None:
        """Nothing outlives the demo, and it ends within 5 s."""
        demo, ended = self.begin()
        self.processes[0].obeys = False
        stopped = demo.stop()
        self.clock.pump([0.1] * 10)
        self.assertNoResult(stopped)
        self.clock.advance(STOP_S)
        self.successResultOf(stopped)
        self.assertEqual(self.processes[0].signals, ["INT", "TERM", "KILL"])
        self.assertEqual(self.processes[1].signals, ["INT"])
        self.assertEqual(self.successResultOf(ended), 0)

    def test_a_node_that_does_not_start(self) -> None:
        """Its last words are shown, the others are ended, and the status is 1."""
        _, ended = self.begin(up=False)
        self.assertNoResult(ended)
        self.plans[2].log.write_text("starting\nkvs: K: got 'x'\n")
        self.processes[2].end(status=1)
        self.clock.pump([0.1] * 3)
        self.assertEqual(self.successResultOf(ended), 1)
        self.assertIn("kvs: K: got 'x'", "\n".join(self.said))
        self.assertEqual(self.processes[0].signals, ["INT"])

    def test_nodes_that_never_answer(self) -> None:
        """It does not wait for ever."""
        _, ended = self.begin(up=False)
        self.clock.pump([0.1] * 210)
        self.assertEqual(self.successResultOf(ended), 1)
        self.assertIn("no answer from 127.0.0.1:8081", "\n".join(self.said))

    def test_stopped_while_starting(self) -> None:
        """Ctrl-C before all answer ends it, too."""
        demo, ended = self.begin(up=False)
        self.successResultOf(demo.stop())
        self.clock.pump([0.1] * 3)
        self.assertEqual(self.successResultOf(ended), 1)

    def test_plans(self) -> None:
        """Every node gets its own port, data and log, and the view of all."""
        self.assertEqual(
            self.plans[1].settings,
            {
                "K": "2",
                "VIEW": "127.0.0.1:8081,127.0.0.1:8082,127.0.0.1:8083",
                "IPPORT": "127.0.0.1:8082",
                "KVS_DATA_DIR": str(self.directory / "8082"),
                "KVS_DRAIN_S": "0",
            },
        )

    def test_the_command_of_a_node(self) -> None:
        """A directory with a blank makes no command that no shell can run."""
        [node] = node_plans(
            Plan(nodes=1, replicas=1, port=8081, directory=None), Path("/a b")
        )
        self.assertIn(" KVS_DATA_DIR='/a b/8081' ", node.command)
        self.assertTrue(node.command.startswith("K=1 VIEW=127.0.0.1:8081 "))

    def test_things_to_try(self) -> None:
        """A demo of one node has something to try, too."""
        self.assertEqual(things_to_try(self.plans[:1]).count("127.0.0.1:8081"), 3)
        text = welcome(self.plans[:1], [7], 3)
        self.assertIn("1 nodes are up, 1 of them", text)

    def test_a_taken_port(self) -> None:
        """A port that somebody has is found before anything is started."""
        self.assertIsNone(taken_port(self.plans, is_free=lambda _: True))
        taken = taken_port(self.plans, is_free=lambda port: port != 8082)
        self.assertEqual(taken, "127.0.0.1:8082")
        plan = Plan(nodes=3, replicas=2, port=8081, directory=self.directory)
        with self.assertRaisesRegex(BadConfiguration, "127.0.0.1:8081; choose"):
            run_demo(
                plan,
                client_of=lambda nodes, reactor: KVSClient(
                    nodes, Network(), clock=reactor
                ),
                echo=self.said.append,
                is_free=lambda _: False,
            )
        self.assertEqual(self.said, [])

    def test_ports_that_do_not_exist(self) -> None:
        """Ports end at 65535."""
        result = CliRunner().invoke(main, ["demo", "--port=65534"])
        self.assertNotEqual(result.exit_code, 0)
        self.assertIn("no room", result.stderr)
