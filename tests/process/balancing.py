"""Clients behind a load balancer, which lets them ask nodes that say they are ready."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from .asking import ask, get, put

WATCH_S = 0.2
FRESH_S = 0.5
"""What a node said of itself counts for so long; less than it drains."""
CLIENTS = 4


def is_ready(name: str) -> bool:
    """Ask a node whether it is ready."""
    return ask(name, "GET", "/health/ready").status == 200


class Balancer:
    """Watches nodes, and lets clients ask those that are ready."""

    def __init__(self, names: list[str]) -> None:
        """Watch nobody yet."""
        self.names = names
        self.over = threading.Event()
        self.counts: Counter[str] = Counter()
        """Requests, by node."""
        self.faults: list[str] = []
        self._ready_at = dict.fromkeys(names, -FRESH_S)

    @contextmanager
    def running(self) -> Iterator[None]:
        """
        Watch, and let clients ask, as long as this lasts.

        :raises AssertionError: at its end, if a request went wrong or a node got none.
        """
        with ThreadPoolExecutor(len(self.names) + CLIENTS) as threads:
            for name in self.names:
                threads.submit(self.watch, name)
            clients = [threads.submit(self.client, n) for n in range(CLIENTS)]
            try:
                yield
            finally:
                self.over.set()
        for client in clients:
            client.result()
        assert not self.faults, self.faults
        assert set(self.counts) == set(self.names), self.counts
        assert self.counts.total() > 100, self.counts

    def watch(self, name: str) -> None:
        """Ask a node for its health again and again, as balancers do."""
        while not self.over.wait(WATCH_S):
            asked = time.monotonic()
            try:
                ready = is_ready(name)
            except OSError:
                ready = False
            self._ready_at[name] = asked if ready else -FRESH_S

    def ready(self) -> list[str]:
        """List the nodes that said lately that they are ready."""
        limit = time.monotonic() - FRESH_S
        return [name for name in self.names if self._ready_at[name] > limit]

    def client(self, number: int) -> None:
        """Write and read, each at some node that is ready; note what goes wrong."""
        chance, payload, value = random.Random(number), "", 0
        key = f"key {number}"
        while not self.over.is_set():
            ready = self.ready()
            if not ready:
                self.over.wait(WATCH_S)
                continue
            at = chance.choice(ready)
            writes = not payload or chance.random() < 0.3
            try:
                if writes:
                    answer = put(at, key, str(value + 1), payload)
                else:
                    answer = get(at, key, payload)
            except OSError as error:
                self.faults.append(f"{at}: {error!r}")
                continue
            self.counts[at] += 1
            if answer.status not in (200, 201):
                self.faults.append(f"{at}: {answer}")
                continue
            value += writes
            payload = answer.payload
            if not writes and answer.fields["value"] != str(value):
                self.faults.append(f"{at}: {answer} is not {value}")
