"""
What the rules look up: layers, libraries, words.

A new module of the package gets its row here, in the change that adds it.
"""

from __future__ import annotations

# Modules that neither wait, nor look at a clock, nor leave the process.
PURE = frozenset(
    {
        "__future__",
        "abc",
        "array",
        "base64",
        "binascii",
        "bisect",
        "collections",
        "contextlib",
        "copy",
        "dataclasses",
        "enum",
        "functools",
        "hashlib",
        "heapq",
        "hmac",
        "ipaddress",
        "itertools",
        "json",
        "math",
        "msgspec",
        "operator",
        "random",
        "re",
        "string",
        "struct",
        "sys",
        "types",
        "typing",
        "unicodedata",
        "urllib.parse",
        "zlib",
    }
)
IMPURE_BUILTINS = frozenset({"open", "print", "input", "breakpoint", "exec", "eval"})
# Of these the core may name a type or a constant, and call nothing but this.
IMPURE_MODULES = frozenset({"random", "sys"})
PURE_CALLS = frozenset({"sys.intern"})

# The core from its ground up: a module imports modules of the rows above its own.
CORE_ROWS = (
    {"errors"},
    {"causality", "secrets", "settings"},
    {"fence", "names"},
    {"versions", "view"},
    {"retiring"},
    {"payload"},
    {"liveness", "messages", "reader"},
    {"outcomes"},
    {"codec", "compaction", "gossip", "pending", "shrinking"},
    {"collecting"},
    {"staging"},
    {"replica"},
)
# Set apart: a replica speaks in messages, and never in bytes.
CORE_APART = {"replica": {"codec"}}

# Where Replica, Storage and PeerTransport meet; its modules may import each other.
NODE = frozenset(
    {
        "answers",
        "cluster",
        "committer",
        "compacting",
        "configuration",
        "deltas",
        "exchange",
        "forwarding",
        "health",
        "membership",
        "node",
        "pushes",
        "reading",
        "status",
    }
)

# How peers are asked: PeerTransport, and what it is made of.
PEERS = frozenset({"addresses", "connections", "conversation", "peers"})

# What tap.py puts together, beside the node.
_PARTS = frozenset(
    {
        "core",
        "descriptors",
        "first_process",
        "logs",
        "metrics",
        "operations",
        "options",
        "services",
        "signing",
        "storage",
        "web",
        *PEERS,
    }
)

# The rest of the package: what each module or package may import of ours, itself apart.
LAYERS = {
    "operations": {"core"},
    "descriptors": {"core"},
    "logs": set(),
    "metrics": {"core"},
    "options": {"core", "logs"},
    "signing": {"core"},
    "storage": {"core"},
    **{name: {"core", "metrics", "operations", "signing", *PEERS} for name in PEERS},
    **{
        name: {"core", "metrics", "operations", "storage.api", "peers", *NODE}
        for name in NODE
    },
    "simulation": {"core", "operations", "storage", *NODE},
    "web": {"core", "metrics", "operations", "peers", "signing", *NODE},
    "services": {"core", "operations", "options", *NODE},
    "assembly": {*_PARTS, *NODE},
    "tap": {"assembly", *_PARTS, *NODE},
    "client": {"core.causality", "core.errors", "core.names", "core.payload"},
    "status_table": {"client"},
    "demo": {"client", "core.errors", "core.names"},
    "cli": {
        "client",
        "core.causality",
        "core.errors",
        "core.names",
        "demo",
        "simulation",
        "status_table",
    },
    "__main__": {"cli"},
    # Run on its own every few seconds: it imports nothing of ours.
    "healthcheck": set(),
    # Loaded before everything else.
    "first_process": set(),
}

# Libraries that a few modules know and nobody else.
EDGES = {
    # Importing Klein installs a reactor.
    "klein": {"web"},
    "werkzeug": {"web"},
    "treq": {*PEERS, "assembly", "client", "cli", "tap"},
    "click": {"cli"},
    "prometheus_client": {"web"},
    "sqlite3": {"storage"},
    "zstandard": {"core.codec"},
}

REACTOR = frozenset(
    {
        "twisted.internet.reactor",
        "twisted.internet.task.react",
    }
)
REACTOR_IMPORTERS = (
    "twisted_kvs.tap",
    "twisted_kvs.cli",
    "twisted_kvs.demo",
    "tests.process",
)

BANNED_WORDS = frozenset(
    {
        "data",
        "engine",
        "handler",
        "helper",
        "info",
        "manager",
        "misc",
        "processor",
        "util",
    }
)

# What makes a container, as a literal or by a call.
CONTAINERS = frozenset(
    {"Dict", "DictComp", "List", "ListComp", "Set", "SetComp", "dict", "list", "set"}
)
# What makes something that is there to be changed.
STATEFUL = frozenset(
    {
        "Condition",
        "ContextVar",
        "Deferred",
        "Event",
        "Lock",
        "OrderedDict",
        "RLock",
        "Random",
        "Semaphore",
        "SystemRandom",
        "WeakKeyDictionary",
        "WeakSet",
        "WeakValueDictionary",
        "bytearray",
        "count",
        "cycle",
        "defaultdict",
        "deque",
        "iter",
        "local",
        "open",
    }
)
CHANGING_METHODS = frozenset(
    {
        "add",
        "append",
        "appendleft",
        "clear",
        "discard",
        "extend",
        "insert",
        "pop",
        "popitem",
        "remove",
        "setdefault",
        "sort",
        "update",
    }
)

# Hypothesis calls these with what it draws, click with what it parsed: by name; and
# simulated histories their operations with what was drawn, one written after the other.
CALLED_BY_NAME = frozenset(
    {
        "argument",
        "command",
        "composite",
        "given",
        "initialize",
        "operation",
        "option",
        "rule",
    }
)

# Tests with real processes.
REAL = ("tests.hosts", "tests.process")
# Not in other tests: a test neither waits nor opens a port.
WAITING = frozenset(
    {
        "datetime.date.today",
        "datetime.datetime.now",
        "datetime.datetime.today",
        "datetime.datetime.utcnow",
        "socket",
        "time.sleep",
        "time.time",
        "time.time_ns",
    }
)
MOCKS = frozenset({"mock", "pytest", "unittest.mock"})


def allowed_for(module: str) -> set[str] | None:
    """
    Look up what of ours a module may import, as dotted names.

    :returns: None for a module that has no row; the package's own name comes with it.
    """
    path = module.split(".")[1:]
    if path[0] == "core":
        return _allowed_in_core(path[1])
    if path[0] not in LAYERS:
        return None
    allowed = {f"twisted_kvs.{name}" for name in LAYERS[path[0]]}
    # Modules of one package may import each other.
    return allowed | ({f"twisted_kvs.{path[0]}"} if len(path) > 1 else set())


def _allowed_in_core(name: str) -> set[str] | None:
    above: set[str] = set()
    for row in CORE_ROWS:
        if name in row:
            return {
                f"twisted_kvs.core.{x}" for x in above - CORE_APART.get(name, set())
            }
        above |= row
    return None
