"""How nodes start, and what they refuse to start with."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

from twisted.trial.unittest import SkipTest

from .asking import Answer, get, is_replica, put, replicas, update_view
from .harness import (
    RUN_TWISTD,
    START_S,
    STOP_S,
    TWIST,
    TWISTD,
    NodeProcess,
    ProcessCase,
    clean_environment,
    free_names,
    is_free,
    start_all,
    wait_serving,
    wait_until,
)

DEFAULT_NAME = "127.0.0.1:8080"
# Sets the wall clock back by an hour as soon as a file appears.
CLOCK = """
import os, time
real, real_ns, S = time.time, time.time_ns, 3600
def is_back(): return os.path.exists("clock-is-back")
time.time = lambda: real() - is_back() * S
time.time_ns = lambda: real_ns() - is_back() * S * 10**9
"""


class Refused:
    """A node that should not start."""

    def __init__(self, directory: Path, wanted: str, settings: Mapping[str, str]):
        """
        Start it.

        :param wanted: what its one line must name.
        """
        self.wanted = wanted
        self.settings = settings
        self._process = subprocess.Popen(
            [sys.executable, *TWISTD, "kvs"],
            cwd=directory,
            env=clean_environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def outcome(self) -> tuple[int, str]:
        """Wait for its end; give exit status and output."""
        try:
            output, _ = self._process.communicate(timeout=START_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            output = "it runs:\n" + self._process.communicate()[0]
        return self._process.returncode, output


class RefusalTests(ProcessCase):
    """Starts that end with one line."""

    def assert_refused(self, *cases: tuple[str, Mapping[str, str]]) -> None:
        """Each start fails with one line that holds these words, and nothing else."""
        started = [
            Refused(self.directory, wanted, settings) for wanted, settings in cases
        ]
        for case, (status, output) in [(case, case.outcome()) for case in started]:
            told = f"{case.settings}: {output}"
            self.assertNotEqual(status, 0, told)
            self.assertEqual(output.count("\n"), 1, told)
            self.assertIn(case.wanted, output, told)
            self.assertNotIn("Traceback", output, told)
            self.assertNotIn("Usage", output, told)

    def test_bad_configuration(self) -> None:
        """Each bad value is told in a line with its variable."""
        one, other = free_names(2)
        (self.directory / "empty").touch()
        good = {"K": "3", "VIEW": f"{one},{other}", "IPPORT": one}
        self.assert_refused(
            ("K ", {**good, "K": "0"}),
            ("K ", {**good, "K": "x"}),
            ("K ", {"VIEW": one, "IPPORT": one}),
            ("IPPORT ", {"IPPORT": "127.0.0.1"}),
            ("IPPORT ", {"IPPORT": "127.0.0.1:080"}),
            ("IPPORT ", {**good, "VIEW": other}),
            ("VIEW ", {**good, "VIEW": f"{one},{other},{one}"}),
            ("VIEW ", {**good, "VIEW": f"{one},nonsense"}),
            ("KVS_LISTEN ", {**good, "KVS_LISTEN": "nonsense"}),
            ("KVS_SECRET_FILE ", {"KVS_SECRET_FILE": "empty"}),
            ("KVS_SECRET_FILE ", {"KVS_SECRET_FILE": "absent"}),
            ("KVS_SECRET_FILE ", {"KVS_SECRET_FILE": "empty", "KVS_SECRET": "x"}),
            ("KVS_SECRET:", {"KVS_SECRET": ""}),
            ("KVS_LOG_FORMAT ", {"KVS_LOG_FORMAT": "xml"}),
            ("KVS_LOG_LEVEL ", {"KVS_LOG_LEVEL": "loud"}),
            ("KVS_DRAIN_S ", {"KVS_DRAIN_S": "-1"}),
            ("KVS_DATA_DIR ", {"KVS_DATA_DIR": "/dev/null"}),
            ("KVS_DATA_DIR ", {"KVS_DATA_DIR": "empty"}),
            ("KVS_DATA_DIR ", {"KVS_DATA_DIR": "empty/below"}),
        )

    def test_what_others_use(self) -> None:
        """A port or a directory that is not to be had is told in a line."""
        mine, other, taken = free_names(3)
        node = self.node(mine, KVS_SECRET="ours", KVS_DATA_DIR="here")
        start_all([node])
        host, port = taken.split(":")
        with closing(socket.create_server((host, int(port)))):
            self.assert_refused(
                ("IPPORT ", {"IPPORT": taken}),
                (
                    "here/kvs.lock",
                    {
                        **node.settings,
                        # Not the port is to be what stops it.
                        "KVS_LISTEN": "tcp:0:interface=127.0.0.1",
                    },
                ),
            )
        self.assertEqual(put(mine, "key", "value").status, 201)
        node.stop()
        self.assert_refused(
            ("here/kvs.identity", {**node.settings, "IPPORT": other}),
            ("here/kvs.identity", {**node.settings, "KVS_SECRET": "theirs"}),
        )
        start_all([node])
        self.assertEqual(get(mine, "key").fields["value"], "value")


class SingleTests(ProcessCase):
    """Nodes that are started in unusual ways and work as usual."""

    def test_no_configuration_at_all(self) -> None:
        """Both commands of Twisted start a node that works alone, and keeps data."""
        if not is_free(DEFAULT_NAME):
            raise SkipTest(f"something listens on {DEFAULT_NAME}")
        for command, status in ((TWISTD, 201), (TWIST, 200)):
            node = self.node(command=command)
            start_all([node])
            self.assertTrue(is_replica(DEFAULT_NAME))
            self.assertEqual(replicas(DEFAULT_NAME), [DEFAULT_NAME])
            written = put(DEFAULT_NAME, "key", "value")
            self.assertEqual((written.status, written.fields["node_id"]), (status, 0))
            self.assertFalse(written.stale)
            again = update_view(DEFAULT_NAME, "add", DEFAULT_NAME)
            self.assertEqual(again.status, 200)
            self.assertEqual(again.fields["number_of_nodes"], 1)
            node.stop()
        self.assertTrue((self.directory / "kvs-data" / "127.0.0.1_8080").is_dir())

    def test_memory_only(self) -> None:
        """With an empty KVS_DATA_DIR nothing is written to disk, and all works."""
        names = free_names(2)
        view = ",".join(names)
        nodes = [self.node(name, K="2", VIEW=view, KVS_DATA_DIR="") for name in names]
        start_all(nodes)
        written = put(names[0], "key", "value")
        read = get(names[1], "key", written.payload)
        self.assertEqual(read.fields["value"], "value")
        # Without a disk the other node is where a restarted one has its data from.
        nodes[0].kill()
        start_all(nodes[:1])
        self.assertEqual(get(names[0], "key").fields["value"], "value")
        left = {path.name for path in self.directory.iterdir()}
        self.assertEqual(left, {node.log.name for node in nodes})

    def test_stale_pid_files_do_not_matter(self) -> None:
        """A node that was killed starts again, even if its pid is another's now."""
        [name] = free_names(1)
        node = self.node(name)
        start_all([node])
        self.assertEqual(put(name, "key", "value").status, 201)
        node.kill()
        for path in (self.directory, self.directory / "kvs-data"):
            # Ours runs, as process 1 does in every container.
            (path / "twistd.pid").write_text(f"{os.getpid()}\n")
        start_all([node])
        self.assertEqual(get(name, "key").fields["value"], "value")


