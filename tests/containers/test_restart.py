"""Containers that are stopped, killed, made anew, and come back with their data."""

from __future__ import annotations

from tests.process.asking import get, put, status
from tests.process.balancing import Balancer
from tests.process.harness import wait_until
from tests.process.test_restart import Load

from .harness import PORT, ContainerCase


class RestartTests(ContainerCase):
    """Nothing that was acknowledged is lost, and somebody can be asked all the time."""

    def test_kill_and_start_with_the_same_volume(self) -> None:
        """A node that is killed under load has all of its writes when it is back."""
        nodes = self.cluster()
        victim = nodes[1]
        load = Load([node.name for node in nodes])
        with load.running():
            for _ in range(2):
                self.wait_for_writes(load, 50)
                victim.kill()
                self.wait_for_writes(load, 20)
                victim.start()
                victim.ready()
        self.wait_agree(nodes, dict(list(load.acknowledged.items())[-100:]))
        self.wait_agree([victim], load.acknowledged)

    def test_new_container_with_the_same_volume(self) -> None:
        """A lone node is killed, removed and made anew: its volume has everything."""
        [ip] = self.ips[:1]
        volume = f"--volume={self.volume('kept')}:/data"
        node = self.container(volume, ip=ip, IPPORT=f"{ip}:{PORT}")
        load = Load([node.name])
        for _ in range(3):
            node.run()
            node.ready()
            with load.running():
                self.wait_for_writes(load, 50)
                node.kill()
            node.discard()
        node.run()
        node.ready()
        self.wait_agree([node], load.acknowledged)

    def test_stop_loses_nothing(self) -> None:
        """``docker stop`` under load: in time, and what was acknowledged is there."""
        [ip] = self.ips[:1]
        node = self.container(ip=ip, IPPORT=f"{ip}:{PORT}")
        node.run()
        node.ready()
        load = Load([node.name])
        with load.running():
            self.wait_for_writes(load, 50)
            self.assert_stops(node)
        node.start()
        node.ready()
        self.wait_agree([node], load.acknowledged)
        # Who came too late was told so, or found nobody.
        self.assertLessEqual(set(load.refused), {503})

    def test_rolling_restart(self) -> None:
        """All four are restarted under load; no request to a ready node fails."""
        nodes = self.cluster()
        names = [node.name for node in nodes]
        balancer = Balancer(names)
        with balancer.running():
            for node in nodes:
                wait_until("all are ready", lambda: balancer.ready() == names, 30)
                self.assert_stops(node)
                node.start()
            wait_until("all are ready", lambda: balancer.ready() == names, 30)
        print(f"  {balancer.counts.total()} requests, none failed")

    def wait_for_writes(self, load: Load, count: int) -> None:
        """Wait until so many more writes were acknowledged."""
        enough = len(load.acknowledged) + count
        wait_until(
            f"{count} more writes are acknowledged",
            lambda: len(load.acknowledged) >= enough,
            within_s=30,
        )


class MoveTests(ContainerCase):
    """Nodes known by host name, as in Kubernetes: addresses come and go."""

    def test_nodes_that_swap_addresses(self) -> None:
        """Two nodes come back at each other's address, with their data and identity."""
        hosts = ["kvs-0", "kvs-1", "kvs-2"]
        view = ",".join(f"{host}:{PORT}" for host in hosts)

        def node(host: str, ip: str) -> None:
            new = self.container(
                f"--network-alias={host}",
                f"--volume={self.volume(host)}:/data",
                ip=ip,
                K="3",
                VIEW=view,
                IPPORT=f"{host}:{PORT}",
            )
            new.run()

        for host, ip in zip(hosts, self.ips, strict=False):
            node(host, ip)
        first, second, third = self.containers
        for each in self.containers:
            each.ready()
        put(first.name, "first", "one")
        put(second.name, "second", "two")
        before = {"first": "one", "second": "two"}
        self.wait_agree(self.containers, before)

        for old in (first, second):
            old.stop()
            old.discard()
        put(third.name, "third", "three")
        node("kvs-0", self.ips[1])
        node("kvs-1", self.ips[0])
        moved = self.containers[3:]
        for each in moved:
            each.ready()
        self.containers = [third, *moved]
        self.wait_agree(self.containers, {**before, "third": "three"})
        names = [status(each.name)["name"] for each in self.containers]
        self.assertEqual(names, [f"{host}:{PORT}" for host in ("kvs-2", *hosts[:2])])
        wait_until(
            "all see all",
            lambda: all(
                len(status(each.name)["alive"]) == 3 for each in self.containers
            ),
        )
        written = put(moved[0].name, "fourth", "four")
        read = get(moved[1].name, "fourth", written.payload)
        self.assertEqual((read.fields["value"], read.stale), ("four", False))
