"""What was measured against what was wanted, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table."""

    name: str
    """Stable, for programs."""
    what: str
    measured: str
    """With its unit, for people."""
    value: float
    """The same as a number."""
    target: str = "-"
    met: bool | None = None
    """None where there is no target, or not for a run of this size."""
    besides: str = ""
    samples: dict[str, object] = field(default_factory=dict)
    """What the number was made from."""

    @property
    def verdict(self) -> str:
        """One word."""
        return {True: "met", False: "missed", None: "-"}[self.met]


def row(
    name: str,
    what: str,
    value: float,
    *,
    unit: str = "",
    at_least: float | None = None,
    at_most: float | None = None,
    judged: bool = True,
    besides: str = "",
    samples: dict[str, object] | None = None,
) -> Row:
    """
    Make a line, and judge it.

    :param at_least: the target, or ``at_most``; none: nothing is judged.
    :param judged: False where a run of this size does not say whether it is met.
    """
    met = None
    target = "-"
    if at_least is not None:
        target, met = f">= {shown(at_least)}{unit}", value >= at_least
    elif at_most is not None:
        target, met = f"<= {shown(at_most)}{unit}", value <= at_most
    return Row(
        name=name,
        what=what,
        measured=f"{shown(value)}{unit}",
        value=value,
        target=target,
        met=met if judged else None,
        besides=besides,
        samples=samples or {},
    )


def shown(value: float) -> str:
    """Write a number with three digits that mean something."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def table(rows: Iterable[Row]) -> str:
    """Write a Markdown table."""
    cells = [["what", "target", "measured", "", "besides"]]
    cells += [[r.what, r.target, r.measured, r.verdict, r.besides] for r in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def as_json(rows: Iterable[Row]) -> list[dict[str, object]]:
    """Give all of it to programs."""
    return [asdict(line) for line in rows]
