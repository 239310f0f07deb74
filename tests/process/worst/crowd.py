"""
Clients as no operator wishes them, each a socket: many of them, slow, or gone.

One thread and a selector serve them all, so that the node is what is measured.
"""

from __future__ import annotations

import resource
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

RECV_BYTES = 65536
FILES_BESIDE = 1000
CONNECT_S = 10.0


def allow_files(wanted: int) -> None:
    """Raise the limit of open files of this process; its children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard >= wanted, (
        f"needs {wanted} open files, ulimit -Hn is {hard}"
    )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def resident_bytes(pid: int) -> int:
    """Tell how much memory a process holds."""
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


def open_files(pid: int) -> int:
    """Count what a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def connect(node: str) -> socket.socket:
    """Connect to a node."""
    host, port = node.split(":")
    return socket.create_connection((host, int(port)), CONNECT_S)


def connect_many(node: str, count: int) -> list[socket.socket]:
    """Connect so often, and say nothing."""
    return [connect(node) for _ in range(count)]


@dataclass
class Heard:
    """What came of requests: for each status how long each answer took."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    without_retry_after: int = 0
    broken: int = 0

    def note(self, status: int, seconds: float) -> None:
        """Note an answer."""
        self.seconds.setdefault(status, []).append(seconds)

    def count(self, *statuses: int) -> int:
        """Count the answers of some statuses."""
        return sum(len(self.seconds.get(status, ())) for status in statuses)

    def slowest(self, *statuses: int) -> float:
        """Tell the longest that an answer of some statuses took."""
        return max((max(self.seconds.get(x, [0.0])) for x in statuses), default=0.0)

    def percentile(self, part: float, *statuses: int) -> float:
        """Tell what part of the answers took no longer."""
        all_ = sorted(s for x in statuses for s in self.seconds.get(x, ()))
        return all_[min(len(all_) - 1, int(part * len(all_)))] if all_ else 0.0

    def shown(self) -> str:
        """Describe it in a line."""
        return ", ".join(
            f"{status}: {len(took)} in {self.percentile(0.5, status) * 1e3:.0f} ms"
            f" (p99 {self.percentile(0.99, status) * 1e3:.0f},"
            f" slowest {max(took) * 1e3:.0f})"
            for status, took in sorted(self.seconds.items())
        )


@dataclass
class _Client:
    """One connection with at most one request under way."""

    socket: socket.socket
    began: float = 0.0
    heard: bytes = b""


class OpenLoop:
    """Sends requests at a rate, whether or not those before were answered."""

    def __init__(
        self, node: str, *, connections: int, request: Callable[[int], bytes]
    ) -> None:
        """
        Connect.

        :param connections: so many requests may be under way; above it none is sent.
        :param request: makes the n-th request.
        """
        self._node = node
        self._request = request
        self._selector = selectors.DefaultSelector()
        self._free: list[_Client] = []
        self.sent = 0
        self.heard = Heard()
        for _ in range(connections):
            self._add()

    def _add(self) -> None:
        made = connect(self._node)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = _Client(made)
        self._selector.register(made, selectors.EVENT_READ, client)
        self._free.append(client)

    def run(self, seconds: float, rate: float) -> None:
        """
        Send for so long, then wait for what is under way.

        :param rate: requests a second; 0: the next as soon as one was answered.
        """
        began = time.monotonic()
        number = 0
        while (now := time.monotonic()) < began + seconds:
            due = number + len(self._free) if not rate else int((now - began) * rate)
            while number < due and self._free:
                number += 1
                self._send(self._free.pop())
            self._hear(0.001)
        give_up_at = time.monotonic() + CONNECT_S
        while len(self._free) < len(self._selector.get_map()):
            assert time.monotonic() < give_up_at, "requests are not answered"
            self._hear(0.1)

    def _send(self, client: _Client) -> None:
        client.began, client.heard = time.monotonic(), b""
        client.socket.sendall(self._request(self.sent))
        self.sent += 1

    def _hear(self, wait_s: float) -> None:
        for key, _ in self._selector.select(wait_s):
            client: _Client = key.data
            try:
                piece = client.socket.recv(RECV_BYTES)
            except OSError:
                piece = b""
            client.heard += piece
            if not piece:
                self._lost(client)
            elif _is_whole(client.heard):
                self._answered(client)

    def _lost(self, client: _Client) -> None:
        if client not in self._free:
            self.heard.broken += 1
        else:
            self._free.remove(client)
        self._selector.unregister(client.socket)
        client.socket.close()
        self._add()

    def _answered(self, client: _Client) -> None:
        status = int(client.heard[9:12])
        self.heard.note(status, time.monotonic() - client.began)
        if status == 503 and b"\r\nretry-after: 1\r\n" not in client.heard.lower():
            self.heard.without_retry_after += 1
        self._free.append(client)

    def close(self) -> None:
        """Close all connections."""
        close_all([key.fileobj for key in self._selector.get_map().values()])  # type: ignore[misc]  # all are sockets
        self._selector.close()


def _is_whole(heard: bytes) -> bool:
    head, found, body = heard.partition(b"\r\n\r\n")
    if not found:
        return False
    _, _, length = head.lower().partition(b"content-length: ")
    return len(body) >= int(length.split(b"\r\n")[0])


def close_all(sockets: Sequence[socket.socket]) -> None:
    """Close sockets."""
    for one in sockets:
        one.close()


def send_if_taken(to: socket.socket, sent: bytes) -> None:
    """Send to whoever may not take it, or not all of it."""
    with suppress(OSError):
        to.settimeout(0.5)
        to.sendall(sent)


def count_statuses(sockets: Sequence[socket.socket]) -> Counter[str]:
    """Tell what each was told without having asked to the end: a status, or what."""
    told: Counter[str] = Counter()
    for one in sockets:
        one.setblocking(False)
        try:
            heard = one.recv(RECV_BYTES)
            told[heard[9:12].decode() if heard else "closed"] += 1
        except BlockingIOError:
            told["open"] += 1
        except OSError:
            told["reset"] += 1
    return told
