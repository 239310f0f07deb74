"""One command, one table: ``python -m bench``."""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from . import catch_up, churn, compaction, counting, idle, start, throughput, visibility
from .observing import file_system, machine_cpu_s, machine_line
from .processes import RunFailed, Sandbox
from .report import Row, as_json, table
from .wire import BrokenAnswer

Measurement = Callable[[Sandbox], Iterator[Row]]

FULL: dict[str, Measurement] = {
    "throughput": lambda box: throughput.measure(box, throughput.Turns()),
    "visible": lambda box: visibility.measure(box, visibility.Plan()),
    "catch-up": lambda box: catch_up.measure(box, catch_up.Plan()),
    "idle": lambda box: idle.measure(box, idle.Plan()),
    "start": lambda box: start.measure(box, start.Plan()),
    "counting": lambda box: counting.measure(box, counting.Plan()),
    "compaction": lambda box: compaction.measure(box, compaction.Plan()),
}
QUICK: dict[str, Measurement] = {
    "throughput": lambda box: throughput.measure(
        box, throughput.Turns(turns=2, seconds=0.5, keys=1000)
    ),
    "visible": lambda box: visibility.measure(box, visibility.Plan(seconds=2)),
    "catch-up": lambda box: catch_up.measure(
        box, catch_up.Plan(turns=1, sizes=(2_000, 10_000))
    ),
    "idle": lambda box: idle.measure(box, idle.Plan(sizes=(10, 5_000), seconds=2)),
    "start": lambda box: start.measure(box, start.Plan(turns=2, keys=10_000)),
    "counting": lambda box: counting.measure(box, counting.Plan(pairs=10)),
    "compaction": lambda box: compaction.measure(
        box,
        compaction.Plan(
            keys=10_000,
            before_s=0,
            load_keys=50_000,
            turns=1,
            seconds=0.5,
            slice_keys=5_000,
            churn=churn.Plan(keys=200, times=3, live=100),
            join=catch_up.Plan(turns=1, sizes=(5_000,), forgotten=True),
        ),
    ),
}
LARGE: dict[str, Measurement] = {
    "compaction": lambda box: compaction.measure(
        box, compaction.Plan(keys=1_000_000, churn=churn.Plan(keys=10_000))
    ),
}


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure a node and a cluster on loopback."
    )
    parser.add_argument(
        "--quick", action="store_true", help="smaller numbers, about two minutes"
    )
    parser.add_argument(
        "--large",
        action="store_true",
        help="a million keys where it matters: half an hour",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=sorted(FULL),
        help="only this measurement; may be given again",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="all samples, too")
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="where stores are made: the disk that counts [%(default)s]",
    )
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="DIRECTORY",
        help="say where the nodes' CPU time goes, one file for each start of a node",
    )
    return parser.parse_args(arguments)


def main() -> int:
    """Measure and print."""
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    directory = options.directory.resolve()
    profile = options.profile.resolve() if options.profile else None
    if profile is not None:
        profile.mkdir(parents=True, exist_ok=True)
    chosen = QUICK if options.quick else FULL
    if options.large:
        chosen = chosen | LARGE
    machine = f"{machine_line()}, stores on {file_system(directory)}"
    began, busy = time.monotonic(), machine_cpu_s()
    rows: list[Row] = []
    try:
        for name, measurement in chosen.items():
            if not options.only or name in options.only:
                print(f"{name} ...", file=sys.stderr, flush=True)
                with Sandbox(parent=directory, profile=profile) as sandbox:
                    rows += measurement(sandbox)
    except (RunFailed, BrokenAnswer, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted, everything is stopped", file=sys.stderr)
        return 130
    seconds = time.monotonic() - began
    others = (machine_cpu_s() - busy - _own_cpu_s()) / seconds
    run = (
        f"{'quick run, ' if options.quick else ''}{seconds:.0f} s; what else ran took "
        f"{max(others, 0):.2f} of the machine's {os.cpu_count()} cores"
    )
    print(table(rows))
    print(f"\n{machine}\n{run}")
    if options.json:
        found = {"machine": machine, "run": run, "rows": as_json(rows)}
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def _own_cpu_s() -> float:
    spent = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        spent += used.ru_utime + used.ru_stime
    return spent


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
