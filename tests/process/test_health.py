"""What a load balancer sees: nodes that say when they may be asked."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from .asking import ask, put
from .balancing import Balancer, is_ready
from .harness import (
    NodeProcess,
    ProcessCase,
    clean_environment,
    free_names,
    wait_until,
)


class RollingRestartTests(ProcessCase):
    """New software, node by node, while clients go on."""

    def test_no_request_fails(self) -> None:
        """All four nodes are restarted under load; who is ready answers rightly."""
        names = free_names(4)
        self.cluster(names, 3)
        balancer = Balancer(names)
        with balancer.running():
            for name in names:
                wait_until("all are ready", lambda: balancer.ready() == names)
                node = self.named(name)
                self.assertLess(node.stop(), 5)
                # There was somebody to ask all the time.
                self.assertGreater(len(balancer.ready()), 0)
                node.start()
                node.ready()
            wait_until("all are ready", lambda: balancer.ready() == names)


class StopTests(ProcessCase):
    """What a node says and does between being told to stop and stopping."""

    def test_ready_no_more_and_answering(self) -> None:
        """It tells at once that it leaves, and answers until the drain is over."""
        [name] = free_names(1)
        node = self.node(name, KVS_DRAIN_S="3")
        node.start()
        node.ready()
        self.assertTrue(is_ready(name))
        began = time.monotonic()
        node.signal(signal.SIGTERM)
        wait_until("it says so", lambda: not is_ready(name), 2.0)
        self.assertEqual(ask(name, "GET", "/health/live").status, 200)
        self.assertEqual(put(name, "key", "value").status, 201)
        node.ended()
        self.assertGreater(time.monotonic() - began, 3)

    def test_told_twice(self) -> None:
        """Who tells it again waits no longer, and sees no traceback."""
        [name] = free_names(1)
        node = self.node(name, KVS_DRAIN_S="300")
        node.start()
        node.ready()
        # No SIGINT: what runs in the background of a shell may ignore it.
        node.signal(signal.SIGTERM)
        wait_until("it leaves", lambda: not is_ready(name), 2.0)
        node.signal(signal.SIGTERM)
        self.assertIn(node.ended(), (0, -signal.SIGTERM))
        self.assertIn("told again to stop", node.log_text)


class HealthcheckTests(ProcessCase):
    """What an engine runs in a container to see whether its node lives."""

    def test_it_follows_the_node(self) -> None:
        """Its exit status is 0 while the node answers, and 1 with a line else."""
        [name] = free_names(1)
        # On all addresses, as a container's node listens.
        node = self.node(name, KVS_LISTEN=f"tcp:{name.rpartition(':')[2]}")
        self.assertEqual(self.check(node)[0], 1)
        node.start()
        node.ready()
        self.assertEqual(self.check(node), (0, ""))
        node.kill()
        status, said = self.check(node)
        self.assertEqual(status, 1)
        self.assertRegex(said, r"\Ano answer: [^\n]+\n\Z")

    def check(self, node: NodeProcess) -> tuple[int, str]:
        """Run it in the node's environment; give its exit status and what it said."""
        done = subprocess.run(
            [sys.executable, "-m", "twisted_kvs.healthcheck"],
            env=clean_environment(node.settings),
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr
