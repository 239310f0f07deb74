"""
``python3 -m twisted_kvs.healthcheck``: whether the node of this container answers.

It imports next to nothing, as an engine starts it every few seconds.  Where the node
listens follows from the variables that configure it.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Mapping

PATH = "/health/live"
TIMEOUT_S = 1.2
"""To connect, and once more to be answered; the engine waits for 3 s."""
DEFAULT_PORT = 8080
ANSWER_BYTES = 64
"""The status line is shorter."""

_PARTS = re.compile(r"(?<!\\):")
_ALL = re.compile(r"[0.:]*")
"""Addresses that stand for all of the machine's."""


def where(environment: Mapping[str, str]) -> tuple[str, int]:
    """Tell host and port at which a node with this environment can be asked."""
    kind, *parts = _PARTS.split(environment.get("KVS_LISTEN", "").strip())
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    port = named.get("port") or next((part for part in parts if "=" not in part), "")
    if kind in ("tcp", "tcp6") and port.isdecimal():
        interface = named.get("interface", "").replace("\\", "")
        host = "localhost" if _ALL.fullmatch(interface) else interface
        return host, int(port)
    # Without it a node listens on loopback: at its own address there, if that is one.
    host, _, port = environment.get("IPPORT", "").strip().rpartition(":")
    if not host.startswith("127."):
        host = "localhost"
    return host, int(port) if port.isdecimal() else DEFAULT_PORT


def is_live(host: str, port: int) -> bool:
    """
    Ask a node.

    :raises OSError: if there is no answer in time.
    """
    with socket.create_connection((host, port), timeout=TIMEOUT_S) as connection:
        request = f"GET {PATH} HTTP/1.0\r\nHost: {host}:{port}\r\n\r\n"
        connection.sendall(request.encode())
        answer = connection.recv(ANSWER_BYTES)
    return answer.startswith((b"HTTP/1.0 200 ", b"HTTP/1.1 200 "))


def main() -> int:
    """Give the exit status: 0 if the node answers that it lives."""
    try:
        return 0 if is_live(*where(os.environ)) else 1
    except OSError as error:
        print(f"no answer: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
