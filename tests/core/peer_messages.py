"""Hypothesis strategies for what nodes say to each other."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests import strategies as kvs
from twisted_kvs.core.causality import COUNTER_MAX
from twisted_kvs.core.gossip import DIGEST_BYTES
from twisted_kvs.core.messages import (
    Delta,
    Exchange,
    ExchangeAnswer,
    Forward,
    ForwardAnswer,
    Header,
    Hello,
    HelloAnswer,
    NextPart,
    Operation,
    PartAnswer,
    PeerAnswer,
    PeerRequest,
    Pull,
    PullAnswer,
    Push,
    PushAnswer,
    Refused,
    Standing,
    Tell,
    TellAnswer,
    Vectors,
)

NATURALS = st.integers(0, 3) | st.integers(0, COUNTER_MAX)
VECTORS = kvs.vectors().map(dict)
VERSIONS = kvs.histories(writes_max=4, keys=("k", "\u00e9/ "))
LIVE = st.dictionaries(
    kvs.KNOWN_ACTORS, st.lists(st.integers(1, 2**43 - 2), max_size=3), max_size=3
)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)


def headers() -> SearchStrategy[Header]:
    """Draw how a sender stands."""
    return st.builds(
        Header,
        actor=kvs.KNOWN_ACTORS,
        lamport=NATURALS,
        standing=st.sampled_from(Standing),
        holds_all=st.booleans(),
        digest=st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES),
        live_hash=st.none() | st.integers(0, 2**64 - 1),
        ages_ms=st.dictionaries(kvs.KNOWN_NAMES, NATURALS, max_size=3),
        retired=st.sampled_from(["", "0123456789abcdef"]),
    )


def _vectors() -> SearchStrategy[Vectors]:
    return st.builds(
        Vectors,
        vv=VECTORS,
        clock=VECTORS,
        view=kvs.views().map(lambda view: view.entries),
        replica_count=st.none() | kvs.replica_counts(),
        retired=st.binary(max_size=9),
    )


def _deltas() -> SearchStrategy[Delta | None]:
    return st.none() | st.builds(
        Delta,
        base=VECTORS,
        claim=VECTORS,
        lamport=NATURALS,
        standing=st.sampled_from(Standing),
        versions=VERSIONS,
        session=NATURALS,
        floor=VECTORS,
        full=st.booleans(),
    )


def requests() -> SearchStrategy[PeerRequest]:
    """Draw requests of every kind."""
    return st.one_of(
        st.builds(Hello, headers()),
        st.builds(
            Exchange,
            header=headers(),
            vectors=_vectors(),
            delta=_deltas(),
            pull_me=st.booleans(),
            one_part=st.booleans(),
            wants=st.booleans(),
        ),
        st.builds(Pull, header=headers(), base=VECTORS, one_part=st.booleans()),
        st.builds(NextPart, session=NATURALS, index=NATURALS),
        st.builds(Push, lamport=NATURALS, versions=VERSIONS),
        st.builds(
            Forward,
            operation=st.sampled_from(Operation),
            key=KEYS,
            value=st.binary(max_size=50),
            vector=VECTORS,
            lamport=NATURALS,
            seen=VECTORS,
            budget_ms=NATURALS,
        ),
        st.builds(
            Tell,
            header=headers(),
            view=kvs.views().map(lambda view: view.entries),
            replica_count=kvs.replica_counts(),
            dead=st.lists(kvs.KNOWN_NAMES, max_size=3),
        ),
    )


def answers() -> SearchStrategy[PeerAnswer]:
    """Draw answers of every kind."""
    return st.one_of(
        st.builds(HelloAnswer, headers(), st.none() | _vectors()),
        st.builds(
            ExchangeAnswer, header=headers(), vectors=_vectors(), delta=_deltas()
        ),
        st.builds(PullAnswer, headers(), _deltas()),
        st.builds(PartAnswer, versions=VERSIONS, more=st.booleans(), live=LIVE),
        st.builds(PushAnswer, VECTORS),
        st.builds(
            ForwardAnswer,
            status=st.integers(200, 599),
            body=st.binary(max_size=50),
            headers=st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9))),
            vector=VECTORS,
            lamport=NATURALS,
        ),
        st.builds(TellAnswer, headers()),
        st.builds(Refused, st.integers(400, 599), st.text(max_size=20)),
    )
