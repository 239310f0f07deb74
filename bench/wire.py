"""
As much HTTP as a load generator needs, by hand: a client must cost less than a server.

Invariant: one connection has one request under way at most, and keeps alive.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple
from urllib.parse import quote

RECV_BYTES = 2**18
ASK_S = 5.0


class Address(NamedTuple):
    """Where something listens; always on loopback."""

    host: str
    port: int

    @property
    def name(self) -> str:
        """As ``ip:port``."""
        return f"{self.host}:{self.port}"


class Answer(NamedTuple):
    """One whole answer."""

    status: int
    head: bytes
    body: bytes


class BrokenAnswer(Exception):
    """What came is no answer, or the connection ended within one."""


def get_request(path: str, payload: str = "") -> bytes:
    """Write a GET; a payload goes into a form body, as clients of the API send it."""
    body = f"causal_payload={payload}".encode() if payload else b""
    return _request("GET", path, body)


def put_request(path: str, value: str, payload: str = "") -> bytes:
    """Write a PUT with a form body."""
    form = f"val={quote(value)}&causal_payload={payload}"
    return _request("PUT", path, form.encode())


def delete_request(path: str) -> bytes:
    """Write a DELETE that has read nothing."""
    return _request("DELETE", path, b"")


def key_path(key: str) -> str:
    """Tell the path of a key."""
    return "/kv-store/" + quote(key)


def _request(method: str, path: str, body: bytes) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
    if body:
        head += (
            "Content-Type: application/x-www-form-urlencoded\r\n"
            f"Content-Length: {len(body)}\r\n"
        )
    return head.encode() + b"\r\n" + body


class AnswerReader:
    """Puts one answer after the other together."""

    def __init__(self) -> None:
        """Start before the first byte."""
        self._buffer = b""

    def feed(self, piece: bytes) -> Answer | None:
        """
        Take what came.

        :returns: the answer, when it is whole.
        :raises BrokenAnswer: if more than one answer came, or none that is HTTP.
        """
        buffer = self._buffer = self._buffer + piece if self._buffer else piece
        head, found, body = buffer.partition(b"\r\n\r\n")
        if not found:
            return None
        lower = head.lower()
        at = lower.find(b"content-length:")
        if at >= 0:
            length = int(lower[at + 15 :].split(b"\r\n", 1)[0])
            if len(body) < length:
                return None
        elif b"transfer-encoding: chunked" in lower:
            # Good enough for texts that hold no such line themselves.
            if not body.endswith(b"0\r\n\r\n"):
                return None
            length = len(body)
        else:
            raise BrokenAnswer(f"an answer without a length: {head!r:.200}")
        if len(body) > length or not head.startswith(b"HTTP/1.1 "):
            raise BrokenAnswer(f"not one answer: {buffer!r:.200}")
        self._buffer = b""
        return Answer(int(head[9:12]), head, body)


@dataclass(slots=True)
class Client:
    """A blocking client on one connection, for what is asked now and then."""

    address: Address
    _socket: socket.socket | None = None

    def __enter__(self) -> Client:
        """Connect with the first request."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection; the next request makes another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ask(self, request: bytes, *, within_s: float = ASK_S) -> Answer:
        """
        Send a request and wait for its answer.

        :raises OSError: if there is no connection or no answer within the time.
        :raises BrokenAnswer: if the answer is none.
        """
        try:
            return self._ask(request, within_s)
        except BaseException:
            self.close()
            raise

    def _ask(self, request: bytes, within_s: float) -> Answer:
        deadline = time.monotonic() + within_s
        if self._socket is None:
            self._socket = socket.create_connection(self.address, within_s)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(within_s)
        self._socket.sendall(request)
        reader = AnswerReader()
        while True:
            piece = self._socket.recv(RECV_BYTES)
            if not piece:
                raise BrokenAnswer("the connection ended")
            answer = reader.feed(piece)
            if answer is not None:
                return answer
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"no whole answer within {within_s:g} s")
            self._socket.settimeout(left_s)
