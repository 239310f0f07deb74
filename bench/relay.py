"""
A relay in front of a node: counts the bytes of each question and its answer.

What it counts is everything that HTTP sends, headers included; what TCP and IP add is
not.  It runs on threads of its own, ended with ``close``.
"""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass

from .wire import RECV_BYTES, Address

_POLL_S = 0.1


@dataclass(slots=True)
class Counted:
    """One question and its answer."""

    asked_bytes: int = 0
    answered_bytes: int = 0


class Relay:
    """Passes on what comes at one address to another."""

    def __init__(self, at: Address, to: Address) -> None:
        """Listen at once."""
        self._to = to
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._counted: list[Counted] = []
        self._socket = socket.create_server(at)
        self._socket.settimeout(_POLL_S)
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def reset(self) -> None:
        """Begin to count."""
        with self._lock:
            self._counted.clear()

    def whole(self) -> list[Counted]:
        """List what was asked and answered, the oldest first."""
        with self._lock:
            return [x for x in self._counted if x.asked_bytes and x.answered_bytes]

    def close(self) -> None:
        """Cut all connections."""
        self._closing.set()
        self._socket.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                near, _ = self._socket.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(near,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, near: socket.socket) -> None:
        with near, suppress(OSError):
            near.setblocking(True)
            with socket.create_connection(self._to, 1.0) as far:
                for end in (near, far):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    end.settimeout(5.0)
                self._pass_on(near, far)

    def _pass_on(self, near: socket.socket, far: socket.socket) -> None:
        counted = Counted()
        with selectors.DefaultSelector() as selector:
            selector.register(near, selectors.EVENT_READ, far)
            selector.register(far, selectors.EVENT_READ, near)
            while not self._closing.is_set():
                for key, _ in selector.select(_POLL_S):
                    end = near if key.data is far else far
                    piece = end.recv(RECV_BYTES)
                    if not piece:
                        return
                    # Peers ask one thing at a time, so this tells where one ends.
                    if end is near and (
                        counted.answered_bytes or not counted.asked_bytes
                    ):
                        counted = Counted()
                        with self._lock:
                            self._counted.append(counted)
                    if end is near:
                        counted.asked_bytes += len(piece)
                    else:
                        counted.answered_bytes += len(piece)
                    key.data.sendall(piece)
