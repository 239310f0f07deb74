"""The rules of the design, each broken in one or more ways: text in the package."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutation:
    """One way to break one rule."""

    rule: str
    says: str
    """What is done wrong then."""
    patches: tuple[tuple[str, str], ...]
    """Pieces of text, each of which the package has exactly once, and new ones."""

    def __str__(self) -> str:
        """Name it."""
        return f"{self.rule}: {self.says}"


_WAITS_FOR_DISK = """\
            await committer.durable(written.commit).addTimeout(
                max(left, 0), self._clock
            )
"""
_RANK = "return version.ts, name_order(version.origin), version.actor, version.counter"
_KEEPS_ALL = "return (*(x for x in chain if not dominates(version, x)), version)"
_PAST = "past = join(self._clock, self._vv, self.seen, payload)"
_CLAIMS = "return self._delta(base, frontier, versions=versions)"
_READ_PAYLOAD = "vector = join(payload.vector, self.durable.floor, *upto)"
_CHECKS_BASE = "if not self._holds_all or not leq(delta.base, self._vv):"
_SERVING = "stale = not (read.fresh and self._serving)"
_LAG = """\
        cluster.standing = Standing.LAGGING
        self._served_since_promotion = self._met_first = False
"""
_NEWER = "newer = max(self, other, key=lambda member: (member.n, not member.present))"
_LEAVES_SUM = """\
            self.visible -= 1
            self.live_hash ^= version_hash
