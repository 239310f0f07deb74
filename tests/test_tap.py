"""What ``twistd kvs`` builds of what it was told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import cast

from twisted.application.service import IService
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from twisted_kvs.core.errors import BadConfiguration
from twisted_kvs.options import Configuration, Options
from twisted_kvs.services import KVSService
from twisted_kvs.tap import INodeReactor, node_service


def configured(*argv: str, **environ: str) -> Configuration:
    """Read a command line and an environment."""
    options = Options(environ)
    options.parseOptions(list(argv))
    return options.configuration


def run_python(program: str) -> tuple[int, bytes]:
    """Run a program in a process of its own; give its status and what it said."""
    outcome = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        check=False,
        timeout=60,
    )
    return outcome.returncode, outcome.stderr


class Assembly(SynchronousTestCase):
    """A whole node on a reactor in memory."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()

    def build(self, *argv: str, **environ: str) -> KVSService:
        """Build a node, as ``makeService`` does."""
        configuration = configured(*argv, **environ)
        return node_service(configuration, cast(INodeReactor, self.reactor))

    def test_a_node_listens_where_it_should(self) -> None:
        """The port opens when the service starts, and not before."""
        service = self.build(KVS_DATA_DIR="", KVS_LISTEN="tcp:8080:interface=127.0.0.1")
        self.assertTrue(IService.providedBy(service))
        self.assertEqual(self.reactor.tcpServers, [])
        service.privilegedStartService()
        port, _, _, interface = self.reactor.tcpServers[0]
        self.assertEqual((port, interface), (8080, "127.0.0.1"))
        service.startService()
        stopped = service.stopService()
        self.assertNoResult(stopped)
        self.reactor.advance(1)
        self.successResultOf(stopped)

    def test_a_node_gossips(self) -> None:
        """A node that was started with a view dials the others."""
        service = self.build(
            K="1",
            VIEW="127.0.0.1:8080,127.0.0.1:8081",
            KVS_DATA_DIR="",
            KVS_LISTEN="tcp:8080",
        )
        service.privilegedStartService()
        service.startService()
        self.reactor.advance(0.7)
        self.assertIn(8081, [port for _, port, *_ in self.reactor.tcpClients])
        service.stopService()
        self.reactor.pump([0.1] * 50)

    def test_a_bad_endpoint(self) -> None:
        """What is no endpoint is refused before anything starts."""
        for text in ("foo:1", "tcp:abc", "tcp", "tcp:80:nonsense=1", "ssl:443:"):
            with self.assertRaisesRegex(BadConfiguration, "KVS_LISTEN .--listen.: got"):
                self.build(KVS_DATA_DIR="", KVS_LISTEN=text)

    def test_a_bad_directory(self) -> None:
        """A data directory that must not be used is refused before a daemon forks."""
        path = Path(self.mktemp())
        path.write_text("a file")
        wanted = f"KVS_DATA_DIR .--data-dir.: got '{path.absolute()}'"
        with self.assertRaisesRegex(BadConfiguration, wanted):
            self.build(KVS_DATA_DIR=str(path), KVS_LISTEN="tcp:8080")

    def test_a_good_directory_is_not_touched(self) -> None:
        """Before the service starts nothing is made and no thread runs."""
        path = Path(self.mktemp())
        self.build(KVS_DATA_DIR=str(path), KVS_LISTEN="tcp:8080")
        self.assertFalse(path.exists())


class Loading(SynchronousTestCase):
    """Reading options must be possible before a reactor is chosen."""

    def test_nothing_heavy(self) -> None:
        """Loading plugin and options imports neither a reactor nor Klein nor treq."""
        program = (
            "import sys\n"
            "import twisted_kvs.tap\n"
            "twisted_kvs.tap.Options({}).parseOptions([])\n"
            "heavy = {'twisted.internet.reactor', 'klein', 'treq'}\n"
            "sys.exit(' '.join(heavy & set(sys.modules)) or None)\n"
        )
        self.assertEqual(run_python(program), (0, b""))


class WallClock(SynchronousTestCase):
    """The wall clock is for timestamps only."""

    def test_set_back_by_an_hour(self) -> None:
        """When the wall clock is set back, intervals and limits stay what they are."""
        program = (
            "import time\n"
            "real, offset = time.time, [0.0]\n"
            "time.time = lambda: real() + offset[0]\n"
            "from twisted_kvs import tap\n"
            "options = tap.Options({'KVS_DATA_DIR': '', 'KVS_LISTEN': 'tcp:8080'})\n"
            "options.parseOptions([])\n"
            "tap.makeService(options)\n"
            "from twisted.internet import reactor\n"
            "reactor.callLater(0.05, reactor.stop)\n"
            "offset[0] = -3600.0\n"
            "reactor.run()\n"
        )
        self.assertEqual(run_python(program), (0, b""))
