"""
``kvs demo``: a cluster of processes on loopback, in one terminal.

Invariants: no node outlives the demo, however it ends in order; a node that dies ends
neither the others nor the demo; what the demo made for itself it removes.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from twisted.internet.defer import Deferred, DeferredList, ensureDeferred, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IProcessTransport, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater, react
from twisted.python.failure import Failure

from .client import KVSClient
from .core.errors import BadConfiguration, KVSError

DEMO_NODES = 4
DEMO_REPLICAS = 3
DEMO_PORT = 8081
NODES_MAX = 16
HOST = "127.0.0.1"

READY_S = 20.0
POLL_S = 0.1
INTERRUPT_S = 0.5
"""Ctrl-C reaches the nodes, too; a second signal only where it did not end them."""
STOP_S = 4.8
LOG_LINES_SHOWN = 5

_OURS = ("K", "VIEW", "IPPORT", "KVS_LISTEN", "KVS_DATA_DIR", "KVS_DRAIN_S")

Echo = Callable[[str], object]
ClientOf = Callable[[Sequence[str], IReactorTime], KVSClient]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the demo is to run."""

    nodes: int
    replicas: int
    port: int
    """Of the first node; the others take the next ones."""
    directory: Path | None
    """Of data and logs; None: one that is removed at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    """One node of the demo."""

    name: str
    port: int
    settings: Mapping[str, str]
    """Its part of the environment."""
    log: Path

    @property
    def command(self) -> str:
        """What starts it by hand, to be pasted into a shell."""
        # Of an assignment only the value may be quoted.
        words = [f"{key}={shlex.quote(text)}" for key, text in self.settings.items()]
        return " ".join([*words, shlex.quote(sys.executable), "-m twisted kvs"])


def node_plans(plan: Plan, directory: Path) -> list[NodePlan]:
    """Say how each node is started; data and logs are in ``directory``."""
    ports = range(plan.port, plan.port + plan.nodes)
    view = ",".join(f"{HOST}:{port}" for port in ports)
    return [
        NodePlan(
            name=f"{HOST}:{port}",
            port=port,
            settings={
                "K": str(plan.replicas),
                "VIEW": view,
                "IPPORT": f"{HOST}:{port}",
                "KVS_DATA_DIR": str(directory / str(port)),
                "KVS_DRAIN_S": "0",
            },
            log=directory / f"{port}.log",
        )
        for port in ports
    ]


def things_to_try(nodes: Sequence[NodePlan]) -> str:
    """Three lines of curl that work when they are pasted: write, read on, ask who."""
    urls = [f"http://{node.name}/kv-store" for node in nodes]
    first, second, last = urls[0], urls[min(1, len(urls) - 1)], urls[-1]
    return "\n".join(
        (
            f"  p=$(curl -s -X PUT -d val=hello {first}/greeting | tee /dev/stderr"
            r" | grep -o 'v1\.[A-Za-z0-9._-]*'); echo",
            f'  curl -s -X GET -d "causal_payload=$p" {last}/greeting; echo',
            f"  curl -s {second}/get_all_replicas; echo",
        )
    )


def welcome(nodes: Sequence[NodePlan], pids: Sequence[int | None], k: int) -> str:
    """Say where everything is and what can be done with it."""
    lines = [
        f"{len(nodes)} nodes are up, {min(k, len(nodes))} of them as replicas:",
        "",
    ]
    for number, (node, pid) in enumerate(zip(nodes, pids, strict=True)):
        role = "replica" if number < k else "proxy"
        lines.append(f"  {node.name}  {role:7}  pid {pid}  log {node.log}")
    lines += [
        "",
        "Try, in another terminal:",
        "",
        things_to_try(nodes),
        "",
        f"Look closer: kvs status --node {nodes[-1].name}",
        f"Break something: kill -9 {pids[0]}",
        "Stop all: Ctrl-C",
        "",
    ]
    return "\n".join(lines)


def taken_port(
    nodes: Iterable[NodePlan], *, is_free: Callable[[int], bool]
) -> str | None:
    """Tell the first node whose port somebody has; None if all are free."""
    return next((node.name for node in nodes if not is_free(node.port)), None)


def can_listen(port: int) -> bool:
    """Tell whether a node could listen on a port of ``HOST`` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the node will: a port that was just closed counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
    return True


class Spawn(Protocol):
    """Starts the process of a node; ``spawn_with`` makes one."""

    def __call__(self, protocol: ProcessProtocol, node: NodePlan) -> IProcessTransport:
        """Start it, its output in the node's log."""


def spawn_with(reactor: object, environ: Mapping[str, str]) -> Spawn:
    """
    Start processes by a reactor.

    :param environ: what nodes inherit, save what the demo itself sets.
    """
    inherited = {key: value for key, value in environ.items() if key not in _OURS}
    arguments = [sys.executable, "-m", "twisted", "--log-format=text", "kvs"]

    def spawn(protocol: ProcessProtocol, node: NodePlan) -> IProcessTransport:
        with open(os.devnull, "rb") as nothing, open(node.log, "ab") as log:
            # Straight into the file: a node must not die of a demo that reads no more.
            return reactor.spawnProcess(  # type: ignore[attr-defined, no-any-return] # IReactorProcess
                protocol,
                arguments[0],
                arguments,
                env=inherited | dict(node.settings),
                childFDs={0: nothing.fileno(), 1: log.fileno(), 2: log.fileno()},
            )

    return spawn