"""
_READ_L = """\
        self._lamport = max(self._lamport, payload.lamport) + 1
        vector = join("""
_EMPTY_BASE = (
    "base = asker if replica.holds_all else restrict(asker, sorted(durable.vv))"
)
_DIALS = "if name in cluster.peers and now - cluster.record(name).dialled >= wait:"

_DROPS_SEALS = """\
            if version.is_seal:
                continue
"""
_IS_REPORT = "if leq(vectors.vv, mine) and leq(vectors.dropped, mine):"
_FENCES = """\
        if not covers(self.claim, dot):
            return False
"""

MUTATIONS = (
    Mutation(
        "R1",
        "an actor is kept over restarts, and counts on from what is stored",
        (
            (
                "return make_actor(self.name, rng.getrandbits(INCARNATION_BITS))",
                "return make_actor(self.name, INCARNATION_BITS)",
            ),
            (
                "        self._load(stored)\n        self.durable_commit = 0\n",
                "        self._load(stored)\n        self.durable_commit = 0\n"
                "        self._counter = self._vv.get(self.actor, 0)\n",
            ),
        ),
    ),
    Mutation(
        "R2",
        "timestamps never go back",
        (
            (
                "ts = min(max(wall_us, 0), COUNTER_MAX)",
                "ts = max([wall_us, *(v.ts + 1 for v in chain)])",
            ),
        ),
    ),
    Mutation(
        "R2",
        "whole seconds are compared, microseconds are shown",
        ((_RANK, _RANK.replace("version.ts,", "version.ts // 1_000_000,")),),
    ),
    Mutation(
        "R3",
        "the clock does not take in the pasts of what comes (H7)",
        (("self._clock = join(self._clock, version.upto)", "assert version"),),
    ),
    Mutation(
        "R3",
        "a write does not come after its payload",
        ((_PAST, _PAST.replace(", payload", "")),),
    ),
    Mutation(
        "R3",
        "a write is acknowledged before it is on disk",
        (
            (
                _WAITS_FOR_DISK,
                "            waiting = committer.durable(written.commit)\n"
                "            waiting.addErrback(lambda failure: None)\n",
            ),
        ),
    ),
    Mutation(
        "R3",
        "an answer does not wait for another replica to have the write, too",
        (
            (
                "await self.pushes.acknowledged(written.version.dot)",
                "self.pushes.acknowledged(written.version.dot)",
            ),
        ),
    ),
    Mutation(
        "R4",
        "of two concurrent versions the later one replaces the other (H1)",
        (
            (
                _KEEPS_ALL,
                f"{_KEEPS_ALL.replace('return', 'kept =')}\n"
                "    return (max(kept, key=rank),)",
            ),
        ),
    ),
    Mutation(
        "R5",
        "equal timestamps: names are compared as text",
        ((_RANK, _RANK.replace("name_order(version.origin)", "version.origin")),),
    ),
    Mutation(
        "R6",
        "reads show what is not on disk yet",
        (
            (
                "chain = self._pending.durable(key)\n        upto = [",
                "chain = self._pending.applied(key)\n        upto = [",
            ),
        ),
    ),
    Mutation(
        "R6",
        "a delta claims more than its snapshot holds",
        ((_CLAIMS, _CLAIMS.replace("frontier", "replica.applied")),),
    ),
    Mutation(
        "R7",
        "the base of a delta is not checked (H5)",
        ((_CHECKS_BASE, "if not self._holds_all:"),),
    ),
    Mutation(
        "R7",
        "a delta in parts is valid after the first one (H2)",
        (
            (
                "versions, live, more, index = delta.versions, None, True, 0",
                "versions, live, more, index = delta.versions, None, False, 0",
            ),
        ),
    ),
    Mutation(
        "R7",
        "the clock does not take in what came in parts",
        (("self._clock = join(self._clock, stage.upto)", "assert stage"),),
    ),
    Mutation(
        "R7",
        "another process goes on with a delta in parts",
        (("cluster.rng.getrandbits(SESSION_BITS)", "SESSION_BITS"),),
    ),
    Mutation(
        "R8",
        "a push out of turn is taken",
        (
            (
                "if have == version.counter - 1:",
                "if have < version.counter:",
            ),
        ),
    ),
    Mutation(
        "R9",
        "a tombstone is dropped when it is stable, without a seal (H4)",
        ((_DROPS_SEALS, _DROPS_SEALS.replace("is_seal", "value is None")),),
    ),
    Mutation(
        "R9",
        "nothing is ever sealed",
        (("seal = seal and self.may_seal", "seal = False"),),
    ),
    Mutation(
        "R9",
        "a seal is written at a clock ahead of VV (H18)",
        (
            (
                "return leq(self._clock, self._vv) and leq(self.seen, self._vv)",
                "return True",
            ),
        ),
    ),
    Mutation(
        "R10",
        "who is below the floor gets an ordinary delta (H11)",
        (("full = not leq(frontier.floor, base)", "full = False"),),
    ),
    Mutation(
        "R10",
        "a full join removes nothing",
        ((_FENCES, _FENCES.replace("if not covers(self.claim, dot)", "if self")),),
    ),
    Mutation(
        "R10",
        "a full join removes what its sender does not know",
        ((_FENCES, _FENCES.replace("if not covers(self.claim, dot)", "if not self")),),
    ),
    Mutation(
        "R10",
        "the floor of others is not taken over",
        (
            (
                "floor = join(self._floor, floor)\n        if vv",
                "floor = self._floor\n        if vv",
            ),
        ),
    ),
    Mutation(
        "R11",
        "pasts are forgotten, and the floor is not raised",
        (
            (
                "self._floor = join(self._floor, floor)\n            sealed",
                "assert floor\n            sealed",
            ),
        ),
    ),
    Mutation(
        "R11",
        "a past is forgotten when its dot is stable, and it is not",
        (
            (
                "and leq(version.upto, upto):\n            floor",
                "and upto.get(version.actor, 0) >= version.counter:\n            floor",
            ),
        ),
    ),
    Mutation(
        "R12",
        "members that have not reported are left out",
        (
            (
                "            return EMPTY\n        low",
                "            continue\n        low",
            ),
        ),
    ),
    Mutation(
        "R12",
        "a report is taken from a digest (H17)",
        ((_IS_REPORT, "if vectors:"),),
    ),
    Mutation(
        "R12",
        "a report does not wait for what its node has dropped",
        (
            (_IS_REPORT, "if leq(vectors.vv, mine):"),
            ("        if theirs.whole:\n", "        if theirs:\n"),
        ),
    ),
    Mutation(
        "R12",
        "a proxy reports a clock that is not logged (H20)",
        (
            (
                "            clock=dict(durable.clock),\n",
                "            clock=dict(self.replica.applied.clock),\n",
            ),
        ),
    ),
    Mutation(
        "R12",
        "a payload names an absent key without the floor (H16)",
        ((_READ_PAYLOAD, _READ_PAYLOAD.replace("self.durable.floor, ", "")),),
    ),
    Mutation(
        "R13",
        "the delta of a proxy has no base (H5)",
        (
            (_EMPTY_BASE, "base = asker if replica.holds_all else {}"),
            (
                _CLAIMS,
                _CLAIMS.replace("(base,", "(base if replica.holds_all else {},"),
            ),
        ),
    ),
    Mutation(
        "R13",
        "a proxy follows VVs and no clocks (H7)",
        (("cluster.replica.hear_clock(vectors.clock)", "assert vectors"),),
    ),
    Mutation(
        "R13",
        "a forwarded write does not come after what its node has answered",
        (("seen=dict(cluster.replica.seen),", "seen={},"),),
    ),
    Mutation(
        "R14",
        "a read's payload names the winner only (H3)",
        (
            (
                _READ_PAYLOAD,
                _READ_PAYLOAD.replace(
                    "*upto",
                    "*(v.upto for v in chain if v is winner(chain))",
                ),
            ),
        ),
    ),
    Mutation(
        "R14",
        "a read does not wait for what its payload names",
        (
            (
                "await self.fetch.for_read("
                "request.key, payload.vector, request.deadline)",
                "pass",
            ),
        ),
    ),
    Mutation(
        "R14",
        "an answer that lacks what its payload names is not flagged",
        (("            fresh=fresh,\n", "            fresh=True,\n"),),
    ),
    Mutation(
        "R15",
        "a node serves before its first delta (H15)",
        ((_LAG, _LAG.replace("LAGGING", "SERVING")),),
    ),
    Mutation(
        "R15",
        "provisional answers are not flagged",
        ((_SERVING, "stale = not read.fresh"),),
    ),
    Mutation(
        "R15",
        "a demoted node drops what others lack",
        (
            (
                "if self._covered() and replica.idle:",
                "if cluster.replicas() and replica.idle:",
            ),
        ),
    ),
    Mutation(
        "R16",
        "a view change does not count up",
        (("n = 1 + max((member.n for", "n = max((member.n for"),),
    ),
    Mutation(
        "R16",
        "of two view changes with the same number each side keeps its own",
        ((_NEWER, "newer = max(self, other, key=lambda member: member.n)"),),
    ),
    Mutation(
        "R16",
        "K is not taken over from others",
        (
            (
                "register = register.join(count) if mine.entries else count",
                "register = register if mine.entries else count",
            ),
        ),
    ),
    Mutation(
        "R17",
        "different data under equal VVs is not noticed",
        (("cluster.hash_mismatches += 1", "cluster.hash_mismatches += 0"),),
    ),
    Mutation(
        "R17",
        "the check sum keeps what was overwritten",
        ((_LEAVES_SUM, "            self.visible -= 1\n"),),
    ),
    Mutation(
        "R18",
        "L is kept to itself (H19)",
        (("if self._lamport < lamport < COUNTER_MAX:", "if not lamport:"),),
    ),
    Mutation(
        "R18",
        "a read does not count L up",
        ((_READ_L, _READ_L.replace(" + 1", "")),),
    ),
    Mutation(
        "R19",
        "gossip goes to the living only (H13)",
        (
            (
                "self._deck.draw(cluster.peers, cluster.rng)",
                "self._deck.draw(cluster.peers & cluster.alive(), cluster.rng)",
            ),
            (_DIALS, _DIALS.replace("cluster.peers", "cluster.alive()")),
        ),
    ),
    Mutation(
        "R20",
        "retired actors are left out of payloads, and nothing says so",
        (("packed[Actor(MARKER + generation)] = 1", "assert generation"),),
    ),
    Mutation(
        "R20",
        "a marker is given to clients before every member knows it",
        (
            (
                "if head != self.replica.shared_generation and all(\n"
                "            self.record(peer).retired == head for peer in self.peers\n"
                "        ):",
                "if head != self.replica.shared_generation:",
            ),
        ),
    ),
    Mutation(
        "R20",
        "a payload with a marker is not read",
        (
            (
                "vector = self._cluster.replica.durable.retired.unpack(payload.vector)",
                "vector = payload.vector",
            ),
        ),
    ),
    Mutation(
        "R20",
        "an actor is retired although it writes on",
        (
            ("        and actor not in writing\n", ""),
            ("if entries.get(a) != n}", "if a not in entries}"),
        ),
    ),
)
