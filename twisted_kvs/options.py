"""
What an operator can say to a node, by options and environment variables.

Invariant: what is wrong is told as one line that names the variable, what it got and
what it wants, before anything was started; the exit status is 1.  (``UsageError`` would
print a page of usage first.)
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from twisted.python import usage

from .core.causality import Name
from .core.errors import BadConfiguration, BadName, KVSError
from .core.names import is_ip, is_loopback, parse_name, parse_names, split_name
from .core.secrets import DEFAULT_SECRET, Secrets, parse_secret_file
from .core.settings import MIB, Settings
from .core.versions import VALUE_BYTES_MAX
from .logs import FORMATS, LEVELS, LogStyle

ME_DEFAULT = "127.0.0.1:8080"
DATA_ROOT = "kvs-data"
"""Where a node without KVS_DATA_DIR makes its own directory."""
BACKLOG = 1024
"""Connections that the system takes while the node is busy; of Twisted's own 50 a crowd
makes seconds of waiting.  The system may allow fewer (net.core.somaxconn)."""
REPLICAS_MAX = 1_000_000
DRAIN_DEFAULT_S = 1.0
DRAIN_S_MAX = 300.0
SECRET_FILE_BYTES_MAX = MIB

_T = TypeVar("_T")
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What one node is told at its start; checked as far as it can be without I/O."""

    me: Name
    replica_count: int | None
    """K; None where none was given."""
    first_view: tuple[Name, ...]
    """In the order of VIEW; empty for a node that waits to be added."""
    listen: str | None
    """A server endpoint; None: on ``default_interface`` and the port of ``me``."""
    directory: str | None
    """Of the store, absolute; None: memory only."""
    secrets: Secrets
    drain_s: float
    """Between being told to stop and stopping; not ready any more, but answering."""
    log: LogStyle
    settings: Settings
    unknown: tuple[str, ...] = ()
    """Variables that look like ours and mean nothing."""


@dataclass(frozen=True, slots=True)
class _Variable:
    """One thing that an operator can set: by option or, if that is absent, variable."""

    option: str
    """Without the two dashes in front."""
    name: str
    """Of the environment variable."""
    doc: str

    @property
    def shown(self) -> str:
        """How messages call it."""
        return f"{self.name} (--{self.option})"


_K = _Variable("replicas", "K", "number of replicas, 1 or more; goes with VIEW")
_VIEW = _Variable(
    "view", "VIEW", "ip:port of the first nodes, comma-separated [alone, to be added]"
)
_IPPORT = _Variable(
    "ipport", "IPPORT", f"this node's own ip:port, as others reach it [{ME_DEFAULT}]"
)
_LISTEN = _Variable(
    "listen",
    "KVS_LISTEN",
    "Twisted server endpoint [IPPORT's port; on loopback only if IPPORT is there, "
    "else on all addresses]",
)
_DATA_DIR = _Variable(
    "data-dir",
    "KVS_DATA_DIR",
    f"directory of the store; empty: memory only [{DATA_ROOT}/<ip>_<port>]",
)
_SECRET_FILE = _Variable(
    "secret-file",
    "KVS_SECRET_FILE",
    "file with the cluster's secrets, one a line: the first signs, all verify",
)
_SPREAD = _Variable(
    "spread",
    "KVS_SPREAD",
    "hand requests on, so that all replicas get the same number",
)
_DRAIN = _Variable(
    "drain-s",
    "KVS_DRAIN_S",
    f"seconds to answer on, but be ready no more, before a stop [{DRAIN_DEFAULT_S}]",
)
_LOG_FORMAT = _Variable(
    "log-format",
    "KVS_LOG_FORMAT",
    f"lines of the log: {' or '.join(FORMATS)} [{FORMATS[0]}]",
)
_LOG_LEVEL = _Variable(
    "log-level",
    "KVS_LOG_LEVEL",
    f"least level that is logged: {', '.join(LEVELS)} [{LogStyle().level}]",
)
_LOG_REQUESTS = _Variable(
    "log-requests", "KVS_LOG_REQUESTS", "a line in the log for each client's request"
)
_SECRET = "KVS_SECRET"  # noqa: S105 - the name of the variable
_VARIABLES = (
    *(_K, _VIEW, _IPPORT, _LISTEN, _DATA_DIR, _SECRET_FILE, _DRAIN),
    *(_LOG_FORMAT, _LOG_LEVEL),
)


