"""
The Docker engine, as tests use it: by its own command, and nothing is left behind.

Invariants: whatever is made has a label with the process that made it; what processes
that are gone have left is removed before a test begins; every command has a deadline.
"""

from __future__ import annotations

import ipaddress
import os
import random
import subprocess
from collections.abc import Callable

IMAGE = os.environ.get("KVS_CONTAINER_IMAGE", "twisted-kvs")
LABEL = "twisted-kvs.test"
PREFIX = f"kvs-test-{os.getpid()}"
OURS = ("--label", f"{LABEL}={os.getpid()}")
COMMAND_S = 60.0


class DockerFailed(Exception):
    """A command of the engine failed."""


def docker(*arguments: str, stdin: str | None = None) -> str:
    """
    Run a command of the engine.

    :returns: what it printed.
    :raises DockerFailed: if it fails; says why.
    """
    return command("docker", *arguments, stdin=stdin)


def command(
    *arguments: str, stdin: str | None = None, settings: dict[str, str] | None = None
) -> str:
    """
    Run a command.

    :param settings: added to the environment.
    :returns: what it printed, its errors last.
    :raises DockerFailed: if it fails; says why.
    """
    done = subprocess.run(
        arguments,
        input=stdin or "",
        env=os.environ | (settings or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    if done.returncode != 0:
        raise DockerFailed(f"{' '.join(arguments[:4])}: {done.stdout[-2000:]}")
    return done.stdout.strip()


def make_network() -> tuple[str, list[str]]:
    """
    Make a network that has a subnet of its own.

    :returns: its name, and addresses for nodes.
    """
    for _ in range(20):
        subnet = f"10.{random.randrange(64, 250)}.{random.randrange(256)}.0/24"
        name = f"{PREFIX}-{random.randrange(10**6)}"
        try:
            docker("network", "create", *OURS, "--subnet", subnet, name)
        except DockerFailed as error:
            if "overlap" not in str(error):
                raise
            continue
        hosts = ipaddress.ip_network(subnet).network_address
        return name, [str(hosts + 21 + n) for n in range(16)]
    raise DockerFailed("no free subnet")


def discard(belongs: Callable[[int], bool]) -> None:
    """Remove the containers, volumes and networks of these processes."""
    for kind, remove in (
        ("container", ("rm", "--force", "--volumes")),
        ("volume", ("volume", "rm", "--force")),
        ("network", ("network", "rm")),
    ):
        listing = [kind, "ls", "--filter", f"label={LABEL}"]
        listing += ["--all"] if kind == "container" else []
        field = ".Name" if kind == "volume" else ".ID"
        form = f'{{{{{field}}}}} {{{{.Label "{LABEL}"}}}}'
        for line in docker(*listing, "--format", form).splitlines():
            identity, owner = line.split()
            if belongs(int(owner)):
                docker(*remove, identity)


def is_gone(process: int) -> bool:
    """Tell whether there is no such process any more."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def is_mine(process: int) -> bool:
    """Tell whether this is our own process."""
    return process == os.getpid()
