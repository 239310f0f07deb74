"""
Nodes as containers with fixed addresses, on a network of the test's own.

They are asked from outside, at their addresses, which this machine reaches; and from
within, by way of the engine, when their network is taken away.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import wraps
from itertools import islice
from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import FailTest, SynchronousTestCase

from tests.process import asking
from tests.process.asking import Answer
from tests.process.balancing import is_ready
from tests.process.harness import CONVERGE_S, FAULTS, STOP_S, wait_until

from .docker import (
    IMAGE,
    OURS,
    PREFIX,
    DockerFailed,
    discard,
    docker,
    is_gone,
    is_mine,
    make_network,
)

PORT = 8080
LOG_LINES_SHOWN = 40
ASK_WITHIN = """

answer = send_form(*json.loads({question!r}))
print(json.dumps([answer.status, answer.fields, answer.headers, answer.seconds]))
"""


class Container:
    """One node."""

    def __init__(self, *, ip: str, network: str, arguments: Sequence[str] = ()) -> None:
        """
        Prepare; nothing is started yet.

        :param ip: its fixed address; further ones have their own container.
        :param arguments: of ``docker run``: its settings, among others.
        """
        self.ip = ip
        self.network = network
        self.arguments = list(arguments)
        self.id = f"{PREFIX}-{ip.replace('.', '-')}"
        self.name = f"{ip}:{PORT}"
        """Where it is asked from outside."""

    def run(self) -> None:
        """Make it and start it."""
        address = (f"--net={self.network}", f"--ip={self.ip}")
        named = ("--name", self.id, "--detach")
        docker("run", *named, *OURS, *address, *self.arguments, IMAGE)

    def start(self) -> None:
        """Start it again, with its data."""
        docker("start", self.id)

    def stop(self) -> float:
        """
        Ask it to end.

        :returns: the seconds that it took.
        :raises AssertionError: if it had to be killed, or went wrong.
        """
        began = time.monotonic()
        docker("stop", self.id)
        seconds = time.monotonic() - began
        status = self.inspect("{{.State.ExitCode}}")
        assert status == "0", f"exit status {status}\n{self.tail()}"
        return seconds

    def kill(self) -> None:
        """End it as kill -9 does."""
        docker("kill", self.id)

    def discard(self) -> None:
        """Remove it, but no volume that has a name."""
        docker("rm", "--force", "--volumes", self.id)

    def disconnect(self) -> None:
        """Take its network away."""
        docker("network", "disconnect", self.network, self.id)

    def connect(self) -> None:
        """Give its network back, with the same address."""
        docker("network", "connect", f"--ip={self.ip}", self.network, self.id)

    def inspect(self, what: str) -> str:
        """Ask the engine about it."""
        return docker("inspect", "--format", what, self.id)

    def within(self, *command: str, stdin: str | None = None) -> str:
        """Run a command in it."""
        return docker("exec", "--interactive", self.id, *command, stdin=stdin)

    def ready(self) -> None:
        """Wait until clients may ask it."""
        wait_until(f"{self.name} is ready", lambda: is_ready(self.name), 20)

    def ask_within(self, method: str, path: str, **form: str) -> Answer:
        """Ask it from inside, network or not, as ``send_form`` does."""
        question = json.dumps([f"127.0.0.1:{PORT}", method, path, form])
        script = Path(asking.__file__).read_text("utf-8")
        script += ASK_WITHIN.format(question=question)
        status, fields, headers, seconds = json.loads(
            self.within("python3", "-", stdin=script)
        )
        return Answer(status, fields, headers, seconds)

    @property
    def log_text(self) -> str:
        """All that it has said; nothing, if it is not there."""
        try:
            return docker("logs", self.id)
        except DockerFailed as error:
            return str(error)

    def tail(self) -> str:
        """Give the last lines that it has said."""
        lines = self.log_text.splitlines()[-LOG_LINES_SHOWN:]
        return "\n".join([f"  {self.id}:", *(f"    {line}" for line in lines)])


class ContainerCase(SynchronousTestCase):
    """A test with containers on a network of its own."""

    if not os.environ.get("KVS_CONTAINER_TESTS"):
        skip = "needs a Docker engine and an image; KVS_CONTAINER_TESTS=1 turns it on"

    def setUp(self) -> None:
        """Have a network; remove everything at the end."""
        discard(is_gone)
        self.addCleanup(discard, is_mine)
        self.network, self.ips = make_network()
        self.containers: list[Container] = []
        self._check_logs()

    def container(self, *arguments: str, ip: str, **settings: str) -> Container:
        """
        Prepare a node.

        :param arguments: of ``docker run``.
        :param settings: variables of its environment.
        """
        variables = [f"--env={key}={value}" for key, value in settings.items()]
        new = Container(ip=ip, network=self.network, arguments=[*arguments, *variables])
        self.containers.append(new)
        return new

    def cluster(self, count: int = 4, *, k: int = 3) -> list[Container]:
        """Start nodes that know each other; return when all are ready."""
        names = [f"{ip}:{PORT}" for ip in self.ips[:count]]
        settings = {"K": str(k), "VIEW": ",".join(names)}
        nodes = [
            self.container(ip=ip, IPPORT=name, **settings)
            for ip, name in zip(self.ips, names, strict=False)
        ]
        for node in nodes:
            node.run()
        for node in nodes:
            node.ready()
        return nodes

    def volume(self, name: str) -> str:
        """Make a volume that outlives containers, and give its name."""
        return docker("volume", "create", *OURS, f"{PREFIX}-{name}")

    def assert_in_time(self, answers: Iterable[Answer]) -> None:
        """All answers came within the promised second, and what timing them takes."""
        self.assertLess(max(answer.seconds for answer in answers), 1.0 + 0.05)

    def assert_stops(self, node: Container) -> None:
        """A node ends in time when it is asked to."""
        seconds = node.stop()
        self.assertLess(seconds, STOP_S)
        print(f"  stopped within {seconds:.2f} s")

    def wait_agree(self, nodes: Sequence[Container], wanted: dict[str, str]) -> None:
        """Wait until all nodes give these values, none of them as stale."""
        began = time.monotonic()

        # What was written last is what is lacking most likely.
        keys = list(reversed(wanted))

        def differences() -> list[str]:
            found = (
                f"{node.name} {key}: {answer}"
                for key in keys
                for node in nodes
                for answer in [asking.get(node.name, key)]
                if answer.stale or answer.fields.get("value") != wanted[key]
            )
            return list(islice(found, 1))

        try:
            wait_until("all agree", lambda: not differences(), CONVERGE_S)
        except FailTest as error:
            raise FailTest("\n".join([str(error), *differences()])) from None
        print(f"  all agreed within {time.monotonic() - began:.2f} s")

    def _tails(self) -> Iterator[str]:
        return (node.tail() for node in self.containers)

    def _faults(self) -> list[str]:
        return [
            f"{node.id}: {line}"
            for node in self.containers
            for line in node.log_text.splitlines()
            if FAULTS.search(line)
        ]

    def _check_logs(self) -> None:
        # Before the clean-up, which removes the logs.
        method = getattr(self, self._testMethodName)

        @wraps(method)
        def run() -> None:
            try:
                method()
                self.assertEqual(self._faults(), [])
            except SkipTest:
                raise
            except BaseException:
                print("", f"logs of {self.id()}:", *self._tails(), sep="\n")
                raise

        setattr(self, self._testMethodName, run)
