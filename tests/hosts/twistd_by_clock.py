"""
``twistd`` by a wall clock that somebody else sets; monotonic time goes on as it does.

A program of its own, given to Python by its path.  libfaketime would do without it, but
where threads wait for each other it makes nodes stand still for seconds (0.9.10).
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import time
from pathlib import Path

OFFSET = struct.Struct("q")
VARIABLE = "HOSTS_CLOCK"
"""Names the file whose first bytes say how many nanoseconds the clock is ahead."""


def go_by(path: Path) -> None:
    """Have all of this process that asks Python for the time be told another."""
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), OFFSET.size, prot=mmap.PROT_READ)
    right_ns = time.time_ns

    def wrong_ns() -> int:
        offset: int = OFFSET.unpack_from(memory)[0]
        return right_ns() + offset

    vars(time)["time_ns"] = wrong_ns
    vars(time)["time"] = lambda: wrong_ns() / 1e9


def main() -> None:
    """Run ``twistd`` with the arguments given."""
    # The directory of this file, where modules have names like others elsewhere.
    del sys.path[0]
    go_by(Path(os.environ[VARIABLE]))
    from twisted.scripts.twistd import run

    run()


if __name__ == "__main__":
    main()
