"""The image itself."""

from __future__ import annotations

import time

from tests.process.asking import put
from tests.process.harness import STOP_S, wait_until
from twisted_kvs.first_process import EXIT_STATUS

from .docker import DockerFailed, docker
from .harness import PORT, ContainerCase


class ImageTests(ContainerCase):
    """What the image is, and what it needs."""

    def test_hardened(self) -> None:
        """It needs no rights, and writes to its volume only."""
        [ip] = self.ips[:1]
        node = self.container(
            "--read-only",
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges",
            "--health-interval=1s",
            ip=ip,
            IPPORT=f"{ip}:{PORT}",
        )
        node.run()
        node.ready()
        self.assertEqual(put(node.name, "key", "value").status, 201)
        self.assertEqual(node.within("id", "-u"), "10001")
        self.assertNotIn("plugin cache", node.log_text)
        wait_until(
            "it is healthy",
            lambda: node.inspect("{{.State.Health.Status}}") == "healthy",
        )

    def test_no_tools(self) -> None:
        """Whatever installs or compiles stayed behind in the stage that built it."""
        node = self.container(ip=self.ips[0], IPPORT=f"{self.ips[0]}:{PORT}")
        node.run()
        found = node.within(
            "sh", "-c", "command -v gcc cc make git || true; ls /opt /opt/kvs/bin"
        ).split()
        self.assertIn("twistd", found)
        self.assertEqual([name for name in found if name.startswith("pip")], [])
        self.assertNotIn("build", found)
        self.assertEqual([name for name in found if name.startswith("/usr")], [])
        for module in ("pip", "ensurepip", "setuptools"):
            with self.assertRaises(DockerFailed, msg=module):
                node.within("python3", "-c", f"import {module}")
            with self.assertRaises(DockerFailed, msg=module):
                node.within("/usr/bin/env", "-i", "python3", "-c", f"import {module}")

    def test_process_1(self) -> None:
        """The node itself gets the engine's signals."""
        node = self.container(ip=self.ips[0], IPPORT=f"{self.ips[0]}:{PORT}")
        node.run()
        command = node.within("cat", "/proc/1/cmdline").split("\0")
        self.assertEqual(command[2:], ["--nodaemon", "--pidfile=", "kvs", ""])

    def test_told_to_stop_while_it_starts(self) -> None:
        """Process 1 has no default action for a signal: it must not be lost."""
        node = self.container(ip=self.ips[0], IPPORT=f"{self.ips[0]}:{PORT}")
        node.run()
        # Each look takes some hundredths of a second.  Python itself needs three of
        # them until it can take signals.
        for looks in (3, 5, 8, 12, 20):
            for _ in range(looks):
                self.assertEqual(node.inspect("{{.State.Running}}"), "true")
            began = time.monotonic()
            docker("stop", node.id)
            took = time.monotonic() - began
            self.assertLess(took, STOP_S, f"told to stop after {looks} looks")
            status = node.inspect("{{.State.ExitCode}}")
            self.assertIn(status, ("0", str(EXIT_STATUS)), node.tail())
            node.start()

    def test_bad_configuration(self) -> None:
        """It ends with one line that names the variable."""
        node = self.container(ip=self.ips[0], K="0", VIEW="a:1", IPPORT="a:1")
        node.run()
        self.assertEqual(docker("wait", node.id), "1")
        self.assertRegex(node.log_text, r"\Akvs: K [^\n]*'0'[^\n]*\Z")
