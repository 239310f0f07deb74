"""
``twistd`` under a sampling profiler: where the CPU time of its main thread goes.

``python -m bench.sampled FILE ARGUMENTS``.  A sample for every two milliseconds of CPU
time costs little and favours no kind of code, as counting calls would: small functions
look twice as dear under cProfile.  The file is written when the process ends in order.
"""

from __future__ import annotations

import signal
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import cast

from twisted.internet import reactor
from twisted.internet.interfaces import IReactorCore
from twisted.scripts.twistd import run

EVERY_S = 0.002
SHOWN = 150


class Sampler:
    """Counts in which functions the main thread is."""

    def __init__(self) -> None:
        """Begin to count."""
        self._samples = 0
        self._own: Counter[CodeType] = Counter()
        self._whole: Counter[CodeType] = Counter()
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)

    def _sample(self, number: int, frame: FrameType | None) -> None:
        self._samples += 1
        if frame is None:
            return
        self._own[frame.f_code] += 1
        above: set[CodeType] = set()
        while frame is not None:
            above.add(frame.f_code)
            frame = frame.f_back
        self._whole.update(above)

    def text(self) -> str:
        """List functions by their own time, and by that with all they call."""
        lines = [f"{self._samples} samples, each {EVERY_S * 1e3:g} ms of CPU time"]
        for title, counted in (("own", self._own), ("with calls", self._whole)):
            lines.append(f"\n{title}")
            lines += [
                f"{count / max(self._samples, 1):6.1%}  {_place(code)}"
                for code, count in counted.most_common(SHOWN)
            ]
        return "\n".join(lines) + "\n"


def _place(code: CodeType) -> str:
    path = "/".join(Path(code.co_filename).parts[-3:])
    return f"{code.co_qualname}  {path}:{code.co_firstlineno}"


def main() -> None:
    """Run ``twistd``; write where the time went at its end."""
    path = Path(sys.argv[1])
    sampler = Sampler()

    def write() -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        path.write_text(sampler.text())

    # A daemon ends by the signal that told it to: nothing comes after that.
    cast(IReactorCore, reactor).addSystemEventTrigger("after", "shutdown", write)
    sys.argv = ["twistd", *sys.argv[2:]]
    run()


if __name__ == "__main__":
    main()
