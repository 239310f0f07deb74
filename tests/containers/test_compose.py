"""``compose.yaml``: four nodes by one command."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.process.asking import get, is_replica, put
from tests.process.balancing import is_ready
from tests.process.harness import PROJECT, wait_until

from .docker import IMAGE, OURS, PREFIX, command
from .harness import ContainerCase

COMPOSE = PROJECT / "compose.yaml"
SERVICES = [f"kvs{n}" for n in range(1, 5)]


class ComposeTests(ContainerCase):
    """Up, restarted, down and up again."""

    def setUp(self) -> None:
        """Have what is made by compose labelled, too, and apart from other clusters."""
        super().setUp()
        labels = {"labels": dict([OURS[1].split("=")])}
        services = {name: {"image": IMAGE, **labels} for name in SERVICES}
        net = f"10.{random.randrange(64, 250)}.{random.randrange(256)}"
        # A network is taken from the last file as a whole.
        ipam = {"ipam": {"config": [{"subnet": f"{net}.0/24"}]}}
        ours = {
            "services": services,
            "volumes": dict.fromkeys(SERVICES, labels),
            "networks": {"kvs": labels | ipam},
        }
        self.override = Path(self.mktemp()).absolute()
        self.override.write_text(json.dumps(ours), "utf-8")
        address = f"127.{random.randrange(1, 255)}.{random.randrange(256)}.1"
        self.settings = {
            "COMPOSE_PROJECT_NAME": PREFIX,
            "KVS_NET": net,
            "KVS_PUBLISH": address,
        }
        self.names = [f"{address}:{8080 + n}" for n in range(1, 5)]

    def test_one_command(self) -> None:
        """Three replicas and a proxy; data outlives the containers."""
        self.compose("up", "--detach", "--no-build")
        self.wait_ready()
        roles = [is_replica(name) for name in self.names]
        self.assertEqual(roles, [True, True, True, False])
        written = put(self.names[3], "key", "value")
        self.assertEqual(written.status, 201)
        self.compose("restart", "kvs2")
        self.wait_ready()
        self.compose("down")
        self.compose("up", "--detach", "--no-build")
        self.wait_ready()
        for name in self.names:
            read = get(name, "key", written.payload)
            self.assertEqual((read.fields["value"], read.stale), ("value", False))
        self.compose("down", "--volumes")

    def compose(self, *arguments: str) -> None:
        """Run a command of compose."""
        files = ("--file", str(COMPOSE), "--file", str(self.override))
        command("docker-compose", *files, *arguments, settings=self.settings)

    def wait_ready(self) -> None:
        """Wait until clients may ask all."""
        wait_until("all are ready", lambda: all(map(is_ready, self.names)), 20)