@dataclass(frozen=True, slots=True)
class _Limit(_Variable):
    """A number of ``Settings`` that an operator may change."""

    least: float
    most: float

    @property
    def field(self) -> str:
        """Of ``Settings``."""
        return self.option.replace("-", "_")

    @property
    def whole(self) -> bool:
        """Whether fractions make no sense."""
        return isinstance(self.least, int)


def _limit(field: str, doc: str, least: float, most: float) -> _Limit:
    default = Settings.__dataclass_fields__[field].default
    option, name = field.replace("_", "-"), f"KVS_{field.upper()}"
    return _Limit(option, name, f"{doc} [{default}]", least, most)


_LIMITS = (
    _limit("value_bytes_max", "bytes of a value, as UTF-8", 1, VALUE_BYTES_MAX),
    _limit("requests_in_flight_max", "clients' requests at once", 1, 1_000_000),
    _limit("connections_max", "clients' connections at once", 16, 1_000_000),
    _limit(
        "body_bytes_in_flight_max",
        "bytes of bodies under way, of clients and of peers each",
        32 * MIB,
        2**40,
    ),
    _limit("gossip_interval_s", "seconds between two rounds of gossip", 0.05, 5.0),
    _limit("dead_after_s", "seconds of silence until a node counts as dead", 1.0, 60.0),
)