class LogTests(ProcessCase):
    """What both commands of Twisted write to standard output."""

    def test_json(self) -> None:
        """Every line is an object, from the first to the last, and none is debug."""
        name = free_names(1)[0]
        for command in (TWISTD, TWIST):
            node = self.node(name, command=command, KVS_LOG_FORMAT="json")
            node.log.unlink(missing_ok=True)
            start_all([node])
            node.stop()
            said = [json.loads(line) for line in node.log_text.splitlines()]
            levels = {event["level"] for event in said}
            self.assertEqual(levels, {"info", "warn"})
            [started] = [s for s in said if "listens on" in s["message"]]
            self.assertEqual(started["logger"], "twisted_kvs.services.NodeService")
            # Not only ours: what Twisted says, too.
            self.assertIn("Main loop terminated.", [s["message"] for s in said])

    def test_level(self) -> None:
        """What is below the level that was asked for is not there."""
        for command in (TWISTD, TWIST):
            node = self.node(command=command, KVS_LISTEN="tcp:0", KVS_LOG_LEVEL="warn")
            node.log.unlink(missing_ok=True)
            node.start()
            wait_until("it warns", partial(log_text, node), START_S)
            node.stop()
            [line] = node.log_text.splitlines()
            self.assertIn(" warn ", line)
            self.assertIn("KVS_SECRET is not set", line)


