"""
What a line of the log looks like, and which are written.

Invariants: an event is one line, of text or of JSON; in text alone a traceback follows
it, indented.  No event raises here, or Twisted would report the log to itself.

Where the lines go is for ``twistd`` and ``twist`` to say, by options of their own.
Twisted lets an application bring an observer, but no format and no level: so the
observer is made here, of the same options, and handed over by ``LoggedService``.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, Any

from constantly import NamedConstant  # type: ignore[import-untyped] # has no types
from twisted.application.service import MultiService
from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogObserver,
    LegacyLogObserverWrapper,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    PredicateResult,
    eventAsText,
    formatTime,
)
from twisted.python.components import Componentized
from twisted.python.failure import Failure
from twisted.python.logfile import LogFile
from zope.interface import implementer

LEVELS = ("debug", "info", "warn", "error", "critical")
FORMATS = ("text", "json")
FILE_DEFAULT = "twistd.log"
"""Of a daemon that was told no other, as ``twistd`` does."""

# What Twisted puts into events beside what the event says.
_FRAME = ("log_", "_")
_LEGACY = frozenset({"format", "isError", "message", "system", "time"})
_KEPT = frozenset({"log_level", "log_namespace", "log_time"})
_CONTROLS = {
    # Terminals act on the second range, too, and some programs break lines at the last.
    **{n: f"\\x{n:02x}" for n in (*range(32), *range(127, 160))},
    **{n: f"\\u{n:04x}" for n in (0x2028, 0x2029)},
    10: "\\n",
    13: "\\r",
}
_ANSWERS = "twisted.web._newclient.HTTPClientParser"
_INTEGER_MAX = 2**63
"""Greater ones are text: Python writes no integer of thousands of digits."""


@dataclass(frozen=True, slots=True)
class LogStyle:
    """How a node logs."""

    form: str = "text"
    """One of ``FORMATS``."""
    level: str = "info"
    """One of ``LEVELS``; what is below is not written."""
    requests: bool = False
    """Whether each request of a client is told."""

    @property
    def write(self) -> Callable[[LogEvent], str]:
        """What makes the line of an event, with its end."""
        return as_json if self.form == "json" else as_text

    def observer(self, out: IO[Any]) -> FileLogObserver:
        """
        Write every event to a file, whatever its level.

        What the file's encoding does not have is escaped.
        """
        encoding = getattr(out, "encoding", None) or "utf-8"

        def line(event: LogEvent) -> str:
            written = self.write(event).encode(encoding, "backslashreplace")
            return written.decode(encoding)

        return FileLogObserver(out, line)

    def filtered(self, observer: ILogObserver) -> ILogObserver:
        """Leave out what is below the level, but for standard error."""
        level = LogLevel.levelWithName(self.level)
        predicate = _FromLevel(level)
        # It tells of each useless line that comes from a peer's port, without end.
        predicate.setLogLevelForNamespace(_ANSWERS, max(level, LogLevel.warn))
        return FilteringLogObserver(observer, [predicate])


class _FromLevel(LogLevelFilterPredicate):
    def __call__(self, event: LogEvent) -> NamedConstant:
        # What twistd catches there is an "error", and may be why the process ends.
        if event.get("log_namespace") == "stderr":
            return PredicateResult.yes
        return super().__call__(event)


def as_text(event: LogEvent) -> str:
    """
    Write an event for people: time, level, who says it, what; then the traceback.

    What is said cannot look like another line: control characters are escaped.
    """
    said = f"{_time(event)} {_level(event):8} {_logger(event)}: {_said(event)}\n"
    failure = event.get("log_failure")
    if failure is None:
        return said
    lines = _traceback(failure).rstrip("\n").split("\n")
    return said + "".join(f"\t{line.translate(_CONTROLS)}\n" for line in lines)


def as_json(event: LogEvent) -> str:
    """
    Write an event for machines: one object in one line.

    ``time`` (UTC), ``level``, ``logger`` and ``message`` are always there; ``fields``
    has what the message was made of, ``error`` and ``traceback`` are those of a
    failure.
    """
    said = _said(event, escaped=False)
    written: dict[str, object] = {
        "time": datetime.fromtimestamp(event.get("log_time") or 0.0, UTC).isoformat(
            timespec="microseconds"
        ),
        "level": _level(event),
        "logger": _logger(event),
        "message": said,
    }
    fields = {
        name: _plain(value)
        for name, value in event.items()
        if not name.startswith(_FRAME) and name not in _LEGACY and value != said
    }
    if fields:
        written["fields"] = fields
    failure = event.get("log_failure")
    if failure is not None:
        written["error"] = _error(failure)
        written["traceback"] = _traceback(failure)
    return json.dumps(written) + "\n"


def _time(event: LogEvent) -> str:
    return str(formatTime(event.get("log_time")))


def _level(event: LogEvent) -> str:
    return str(getattr(event.get("log_level"), "name", "info"))


def _logger(event: LogEvent) -> str:
    return str(event.get("log_namespace") or "-").translate(_CONTROLS)


def _said(event: LogEvent, *, escaped: bool = True) -> str:
    # Of events that cannot be formatted this says so.
    said: str = eventAsText(
        event, includeTraceback=False, includeTimestamp=False, includeSystem=False
    )
    failure = event.get("log_failure")
    if failure is not None:
        said = f"{said}: {_error(failure)}" if said else _error(failure)
    return said.translate(_CONTROLS) if escaped else said


def _error(failure: Failure) -> str:
    try:
        return f"{type(failure.value).__name__}: {failure.getErrorMessage()}"
    except Exception:
        return "an error that cannot be told"


def _traceback(failure: Failure) -> str:
    try:
        return failure.getTraceback()
    except Exception:
        return "a traceback that cannot be told"


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int) and abs(value) <= _INTEGER_MAX:
        return value
    if isinstance(value, float):
        # JSON has no others.
        return value if abs(value) < float("inf") else str(value)
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"


class LoggedService(MultiService):
    """A service that brings the log of the application that it becomes part of."""

    def __init__(self, observer: ILogObserver | None) -> None:
        """
        Bring an observer.

        :param observer: None: Twisted's own is left in place.
        """
        super().__init__()
        self._observer = observer

    def setServiceParent(self, parent: object) -> None:
        """Hand the observer over, just before ``twistd`` asks for one."""
        if self._observer is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._observer)
        super().setServiceParent(parent)


def twistd_observer(
    style: LogStyle,
    options: Mapping[str, Any],
    *,
    call_later: Callable[[Callable[[], None]], object],
) -> ILogObserver | None:
    """
    Make what logs where ``twistd`` was told to log.

    :param options: of ``twistd``; its own ``--logger`` goes before this.
    :param call_later: calls something in the next turn; safe within a signal.
    :returns: None where ``twistd`` itself has something to say.
    """
    if options.get("syslog"):
        return style.filtered(_syslog_observer(style, options.get("prefix") or ""))
    name, stays = options.get("logfile"), options.get("nodaemon")
    if name == "-" and not stays:
        # A daemon has no standard output: twistd says so, and ends.
        return None
    if name == "-" or (stays and not name):
        return style.filtered(style.observer(sys.stdout))
    file = LogFile.fromFullPath(name or FILE_DEFAULT)
    if not signal.getsignal(signal.SIGUSR1):
        signal.signal(signal.SIGUSR1, lambda *_: call_later(file.rotate))
    return style.filtered(style.observer(file))


def find_observer(
    style: LogStyle,
    options: MutableMapping[str, Any] | None,
    *,
    call_later: Callable[[Callable[[], None]], object],
) -> ILogObserver | None:
    """
    Make the log of the command that runs the node: ``twistd`` or ``twist``.

    :param options: of the command, None where there is none; ``twist``, which makes its
        observer later, is told by them what to make.
    :param call_later: see ``twistd_observer``.
    """
    if options is None:
        return None
    if "fileLogObserverFactory" in options:
        options["fileLogObserverFactory"] = style.observer
        options["logLevel"] = LogLevel.levelWithName(style.level)
        return None
    return twistd_observer(style, options, call_later=call_later)


def _syslog_observer(style: LogStyle, prefix: str) -> ILogObserver:
    # Imported late: not every system has it.
    from twisted.python.syslog import SyslogObserver

    return syslog_observer(style, SyslogObserver(prefix).emit)


def syslog_observer(
    style: LogStyle, emit: Callable[[dict[str, Any]], None]
) -> ILogObserver:
    """
    Write events to syslog, each of them as one message in JSON, if that is wanted.

    :param emit: takes events as ``twisted.python.log`` made them.
    """
    legacy = LegacyLogObserverWrapper(emit)  # type: ignore[arg-type]  # legacy, as said
    return _JsonInside(legacy) if style.form == "json" else legacy


@implementer(ILogObserver)
class _JsonInside:
    """Makes a line of JSON of each event, and an event of that again."""

    def __init__(self, observer: ILogObserver) -> None:
        self._observer = observer

    def __call__(self, event: LogEvent) -> None:
        frame = {name: value for name, value in event.items() if name in _KEPT}
        line = as_json(event).rstrip("\n")
        self._observer({**frame, "log_format": "{line}", "line": line})