class Child(ProcessProtocol):
    """The process of one node."""

    def __init__(self, node: NodePlan, ended: Callable[[Child, str], object]) -> None:
        """
        Watch a process.

        :param ended: called once, with how it ended.
        """
        self.node = node
        self.alive = True
        self.gone: Deferred[None] = Deferred()
        """Fires when the process has ended."""
        self._ended = ended

    @property
    def pid(self) -> int | None:
        """Of the process; None if it has ended."""
        return cast("int | None", getattr(self.transport, "pid", None))

    def processEnded(self, reason: Failure) -> None:
        """Tell how it ended."""
        self.alive = False
        signal = getattr(reason.value, "signal", None)
        if signal is not None:
            how = f"killed by signal {signal}"
        else:
            how = f"ended with status {getattr(reason.value, 'exitCode', 'unknown')}"
        self._ended(self, how)
        self.gone.callback(None)

    def signal(self, name: str) -> None:
        """Send a signal, if it is still there."""
        if self.alive and self.transport is not None:
            with suppress(ProcessExitedAlready):
                self.transport.signalProcess(name)


class Demo:
    """A cluster that runs until it is stopped or its last node has died."""

    def __init__(
        self,
        nodes: Sequence[NodePlan],
        *,
        replicas: int,
        reactor: IReactorTime,
        spawn: Spawn,
        client_of: ClientOf,
        echo: Echo,
    ) -> None:
        """
        Prepare; nothing is started yet.

        :param echo: prints one line, or several.
        """
        self._nodes = nodes
        self._replicas = replicas
        self._reactor = reactor
        self._spawn = spawn
        self._client_of = client_of
        self._echo = echo
        self._children: list[Child] = []
        self._up = self._failed = self._stopping = False

    async def run(self) -> int:
        """
        Start all, say what can be done, and wait for the end of the last node.

        :returns: an exit status: 1 if the cluster did not come up, or all of it died.
        """
        for node in self._nodes:
            child = Child(node, self._ended)
            self._children.append(child)
            child.makeConnection(self._spawn(child, node))
        if not await self._all_answer():
            if not self._stopping:
                await self.stop()
            return 1
        self._up = True
        pids = [child.pid for child in self._children]
        self._echo(welcome(self._nodes, pids, self._replicas))
        await DeferredList([child.gone for child in self._children])
        return 0 if self._stopping else 1

    def stop(self) -> Deferred[None]:
        """End all nodes, in order if they let us; fires when none is left."""
        if self._stopping:
            return succeed(None)
        self._stopping = True
        return ensureDeferred(self._stop())

    async def _stop(self) -> None:
        self._echo("stopping ...")
        gone = DeferredList([child.gone for child in self._children])
        calls = [
            self._reactor.callLater(after_s, self._signal_all, name)
            for after_s, name in ((INTERRUPT_S, "TERM"), (STOP_S, "KILL"))
        ]
        self._signal_all("INT")
        await gone
        for call in calls:
            if call.active():
                call.cancel()

    def _signal_all(self, name: str) -> None:
        for child in self._children:
            child.signal(name)

    async def _all_answer(self) -> bool:
        """Ask until all nodes have answered; False if one ended or it takes long."""
        deadline = self._reactor.seconds() + READY_S
        waiting = [
            (child, self._client_of([child.node.name], self._reactor))
            for child in self._children
        ]
        while waiting:
            child, client = waiting[0]
            if not all(each.alive for each in self._children) or self._stopping:
                return False
            try:
                await client.status()
                waiting.pop(0)
                continue
            except KVSError as error:
                if self._reactor.seconds() > deadline:
                    self._echo(f"no answer from {child.node.name}: {error}")
                    return False
            await deferLater(self._reactor, POLL_S)
        return True

    def _ended(self, child: Child, how: str) -> None:
        if self._stopping or self._failed:
            return
        self._echo(f"{child.node.name} is gone: {how}.")
        if not self._up:
            # The others would only say the same.
            self._failed = True
            self._echo(_last_lines(child.node.log))
        elif any(each.alive for each in self._children):
            self._echo(f"The others go on.  Start it again:\n  {child.node.command}\n")
        else:
            self._echo("No node is left.")


def _last_lines(log: Path) -> str:
    try:
        lines = log.read_text("utf-8", "replace").splitlines()[-LOG_LINES_SHOWN:]
    except OSError as error:
        return f"  no log: {error}"
    return "\n".join(f"  {line}" for line in lines)


def run_demo(
    plan: Plan,
    *,
    client_of: ClientOf,
    echo: Echo,
    is_free: Callable[[int], bool] = can_listen,
) -> int:
    """
    Run the demo until Ctrl-C or until its last node has died.

    :returns: an exit status.
    :raises BadConfiguration: if a port is taken.
    """
    directory = plan.directory or Path(tempfile.mkdtemp(prefix="kvs-demo-"))
    directory = directory.absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        nodes = node_plans(plan, directory)
        if taken := taken_port(nodes, is_free=is_free):
            raise BadConfiguration(
                f"somebody listens on {taken}; choose another first port with --port"
            )
        return _run(nodes, plan.replicas, client_of, echo)
    finally:
        if plan.directory is None:
            shutil.rmtree(directory, ignore_errors=True)


def _run(
    nodes: Sequence[NodePlan], replicas: int, client_of: ClientOf, echo: Echo
) -> int:
    async def main(reactor: IReactorTime) -> None:
        demo = Demo(
            nodes,
            replicas=replicas,
            reactor=reactor,
            spawn=spawn_with(reactor, os.environ),
            client_of=client_of,
            echo=echo,
        )
        # Ctrl-C and SIGTERM stop the reactor, which waits for this first.
        reactor.addSystemEventTrigger("before", "shutdown", demo.stop)  # type: ignore[attr-defined] # IReactorCore
        raise SystemExit(await demo.run())

    try:
        react(lambda reactor: ensureDeferred(main(cast(IReactorTime, reactor))))
    except SystemExit as end:
        return int(end.code or 0)
