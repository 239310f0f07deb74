"""
Hosts on one network, and what can happen to it.

A bridge in a namespace of its own, and one namespace for each host, joined to it by a
pair of interfaces.  Hosts are cut off from each other by packet filters of their own,
which drop what comes in; or their interface is taken away, as
``docker network disconnect`` does; or their line is a bad one (``line.py``).  Clients
have a host, too, which no fault concerns, so they reach nodes on either side of a cut.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tests.process import asking
from tests.process.asking import Answer
from tests.process.harness import PROJECT, Place

from .line import Quality
from .namespaces import Namespace

PORT = 8080
LINE = "tests.hosts.line"
NETWORK = "10.77.0"
CLIENTS = 2
FIRST = 21
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")
"""A killed run leaves no process behind."""
FILTER = """
table inet faults {
    set cut { type ipv4_addr; }
    counter dropped { }
    chain input {
        type filter hook input priority 0;
        ip saddr @cut counter name dropped drop;
    }
}
"""


@dataclass(frozen=True, slots=True)
class Access:
    """A way to ask a node: an address, and from where."""

    at: str
    place: Place

    def put(self, key: str, value: str, payload: str = "") -> Answer:
        """Write a key."""
        with self.place.inside():
            return asking.put(self.at, key, value, payload)

    def delete(self, key: str, payload: str = "") -> Answer:
        """Delete a key."""
        with self.place.inside():
            return asking.delete(self.at, key, payload)

    def get(self, key: str, payload: str = "") -> Answer:
        """Read a key."""
        with self.place.inside():
            return asking.get(self.at, key, payload)

    def replicas(self) -> list[str]:
        """Ask who the replicas are."""
        with self.place.inside():
            return asking.replicas(self.at)

    def status(self) -> Mapping[str, Any]:
        """Ask what it says of itself."""
        with self.place.inside():
            return asking.status(self.at)


class Host:
    """A host with one address."""

    def __init__(self, number: int) -> None:
        """Make it; it is on no network yet."""
        self.address = f"{NETWORK}.{number}"
        self.name = f"{self.address}:{PORT}"
        self.port = f"port{number}"
        # As Docker's, so that a host that comes back is still known to the others.
        self.hardware = f"02:42:0a:4d:00:{number:02x}"
        self.namespace = Namespace(f"host{number}")
        self.place = Place(self.namespace.inside, DIES_WITH_US)
        self.within = Access(f"127.0.0.1:{PORT}", self.place)
        """As ``docker exec`` asks: whatever the network does."""
        self.namespace.run("nft", "-f", "-", feed=FILTER)

    def hear_all_but(self, others: Iterable[Host]) -> None:
        """Drop from now on what comes from these, and from nobody else."""
        commands = ["flush set inet faults cut"]
        commands += [
            f"add element inet faults cut {{ {other.address} }}" for other in others
        ]
        self.namespace.run("nft", "-f", "-", feed="\n".join(commands))

    def dropped(self) -> int:
        """Count the packets that were dropped: whether a cut did anything."""
        listed = self.namespace.run(
            "nft", "list", "counter", "inet", "faults", "dropped"
        )
        found = re.search(r"packets (\d+)", listed)
        assert found, listed
        return int(found[1])


class Network:
    """A bridge and its hosts."""

    def __init__(self, count: int) -> None:
        """Make so many hosts for nodes, all of them connected."""
        self._made: list[Namespace] = []
        self._lines: dict[str, subprocess.Popen[str]] = {}
        try:
            self._switch = Namespace("switch")
            self._made.append(self._switch)
            self._switch.links("link add name bridge type bridge", "link set bridge up")
            self._clients = self._host(CLIENTS)
            self.hosts = [self._host(FIRST + n) for n in range(count)]
        except BaseException:
            self.close()
            raise

    def _host(self, number: int) -> Host:
        host = Host(number)
        self._made.append(host.namespace)
        self.connect(host)
        return host

    def close(self) -> None:
        """Remove all of it, and end what runs on it."""
        for line in self._lines.values():
            _end(line)
        for namespace in self._made:
            namespace.remove()

    def over(self, host: Host) -> Access:
        """Ask a node over the network."""
        return Access(host.name, self._clients.place)

    def connect(self, host: Host) -> None:
        """Give a host its interface, always with the same address."""
        self._switch.links(
            f"link add name {host.port} type veth peer name eth0"
            f" address {host.hardware} netns {host.namespace.name}",
            f"link set {host.port} master bridge up",
        )
        host.namespace.links(
            f"address add {host.address}/24 dev eth0", "link set eth0 up"
        )

    def disconnect(self, host: Host) -> None:
        """Take the interface of a host away, and its address with it."""
        self._switch.links(f"link delete {host.port}")

    def cut(self, *sides: Collection[Host]) -> None:
        """Let nodes hear those on their own side only; each host is on one side."""
        for side in sides:
            for host in side:
                host.hear_all_but(
                    other for others in sides if others is not side for other in others
                )

    def cut_one_way(self, sender: Host, receiver: Host) -> None:
        """Let nothing that one sends reach the other; the rest is whole."""
        receiver.hear_all_but([sender])

    def heal(self) -> None:
        """Let all hear all."""
        for host in self.hosts:
            host.hear_all_but([])

    def dropped(self) -> int:
        """Count the packets that cuts have dropped."""
        return sum(host.dropped() for host in self.hosts)

    def spoil(self, host: Host, quality: Quality, seed: int = 0) -> None:
        """Lead all that a host sends and hears over a bad line."""
        ends = [f"{host.port}{end}" for end in "ab"]
        numbers = map(str, (seed, *quality.numbers()))
        with self._switch.inside():
            line = subprocess.Popen(
                [*DIES_WITH_US, sys.executable, "-m", LINE, *ends, *numbers],
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
            )
        self._lines[host.name] = line
        assert line.stdout is not None
        assert line.stdout.readline(), "the line ended at once"
        self._switch.links(
            f"link add name {host.port}s type bridge",
            f"link set {host.port}s up",
            f"link set {ends[0]} master {host.port}s up",
            f"link set {ends[1]} master bridge up",
            f"link set {host.port} master {host.port}s",
        )

    def mend(self, host: Host) -> None:
        """Let a host have a good line again."""
        line = self._lines.pop(host.name)
        assert line.poll() is None, "the line has ended by itself"
        self._switch.links(f"link set {host.port} master bridge")
        _end(line)
        self._switch.links(f"link delete {host.port}s")


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    with suppress(ValueError):
        process.communicate()
