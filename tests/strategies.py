"""
Hypothesis strategies for the values of the core.

Names, actors and counters come from small pools on purpose: laws break where values
meet, not where they are long.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from twisted_kvs.core.causality import (
    COUNTER_MAX,
    DOT_COUNTER_MAX,
    Actor,
    Dot,
    Name,
    VersionVector,
    join,
    make_actor,
)
from twisted_kvs.core.names import parse_name
from twisted_kvs.core.payload import Payload
from twisted_kvs.core.versions import SEAL_TS, Antichain, Version, maximal
from twisted_kvs.core.view import ReplicaCount, View

NAMES: tuple[Name, ...] = tuple(
    map(
        parse_name,
        # Neighbours in every wrong order: as text, by port alone, by family alone.
        [
            "10.0.0.9:8080",
            "10.0.0.10:8080",
            "10.0.0.10:80",
            "10.0.0.100:8080",
            "[::1]:8080",
            "[2001:db8::1]:8080",
            "kvs1:8080",
            "kvs10:8080",
            "kvs2:8080",
        ],
    )
)
ACTORS: tuple[Actor, ...] = tuple(
    make_actor(name, incarnation)
    for name in NAMES[:4]
    for incarnation in (1, 2**64 - 1)
)

KNOWN_NAMES: SearchStrategy[Name] = st.sampled_from(NAMES)
KNOWN_ACTORS: SearchStrategy[Actor] = st.sampled_from(ACTORS)
COUNTERS: SearchStrategy[int] = st.integers(1, 5) | (st.integers(1, DOT_COUNTER_MAX))
LAMPORTS: SearchStrategy[int] = st.integers(0, 3) | st.integers(0, COUNTER_MAX)
TIMESTAMPS: SearchStrategy[int] = st.integers(0, 3) | st.integers(0, COUNTER_MAX)


def _labels() -> SearchStrategy[str]:
    inner = "abcdefghijklmnopqrstuvwxyz0123456789_"
    return st.builds(
        "".join,
        st.tuples(
            st.text(inner, min_size=1, max_size=3),
            st.text(inner + "-", max_size=10),
            st.text(inner, min_size=1, max_size=3),
        ),
    )


def hosts() -> SearchStrategy[str]:
    """Canonical hosts as they stand in a name: IPv6 in brackets."""
    named = st.lists(_labels(), max_size=3).map(lambda x: ".".join([*x, "host"]))
    return (
        st.ip_addresses(v=4).map(str)
        # Mapped addresses are left to an example: their form differs between Pythons.
        | st.ip_addresses(v=6, network="2000::/3").map(lambda x: f"[{x}]")
        | named
    )


def ports() -> SearchStrategy[int]:
    """Port numbers that a name may have."""
    return st.integers(1, 65535)


def names() -> SearchStrategy[Name]:
    """Any canonical names."""
    drawn = st.builds(lambda host, port: Name(f"{host}:{port}"), hosts(), ports())
    return KNOWN_NAMES | drawn


def actors() -> SearchStrategy[Actor]:
    """Any actors."""
    drawn = st.builds(make_actor, names(), st.integers(0, 2**64 - 1))
    return KNOWN_ACTORS | drawn


def dots() -> SearchStrategy[Dot]:
    """Dots of few actors."""
    return st.tuples(KNOWN_ACTORS, COUNTERS)


def vectors() -> SearchStrategy[VersionVector]:
    """Vectors of few actors, closed or not; often comparable."""
    few = st.dictionaries(st.sampled_from(ACTORS[1:3]), st.integers(1, 2))
    return few | st.dictionaries(KNOWN_ACTORS, COUNTERS, max_size=4)


@st.composite
def histories(
    draw: DrawFn, *, writes_max: int = 6, keys: tuple[str, ...] = ("k",)
) -> list[Version]:
    """
    Lists of all writes of a cluster, in an order of time.

    Each write comes after some of the earlier ones, with their pasts, and after its own
    actor's last one; so every past is closed and no dot is minted twice.
    """
    written: list[Version] = []
    last: dict[Actor, Version] = {}
    for _ in range(draw(st.integers(1, writes_max))):
        actor = draw(KNOWN_ACTORS)
        seen = [x for x in written if draw(st.booleans())]
        if actor in last:
            seen.append(last[actor])
        past = dict(join({}, *(x.upto for x in seen)))
        kind = draw(st.sampled_from(("value", "value", "tombstone", "seal")))
        version = Version(
            actor,
            past.get(actor, 0) + 1,
            draw(st.sampled_from(keys)),
            b'"%d"' % len(written) if kind == "value" else None,
            SEAL_TS if kind == "seal" else draw(TIMESTAMPS),
            past,
        )
        written.append(version)
        last[actor] = version
    return written


@st.composite
def closed_vectors(draw: DrawFn) -> VersionVector:
    """Vectors that cover, with every dot, the past of that dot's version."""
    written = draw(histories())
    return join({}, *(x.upto for x in written if draw(st.booleans())))


def versions() -> SearchStrategy[Version]:
    """Single versions."""
    return histories().map(lambda written: written[-1])


def antichains() -> SearchStrategy[Antichain]:
    """What is live of a key whose writes have all arrived."""
    return histories().map(maximal)


@st.composite
def views(draw: DrawFn) -> View:
    """
    Views as a cluster makes them: of first nodes or of none, with some changes since.

    Two that are drawn are like two sides of a partition, or two clusters.
    """
    view = View.start(draw(st.sampled_from([NAMES[:3], NAMES[2:5], NAMES[:1], ()])))
    changes = st.lists(st.tuples(KNOWN_NAMES, st.booleans()), max_size=6)
    for name, present in draw(changes):
        view = view.change(name, present=present)
    return view


def replica_counts() -> SearchStrategy[ReplicaCount]:
    """Registers of K."""
    return st.builds(ReplicaCount, st.integers(0, 3), st.integers(1, 4))


def payloads() -> SearchStrategy[Payload]:
    """Payloads with any actors."""
    drawn = st.dictionaries(actors(), COUNTERS, max_size=6)
    return st.builds(Payload, drawn | vectors(), LAMPORTS)
