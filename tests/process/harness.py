"""
Nodes as real processes: started on loopback, watched, and ended with the test.

Invariants: no process outlives its test, however the test ends; nothing waits without a
deadline; a log with a traceback fails the test that made it.
"""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TypeVar
from unittest import SkipTest

from twisted.trial.unittest import FailTest, SynchronousTestCase

from twisted_kvs.core.causality import Name
from twisted_kvs.options import directory_name

from .asking import is_replica, status

PROJECT = Path(__file__).parent.parent.parent
RUN_TWISTD = "from twisted.scripts.twistd import run; run()"
TWISTD = ("-c", RUN_TWISTD, "--nodaemon", "--pidfile=")
TWIST = ("-m", "twisted")
START_S = 20.0
CONVERGE_S = 10.0
"""As promised."""
STOP_S = 5.0
POLL_S = 0.02
LOG_LINES_SHOWN = 40
OURS = re.compile(r"K|VIEW|IPPORT|KVS_.*|PYTHONPATH")
FAULTS = re.compile(r"Traceback|Unhandled error|\bcritical\b", re.IGNORECASE)

_T = TypeVar("_T")


def wait_until(
    what: str, look: Callable[[], _T | None], within_s: float = CONVERGE_S
) -> _T:
    """
    Look again and again until what is seen is true.

    :returns: what was seen.
    :raises FailTest: if it is not so in time; says what was seen last.
    """
    give_up_at = time.monotonic() + within_s
    while True:
        seen: object
        try:
            seen = found = look()
            if found:
                return found
        except OSError as error:
            seen = error
        if time.monotonic() > give_up_at:
            raise FailTest(f"not within {within_s:g} s: {what}; got {seen!r}")
        time.sleep(POLL_S)


def free_names(count: int) -> list[str]:
    """
    Choose addresses where nothing listens.

    Where all of 127/8 is this machine, every node has an address of its own and the
    same port, as nodes do in life; else a port of its own.  Neither is one that the
    system gives to outgoing connections.
    """
    for _ in range(100):
        port = random.randrange(20_000, 30_000)
        if sys.platform == "linux":
            network = f"127.{random.randrange(1, 255)}.{random.randrange(256)}"
            names = [f"{network}.{21 + n}:{port}" for n in range(count)]
        else:
            names = [f"127.0.0.1:{port + n}" for n in range(count)]
        if all(map(is_free, names)):
            return names
    raise AssertionError("no free addresses")


