"""What tests of the worst days share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.process.harness import PROJECT, ProcessCase, clean_environment

from .recorder import build_recorder

TURNED_ON = bool(os.environ.get("KVS_WORST_TESTS"))


def number_wanted(variable: str, default: int) -> int:
    """Read how often something is to be done."""
    return int(os.environ.get(variable, default))


class WorstCase(ProcessCase):
    """A test that takes long, or more of the machine than others do."""

    skip = None if TURNED_ON else "takes minutes; KVS_WORST_TESTS=1 turns it on"

    def recorder(self) -> Path:
        """Compile what watches a process."""
        return build_recorder(self.directory)

    def storing(
        self, path: Path, turn: int, watched: Mapping[str, str]
    ) -> subprocess.Popen[str]:
        """Start ``tests.process.storing``; it is killed with the test at the latest."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.process.storing", str(path), str(turn)],
            cwd=PROJECT,
            env=clean_environment(watched),
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(end, process)
        return process


def end(process: subprocess.Popen[str]) -> None:
    """Kill a process; one that has ended is let go of."""
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
