"""
The processes of a run: nodes, load generators, the reference.

Invariant: whatever a ``Sandbox`` has started or made is gone when it is closed, however
the run ends in order; all of it is on loopback.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from .load import Order, Outcome
from .observing import cpu_s, rss_bytes
from .wire import Address, BrokenAnswer, Client, get_request

T = TypeVar("T")
PROJECT = Path(__file__).resolve().parent.parent
READY_S = 30.0
STOP_S = 8.0
TWISTD = "from twisted.scripts.twistd import run; run()"
_OURS = ("K", "VIEW", "IPPORT")


class RunFailed(Exception):
    """The run cannot go on; one line says why."""


class Sandbox:
    """A directory, addresses and processes that do not outlive the run."""

    def __init__(self, *, parent: Path, profile: Path | None) -> None:
        """
        Prepare; nothing is made before it is entered.

        :param parent: where the directory of the run is made: the disk that counts.
        :param profile: where nodes leave profiles; None: they are not profiled.
        """
        self._parent = parent
        self.profile = profile
        self._running: list[subprocess.Popen[bytes]] = []
        self._starts = 0
        # Nobody else listens there, and no outgoing connection takes the ports.
        rng = random.SystemRandom()
        self.host = f"127.{rng.randrange(64, 250)}.{rng.randrange(250)}.1"
        self._port = 8080
        self.directory: Path

    def __enter__(self) -> Sandbox:
        """Make the directory."""
        self.directory = Path(tempfile.mkdtemp(prefix="kvs-bench-", dir=self._parent))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End all processes and remove the directory."""
        for process in list(self._running):
            self.end(process, by=signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)

    def address(self) -> Address:
        """Give an address that nothing else in this run has."""
        self._port += 1
        return Address(self.host, self._port)

    def addresses(self, count: int) -> list[Address]:
        """Give several."""
        return [self.address() for _ in range(count)]

    def spawn(
        self,
        arguments: Sequence[str],
        *,
        settings: Mapping[str, str] | None = None,
        log: Path | None = None,
        piped: bool = False,
    ) -> subprocess.Popen[bytes]:
        """
        Start a Python.

        :param arguments: of the interpreter.
        :param settings: added to the environment, which has none of a node's own.
        :param log: where its output goes; None: nowhere, or, if ``piped``, here.
        """
        environ = {
            name: value
            for name, value in os.environ.items()
            if name not in _OURS and not name.startswith("KVS_")
        }
        environ |= {"PYTHONPATH": str(PROJECT), **(settings or {})}
        with open(log or os.devnull, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else output,
                stderr=None if piped else output,
                cwd=self.directory,
                env=environ,
                # An interrupt is for the run; it ends the others itself.
                start_new_session=True,
            )
        self._running.append(process)
        return process

    def end(
        self, process: subprocess.Popen[bytes], *, by: int = signal.SIGTERM
    ) -> float:
        """
        End a process.

        :returns: how long that took, seconds.
        """
        began = time.monotonic()
        if process.poll() is None:
            process.send_signal(by)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_S)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        if process in self._running:
            self._running.remove(process)
        return time.monotonic() - began

    def twistd(
        self, settings: Mapping[str, str], *, name: str, log: Path
    ) -> subprocess.Popen[bytes]:
        """Start ``twistd kvs``, under the profiler if that was asked for."""
        arguments = ["-c", TWISTD]
        if self.profile is not None:
            self._starts += 1
            path = self.profile / f"{name}-{self._starts}.txt"
            arguments = ["-m", "bench.sampled", str(path)]
        arguments += ["--nodaemon", "--pidfile=", "kvs"]
        return self.spawn(arguments, settings=settings, log=log)

    def load(self, order: Order) -> Callable[[], Outcome]:
        """
        Start a load.

        :returns: waits for its end.
        """
        process = self.spawn(["-m", "bench.load"], piped=True)

        def outcome() -> Outcome:
            line = json.dumps(asdict(order)).encode() + b"\n"
            try:
                output, _ = process.communicate(
                    timeout=order.warm_s + order.seconds + READY_S
                )
            except subprocess.TimeoutExpired:
                raise RunFailed("a load generator does not end") from None
            finally:
                self.end(process, by=signal.SIGKILL)
            if process.returncode != 0 or not output:
                raise RunFailed(f"a load generator failed: {line!r}")
            return Outcome(**json.loads(output))

        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
        process.stdin.flush()
        return outcome


