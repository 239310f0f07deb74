"""
What happens to hosts while clients ask: drawn from a seed, done, and undone.

A plan is drawn first and can be printed; every fault in it begins and ends within its
storm.  Only one fault at a time concerns a process, an interface, a line or the links.
"""

from __future__ import annotations

import random
import shutil
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.process.harness import NodeProcess

from .clients import Way
from .clocks import WallClock
from .history import Done, History
from .line import Quality
from .network import Host, Network

PROCESS = ("kill", "wipe", "pause")
LINKS = ("cut", "cut one way")
KINDS = ("cut", "cut one way", "disconnect", "spoil", "kill", "wipe", "pause", "clock")
HOURS = (-2, -1, 1, 3)
ASKED_THOUGH_AWAY = 0.05
"""How often a client turns to a node of which it could know that it is away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault; times are seconds from the beginning of the storm."""

    kind: str
    hosts: tuple[int, ...]
    """Whom it concerns; of a cut: who is on one side; one way: sender, receiver."""
    begins_s: float
    ends_s: float
    hours: int
    quality: Quality


def draw_plan(
    rng: random.Random, hosts: int, length_s: float, *, clocks: bool
) -> list[Fault]:
    """
    Draw the faults of one storm, at least one.

    :param clocks: whether clocks may be set wrong.
    """
    kinds = [kind for kind in KINDS if clocks or kind != "clock"]
    chosen = [kind for kind in kinds if rng.random() < 0.45] or [rng.choice(kinds)]
    for among in (PROCESS, LINKS):
        few = [kind for kind in chosen if kind in among]
        if few:
            keep = rng.choice(few)
            chosen = [k for k in chosen if k not in among or k == keep]
    return [_draw_fault(rng, kind, hosts, length_s) for kind in chosen]


def _draw_fault(rng: random.Random, kind: str, hosts: int, length_s: float) -> Fault:
    count = 1
    if kind == "cut":
        count = rng.randint(1, hosts - 1)
    elif kind == "cut one way":
        count = 2
    elif kind == "kill":
        count = rng.choice((1, 1, 2, hosts))
    begins_s = rng.uniform(0, 0.5) * length_s
    return Fault(
        kind=kind,
        hosts=tuple(rng.sample(range(hosts), count)),
        begins_s=begins_s,
        ends_s=min(length_s, begins_s + rng.uniform(0.2, 0.8) * length_s),
        hours=rng.choice(HOURS),
        quality=Quality(
            delay_ms=rng.choice((0, 10, 50, 100)),
            jitter_ms=rng.choice((1, 20)),
            loss=rng.choice((0, 5, 25)),
            doubled=rng.choice((0, 10)),
        ),
    )


