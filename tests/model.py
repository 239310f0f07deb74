"""
What a winner is, by brute force: the definition that the simulator's oracle is held to.

A history is an order of writes; nothing here is quick, and nothing is shared with the
package but the words.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Write:
    """One write: who made it, when by its clock, and which writes it knew of."""

    actor: str
    counter: int
    ts: int
    knew: frozenset[tuple[str, int]]
    """Dots of all writes before it; with each all that that one knew."""

    @property
    def dot(self) -> tuple[str, int]:
        """Its name."""
        return self.actor, self.counter


def standing(writes: list[Write]) -> list[Write]:
    """List the writes that nobody has written over."""
    return [w for w in writes if not any(w.dot in other.knew for other in writes)]


def shown(writes: list[Write]) -> Write | None:
    """Choose the later one by clock; of two at the same time that of the later name."""
    best: Write | None = None
    for write in standing(writes):
        if best is None or _beats(write, best):
            best = write
    return best


def _beats(one: Write, other: Write) -> bool:
    if one.ts != other.ts:
        return one.ts > other.ts
    if _address(one) != _address(other):
        return _address(one) > _address(other)
    return one.dot > other.dot


def _address(write: Write) -> list[int]:
    # "10.0.0.9:80#beef" is 10, 0, 0, 9 and 80.
    return [int(x) for x in write.actor.split("#")[0].replace(":", ".").split(".")]