@dataclass(slots=True)
class Node:
    """One ``twistd kvs``."""

    sandbox: Sandbox
    address: Address
    """Its name; where it also listens, unless ``listens`` says otherwise."""
    directory: Path | None
    """Of its store; None: memory only."""
    view: Sequence[Address] = ()
    replicas: int = 1
    listens: Address | None = None
    settings: Mapping[str, str] | None = None
    """More of the environment."""
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    """Monotonic seconds, just before the process was made."""

    def start(self) -> Node:
        """Start the process; returns at once."""
        view = self.view or [self.address]
        settings = {
            "K": str(self.replicas),
            "VIEW": ",".join(member.name for member in view),
            "IPPORT": self.address.name,
            # Nobody is to go elsewhere.
            "KVS_DRAIN_S": "0",
            "KVS_DATA_DIR": "" if self.directory is None else str(self.directory),
            **(self.settings or {}),
        }
        if self.listens is not None:
            host, port = self.listens
            settings["KVS_LISTEN"] = f"tcp:{port}:interface={host}"
        self.started_at = time.monotonic()
        self.process = self.sandbox.twistd(
            settings, name=str(self.address.port), log=self.log
        )
        return self

    @property
    def log(self) -> Path:
        """Where it writes its log."""
        return self.sandbox.directory / f"{self.address.port}.log"

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self.process is not None
        return self.process.pid

    def ready(self, *, request: bytes = b"", every_s: float = 0.005) -> float:
        """
        Wait for the first answer.

        :param request: asked again and again; default: who are you.
        :returns: when it came, monotonic seconds.
        :raises RunFailed: if none comes; with the end of the log.
        """
        request = request or get_request("/kv-store/get_node_details")
        with Client(self.listens or self.address) as client:
            return self.until(
                "its first answer", lambda: client.ask(request), every_s=every_s
            )[0]

    def until(
        self,
        what: str,
        look: Callable[[], T | None],
        *,
        within_s: float = READY_S,
        every_s: float = 0.02,
    ) -> tuple[float, T]:
        """
        Wait until ``look`` finds something; what cannot be asked is asked again.

        :returns: when it was found, monotonic seconds, and what.
        :raises RunFailed: if that takes too long or the process has ended.
        """
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            with suppress(OSError, BrokenAnswer):
                found = look()
                if found is not None:
                    return time.monotonic(), found
            if self.process is None or self.process.poll() is not None:
                raise RunFailed(f"{self.address.name} has ended:\n{self._log_end()}")
            time.sleep(every_s)
        raise RunFailed(
            f"{self.address.name}: no {what} within {within_s:g} s:\n{self._log_end()}"
        )

    def until_serving(self) -> None:
        """Wait until it answers and has caught up with the others."""
        with self.client() as client:

            def serving() -> bool | None:
                return status(client)["standing"] == "serving" or None

            self.until("standing 'serving'", serving)

    def client(self) -> Client:
        """Make a client of it."""
        return Client(self.listens or self.address)

    def stop(self) -> float:
        """End it in order; tells how long that took."""
        assert self.process is not None
        return self.sandbox.end(self.process)

    def kill(self) -> None:
        """End it with SIGKILL; in order if it is profiled, to get the profile."""
        assert self.process is not None
        profiled = self.sandbox.profile is not None
        self.sandbox.end(
            self.process, by=signal.SIGTERM if profiled else signal.SIGKILL
        )

    def cpu_s(self) -> float:
        """Tell its CPU time so far."""
        return cpu_s(self.pid)

    def rss_bytes(self) -> int:
        """Tell its resident memory."""
        return rss_bytes(self.pid)

    def _log_end(self) -> str:
        with suppress(OSError):
            return "\n".join(self.log.read_text("utf-8", "replace").split("\n")[-15:])
        return ""


def status(client: Client) -> dict[str, object]:
    """
    Ask a node how it stands.

    :raises OSError: if it does not answer.
    """
    answer = client.ask(get_request("/kvs/status"))
    if answer.status != 200:
        raise BrokenAnswer(f"status {answer.status}: {answer.body!r:.200}")
    found: dict[str, object] = json.loads(answer.body)
    return found
