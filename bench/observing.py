"""What the system tells of processes and of itself, and how samples are summed up."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_SHOWN = ("Twisted", "klein", "treq", "msgspec")


def cpu_s(pid: int) -> float:
    """
    Tell the CPU time that a process has taken, all its threads, in steps of 10 ms.

    :raises OSError: if it has ended.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def rss_bytes(pid: int) -> int:
    """
    Tell how much memory a process has resident.

    :raises OSError: if it has ended.
    """
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def machine_cpu_s() -> float:
    """Tell the CPU time that the machine has spent on anything, all processors."""
    line = Path("/proc/stat").read_text().partition("\n")[0]
    fields = [int(field) for field in line.split()[1:]]
    idle = fields[3] + fields[4]
    # Guests are part of user and nice.
    return (sum(fields[:8]) - idle) / _TICKS_PER_S


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Tell the smallest sample that so many percent do not exceed; 0 of nothing."""
    if not ordered:
        return 0.0
    rank = math.ceil(len(ordered) * percent / 100)
    return ordered[max(rank, 1) - 1]


def median(samples: Sequence[float]) -> float:
    """Tell the median; 0 of nothing."""
    return statistics.median(samples) if samples else 0.0


def machine_line() -> str:
    """Describe what was measured on."""
    packages = ", ".join(f"{name} {_version(name)}" for name in _SHOWN)
    return (
        f"{len(os.sched_getaffinity(0))} cores ({_processor()}), "
        f"{platform.system()} {platform.release()}, "
        f"{platform.python_implementation()} {platform.python_version()}, {packages}, "
        f"load {os.getloadavg()[0]:.1f} at the start"
    )


def file_system(path: Path) -> str:
    """Name the kind of file system that a directory is on: what fsync costs."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mounted, name, *_ = line.split()
        if path.is_relative_to(mounted) and len(mounted) >= len(best):
            best, kind = mounted, name
    return kind


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
