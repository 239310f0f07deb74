"""
Paste the README's line that starts the demo, then the lines of curl that it prints.

``demo.py LINE``, in a copy of the tree that has no .venv yet.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from threading import Timer

CURL_LINES = 3
START_S = 300.0
"""The installation is part of the line."""
STOP_S = 10.0


def read_curl_lines(demo: subprocess.Popen[str]) -> list[str]:
    """Show what the demo prints until it has printed its lines to paste."""
    assert demo.stdout is not None
    found: list[str] = []
    for line in demo.stdout:
        print(line, end="", flush=True)
        if line.startswith(" ") and "curl " in line:
            found.append(line.strip())
        if len(found) == CURL_LINES:
            return found
    raise SystemExit("the demo printed no lines of curl")


def main() -> None:
    """Start, ask, interrupt as Ctrl-C does; end with one line if that goes wrong."""
    # A shell starts what it runs in the background with SIGINT ignored, and that is
    # inherited; at a terminal, where this line is pasted, it is not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    demo = subprocess.Popen(
        ["bash", "-c", sys.argv[1]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    too_late = Timer(START_S, os.killpg, (demo.pid, signal.SIGKILL))
    too_late.start()
    try:
        pasted = "\n".join(["set -euo pipefail", *read_curl_lines(demo)])
        answers = subprocess.run(
            ["bash", "-c", pasted], capture_output=True, text=True, check=True
        ).stdout
        print(answers)
        if '"hello"' not in answers or '"replicas"' not in answers:
            raise SystemExit("these are not the answers to the demo's lines of curl")
        os.killpg(demo.pid, signal.SIGINT)
        print(demo.communicate(timeout=STOP_S)[0])
        if demo.returncode not in (0, -signal.SIGINT, 128 + signal.SIGINT):
            raise SystemExit(f"exit status {demo.returncode} after Ctrl-C")
    finally:
        too_late.cancel()
        if demo.poll() is None:
            os.killpg(demo.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
