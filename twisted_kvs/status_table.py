"""How ``kvs status`` shows what a node says of itself; pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from .client import BadAnswer, JSONValue


class _PeerStatus(msgspec.Struct, frozen=True):
    alive: bool
    standing: str
    heard_s_ago: float | None = None
    lag_s: float | None = None
    writes_behind: int | None = None


class _Compaction(msgspec.Struct, frozen=True):
    held_up_s: dict[str, float] = {}
    missing: dict[str, int] = {}


class _NodeStatus(msgspec.Struct, frozen=True):
    """The fields that are shown; others are ignored, so that nodes can gain some."""

    name: str
    actor: str
    role: str
    standing: str
    removed: bool
    replica_count: int
    replicas: list[str]
    view: list[str]
    numbers: dict[str, int]
    version_vector: dict[str, int]
    versions: int
    size_bytes: int
    commits: int
    peers: dict[str, _PeerStatus]
    unfolded: int = 0
    disk_full: bool = False
    hash_mismatches: int = 0
    compaction: _Compaction = _Compaction()


def status_table(status: dict[str, JSONValue]) -> str:
    """
    Write a node's status for people: the node, then its view, then its knowledge.

    :raises BadAnswer: if it is no status.
    """
    try:
        node = msgspec.convert(status, _NodeStatus)
    except msgspec.ValidationError as error:
        raise BadAnswer(f"a status that is not understood: {error}") from None
    parts = ["\n".join(_about(node)), _aligned(_members(node))]
    if node.version_vector:
        parts.append(_aligned(_knowledge(node)))
    return "\n\n".join(parts)


def _about(node: _NodeStatus) -> list[str]:
    # A proxy keeps nobody's writes: it has nothing to catch up with.
    standing = f", {node.standing}" if node.role == "replica" else ""
    head = f"{node.name}  {node.role}{standing}"
    lines = [
        head + (", removed from the view" if node.removed else ""),
        f"{len(node.replicas)} of {node.replica_count} replicas wanted: "
        + (", ".join(node.replicas) or "none"),
        f"{node.versions} versions, {_bytes(node.size_bytes)}, {node.commits} commits "
        "since the start",
    ]
    if node.unfolded:
        lines.append(f"catching up: {node.unfolded} versions still to be folded")
    lines += [
        f"compaction is held up by {name}, which has not reported for {seconds:.0f} s"
        for name, seconds in sorted(node.compaction.held_up_s.items())
    ]
    lines += [
        f"the writes of {actor}, up to {counter}, are missing: what came after them is "
        "not compacted"
        for actor, counter in sorted(node.compaction.missing.items())
    ]
    if node.disk_full:
        lines.append("THE DISK IS FULL: writes are handed to other replicas")
    if node.hash_mismatches:
        lines.append(
            f"{node.hash_mismatches} TIMES another replica had other data under equal "
            "knowledge: a bug or a broken disk, see the log"
        )
    return lines


def _members(node: _NodeStatus) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [
        ("NODE", "NAME", "ROLE", "STANDING", "HEARD", "LAG", "BEHIND")
    ]
    for name in node.view:
        peer = node.peers.get(name)
        role = "replica" if name in node.replicas else "proxy"
        number = str(node.numbers.get(name, "-"))
        if peer is None:
            standing = node.standing if role == "replica" else "-"
            rows.append((number, name, role, standing, "itself", "-", "-"))
            continue
        role = role if peer.alive else "dead"
        standing = peer.standing if role == "replica" else "-"
        heard = "never" if peer.heard_s_ago is None else f"{peer.heard_s_ago:.1f} s ago"
        lag = "-" if peer.lag_s is None else f"{peer.lag_s:.1f} s"
        behind = "-" if peer.writes_behind is None else f"{peer.writes_behind} writes"
        rows.append((number, name, role, standing, heard, lag, behind))
    return rows


def _knowledge(node: _NodeStatus) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [("WRITES KNOWN", "OF ACTOR")]
    for actor, counter in sorted(node.version_vector.items()):
        own = "  (this process)" if actor == node.actor else ""
        rows.append((str(counter), actor + own))
    return rows


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    )


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
