"""
Is the simulator worth anything?  Break one rule of the design at a time, and see.

``python -m tests.simulation.mutations`` patches a copy of the package, runs ``kvs
simulate`` on it and prints which checker saw it and after how many histories.  A rule
that is broken and not caught is a hole in the proof, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.simulation.broken_rules import MUTATIONS, Mutation
from twisted_kvs.simulation.faults import Op

PACKAGE = Path(__file__).parents[2] / "twisted_kvs"
NOT_PATCHED = "simulation"
PROGRAM = """
import json, sys, twisted_kvs
assert twisted_kvs.__path__[0] == sys.argv[1], twisted_kvs.__path__
from twisted_kvs.simulation.runner import first_caught
seed, limit = int(sys.argv[2]), int(sys.argv[3])
print(*first_caught(range(seed, seed + limit), json.loads(sys.argv[4])))
"""


@dataclass(frozen=True, slots=True)
class Caught:
    """What has become of a mutation."""

    mutation: Mutation
    checker: str
    """Empty: it survived."""
    histories: int
    seconds: float

    @property
    def row(self) -> str:
        """One line of the table."""
        found = self.checker or "**nothing**"
        rule, says = self.mutation.rule, self.mutation.says
        return f"| {rule} | {says} | {found} | {self.histories:,} |"


def patched(mutation: Mutation) -> Iterator[tuple[Path, str]]:
    """
    Give the files that a mutation changes, relative to the package, as they become.

    :raises ValueError: if a patch does not fit exactly once.
    """
    texts = {
        path: path.read_text("utf-8")
        for path in sorted(PACKAGE.rglob("*.py"))
        if NOT_PATCHED not in path.parts
    }
    changed: dict[Path, str] = {}
    for old, new in mutation.patches:
        hits = [path for path, text in texts.items() if old in text]
        count = sum(texts[path].count(old) for path in hits)
        if count != 1:
            raise ValueError(f"{mutation}: found {count} times, wanted once: {old!r}")
        texts[hits[0]] = changed[hits[0]] = texts[hits[0]].replace(old, new)
    for path, text in changed.items():
        compile(text, str(path), "exec")
        yield path.relative_to(PACKAGE), text


def check(
    mutation: Mutation, *, seed: int, limit: int, history: Sequence[Op] = ()
) -> Caught:
    """
    Run the simulator on a copy in which a rule is broken.

    :param history: what all runs do; empty: they are drawn.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kvs-mutation-") as directory:
        copy = Path(directory) / "twisted_kvs"
        shutil.copytree(
            PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
        for path, text in patched(mutation):
            (copy / path).write_text(text, "utf-8")
        environment = {**os.environ, "PYTHONPATH": directory, "PYTHONHASHSEED": "0"}
        given = (str(copy), str(seed), str(limit), json.dumps(history))
        output = subprocess.run(
            [sys.executable, "-c", PROGRAM, *given],
            env=environment,
            cwd=directory,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout.split()
    checker = output[1] if len(output) > 1 else ""
    return Caught(mutation, checker, int(output[0]), time.monotonic() - began)


def chosen(only: Sequence[str]) -> list[Mutation]:
    """Choose mutations by rule."""
    return [m for m in MUTATIONS if not only or m.rule in only]


def main(arguments: Iterable[str]) -> int:
    """Check all that are asked for; gives the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", action="append", default=[], metavar="RULE")
    parser.add_argument("--limit", type=int, default=3000, help="histories for each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args(list(arguments))
    began = time.monotonic()
    print(
        "| rule | what is broken | caught by | histories |\n| --- | --- | --- | --- |"
    )
    survived = 0
    with ThreadPoolExecutor(given.jobs) as pool:
        running = [
            pool.submit(check, mutation, seed=given.seed, limit=given.limit)
            for mutation in chosen(given.only)
        ]
        for future in running:
            caught = future.result()
            survived += not caught.checker
            print(caught.row, flush=True)
    seconds = time.monotonic() - began
    print(f"\n{len(running)} rules broken, {survived} not caught; {seconds:.0f} s")
    return 1 if survived or not running else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
