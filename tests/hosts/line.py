"""
A bad line between two bridges: what goes over it is late, lost, doubled, overtaken.

A program of its own, run in the namespace of the bridges: not every kernel has netem.
It makes two interfaces, prints a line when they are there, and carries frames from each
to the other until it is ended; then they are gone.
"""

from __future__ import annotations

import fcntl
import os
import random
import selectors
import struct
import sys
import time
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path

TUNNEL = Path("/dev/net/tun")
FRAMES_MAX = 10_000
FRAME_BYTES_MAX = 65_536
_MAKE_INTERFACE = 0x400454CA
"""TUNSETIFF: gives a name, and flags that ask for plain Ethernet frames."""
_FRAMES_ONLY = 0x1002


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How bad a line is, each way."""

    delay_ms: int = 0
    jitter_ms: int = 0
    """Up to so much later, each frame for itself: one may overtake another."""
    loss: int = 0
    """Lost of a hundred."""
    doubled: int = 0
    """Carried twice of a hundred."""

    def numbers(self) -> tuple[int, ...]:
        """Say it as ``main`` reads it."""
        return self.delay_ms, self.jitter_ms, self.loss, self.doubled


def open_end(name: str) -> int:
    """Make an interface; what is sent out by it can be read, and the other way."""
    end = os.open(TUNNEL, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(
        end, _MAKE_INTERFACE, struct.pack("16sH22x", name.encode(), _FRAMES_ONLY)
    )
    return end


def carry(ends: tuple[int, int], quality: Quality, rng: random.Random) -> None:
    """Carry frames between two interfaces for ever."""
    waiting: list[tuple[float, int, int, bytes]] = []
    counter = 0
    with selectors.DefaultSelector() as selector:
        for end, other in (ends, ends[::-1]):
            selector.register(end, selectors.EVENT_READ, other)
        while True:
            pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
            for key, _ in selector.select(pause):
                frame = os.read(key.fd, FRAME_BYTES_MAX)
                for due in times(quality, rng, time.monotonic()):
                    counter += 1
                    if len(waiting) < FRAMES_MAX:
                        heappush(waiting, (due, counter, key.data, frame))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, end, frame = heappop(waiting)
                send(end, frame)


def times(quality: Quality, rng: random.Random, now: float) -> list[float]:
    """Draw when a frame arrives: never, once or twice."""
    if rng.random() * 100 < quality.loss:
        return []
    copies = 1 + (rng.random() * 100 < quality.doubled)
    return [
        now + (quality.delay_ms + rng.random() * quality.jitter_ms) / 1000
        for _ in range(copies)
    ]


def send(end: int, frame: bytes) -> None:
    """Hand a frame on; while the interface is down nobody misses it."""
    try:
        os.write(end, frame)
    except OSError:
        return


def main() -> None:
    """Run with the names of the two ends, a seed and the numbers of a quality."""
    near, far = map(open_end, sys.argv[1:3])
    seed, delay_ms, jitter_ms, loss, doubled = map(int, sys.argv[3:])
    print("there", flush=True)
    quality = Quality(
        delay_ms=delay_ms, jitter_ms=jitter_ms, loss=loss, doubled=doubled
    )
    carry((near, far), quality, random.Random(seed))


if __name__ == "__main__":
    main()
