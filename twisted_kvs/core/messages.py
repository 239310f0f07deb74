"""
What nodes say to each other and what a replica asks its storage to do.

Peer messages are msgspec Structs: a field's annotation is what the decoder checks, so a
message that was decoded has the right types and ranges.  New fields go at the end and
have a default; then old and new nodes understand each other.

Request and answer: ``Hello`` -> ``HelloAnswer``; ``Exchange`` -> ``ExchangeAnswer``;
``Pull`` -> ``PullAnswer``; ``NextPart`` -> ``PartAnswer``; ``Push`` -> ``PushAnswer``;
``Forward`` -> ``ForwardAnswer``; ``Tell`` -> ``TellAnswer``; any -> ``Refused``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Annotated, TypeAlias

import msgspec

from .causality import COUNTER_MAX, Actor, Dot, Name
from .fence import Fence, LiveDots
from .versions import VALUE_BYTES_MAX, Version, WireVector
from .view import Member, ReplicaCount

Natural: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=COUNTER_MAX)]
MESSAGE_BYTES_MAX = VALUE_BYTES_MAX + 4 * 2**20
"""Of one peer message, packed or not; R7's parts and R8's batches stay below it."""


class Standing(enum.IntEnum):
    """How far a node has caught up (R15)."""

    LAGGING = 0
    """Forwards requests to a node that serves."""
    PROVISIONAL = 1
    """Found none that serves: answers itself, flagged stale."""
    SERVING = 2
    """Had its first complete delta from a node that serves."""


class _Peer(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of peer messages: arrays that begin with the name of their class."""


class Header(msgspec.Struct, frozen=True, array_like=True, gc=False, kw_only=True):
    """How the sender stands at this instant; all of it durable."""

    actor: Actor
    """The sender's actor; its name and boot id are in the signed envelope."""
    lamport: Natural
    """L of R18."""
    standing: Standing
    holds_all: bool
    """False for a proxy: its vector names its own writes only (R13)."""
    digest: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    """Hash of (VV, view, K): equal hashes mean that there is nothing to exchange."""
    live_hash: Annotated[int, msgspec.Meta(ge=0)] | None
    """R17's hash; None while it means nothing (stage being folded, proxy)."""
    ages_ms: dict[Name, Natural]
    """How long ago the sender heard of each member, milliseconds."""
    retired: Annotated[str, msgspec.Meta(max_length=16)] = ""
    """The generation of retired actors that the sender goes by (R20)."""
    whole: bool = True
    """The sender has dropped none of its own writes, or has got them back (R15).  Else
    its VV alone is no report (R12)."""


class Vectors(msgspec.Struct, frozen=True, array_like=True, gc=False, kw_only=True):
    """What follows where the hashes differ."""

    vv: WireVector
    clock: WireVector
    view: dict[Name, Member]
    replica_count: ReplicaCount | None
    """None from a node that has no view."""
    retired: bytes = b""
    """All generations that the sender knows, where the other goes by another (R20)."""
    dropped: WireVector = {}
    """Own writes that the sender has dropped (R15): its report is one only where these
    are (R12)."""


class Delta(msgspec.Struct, frozen=True, array_like=True, gc=False, kw_only=True):
    """The answer to a pull, whole or its first part (R7)."""

    base: WireVector
    """Applies only where VV >= base."""
    claim: WireVector
    """The receiver's VV covers this after applying the whole."""
    lamport: Natural
    standing: Standing
    """The sender's, at the instant of the snapshot."""
    versions: list[Version]
    session: Natural = 0
    """Where to ask for the next part; 0: this is the whole."""
    floor: WireVector = {}
    """Below it the sender has forgotten pasts and dropped seals (R10, R11)."""
    full: bool = False
    """A full join (R10): the parts also list the dots of all that is live at the
    sender.  Only with a session."""


class Hello(_Peer, frozen=True):
    """Opens an exchange, and serves as probe: who are you, are we equal?"""

    header: Header


class HelloAnswer(_Peer, frozen=True):
    """Answers Hello."""

    header: Header
    vectors: Vectors | None
    """None where the digests are equal."""


class Exchange(_Peer, frozen=True, kw_only=True):
    """Second half of an exchange: takes and gives (pull and push, R19)."""

    header: Header
    vectors: Vectors
    delta: Delta | None
    """What the receiver lacks, where that fits into one part."""
    pull_me: bool = False
    """What the receiver lacks takes more parts: it should pull by itself."""
    one_part: bool = False
    """The sender is receiving a delta in parts and takes no other such."""
    wants: bool = True
    """False where the sender takes no delta: a proxy never pulls."""


class ExchangeAnswer(_Peer, frozen=True, kw_only=True):
    """Answers Exchange, after what came with it was applied and is durable."""

    header: Header
    vectors: Vectors
    delta: Delta | None
    """What the asker lacks; None: nothing, or it does not fit into one part."""


class Pull(_Peer, frozen=True, kw_only=True):
    """Asks for a delta at once (R7, R14)."""

    header: Header
    base: WireVector
    one_part: bool = False


class PullAnswer(_Peer, frozen=True):
    """Answers Pull."""

    header: Header
    delta: Delta | None
    """None: it takes more than the one part that was asked for."""


class NextPart(_Peer, frozen=True, kw_only=True):
    """
    Asks for part ``index`` (from 1) of a delta in parts; the last may be asked again.
    """

    session: Natural
    index: Natural


class PartAnswer(_Peer, frozen=True, kw_only=True):
    """Answers NextPart."""

    versions: list[Version]
    more: bool
    live: LiveDots = {}
    """Of a full join: dots of versions that are live at the sender, each once in all
    parts (R10)."""