class Weather:
    """Does to hosts what was planned, and notes it."""

    def __init__(
        self,
        network: Network,
        processes: Mapping[str, NodeProcess],
        clocks: Mapping[str, WallClock],
        history: History,
    ) -> None:
        """All is well yet."""
        self._network = network
        self._processes = processes
        self._clocks = clocks
        self._history = history
        self._away: defaultdict[str, set[str]] = defaultdict(set)
        self._dropped = 0
        self.cuts = 0
        """Planned cuts that were done."""
        self.dropped = 0
        """Packets that they dropped."""

    def way(self, rng: random.Random) -> Way:
        """Draw a node to ask, seldom one that is away, and a way to it."""
        hosts = self._network.hosts
        alive = [h for h in hosts if not self._away[h.name] & set(PROCESS)]
        if alive and rng.random() > ASKED_THOUGH_AWAY:
            hosts = alive
        return self.way_to(rng.choice(hosts))

    def way_to(self, host: Host) -> Way:
        """Choose the way to a node: from within where the network does not lead."""
        within = bool(self._away[host.name] & {"disconnect", "spoil"})
        access = host.within if within else self._network.over(host)
        return Way(host.name, access, within)

    def storm(self, plan: Sequence[Fault]) -> None:
        """Let a plan happen; returns when all of it has ended."""
        began = time.monotonic()
        events = [(fault.begins_s, n, True) for n, fault in enumerate(plan)]
        events += [(fault.ends_s, n, False) for n, fault in enumerate(plan)]
        for at, n, begins in sorted(events):
            time.sleep(max(0.0, began + at - time.monotonic()))
            fault = plan[n]
            hosts = [self._network.hosts[index] for index in fault.hosts]
            name = fault.kind.replace(" ", "_")
            step = "begin" if begins else "end"
            getattr(self, f"_{step}_{name}")(fault, hosts)

    def _note(self, what: str, hosts: Sequence[Host], detail: str = "") -> None:
        names = [host.name for host in hosts]
        done = Done(at=self._history.now(), what=what, nodes=names, detail=detail)
        self._history.add(done)

    def _begin_cut(self, _: Fault, hosts: Sequence[Host]) -> None:
        others = [host for host in self._network.hosts if host not in hosts]
        self._note("cut", hosts)
        self._dropped = self._network.dropped()
        self._network.cut(hosts, others)

    def _begin_cut_one_way(self, _: Fault, hosts: Sequence[Host]) -> None:
        self._note("cut one way", hosts)
        self._dropped = self._network.dropped()
        self._network.cut_one_way(*hosts)

    def _end_cut(self, _: Fault, hosts: Sequence[Host]) -> None:
        self._network.heal()
        dropped = self._network.dropped() - self._dropped
        self._note("heal", hosts, f"{dropped} packets were dropped")
        self.cuts += 1
        self.dropped += dropped

    _end_cut_one_way = _end_cut

    def _begin_disconnect(self, _: Fault, hosts: Sequence[Host]) -> None:
        for host in hosts:
            if "spoil" in self._away[host.name]:
                continue  # Its line would end with its interface.
            self._away[host.name].add("disconnect")
            self._note("disconnect", [host])
            self._network.disconnect(host)

    def _end_disconnect(self, _: Fault, hosts: Sequence[Host]) -> None:
        for host in hosts:
            if "disconnect" not in self._away[host.name]:
                continue
            self._network.connect(host)
            self._note("connect", [host])
            self._away[host.name].discard("disconnect")

    def _begin_spoil(self, fault: Fault, hosts: Sequence[Host]) -> None:
        [host] = hosts
        if "disconnect" in self._away[host.name]:
            return  # There is no line to spoil.
        self._away[host.name].add("spoil")
        self._note("spoil", hosts, repr(fault.quality))
        self._network.spoil(host, fault.quality)

    def _end_spoil(self, _: Fault, hosts: Sequence[Host]) -> None:
        [host] = hosts
        if "spoil" not in self._away[host.name]:
            return
        self._network.mend(host)
        self._note("mend", hosts)
        self._away[host.name].discard("spoil")

    def _begin_kill(self, _: Fault, hosts: Sequence[Host]) -> None:
        for host in hosts:
            self._away[host.name].add("kill")
        self._note("kill", hosts)
        for host in hosts:
            self._processes[host.name].kill()

    def _end_kill(self, _: Fault, hosts: Sequence[Host]) -> None:
        for host in hosts:
            self._processes[host.name].start()
        for host in hosts:
            self._processes[host.name].ready()
            self._note("ready", [host])
            self._away[host.name].discard("kill")

    def _begin_wipe(self, fault: Fault, hosts: Sequence[Host]) -> None:
        self._begin_kill(fault, hosts)
        for host in hosts:
            process = self._processes[host.name]
            shutil.rmtree(disk(process))
        self._note("wipe", hosts)

    _end_wipe = _end_kill

    def _begin_pause(self, _: Fault, hosts: Sequence[Host]) -> None:
        for host in hosts:
            self._away[host.name].add("pause")
            self._note("pause", [host])
            self._processes[host.name].pause()

    def _end_pause(self, _: Fault, hosts: Sequence[Host]) -> None:
        for host in hosts:
            self._processes[host.name].resume()
            self._note("resume", [host])
            self._away[host.name].discard("pause")

    def _begin_clock(self, fault: Fault, hosts: Sequence[Host]) -> None:
        for host in hosts:
            self._note("clock", [host], f"{fault.hours} hours")
            self._clocks[host.name].set(fault.hours * 3600)

    def _end_clock(self, _: Fault, hosts: Sequence[Host]) -> None:
        for host in hosts:
            self._note("clock", [host], "right")
            self._clocks[host.name].set(0)


def disk(process: NodeProcess) -> Path:
    """Find what a node keeps."""
    assert process.data.is_dir(), process.data
    return process.data