class Options(usage.Options):
    """
    Options of a node; each can also stand in the environment, and the option wins.

    ``configuration`` holds the outcome after ``parseOptions``, which raises
    ``SystemExit`` with one line if anything is wrong.
    """

    synopsis = "[options]"
    longdesc = (
        "Runs one node of a distributed key-value store.  Without any option it is a "
        "working single node on loopback.  Every option can also be given as the "
        "environment variable in capitals; the option wins.  The secret itself is only "
        f"taken from {_SECRET} or from a file."
    )
    optParameters = [
        [variable.option, None, None, f"{variable.name}: {variable.doc}"]
        for variable in (*_VARIABLES, *_LIMITS)
    ]
    optFlags = [
        [_SPREAD.option, None, f"{_SPREAD.name}: {_SPREAD.doc}"],
        [
            "no-spread",
            None,
            f"answer requests where they arrive, whatever {_SPREAD.name}",
        ],
        [_LOG_REQUESTS.option, None, f"{_LOG_REQUESTS.name}: {_LOG_REQUESTS.doc}"],
        ["no-log-requests", None, f"no such lines, whatever {_LOG_REQUESTS.name}"],
    ]
    configuration: Configuration

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """
        Prepare to parse.

        :param environ: read once, by ``postOptions``.
        """
        super().__init__()
        self._environ = environ

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """
        Parse a command line and the environment.

        :raises SystemExit: with one line, if anything is wrong.
        """
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            raise SystemExit(f"kvs: {error}, see --help") from None
        except KVSError as error:
            raise SystemExit(f"kvs: {error}") from None

    def parseArgs(self, *arguments: str) -> None:
        """Refuse everything that is no option."""
        if arguments:
            raise BadConfiguration(f"got {_quoted(arguments[0])}, want options only")

    def postOptions(self) -> None:
        """
        Turn everything into one ``Configuration``.

        :raises BadConfiguration: one line.
        """
        me, replica_count, first_view = self._membership()
        listen = self._text(_LISTEN)
        directory = self._text(_DATA_DIR, empty_is_good=True)
        if directory is None:
            directory = f"{DATA_ROOT}/{directory_name(me)}"
        self.configuration = Configuration(
            me=me,
            replica_count=replica_count,
            first_view=first_view,
            listen=listen,
            directory=str(self._run_directory() / directory) if directory else None,
            secrets=self._secrets(),
            drain_s=self._drain_s(),
            log=LogStyle(
                form=self._choice(_LOG_FORMAT, FORMATS, LogStyle().form),
                level=self._choice(_LOG_LEVEL, LEVELS, LogStyle().level),
                requests=self._flag(_LOG_REQUESTS),
            ),
            settings=self._settings(),
            unknown=self._unknown(),
        )

    def _unknown(self) -> tuple[str, ...]:
        known = {_SECRET, _SPREAD.name, _LOG_REQUESTS.name}
        known |= {variable.name for variable in (*_VARIABLES, *_LIMITS)}
        ours = (name for name in self._environ if name.startswith("KVS_"))
        return tuple(sorted(name for name in ours if name not in known))

    def _text(self, variable: _Variable, *, empty_is_good: bool = False) -> str | None:
        """Give what was set, None if nothing was; an empty text is a mistake."""
        given: str | None = self[variable.option]
        if given is None:
            given = self._environ.get(variable.name)
        # Empty most often comes from another variable that was forgotten, and to take
        # it for absent would quietly start a node alone.
        if given is not None and not given.strip() and not empty_is_good:
            raise BadConfiguration(
                f"{variable.shown}: got an empty text, want it left out or "
                f"set: {variable.doc}"
            )
        return given

    def _membership(self) -> tuple[Name, int | None, tuple[Name, ...]]:
        me = Name(ME_DEFAULT)
        if text := self._text(_IPPORT):
            me = _parsed(_IPPORT, _own_name, text)
        replica_count: int | None = None
        view: tuple[Name, ...] = ()
        if text := self._text(_K):
            replica_count = int(_number(_K, text, 1, REPLICAS_MAX, whole=True))
        if text := self._text(_VIEW):
            view = _parsed(_VIEW, parse_names, text)
            if me not in view:
                raise BadConfiguration(
                    f"{_IPPORT.shown}: got {me}, want one of VIEW's, {','.join(view)}"
                )
            if replica_count is None:
                raise BadConfiguration(
                    f"{_K.shown}: got nothing together with VIEW, want the number of "
                    "replicas, 1 or more"
                )
        return me, replica_count, view

    def _run_directory(self) -> Path:
        # twistd changes to --rundir only after the data directory was checked.
        parent = getattr(self, "parent", None) or {}
        return Path(parent.get("rundir") or ".").absolute()

    def _secrets(self) -> Secrets:
        given, path = self._environ.get(_SECRET), self._text(_SECRET_FILE)
        if given is not None and not given.strip():
            raise BadConfiguration(f"{_SECRET}: got an empty text, want a secret")
        if path is None:
            secret = DEFAULT_SECRET if given is None else os.fsencode(given.strip())
            return Secrets([secret])
        if given is not None:
            raise BadConfiguration(
                f"{_SECRET_FILE.shown}: got {_quoted(path)} besides {_SECRET}, want "
                "one of the two"
            )
        return Secrets(_parsed(_SECRET_FILE, _read_secrets, path))

    def _drain_s(self) -> float:
        text = self._text(_DRAIN)
        if text is None:
            return DRAIN_DEFAULT_S
        return _number(_DRAIN, text, 0.0, DRAIN_S_MAX, whole=False)

    def _choice(self, variable: _Variable, choices: Sequence[str], default: str) -> str:
        text = self._text(variable)
        chosen = default if text is None else text.strip().lower()
        if chosen not in choices:
            raise BadConfiguration(
                f"{variable.shown}: got {_quoted(chosen)}, want one of "
                f"{', '.join(choices)}"
            )
        return chosen

    def _settings(self) -> Settings:
        chosen: dict[str, float] = {}
        for limit in _LIMITS:
            if text := self._text(limit):
                chosen[limit.field] = _number(
                    limit, text, limit.least, limit.most, whole=limit.whole
                )
        settings = Settings()
        if dead_after_s := chosen.get("dead_after_s"):
            # In the proportion of the defaults.
            part = settings.probe_after_s / settings.dead_after_s
            chosen["probe_after_s"] = dead_after_s * part
        # Settings checks the relations, too.
        settings = replace(settings, spread=self._flag(_SPREAD), **chosen)  # type: ignore[arg-type] # whole ones are ints
        if settings.gossip_interval_s > settings.dead_after_s / 2:
            raise BadConfiguration(
                f"KVS_GOSSIP_INTERVAL_S (--gossip-interval-s): got "
                f"{settings.gossip_interval_s}, want half of KVS_DEAD_AFTER_S, "
                f"{settings.dead_after_s}, at most"
            )
        # Else it would be refused as too much at once, for ever.
        if settings.body_bytes_in_flight_max < settings.body_bytes_max:
            raise BadConfiguration(
                "KVS_BODY_BYTES_IN_FLIGHT_MAX (--body-bytes-in-flight-max): got "
                f"{settings.body_bytes_in_flight_max}, want the largest body that "
                f"KVS_VALUE_BYTES_MAX allows, {settings.body_bytes_max}, at least"
            )
        return settings

    def _flag(self, variable: _Variable) -> bool:
        on, off = variable.option, f"no-{variable.option}"
        if self[on] or self[off]:
            if self[on] and self[off]:
                raise BadConfiguration(f"got --{on} and --{off}, want one of them")
            return bool(self[on])
        text = self._environ.get(variable.name, _FALSE[0]).strip().lower()
        if text not in _TRUE + _FALSE:
            raise BadConfiguration(
                f"{variable.shown}: got {_quoted(text)}, want one of "
                f"{', '.join(_TRUE + _FALSE)}"
            )
        return text in _TRUE