class Push(_Peer, frozen=True, kw_only=True):
    """Fresh writes of the sender, without gaps within an actor (R8)."""

    lamport: Natural
    versions: list[Version]


class PushAnswer(_Peer, frozen=True):
    """Answers Push when what was taken is durable."""

    vv: WireVector
    """The receiver's knowledge, of the actors in the push only."""


class Operation(enum.StrEnum):
    """What a client asks about a key."""

    GET = "GET"
    PUT = "PUT"
    DELETE = "DELETE"


class Forward(_Peer, frozen=True, kw_only=True):
    """A client's request, handed on; the receiver answers or refuses (R13)."""

    operation: Operation
    key: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    value: Annotated[bytes, msgspec.Meta(max_length=VALUE_BYTES_MAX)] = b""
    """Of a PUT."""
    vector: WireVector
    """P: the vector of the client's payload, verified by the forwarder."""
    lamport: Natural
    seen: WireVector
    """S: the join of the payloads of all writes that the forwarder answered."""
    budget_ms: Natural
    """The limit of this try."""


class ForwardAnswer(_Peer, frozen=True, kw_only=True):
    """The answer that the client gets, unchanged."""

    status: Annotated[int, msgspec.Meta(ge=200, le=599)]
    body: bytes
    headers: list[tuple[str, str]]
    vector: WireVector
    """The vector of the answer's payload: joins the forwarder's clock."""
    lamport: Natural


class Tell(_Peer, frozen=True, kw_only=True):
    """A view change at once to every member found alive (update_view)."""

    header: Header
    view: dict[Name, Member]
    replica_count: ReplicaCount
    dead: list[Name]
    """Who was found dead: roles change at once."""


class TellAnswer(_Peer, frozen=True):
    """Answers Tell."""

    header: Header


class Refused(_Peer, frozen=True):
    """A reasoned no."""

    status: Annotated[int, msgspec.Meta(ge=400, le=599)]
    """410 removed, 421 not serving, 503 overloaded, 507 full, 400 not understood."""
    message: str


PeerRequest: TypeAlias = Hello | Exchange | Pull | NextPart | Push | Forward | Tell
PeerAnswer: TypeAlias = (
    HelloAnswer
    | ExchangeAnswer
    | PullAnswer
    | PartAnswer
    | PushAnswer
    | ForwardAnswer
    | TellAnswer
    | Refused
)


class ReplicaState(msgspec.Struct, frozen=True, kw_only=True):
    """What every commit rewrites beside versions; small, one record."""

    vv: WireVector
    clock: WireVector
    lamport: Natural
    holds_all: bool
    """False for a proxy (R13)."""
    view: dict[Name, Member]
    replica_count: ReplicaCount
    started_with_k: int | None
    """The operator's K at the last start."""
    floor: WireVector = {}
    """Below it pasts were forgotten and seals dropped (R10, R11); at most VV."""
    retired: bytes = b""
    """Generations of retired actors (R20); clock and floor may hold a marker of them,
    VV does not: it says what is stored."""
    shared: str = ""
    """The last generation that every member was seen to know."""
    dropped: WireVector = {}
    """Own writes that were dropped when all replicas had them (R15)."""


@dataclass(frozen=True, slots=True)
class StagePart:
    """Versions of a delta in parts: stored, invisible until their stage is valid."""

    stage: int
    """Above 0, below 2**49; drawn, so that no two starts use the same."""
    versions: tuple[Version, ...]
    live: LiveDots = field(default_factory=dict)
    """Of a full join: more dots of its list, to be kept with the stage (R10)."""


@dataclass(frozen=True, slots=True)
class ValidateStage:
    """Makes all of a stage visible at once, in the transaction that moves VV (R7)."""

    stage: int
    covered: WireVector
    """VV before: staged versions that it covers are dropped, they were applied or
    overwritten while the delta was under way."""
    fence: Fence | None = None
    """Of a full join: what it dooms is invisible from here on, and removed as the stage
    is folded (R10).  Its dots are those of the stage's parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One atomic change of the store: all of it or nothing (the Persist effect)."""

    number: int
    """Counts from 1 at every start; commits become durable in this order."""
    state: ReplicaState
    insert: tuple[Version, ...] = ()
    """Replaces a staged version of the same dot."""
    remove: tuple[Dot, ...] = ()
    """Dominated by what this or an earlier commit inserts, or reaped; absent dots are
    fine."""
    forget_pasts: tuple[Dot, ...] = ()
    """Versions that are there and lose their past (R11)."""
    stage: StagePart | None = None
    validate: ValidateStage | None = None
    drop_stage: int | None = None
    fold_versions: int = 0
    """Fold so many versions of the oldest valid stage: drop those that are dominated
    within their key, make the others ordinary."""
    forget_all: bool = False
    """Drop every version and stage first (a demoted replica, R15)."""
    conflicts: int = 0
    """Keys at which a version that comes leaves others standing: which of them is shown
    is for their timestamps to say; not for the store, but to be counted."""
    minted: tuple[Version, ...] = ()
    """Own writes in the order of their counters, also those that were overwritten
    within the commit: not for the store, but to be pushed when it is durable."""

    @property
    def empty(self) -> bool:
        """Tell whether only the state record changes."""
        return not (
            self.insert
            or self.remove
            or self.forget_pasts
            or self.stage
            or self.validate
            or self.drop_stage
            or self.fold_versions
            or self.forget_all
        )


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What the store says of itself after a commit, from the same transaction."""

    live_hash: int
    """XOR of version_hash over all visible versions (R17), 64 bits."""
    unfolded: int
    """Versions of valid stages that are still to be folded; above 0 also while what a
    full join doomed is still to be removed."""
