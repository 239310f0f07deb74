"""
The faults of a storm, each a row: how it is drawn, and how one knows that it happened.

A fault that was planned for a run and did not come about by itself is provoked at its
end, by a few operations that cannot miss; a run in which it still did not happen is an
error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

Op = tuple[object, ...]
Ops = Mapping[str, tuple[Sequence[object], ...]]
"""Names of operations, and from what each argument is drawn; simplest first."""

NODE = range(5)
YES_NO = (True, False)
MESSAGES = (
    *["Exchange"] * 5,  # What a node gives unasked, by what it was told before.
    "ExchangeAnswer",
    "HelloAnswer",
    "Pull",
    "PullAnswer",
    "NextPart",
    "PartAnswer",
    "Push",
    "PushAnswer",
    "Forward",
    "ForwardAnswer",
)
"""Kinds of messages in the midst of which something may happen."""
_WELL: tuple[Op, ...] = (("revive",), ("heal",), ("quiet",))
_MEMBERS: tuple[Op, ...] = (*_WELL, ("advance", 1100), ("regroup",))
_WRITES: tuple[Op, ...] = (("advance", 1600), ("everywhere", 0))


@dataclass(frozen=True, slots=True)
class Fault:
    """One way in which a cluster can be troubled."""

    name: str
    says: str
    event: str
    """Counted by the storm where it really happened."""
    ops: Ops
    """The first one brings it about, others belong to it."""
    provoke: tuple[Op, ...]
    """Brings it about for certain."""
    lasts: bool = False
    """It goes on, and needs time to do harm."""
    at_end: bool = False
    """It is done when all else is over."""
    along: Mapping[str, Ops] = field(default_factory=dict)
    """What is drawn, too, where another fault is allowed, which it needs."""


def _of_all(*op: object) -> tuple[Op, ...]:
    """Do something to each node."""
    name, *arguments = op
    return tuple((name, node, *arguments) for node in NODE)


_ROWS = (
    Fault(
        "loss",
        "messages are lost",
        "lost",
        {"lose": ((5, 20, 50),), "quiet": ()},
        (*_MEMBERS, ("lose", 100), ("advance", 4000), ("quiet",)),
        lasts=True,
    ),
    Fault(
        "duplication",
        "messages arrive twice",
        "duplicated",
        {"double": ((10, 50),), "quiet": ()},
        (*_MEMBERS, ("double", 100), ("advance", 4000), ("quiet",)),
        lasts=True,
    ),
    Fault(
        "reordering",
        "messages overtake each other",
        "reordered",
        {"reorder": ((10, 50),), "quiet": ()},
        # Of two messages one overtakes the other: few links carry two by themselves.
        (
            *_MEMBERS,
            ("double", 100),
            ("reorder", 50),
            *_WRITES,
            ("advance", 4000),
            ("quiet",),
        ),
        lasts=True,
    ),
    Fault(
        "delay",
        "messages take long",
        "delayed",
        {"delay": ((20, 150),), "quiet": ()},
        (*_MEMBERS, ("delay", 2000), *_WRITES, ("advance", 5000), ("quiet",)),
        lasts=True,
    ),
    Fault(
        "garbage",
        "messages are not what was signed",
        "garbage",
        {"spoil": ((10, 50),), "quiet": ()},
        (*_MEMBERS, ("spoil", 100), ("advance", 4000), ("quiet",)),
        lasts=True,
    ),
    Fault(
        "one-way-cut",
        "a link carries nothing in one direction",
        "lost by: one way",
        {"mute": (NODE, NODE), "heal": (), "whisper": (NODE, NODE)},
        (*_MEMBERS, ("mute", 0, 1), ("advance", 5000), ("heal",)),
        lasts=True,
    ),
    Fault(
        "partition",
        "the network falls into two",
        "lost by: partition",
        {
            "partition": (range(1, 31),),
            "heal": (),
            "hearsay": (NODE, NODE),
            "strand": (NODE,),
        },
        (*_MEMBERS, ("partition", 1), ("advance", 4000), ("heal",)),
        lasts=True,
        along={"restart": {"rift": (NODE, NODE)}},
    ),
    Fault(
        "isolated-proxy",
        "a proxy reaches nobody",
        "lost by: isolated proxy",
        {"isolate": (NODE,), "heal": (), "handover": (NODE, NODE)},
        (*_MEMBERS, ("advance", 5000), ("isolate", 0), ("advance", 4000), ("heal",)),
        lasts=True,
        along={"crash": {"amnesia": (NODE, NODE)}},
    ),
    Fault(
        "crash",
        "a process is killed, its disk stays",
        "crashed",
        {"kill": (NODE,), "start": (NODE,), "stop": (NODE,)},
        (("revive",), ("kill", 0)),
    ),
    Fault(
        "lost-disk",
        "a process is killed, and its disk is gone",
        "disk lost",
        {
            "wipe": (NODE,),
            "start": (NODE,),
            "replace": (NODE,),
            "ambush": (NODE, NODE, MESSAGES),
        },
        (("revive",), ("wipe", 0)),
    ),
    Fault(
        "restart",
        "a process is killed and started again at once",
        "restarted",
        {
            "restart": (NODE,),
            "start": (NODE,),
            "trip": (NODE, NODE, MESSAGES),
        },
        (("revive",), ("restart", 0)),
    ),
    Fault(
        "old-backup",
        "a node is started from a copy of its disk that was made earlier",
        "restored",
        {"rollback": (NODE,), "restore": (NODE,), "backup": (NODE,)},
        (
            *_WELL,
            *_of_all("backup"),
            *_WRITES,
            ("advance", 1100),
            ("restore", 0),
        ),
    ),
    Fault(
        "twins",
        "two processes run under one name",
        "two under one name",
        {
            "twin": (NODE, YES_NO),
            "untwin": (NODE,),
            "crowd": (NODE, NODE),
        },
        (*_WELL, ("twin", 0, False)),
    ),
    Fault(
        "skew",
        "wall clocks are wrong by up to hours",
        "written with a wrong clock",
        {"skew": (NODE, (0, -7200, -1, 1, 3600))},
        (*_WELL, *_of_all("skew", 3600), *_WRITES, ("advance", 1100)),
    ),
    Fault(
        "clock-back",
        "wall clocks step back",
        "written before the last write",
        {"rewind": (NODE, (1, 60, 7200)), "back": (NODE, (1, 60, 7200))},
        (
            *_WELL,
            *_WRITES,
            *_WRITES,
            ("advance", 1100),
            *_of_all("back", 60),
            *_WRITES,
            *_WRITES,
            ("advance", 1100),
        ),
    ),
    Fault(
        "pause",
        "a process stands still, then gets all that came meanwhile",
        "stood still",
        {"pause": (NODE, (40, 300, 1100, 4000))},
        (("revive",), ("pause", 0, 1500), ("advance", 1600)),
        lasts=True,
    ),
    Fault(
        "full-disk",
        "commits find no room",
        "commits refused",
        {"fill": (NODE,), "full": (NODE, YES_NO)},
        (*_WELL, *_of_all("full", True), *_WRITES, ("advance", 1100)),
    ),
    Fault(
        "slow-disk",
        "commits take long",
        "commits slow",
        {"slow": (NODE, (40, 200, 900))},
        (*_WELL, *_of_all("slow", 900), *(_WRITES * 3), ("advance", 1100)),
        lasts=True,
    ),
    Fault(
        "views",
        "members are removed, return, and new ones are added",
        "view changed",
        {
            "view": (NODE, NODE),
            "join": (NODE, NODE),
            "recruit": (NODE,),
            "schism": (NODE, NODE),
        },
        (*_MEMBERS, ("advance", 3000), ("view", 0, 1), ("advance", 1100)),
    ),
    Fault(
        "exile",
        "a member is removed and cut off, others forget deletes, and it returns",
        "exiled",
        {"exile": (NODE, NODE)},
        (*_MEMBERS, ("advance", 3000), ("exile", 0, 0)),
    ),
    Fault(
        "k-change",
        "a node is started with another K",
        "K changed",
        {"k": (NODE, (1, 2, 3))},
        (*_WELL, ("k", 0, 1), ("advance", 2000), ("k", 0, 2)),
    ),
    Fault(
        "broken-disk",
        "what a disk holds is damaged, unseen",
        "disk damaged",
        {"rot": (NODE,)},
        (("rot", 0),),
        at_end=True,
    ),
)
FAULTS: Mapping[str, Fault] = MappingProxyType({row.name: row for row in _ROWS})
