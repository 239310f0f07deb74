"""
Network namespaces: hosts of their own on one machine.

Invariants: nothing is done to the network of the machine itself; a namespace is named
after the process that made it, so what a killed run has left behind is found and
removed by the next.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "kvs-hosts-"
NAMED = Path("/run/netns")
_NETWORK = 0x40000000
"""CLONE_NEWNET of ``setns``."""
_LIBRARY = ctypes.CDLL(None, use_errno=True)


class CommandFailed(OSError):
    """A command of the system refused; says what and why."""


def run(*command: str, feed: str | None = None) -> str:
    """
    Run a command.

    :param feed: what it reads.
    :returns: what it printed.
    :raises CommandFailed: if it is not there, or says that it failed.
    """
    try:
        done = subprocess.run(
            command, input=feed, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise CommandFailed(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        raise CommandFailed(f"{' '.join(command)}: {done.stderr.strip()}\n{feed or ''}")
    return done.stdout


class Namespace:
    """A network of its own, with nothing but its loopback interface."""

    def __init__(self, name: str) -> None:
        """
        Make it.

        :param name: what it is called after the prefix and this process.
        """
        self.name = f"{PREFIX}{os.getpid()}-{name}"
        run("ip", "netns", "add", self.name)
        self.links("link set lo up")

    def links(self, *commands: str) -> None:
        """Have ``ip`` do these commands there, in one go."""
        run("ip", "-n", self.name, "-batch", "-", feed="\n".join(commands))

    def run(self, *command: str, feed: str | None = None) -> str:
        """Run a command there."""
        return run("ip", "netns", "exec", self.name, *command, feed=feed)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """
        Be there: with sockets made, and processes and threads started meanwhile.

        Only the thread that does this moves.
        """
        with (
            Path("/proc/thread-self/ns/net").open("rb") as home,
            (NAMED / self.name).open("rb") as there,
        ):
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def remove(self) -> None:
        """End all that runs there, and remove it."""
        _remove(self.name)


def remove_left_over(*, mine: bool = True) -> None:
    """
    Remove what runs that have ended badly have left behind.

    :param mine: also what is named after this process: an earlier one had its number.
    """
    found = sorted(NAMED.glob(f"{PREFIX}*")) if NAMED.exists() else []
    for path in found:
        owner = path.name.removeprefix(PREFIX).split("-")[0]
        ours = owner == str(os.getpid())
        if (ours and mine) or not Path("/proc", owner).exists():
            _remove(path.name)


def why_not(programs: Sequence[Sequence[str]]) -> str | None:
    """
    Tell what is missing for namespaces with a network between them.

    :param programs: what is needed besides, each as a command that must work there.
    :returns: None if all is there.
    """
    try:
        probe = Namespace("probe")
    except CommandFailed as error:
        return str(error)
    try:
        with probe.inside():
            pass
        probe.links(
            "link add name bridge type bridge",
            "link add name one type veth peer name other",
            "link set one master bridge",
        )
        for command in programs:
            probe.run(*command)
    except OSError as error:
        return str(error)
    finally:
        probe.remove()
    return None


def _enter(namespace: int) -> None:
    if _LIBRARY.setns(namespace, _NETWORK):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def _remove(name: str) -> None:
    with suppress(CommandFailed):
        for found in run("ip", "netns", "pids", name).split():
            with suppress(ProcessLookupError):
                os.kill(int(found), signal.SIGKILL)
    with suppress(CommandFailed):
        run("ip", "netns", "delete", name)
