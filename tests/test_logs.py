"""How a node logs, and that twistd and twist let it."""

from __future__ import annotations

import io
import json
import signal
import sys
from pathlib import Path
from typing import Any

from twisted.application.service import Application, Service
from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    Logger,
    LogLevel,
)
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web._newclient import HTTPClientParser

from twisted_kvs.logs import (
    LEVELS,
    LoggedService,
    LogStyle,
    find_observer,
    syslog_observer,
)


class Untellable:
    """Something that cannot be shown."""

    def __str__(self) -> str:
        raise ValueError("no")

    __repr__ = __str__


class LogCase(SynchronousTestCase):
    """A log in memory."""

    def setUp(self) -> None:
        self.out = io.StringIO()

    def logger(self, form: str = "text", level: str = "info") -> Logger:
        """Log to memory."""
        style = LogStyle(form=form, level=level)
        observer = style.filtered(style.observer(self.out))
        return Logger(namespace="tests.log", observer=observer)

    @property
    def lines(self) -> list[str]:
        """What was logged."""
        return self.out.getvalue().splitlines()

    def only(self) -> dict[str, Any]:
        """Read the one line of JSON that was logged."""
        [line] = self.lines
        said = json.loads(line)
        assert isinstance(said, dict)
        return said


def failure() -> Failure:
    """Fail, with a line break in the error."""
    try:
        raise OSError("no\nroom")
    except OSError:
        return Failure()


class TextTests(LogCase):
    """Lines for people."""

    def test_a_line(self) -> None:
        """Time, level, who says it, what."""
        self.logger().warn("{peer} is slow", peer="a:1")
        [line] = self.lines
        self.assertRegex(line, r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} ")
        self.assertEqual(line.split(" ", 1)[1], "warn     tests.log: a:1 is slow")

    def test_nothing_said_makes_another_line(self) -> None:
        """What others have a say in cannot be taken for an event of its own."""
        self.logger().info("{said}", said="x\n2026-01-01 fake\r\x1b[2J\x00")
        [line] = self.lines
        self.assertIn(r"x\n2026-01-01 fake\r\x1b[2J\x00", line)
        self.logger().info("{said}", said="\x9b31mred\x85\u2028\u2029\u00e9")
        self.assertIn("\\x9b31mred\\x85\\u2028\\u2029\u00e9", self.lines[1])

    def test_nor_does_a_traceback(self) -> None:
        """What an error says is escaped there, too, line by line."""
        try:
            raise OSError("\x1b[31mred\rgone")
        except OSError:
            self.logger().failure("no")
        text = self.out.getvalue()
        self.assertNotIn("\x1b", text)
        self.assertNotIn("\r", text)
        self.assertIn("\\x1b[31mred\\rgone", self.lines[-1])

    def test_what_a_file_cannot_hold_is_escaped(self) -> None:
        """No line is lost for a letter that the file's encoding does not have."""
        for encoding, said in (
            ("ascii", "\\xe5 \\udcff"),
            ("utf-8", "\u00e5 \\udcff"),
        ):
            raw = io.BytesIO()
            observer = LogStyle().observer(io.TextIOWrapper(raw, encoding=encoding))
            Logger("tests", observer=observer).info("{x}", x="\u00e5 \udcff")
            self.assertIn(said, raw.getvalue().decode(encoding))

    def test_a_failure(self) -> None:
        """Its traceback follows, indented."""
        self.logger().failure("cannot {do}", failure=failure(), do="write")
        first, *rest = self.lines
        self.assertIn("critical tests.log: cannot write: OSError: no", first)
        self.assertIn("\tTraceback (most recent call last):", rest)
        self.assertTrue(all(line.startswith("\t") for line in rest))

    def test_what_cannot_be_told(self) -> None:
        """An event that cannot be formatted is still a line."""
        self.logger().info("{absent}")
        self.logger().info("{x}", x=Untellable())
        self.logger("json").info("a number", n=10**5000)
        self.assertEqual(len(self.lines), 3)


class JsonTests(LogCase):
    """Lines for machines."""

    def test_an_event(self) -> None:
        """Message and fields, in one line; the time is UTC."""
        self.logger("json").info(
            "{peer}:\n{n} of {part}, {who}", peer="\u00e9", n=3, part=0.5, who=self
        )
        said = self.only()
        self.assertEqual(set(said), {"time", "level", "logger", "message", "fields"})
        self.assertTrue(said["time"].endswith("+00:00"))
        self.assertEqual((said["level"], said["logger"]), ("info", "tests.log"))
        self.assertTrue(said["message"].startswith("\u00e9:\n3 of 0.5"))
        self.assertEqual(
            said["fields"], {"peer": "\u00e9", "n": 3, "part": 0.5, "who": str(self)}
        )

    def test_a_failure(self) -> None:
        """Its traceback is in the same line."""
        self.logger("json").failure("cannot {do}", failure=failure(), do="write")
        said = self.only()
        self.assertEqual(said["level"], "critical")
        self.assertEqual(said["error"], "OSError: no\nroom")
        self.assertIn("Traceback (most recent call last):\n", said["traceback"])
        self.assertEqual(said["fields"], {"do": "write"})

    def test_what_json_cannot_say(self) -> None:
        """Whatever is in an event, it is a line of JSON."""
        self.logger("json").info(
            "{x}", x=Untellable(), nan=float("nan"), bytes=b"\xff", lone="\ud800"
        )
        fields = self.only()["fields"]
        self.assertEqual(fields["x"], "<Untellable>")
        self.assertEqual((fields["nan"], fields["bytes"]), ("nan", r"b'\xff'"))

    def test_what_repeats_the_message(self) -> None:
        """A field that is the whole message is not told twice."""
        self.logger("json").info("{line}", line="started")
        self.assertNotIn("fields", self.only())