def directory_name(me: Name) -> str:
    """
    Name a node's own directory: ``<ip>_<port>``.

    Colons are no good in file names, so IPv6 is written ``ipv6-fe80--1_8080``.
    """
    host, port = split_name(me)
    if is_ip(me) == 6:
        host = "ipv6-" + host.replace(":", "-")
    return f"{host}_{port}"


def default_interface(me: Name, *, has_ipv6: bool) -> str:
    """
    Say where a node listens if its operator does not.

    On its loopback address if it has one; else on all addresses, since its own may be
    taken away while clients on the machine can still ask it.

    :param has_ipv6: whether this machine can; a host name is served without, too.
    :returns: an address; "" for all of IPv4, "::" for all of IPv6 and IPv4.
    """
    host, _ = split_name(me)
    version = is_ip(me)
    if is_loopback(me):
        return host if version else "127.0.0.1"
    return "::" if version == 6 or (version == 0 and has_ipv6) else ""


def endpoint(interface: str, port: int) -> str:
    """Write an address and a port as Twisted's server endpoint."""
    kind = "tcp6" if ":" in interface else "tcp"
    where = f":interface={interface}".replace(":", r"\:")[1:] if interface else ""
    return f"{kind}:{port}{where}:backlog={BACKLOG}"


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:100] + "...")


def _own_name(text: str) -> Name:
    """Read an address that others can reach; to listen on all is for KVS_LISTEN."""
    name = parse_name(text)
    if is_ip(name) and ipaddress.ip_address(split_name(name)[0]).is_unspecified:
        raise BadName(
            f"got {text!r}, which means all addresses; want the one that the other "
            "nodes reach"
        )
    return name


def _parsed(variable: _Variable, parse: Callable[[str], _T], text: str) -> _T:
    try:
        return parse(text.strip())
    except KVSError as error:
        raise BadConfiguration(f"{variable.shown}: {error}") from None


def _number(
    variable: _Variable, text: str, least: float, most: float, *, whole: bool
) -> float:
    """Read a number strictly: no signs, exponents, underscores, nan or inf."""
    pattern = "[0-9]{1,15}" if whole else r"[0-9]{1,15}(\.[0-9]{1,15})?"
    if re.fullmatch(pattern, text.strip(), re.ASCII):
        number = int(text) if whole else float(text)
        if least <= number <= most:
            return number
    kind = "whole number" if whole else "number"
    raise BadConfiguration(
        f"{variable.shown}: got {_quoted(text)}, want a {kind} from {least} to {most}"
    )


def _read_secrets(path: str) -> tuple[bytes, ...]:
    try:
        with open(path, "rb") as file:
            content = file.read(SECRET_FILE_BYTES_MAX + 1)
        if len(content) > SECRET_FILE_BYTES_MAX:
            raise BadConfiguration(
                f"got {_quoted(path)}, want at most {SECRET_FILE_BYTES_MAX} bytes"
            )
        return parse_secret_file(content.decode("utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise BadConfiguration(
            f"got {_quoted(path)} ({reason}), want a readable file"
        ) from None
