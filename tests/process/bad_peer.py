"""Addresses where something listens that is no good node."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from threading import Event, Thread

HTTP = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"


class BadPeer:
    """Listens in threads; treats all its connections alike."""

    def __init__(self, name: str, behaviour: Callable[[BadPeer, socket.socket], None]):
        """
        Listen.

        :param name: ``ip:port``.
        :param behaviour: called in a thread for each connection, with a first request
            already read.
        """
        host, port = name.split(":")
        self.closing = Event()
        self.connections = 0
        self._behaviour = behaviour
        self._port = socket.create_server((host, int(port)))
        self._threads = [Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        """Listen no more and end all threads."""
        self.closing.set()
        self._port.shutdown(socket.SHUT_RDWR)
        self._port.close()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._port.accept()
                self.connections += 1
                thread = Thread(target=self._serve, args=(connection,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(1)
        with connection, suppress(OSError):
            connection.recv(65536)
            self._behaviour(self, connection)


def never(peer: BadPeer, connection: socket.socket) -> None:
    """Read and say nothing."""
    while not peer.closing.is_set():
        with suppress(TimeoutError):
            if not connection.recv(65536):
                return


def slowly(peer: BadPeer, connection: socket.socket) -> None:
    """Answer byte by byte, without an end."""
    connection.sendall(HTTP)
    while not peer.closing.wait(0.05):
        connection.sendall(b"X")


def endlessly(peer: BadPeer, connection: socket.socket) -> None:
    """Answer with a body that does not end, as fast as it is taken."""
    connection.sendall(HTTP + b"\r\n")
    give_up_at = time.monotonic() + 1
    while not peer.closing.is_set() and time.monotonic() < give_up_at:
        connection.sendall(b"X" * 65536)


def no_http(peer: BadPeer, connection: socket.socket) -> None:
    """Speak another protocol."""
    connection.sendall(b"\x00\xff220 mail.example ESMTP\r\n" * 10)


def unsigned(peer: BadPeer, connection: socket.socket) -> None:
    """Answer as any web server would."""
    connection.sendall(HTTP + b"Content-Length: 5\r\n\r\nhello")


def forged(peer: BadPeer, connection: socket.socket) -> None:
    """Answer with something that looks like a signature, in part."""
    seal = b"v1 a:1 %b a:1 %b 5 %b %b" % (b"0" * 16, b"0" * 32, b"0" * 64, b"0" * 64)
    connection.sendall(
        HTTP + b"KVS-Peer: " + seal + b"\r\nContent-Length: 5\r\n\r\nhel"
    )


def hang_up(peer: BadPeer, connection: socket.socket) -> None:
    """Close without a word."""


BEHAVIOURS: Mapping[str, Callable[[BadPeer, socket.socket], None]] = {
    behaviour.__name__: behaviour
    for behaviour in (never, slowly, endlessly, no_http, unsigned, forged, hang_up)
}
