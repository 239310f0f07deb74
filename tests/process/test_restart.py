"""Nodes that are ended while they are written to, and started again."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from threading import Event, Lock, Thread

from .asking import get, put
from .harness import STOP_S, NodeProcess, ProcessCase, free_names, start_all, wait_until

ROUNDS = 12
WRITERS = 4


class Load:
    """Writers that note what was acknowledged; each key is written once."""

    def __init__(self, names: Iterable[str]) -> None:
        """Write to these nodes."""
        self._names = list(names)
        self._stop = Event()
        self._lock = Lock()
        self._tried = 0
        self.acknowledged: dict[str, str] = {}
        self.refused: list[int] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Write as long as this lasts."""
        self._stop.clear()
        threads = [Thread(target=self._write) for _ in range(WRITERS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(10)

    def _write(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                self._tried += 1
                number = self._tried
            key, value = f"key{number}", f"value {number}"
            try:
                answer = put(self._names[number % len(self._names)], key, value)
            # The node is gone; an answer that was cut short is no JSON.
            except (OSError, HTTPException, ValueError):
                time.sleep(0.01)
                continue
            if answer.status == 201:
                self.acknowledged[key] = value
            else:
                self.refused.append(answer.status)


class RestartTests(ProcessCase):
    """What was acknowledged is there."""

    def test_kill_loses_nothing_that_was_acknowledged(self) -> None:
        """A dozen times killed in the midst of writes, a node has all of them."""
        [name] = free_names(1)
        # As it would be started in a cluster of one that others may join.
        node = self.node(name, K="3", VIEW=name)
        load = Load([name])
        for _ in range(ROUNDS):
            start_all([node])
            count = len(load.acknowledged) + random.randrange(5, 60)
            with load.running():
                self.wait_for_writes(load, count)
                node.kill()
        start_all([node])
        self.assert_has_all(node, load)
        self.assertEqual(load.refused, [])

    def test_kill_in_a_cluster_loses_nothing(self) -> None:
        """A replica that is killed and started again has all writes of all."""
        names = free_names(2)
        self.cluster(names, 2)
        load = Load(names)
        victim = self.named(names[1])
        with load.running():
            for _ in range(3):
                self.wait_for_writes(load, len(load.acknowledged) + 40)
                victim.kill()
                self.wait_for_writes(load, len(load.acknowledged) + 20)
                start_all([victim])
        self.assert_has_all(victim, load)

    def test_stop_finishes_what_was_begun(self) -> None:
        """A node asked to end under load does so in time, and has all afterwards."""
        names = free_names(2)
        self.cluster(names, 2)
        node = self.named(names[0])
        load = Load(names[:1])
        with load.running():
            self.wait_for_writes(load, 50)
            self.assertLess(node.stop(), STOP_S)
        # Who came too late was told so, or found nobody.
        self.assertLessEqual(set(load.refused), {503})
        self.named(names[1]).kill()
        start_all([node])
        self.assert_has_all(node, load)

    def wait_for_writes(self, load: Load, count: int) -> None:
        """Wait until so many writes were acknowledged."""
        wait_until(
            f"{count} writes are acknowledged",
            lambda: len(load.acknowledged) >= count,
            within_s=30,
        )

    def assert_has_all(self, node: NodeProcess, load: Load) -> None:
        """A node gives back all that was acknowledged."""
        missing = [
            key
            for key, value in load.acknowledged.items()
            if get(node.name, key).fields.get("value") != value
        ]
        self.assertEqual(missing, [])
