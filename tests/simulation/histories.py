"""
Histories: lists of small tuples, each an operation, drawn in two ways.

By Hypothesis, which shrinks well what it finds; and by a seed, which reaches rare
sequences that Hypothesis seldom draws.  Either way a history draws from a random subset
of the operations it may have, because uniform mixtures dilute the rare sequences that
matter (Groce et al., "Swarm testing", 2012), and is long: without a least size
Hypothesis draws about five elements.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

Op = tuple[object, ...]
Ops = dict[str, tuple[Sequence[object], ...]]
"""Names of operations, and from what each argument is drawn; simplest first."""

NODE = range(5)
CLIENT = range(3)
KEY = range(3)
FEW = range(3)
MANY = range(9)
YES_NO = (True, False)
NOTHING: Op = ("nothing",)

# Of replicas without nodes.
CLIENTS: Ops = {
    "put": (CLIENT, NODE, KEY),
    "write": (CLIENT, NODE, KEY),
    "get": (CLIENT, NODE, KEY),
    "forget": (CLIENT,),
    "skew": (NODE, (0, -1000, -10, 10, 1000)),
    "disk": (NODE, range(1, 3)),
}
MEETINGS: Ops = {"sync": (NODE, NODE)}
DELETES: Ops = {"delete": (CLIENT, NODE, KEY)}
COMPACTION: Ops = {"compact": (NODE, YES_NO), "round": (NODE,)}
MEMBERS: Ops = {"leave": (NODE,), "back": (NODE,), "view": (NODE, NODE, YES_NO)}
MESSAGES: Ops = {
    "push": (NODE, NODE, FEW, FEW),
    "ask": (NODE, NODE),
    "deliver": (MANY, range(2)),
    "drop": (MANY,),
}
RESTARTS: Ops = {"crash": (NODE, (0,)), "full": (NODE,), "room": ()}
LOSSES: Ops = {"crash": (NODE, FEW), "backup": (NODE,)}
ROLES: Ops = {
    "forward": (CLIENT, NODE, NODE, KEY),
    "hear": (NODE, NODE),
    "promote": (NODE,),
    "demote": (NODE,),
}

# Of clusters of nodes.
REQUESTS: Ops = {
    "put": (CLIENT, NODE, KEY),
    "get": (CLIENT, NODE, KEY),
    "burst": (CLIENT, NODE, KEY),
    "forget": (CLIENT,),
    "advance": ((1, 3, 10, 50, 200, 700, 2500),),
}
CUTS: Ops = {"cut": (NODE, NODE, YES_NO), "partition": (range(32),), "heal": ()}
NOISE: Ops = {
    "noise": ((0, 5, 20, 50), (0, 10, 50), (0, 2, 20, 150), (0, 0, 10)),
    "slow": (NODE, (0, 20, 200)),
}
KILLS: Ops = {
    "kill": (NODE, (True,)),
    "start": (NODE,),
    "full": (NODE, YES_NO),
    "stop": (NODE,),
}
RELIEFS: Ops = {"relieve": (NODE,)}
VIEWS: Ops = {"view": (NODE, NODE), "join": (NODE, NODE)}
WIPES: Ops = {"kill": (NODE, YES_NO), "start": (NODE,)}
CLOCKS: Ops = {"skew": (NODE, (0, -7200, -1, 1, 3600))}


def _merged(ops: Sequence[Ops]) -> Ops:
    return {name: how for one in ops for name, how in one.items()}


@st.composite
def histories(draw: DrawFn, always: Ops, *sometimes: Ops, size: int = 60) -> list[Op]:
    """
    Draw a history.

    :param always: operations that every history may have.
    :param sometimes: of these a random subset.
    :param size: at most so many operations, and before shrinking at least half of it.
    """
    rare = _merged(sometimes)
    able = dict(always)
    if rare:
        chosen = draw(st.sets(st.sampled_from(sorted(rare)), min_size=1))
        able |= {name: rare[name] for name in sorted(chosen)}
    # What is not needed shrinks to nothing.
    op = st.one_of(
        st.just(NOTHING),
        *(
            st.tuples(st.just(name), *map(st.sampled_from, how))
            for name, how in able.items()
        ),
    )
    drawn = draw(st.lists(op, min_size=size // 2, max_size=size))
    return [one for one in drawn if one != NOTHING]


def seeded(seed: int, always: Ops, *sometimes: Ops, size: int = 60) -> list[Op]:
    """Make the history of a seed; arguments as for ``histories``."""
    rng = random.Random(seed)
    rare = _merged(sometimes)
    able = dict(always)
    for name in rng.sample(sorted(rare), rng.randint(0, len(rare))):
        able[name] = rare[name]
    names = sorted(able)
    weights = [rng.choice((1, 1, 2, 4)) for _ in names]
    drawn = rng.choices(names, weights, k=rng.randint(size // 8, size))
    return [(name, *map(rng.choice, able[name])) for name in drawn]


def shrunk(history: list[Op], fails: Callable[[list[Op]], bool]) -> list[Op]:
    """Leave out operations as long as a history fails without them."""
    index = 0
    while index < len(history):
        less = history[:index] + history[index + 1 :]
        if fails(less):
            history = less
        else:
            index += 1
    return history
