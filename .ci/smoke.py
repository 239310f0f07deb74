"""
Start ``twistd kvs`` as it is installed, ask it over HTTP, stop it, start it again.

Run by the Python of the venv that is to be tried, in an empty directory.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

START_S = 10.0
STOP_S = 5.0
VALUE = "sm\u00f8rrebr\u00f8d / 1"

# Never through a proxy that the environment names.
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port() -> int:
    """Find a port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ask(method: str, url: str, form: dict[str, str]) -> tuple[int, dict[str, object]]:
    """Send a form as a client of the API does; give status and fields."""
    body = urllib.parse.urlencode(form).encode()
    request = urllib.request.Request(url, data=body, method=method)
    try:
        with opener.open(request, timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, {"result": error.read().decode(errors="replace")}


def scrape(port: int) -> str:
    """Give a node's metrics."""
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return str(answer.read(), "utf-8")


def fetch(port: int, path: str) -> dict[str, object]:
    """Give the fields of what a path answers; what is no success ends the run."""
    with opener.open(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        fields: dict[str, object] = json.load(answer)
        return fields


def start(port: int) -> subprocess.Popen[bytes]:
    """Start a node; return when it answers."""
    twistd = Path(sys.executable).with_name("twistd")
    environment = {**os.environ, "IPPORT": f"127.0.0.1:{port}"}
    node = subprocess.Popen(
        [twistd, "--nodaemon", "--pidfile=", "kvs"], env=environment
    )
    give_up_at = time.monotonic() + START_S
    while time.monotonic() < give_up_at and node.poll() is None:
        try:
            opener.open(f"http://127.0.0.1:{port}/kv-store/get_node_details", timeout=1)
        except OSError:
            time.sleep(0.05)
        else:
            return node
    node.kill()
    raise SystemExit(f"no answer within {START_S:g} s, exit status {node.wait()}")


def stop(node: subprocess.Popen[bytes]) -> None:
    """Ask a node to end, as an init does; it has five seconds."""
    began = time.monotonic()
    node.send_signal(signal.SIGTERM)
    try:
        status = node.wait(STOP_S)
    except subprocess.TimeoutExpired:
        node.kill()
        raise SystemExit(f"still running {STOP_S:g} s after SIGTERM") from None
    # Twisted ends its own process by the signal again, so that a parent can see it.
    if status not in (0, -signal.SIGTERM):
        raise SystemExit(f"exit status {status} after SIGTERM")
    print(f"stopped within {time.monotonic() - began:.2f} s")


def check(what: str, got: object, wanted: object) -> None:
    """End the run with one line if these differ."""
    if got != wanted:
        raise SystemExit(f"{what}: got {got!r}, wanted {wanted!r}")
    print(f"{what}: {got!r}")


def main() -> None:
    """Write, read, restart, read."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/kv-store/smoke"
    node = start(port)
    try:
        status, fields = ask("PUT", url, {"val": VALUE, "causal_payload": ""})
        check("PUT", (status, fields["result"]), (201, "success"))
        payload = str(fields["causal_payload"])
        status, fields = ask("GET", url, {"causal_payload": payload})
        check("GET", (status, fields["value"]), (200, VALUE))
        check("ready", fetch(port, "/health/ready")["ready"], True)
        check("metrics", 'kvs_requests_total{kind="get"' in scrape(port), True)
        stop(node)
        node = start(port)
        status, fields = ask("GET", url, {"causal_payload": payload})
        check("GET after a restart", (status, fields["value"]), (200, VALUE))
        stop(node)
    finally:
        node.kill()


if __name__ == "__main__":
    main()
