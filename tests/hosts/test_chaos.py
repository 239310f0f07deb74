"""
Histories of real hosts under faults that are drawn, checked as the simulation is.

``KVS_HOST_MINUTES`` says for how long (2 by default), ``KVS_HOST_SEED`` by which seed.
A seed gives the same plan of faults and the same wishes of clients; what comes of them
is up to a real machine.  The history of a violation is kept, and its path is printed.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import gettempdir

from tests.process.harness import POLL_S
from twisted_kvs.simulation.oracle import joined
from twisted_kvs.storage.schema import read_retired

from .checks import SETTLES_S, Figures, check_file
from .clients import Client, Request, ask
from .history import Agreed, Began, Done, Generations, History, Late, Phase
from .host_case import HostCase
from .weather import Weather, draw_plan
from .yardstick import Stall

MINUTES = float(os.environ.get("KVS_HOST_MINUTES", "2"))
STORMS = 2
STORM_S = 8.0
QUIET_S = SETTLES_S + 1
AGREES_S = 20.0
"""Far above what is promised, so that a late agreement is seen as such."""
SHOWN = 20
"""Violations that are shown."""
CLIENTS = 6
KEYS = 8
DELETED = 2
"""Keys that are deleted now and then."""
CLOCKS = 3
"""One of so many histories has wrong clocks: they leave less that is certain."""
KEPT = Path(gettempdir(), "kvs-histories")
"""Where histories with a violation are kept."""


class ChaosTests(HostCase):
    """Sessions that roam over a cluster to which anything may happen."""

    def test_promises_hold_under_drawn_faults(self) -> None:
        """Storm after storm: nothing is lost, nobody is misled, and all agree again."""
        first = int(os.environ.get("KVS_HOST_SEED", random.randrange(1_000_000)))
        print(f"\nKVS_HOST_SEED={first}, for {MINUTES:g} minutes")
        give_up_at = time.monotonic() + MINUTES * 60
        seen: list[Figures] = []
        cuts = dropped = 0
        while not seen or time.monotonic() < give_up_at:
            if seen:
                self.build_anew()
            run = Run(self, first + len(seen))
            run.do()
            seen.append(self.assert_promises_kept(run))
            cuts += run.weather.cuts
            dropped += run.weather.dropped
        print(summary(seen))
        self.assertEqual(cuts > 0, dropped > 0, "a cut that cut nothing off")

    def assert_promises_kept(self, run: Run) -> Figures:
        """Check a history; keep and show it if it breaks a promise."""
        figures, texts = check_file(run.history.path)
        print(f"  {run.seed}: {summary([figures])}")
        if texts:
            KEPT.mkdir(exist_ok=True)
            kept = KEPT / f"{run.seed}-{os.getpid()}.jsonl"
            shutil.copy(run.history.path, kept)
            head = f"KVS_HOST_SEED={run.seed}, kept as {kept}: {len(texts)} violations"
            self.fail("\n".join([head, *texts[:SHOWN]]))
        self.assert_data_agree()
        return figures


class Run:
    """One history of one cluster."""

    def __init__(self, case: HostCase, seed: int) -> None:
        """Prepare clients and faults for a cluster at which nobody has asked yet."""
        self.seed = seed
        self.history = History(case.directory / "history.jsonl")
        self.history.add(Began(at=0.0, seed=seed, nodes=case.names, replicas=case.k))
        case.yardstick.noted = self._late
        self._hosts = case.hosts
        self._nodes = case.nodes
        self._k = case.k
        self._rng = random.Random(seed)
        processes = {node.name: node for node in case.nodes}
        self.weather = Weather(case.network, processes, case.clocks, self.history)
        self._keys = [f"key{n}" for n in range(KEYS)]
        self._clients = [
            Client(
                f"c{n}",
                self.history,
                self.weather.way,
                keys=self._keys,
                deleted=self._keys[:DELETED],
                seed=f"{seed} {n}",
            )
            for n in range(CLIENTS)
        ]

    def do(self) -> None:
        """Run all storms, each until all agree, with quiet times between them."""
        clocks = self.seed % CLOCKS == 0
        self._let_ask("quiet", partial(time.sleep, QUIET_S))
        for storm in range(STORMS):
            plan = draw_plan(self._rng, len(self._hosts), STORM_S, clocks=clocks)
            self._let_ask("storm", partial(self.weather.storm, plan))
            self.history.add(Done(at=self.history.now(), what="calm", nodes=[]))
            if not self._agree(storm):
                break
            if any(fault.kind == "wipe" for fault in plan):
                # What nobody else had is gone, and would be asked for in vain.
                for client in self._clients:
                    client.forget()
            self._let_ask("quiet", partial(time.sleep, QUIET_S))
        for node in self._nodes:
            known = retired_on_disk(node.data)
            record = Generations(at=self.history.now(), node=node.name, known=known)
            self.history.add(record)
        self.history.close()

    def _let_ask(self, phase: Phase, meanwhile: Callable[[], None]) -> None:
        for client in self._clients:
            client.start(phase)
        try:
            meanwhile()
        finally:
            for client in self._clients:
                client.stop()
            for client in self._clients:
                client.wait()

    def _agree(self, storm: int) -> bool:
        """
        Read everything everywhere until all show the same, and are sure.

        Not before all replicas know all that is known: a proxy that was cut off shows
        what replicas show before it has handed over what it took itself.
        """
        give_up_at = time.monotonic() + AGREES_S
        sweeps = 0
        while time.monotonic() < give_up_at:
            if not self._all_know_the_same():
                time.sleep(POLL_S)
                continue
            sweeps += 1
            session = f"sweep-{storm}-{sweeps}"
            if all(self._same(key, session) for key in self._keys):
                self.history.add(Agreed(at=self.history.now(), sweep=session))
                return True
        return False

    def _all_know_the_same(self) -> bool:
        said = {host.name: host.within.status() for host in self._hosts}
        replicas = [host.name for host in self._hosts][: self._k]
        everything = joined(*(status["version_vector"] for status in said.values()))
        return all(s["replicas"] == replicas for s in said.values()) and all(
            said[name]["version_vector"] == everything for name in replicas
        )

    def _same(self, key: str, session: str) -> bool:
        request = Request(
            key=key, value=None, payload="", session=session, phase="sweep"
        )
        ways = map(self.weather.way_to, self._hosts)
        answers = [ask(self.history, way, request) for way in ways]
        if any(answer is None or answer.stale for answer in answers):
            return False
        return len({(a.value, a.timestamp) for a in answers if a is not None}) == 1

    def _late(self, stall: Stall) -> None:
        began, ended = map(self.history.at, stall)
        self.history.add(Late(at=self.history.now(), began=began, ended=ended))


def retired_on_disk(data: Path) -> bytes:
    """
    Read what a node that runs has stored of retired actors.

    A token may name them by a marker only after all members have stored what it means.
    """
    database = f"{(data / 'kvs.sqlite').as_uri()}?mode=ro"
    with closing(sqlite3.connect(database, uri=True)) as opened:
        return read_retired(opened)


def summary(seen: Sequence[Figures]) -> str:
    """Tell what histories have shown."""
    converged = [s for figures in seen for s in figures.converged_s] or [0.0]
    faults = sum((figures.faults for figures in seen), Counter[str]())
    return (
        f"{len(seen)} histories, {sum(f.requests for f in seen)} requests "
        f"({sum(f.writes for f in seen)} writes, "
        f"{sum(f.deletes for f in seen)} deletes), "
        f"{sum(f.stale for f in seen)} marked, "
        f"{sum(f.refused for f in seen)} refused, "
        f"{sum(f.unanswered for f in seen)} not answered; "
        f"slowest answer {max(f.slowest_s for f in seen):.3f} s; agreed after "
        f"{median(converged):.2f} s, at most {max(converged):.2f} s; "
        f"machine late {sum(f.late_s for f in seen):.1f} s; "
        + ", ".join(f"{what} {count}" for what, count in sorted(faults.items()))
    )