def is_free(name: str) -> bool:
    """Tell whether a node could listen on this address."""
    host, port = name.split(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:
            return False
        return True


def clean_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Make an environment in which nothing but ``settings`` configures a node."""
    inherited = {k: v for k, v in os.environ.items() if not OURS.fullmatch(k)}
    return {**inherited, "PYTHONPATH": str(PROJECT), **settings}


@dataclass(frozen=True, slots=True)
class Place:
    """Where processes run."""

    inside: Callable[[], AbstractContextManager[object]] = nullcontext
    """What is started, and what connects, meanwhile is there."""
    prefix: Sequence[str] = ()
    """What starts a command there."""


HERE = Place()


class NodeProcess:
    """One node: a process that can be killed, paused and started again."""

    def __init__(
        self,
        directory: Path,
        settings: Mapping[str, str],
        *,
        at: str | None = None,
        command: Sequence[str] = TWISTD,
        place: Place = HERE,
    ) -> None:
        """
        Prepare; nothing is started yet.

        :param directory: where it runs; data is below it.
        :param settings: its part of the environment.
        :param at: where it listens, if not at its IPPORT.
        :param command: what Python is to run.
        :param place: where it is to run, and where ``at`` leads to it.
        """
        self.name = settings.get("IPPORT", "127.0.0.1:8080")
        self.at = at or self.name
        self.directory = directory
        self.settings = dict(settings)
        self.command = command
        self.place = place
        self.log = directory / f"{self.name.replace(':', '_')}.log"
        self.data = directory / "kvs-data" / directory_name(Name(self.name))
        """Where its store is, by default."""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and return at once."""
        assert self._process is None, f"{self.name} runs"
        with self.log.open("ab") as log, self.place.inside():
            self._process = subprocess.Popen(
                [*self.place.prefix, sys.executable, *self.command, "kvs"],
                cwd=self.directory,
                env=clean_environment(self.settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def ready(self) -> None:
        """Wait until it answers."""

        def look() -> bool:
            assert self._process is not None and self._process.poll() is None, (
                f"{self.name} ended:\n{self.tail()}"
            )
            with self.place.inside():
                is_replica(self.at)
            return True

        wait_until(f"{self.name} answers", look, START_S)

    def kill(self) -> None:
        """End it as kill -9 does."""
        self.signal(signal.SIGKILL)
        self.ended()

    def stop(self) -> float:
        """
        Ask it to end in order.

        :returns: the seconds that it took.
        :raises AssertionError: if it took over ``STOP_S``, or went wrong.
        """
        began = time.monotonic()
        self.signal(signal.SIGTERM)
        code = self.ended(STOP_S)
        # Twisted ends its own process by the signal again, so that a parent sees it.
        assert code in (0, -signal.SIGTERM), f"exit status {code}\n{self.tail()}"
        return time.monotonic() - began

    def pause(self) -> None:
        """Let it hear and say nothing; its kernel still accepts connections."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End a pause."""
        self.signal(signal.SIGCONT)

    def signal(self, number: int) -> None:
        """Send a signal."""
        assert self._process is not None, f"{self.name} does not run"
        self._process.send_signal(number)

    def ended(self, within_s: float = START_S) -> int:
        """Wait for its end and give its exit status."""
        assert self._process is not None, f"{self.name} does not run"
        try:
            code = self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{self.name} still runs after {within_s:g} s\n{self.tail()}"
            ) from None
        self._process = None
        return code

    @property
    def pid(self) -> int:
        """Of its process, which must run."""
        assert self._process is not None, f"{self.name} does not run"
        return self._process.pid

    def discard(self) -> None:
        """Make sure that it runs no more."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def log_text(self) -> str:
        """All that it has said."""
        if not self.log.exists():
            return ""
        return self.log.read_text("utf-8", "replace")

    def tail(self) -> str:
        """Give the last lines that it has said."""
        lines = self.log_text.splitlines()[-LOG_LINES_SHOWN:]
        return "\n".join([f"  {self.name}:", *(f"    {line}" for line in lines)])


class NodesCase(SynchronousTestCase):
    """A test with real nodes, wherever they run."""

    def setUp(self) -> None:
        """Have a directory; look after all nodes at the end."""
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir(parents=True)
        self.nodes: list[NodeProcess] = []
        self.addCleanup(self._end_all)
        self._show_logs_on_failure()

    def node(
        self,
        name: str | None = None,
        *,
        at: str | None = None,
        command: Sequence[str] = TWISTD,
        place: Place = HERE,
        **settings: str,
    ) -> NodeProcess:
        """
        Prepare a node.

        :param name: IPPORT; absent: not given.
        :param at: where it listens, if not there.
        :param place: where it runs.
        :param settings: variables of its environment.
        """
        if name is not None:
            settings["IPPORT"] = name
        node = NodeProcess(
            self.directory, settings, at=at, command=command, place=place
        )
        self.nodes.append(node)
        return node

    def named(self, name: str) -> NodeProcess:
        """Find a node."""
        return next(node for node in self.nodes if node.name == name)

    def _end_all(self) -> None:
        for node in self.nodes:
            node.discard()
        faults = [
            f"{node.name}: {line}"
            for node in self.nodes
            for line in node.log_text.splitlines()
            if FAULTS.search(line)
        ]
        if faults:
            self.fail("\n".join([*faults, *self._tails()]))

    def _tails(self) -> Iterator[str]:
        return (node.tail() for node in self.nodes)

    def _show_logs_on_failure(self) -> None:
        method = getattr(self, self._testMethodName)

        @wraps(method)
        def run() -> None:
            try:
                method()
            except SkipTest:
                raise
            except BaseException:
                print("", f"logs of {self.id()}:", *self._tails(), sep="\n")
                raise

        setattr(self, self._testMethodName, run)


class ProcessCase(NodesCase):
    """A test with real nodes on loopback."""

    skip: str | None = (
        None
        if os.environ.get("KVS_PROCESS_TESTS")
        else "starts processes; KVS_PROCESS_TESTS=1 turns it on"
    )

    def cluster(self, names: Sequence[str], k: int) -> None:
        """Start nodes that know each other; return when all serve as they should."""
        view = ",".join(names)
        nodes = [self.node(name, K=str(k), VIEW=view) for name in names]
        start_all(nodes)
        for name in names[:k]:
            wait_serving(name)

    def assert_in_time(self, seconds: Iterable[float]) -> None:
        """All answers came within the promised second, and what timing them takes."""
        self.assertLess(max(seconds), 1.0 + 0.05)


def start_all(nodes: Iterable[NodeProcess]) -> None:
    """Start nodes at the same time; return when all answer."""
    nodes = list(nodes)
    for node in nodes:
        node.start()
    for node in nodes:
        node.ready()


def wait_serving(name: str) -> None:
    """Wait until a replica answers as fresh."""
    wait_until(f"{name} serves", lambda: status(name)["standing"] == "serving")