class LevelTests(LogCase):
    """What is below the level is not written."""

    def test_each(self) -> None:
        """Every level shows itself and what is above."""
        for number, level in enumerate(LEVELS):
            self.out = io.StringIO()
            log = self.logger(level=level)
            for name in LEVELS:
                log.emit(LogLevel.levelWithName(name), "x")
            shown = [line.split()[1] for line in self.lines]
            self.assertEqual(shown, list(LEVELS[number:]))

    def test_standard_error(self) -> None:
        """Why a node cannot start is said there, as an error; it is always told."""
        style = LogStyle(level="critical")
        observer = style.filtered(style.observer(self.out))
        Logger(namespace="stderr", observer=observer).error("kvs: no")
        self.assertEqual(len(self.lines), 1)

    def test_a_talkative_peer(self) -> None:
        """Useless lines of what answers at a peer's port are not told one by one."""
        namespace = "twisted.web._newclient.HTTPClientParser"
        for level, lines in (("debug", 1), ("warn", 1), ("critical", 0)):
            self.out = io.StringIO()
            style = LogStyle(level=level)
            observer = style.filtered(style.observer(self.out))
            log = Logger(namespace=namespace, observer=observer)
            log.info("Ignoring unexpected {code} response", code=100)
            log.warn("something else")
            self.assertEqual(len(self.lines), lines, level)
        self.assertEqual(HTTPClientParser._log.namespace, namespace)


class DestinationTests(SynchronousTestCase):
    """Lines go where twistd and twist were told to send them."""

    def setUp(self) -> None:
        self.later: list[Any] = []
        self.style = LogStyle(form="json", level="warn")
        # An earlier test run may have come with a handler of its own.
        before = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        self.addCleanup(signal.signal, signal.SIGUSR1, before)

    def find(self, options: dict[str, Any] | None) -> ILogObserver | None:
        """Look for the observer that goes with the options of a command."""
        return find_observer(self.style, options, call_later=self.later.append)

    def say(self, observer: ILogObserver) -> None:
        """Log one line that is to be written, and one that is not."""
        log = Logger(namespace="tests.log", observer=observer)
        log.info("not this")
        log.warn("this")

    def test_without_a_command(self) -> None:
        """Nobody who runs it: nothing is done."""
        self.assertIsNone(self.find(None))

    def test_standard_output(self) -> None:
        """In the foreground lines go to standard output."""
        for name in ("", "-"):
            out = io.StringIO()
            self.patch(sys, "stdout", out)
            observer = self.find({"nodaemon": True, "logfile": name})
            assert observer is not None
            self.say(observer)
            self.assertEqual(json.loads(out.getvalue())["message"], "this")

    def test_a_file(self) -> None:
        """--logfile is obeyed; SIGUSR1 begins a new one, as twistd promises."""
        path = Path(self.mktemp())
        observer = self.find({"nodaemon": False, "logfile": str(path)})
        assert observer is not None
        self.say(observer)
        self.assertEqual(json.loads(path.read_text())["message"], "this")
        signal.raise_signal(signal.SIGUSR1)
        [rotate] = self.later
        rotate()
        self.say(observer)
        self.assertEqual(path.with_name(path.name + ".1").read_text().count("\n"), 1)
        self.assertEqual(path.read_text().count("\n"), 1)

    def test_a_daemon_on_standard_output(self) -> None:
        """That is for twistd to refuse, in its own words."""
        self.assertIsNone(self.find({"nodaemon": False, "logfile": "-"}))

    def test_syslog(self) -> None:
        """With --syslog an event is one message, in JSON if that is wanted."""
        events: list[dict[str, Any]] = []
        for form in ("json", "text"):
            self.style = LogStyle(form=form, level="warn")
            observer = syslog_observer(self.style, events.append)
            self.say(self.style.filtered(observer))
        json_said, text_said = (event["format"] % event for event in events)
        self.assertEqual(json.loads(json_said)["message"], "this")
        self.assertEqual(text_said, "this")

    def test_twist(self) -> None:
        """Twist makes its observer itself, of our format, with our level."""
        options: dict[str, Any] = {"fileLogObserverFactory": None, "logLevel": None}
        self.assertIsNone(self.find(options))
        self.assertIs(options["logLevel"], LogLevel.warn)
        out = io.StringIO()
        self.say(options["fileLogObserverFactory"](out))
        self.assertEqual(json.loads(out.getvalue().splitlines()[1])["message"], "this")

    def test_twistd_takes_it(self) -> None:
        """The service hands it over to the application, which twistd asks for it."""
        observer = FilteringLogObserver(self.style.observer(io.StringIO()), [])
        logged, part = LoggedService(observer), Service()
        part.setServiceParent(logged)
        application = Application("kvs")
        logged.setServiceParent(application)
        self.assertIs(application.getComponent(ILogObserver), observer)
        bare = Application("kvs")
        LoggedService(None).setServiceParent(bare)
        self.assertIsNone(bare.getComponent(ILogObserver, None))
