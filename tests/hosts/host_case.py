"""Tests with a cluster on hosts of its own."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from unittest import SkipTest

from tests.process.asking import Answer
from tests.process.harness import NodeProcess, NodesCase, start_all, wait_until
from twisted_kvs.core.settings import Settings

from .checks import ANSWER_S, MAYBE, MEASURING_S, STALLED_S
from .clocks import TWISTD, WallClock
from .line import TUNNEL
from .namespaces import remove_left_over, why_not
from .network import DIES_WITH_US, Access, Host, Network
from .yardstick import Yardstick

TRIES_MAX = 5
LEFT_OUT_S = Settings().peer_skip_s + Settings().causal_read_s
PROGRAMS = (("nft", "list", "ruleset"), (*DIES_WITH_US, "true"))


@lru_cache(maxsize=1)
def missing() -> str | None:
    """Tell why there can be no hosts here; None if there can."""
    remove_left_over()
    try:
        os.close(os.open(TUNNEL, os.O_RDWR))
    except OSError as error:
        return str(error)
    return why_not(PROGRAMS)


class HostCase(NodesCase):
    """A test with four nodes, three of them replicas, each on its own host."""

    if not os.environ.get("KVS_HOST_TESTS"):
        skip = "makes network namespaces; KVS_HOST_TESTS=1 turns it on"

    size = 4
    k = 3

    def setUp(self) -> None:
        """Make hosts and start a node on each; return when all serve."""
        reason = missing()
        if reason is not None:
            if os.environ["KVS_HOST_TESTS"] == "required":
                self.fail(f"required, but not possible here: {reason}")
            raise SkipTest(f"not possible here: {reason}")
        super().setUp()
        self._ground: list[Callable[[], None]] = []
        self.addCleanup(self._demolish)
        self._build()

    def build_anew(self) -> None:
        """End all that runs, look at what it has logged, and begin again."""
        self._end_all()
        self._demolish()
        self.nodes.clear()
        shutil.rmtree(self.directory)
        self.directory.mkdir()
        self._build()

    def _demolish(self) -> None:
        while self._ground:
            self._ground.pop()()

    def _build(self) -> None:
        self.yardstick = Yardstick(self.directory)
        self._ground.append(self.yardstick.end)
        self.network = Network(self.size)
        self._ground.append(self.network.close)
        self.hosts = self.network.hosts
        self.names = [host.name for host in self.hosts]
        self.clocks = {
            host.name: WallClock(self.directory / f"{host.address}.clock")
            for host in self.hosts
        }
        for host in self.hosts:
            self._prepare(host)
        start_all(self.nodes)
        self.wait_settled()

    def _prepare(self, host: Host) -> None:
        self.node(
            host.name,
            at=host.within.at,
            command=TWISTD,
            place=host.place,
            K=str(self.k),
            VIEW=",".join(self.names),
            **self.clocks[host.name].settings,
        )

    def process(self, host: Host) -> NodeProcess:
        """Find the node on a host."""
        return self.named(host.name)

    def wait_settled(self) -> None:
        """Wait until all replicas serve and all know of each other."""
        for host in self.hosts:
            self.wait_replicas(host, self.names[: self.k])
            wait_until(f"{host.name} serves", partial(serves, host))

    def wait_replicas(self, host: Host, wanted: Sequence[str]) -> None:
        """Wait until a node holds these for the replicas."""
        wait_until(
            f"the replicas are {wanted} for {host.name}",
            lambda: host.within.replicas() == list(wanted),
        )

    def assert_in_time(self, answer: Answer) -> None:
        """An answer that has just come took no longer than promised."""
        now = time.monotonic()
        allowed = ANSWER_S + MEASURING_S
        if answer.seconds > allowed:
            allowed += self.yardstick.late_s(now - answer.seconds, now)
        self.assertLess(answer.seconds, allowed)

    def write(self, access: Access, key: str, value: str, payload: str = "") -> Answer:
        """Write a key: it is taken, in time; again while the machine's disk stalls."""
        for _ in range(TRIES_MAX):
            began = time.monotonic()
            answer = access.put(key, value, payload)
            self.assert_in_time(answer)
            if answer.status != 504 or MAYBE not in answer.fields["msg"]:
                break
            late_s = self.yardstick.late_s(began, time.monotonic())
            self.assertGreater(late_s, STALLED_S, "a slow disk, where it was not slow")
        self.assertIn(answer.status, (200, 201), answer.fields)
        return answer

    def assert_shows(
        self,
        access: Access,
        key: str,
        value: str | None,
        payload: str = "",
        *,
        stale: bool = False,
    ) -> Answer:
        """
        A read shows a value (None: there is none), in time, marked or not.

        It is repeated while it is marked and the machine is why: a node that could not
        be asked in time because of it is left out for a while.
        """
        for _ in range(TRIES_MAX):
            began = time.monotonic()
            answer = access.get(key, payload)
            self.assert_in_time(answer)
            if answer.stale == stale:
                break
            now = time.monotonic()
            if not self.yardstick.late_s(began - LEFT_OUT_S, now):
                break
        self.assertEqual(answer.status, 404 if value is None else 200, answer.fields)
        shown = (answer.fields.get("value"), answer.stale)
        self.assertEqual(shown, (value, stale))
        return answer

    def wait_agreed(self, keys: Iterable[str]) -> dict[str, str]:
        """
        Wait until all nodes show the same values, and are sure.

        :returns: the values.
        """
        keys = list(keys)
        return wait_until("all agree", lambda: agreed(self.hosts, keys))

    def assert_data_agree(self) -> None:
        """No node has seen that what should be equal is not (R17)."""
        seen = {h.name: h.within.status()["hash_mismatches"] for h in self.hosts}
        self.assertEqual(set(seen.values()), {0}, seen)


def serves(host: Host) -> bool:
    """Tell whether a node answers as one that has caught up, or has no need to."""
    said = host.within.status()
    return "serving" in said["standing"] or "proxy" in said["role"]


def agreed(hosts: Sequence[Host], keys: Sequence[str]) -> dict[str, str] | None:
    """Tell what all nodes show without doubt; None if that is not the same."""
    shown = {}
    for key in keys:
        answers = [host.within.get(key) for host in hosts]
        if any(answer.stale or answer.status != 200 for answer in answers):
            return None
        versions = {(a.fields["value"], a.fields["timestamp"]) for a in answers}
        if len(versions) != 1:
            return None
        shown[key] = str(answers[0].fields["value"])
    return shown