def log_text(node: NodeProcess) -> str:
    """Give what a node has said by now."""
    return node.log_text


class DaemonTests(ProcessCase):
    """Nodes that go to the background, as twistd does unless told otherwise."""

    def test_daemon_stores_and_stops(self) -> None:
        """It answers, keeps what it was given, and ends when its process is told to."""
        [name] = free_names(1)
        for status in (201, 200):
            self.assertEqual(self.start(name, "node").returncode, 0)
            wait_until("it answers", lambda: is_replica(name), START_S)
            pid = int((self.directory / "node.pid").read_text())
            self.addCleanup(end, pid)
            self.assertEqual(put(name, "key", "value").status, status)
            # What keeps another from starting is told where it was started.
            second = self.start(name, "second", KVS_LISTEN="tcp:0")
            self.assertNotEqual(second.returncode, 0)
            self.assertEqual(second.stdout.count("\n"), 1, second.stdout)
            self.assertIn("kvs.lock", second.stdout)
            os.kill(pid, signal.SIGTERM)
            wait_until("it has ended", partial(is_gone, pid), STOP_S)
        log = (self.directory / "node.log").read_text()
        self.assertNotIn("Traceback", log)

    def start(
        self, name: str, files: str, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        """Start a daemon; return when its parent has ended."""
        options = (f"--pidfile={files}.pid", f"--logfile={files}.log")
        return subprocess.run(
            [sys.executable, "-c", RUN_TWISTD, *options, "kvs"],
            cwd=self.directory,
            env=clean_environment({"IPPORT": name, **settings}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=START_S,
            text=True,
            check=False,
        )


def is_gone(pid: int) -> bool:
    """Tell whether there is no process with this pid any more."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # Perhaps nobody asks for the exit status of one whose parent ended first.
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"


def end(pid: int) -> None:
    """Make sure that a process runs no more."""
    if not is_gone(pid):
        os.kill(pid, signal.SIGKILL)


class ClockTests(ProcessCase):
    """Clocks that are set."""

    def test_wall_clock_set_back_while_it_runs(self) -> None:
        """Gossip, liveness and answers go on; an overwrite wins against the clock."""
        names = free_names(3)
        view = ",".join(names)
        command = ("-c", f"{CLOCK}\n{RUN_TWISTD}", *TWISTD[2:])
        nodes = [self.node(name, K="2", VIEW=view, command=command) for name in names]
        start_all(nodes)
        wait_serving(names[0])
        before = put(names[0], "key", "before")
        (self.directory / "clock-is-back").touch()
        after = put(names[1], "key", "after", before.payload)
        age = float(before.fields["timestamp"]) - float(after.fields["timestamp"])
        self.assertGreater(age, 3000, "the clock was not set back")
        for name in names:
            self.assert_reads(get(name, "key", after.payload), "after")
        # The proxy can only take the place of the dead one if time goes on.
        nodes[0].kill()
        wait_until("roles follow", lambda: replicas(names[2]) == names[1:])
        wait_serving(names[2])
        self.assert_reads(get(names[2], "key"), "after")
        start_all(nodes[:1])
        wait_until("roles follow", lambda: replicas(names[2]) == names[:2])
        wait_until(
            "all agree",
            lambda: {get(name, "key").fields["value"] for name in names} == {"after"},
        )
        self.assertLess(nodes[1].stop(), 5)

    def assert_reads(self, answer: Answer, value: str) -> None:
        """A read gave this value in time."""
        self.assertEqual((answer.status, answer.fields["value"]), (200, value))
        self.assert_in_time([answer.seconds])
