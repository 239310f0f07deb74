"""A blocking client for tests: one connection, one request, one answer, timed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any
from urllib.parse import quote, urlencode

TIMEOUT_S = 5.0
"""Far above what is promised, so that a late answer is seen as such."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a node answered, and after how long."""

    status: int
    fields: Mapping[str, Any]
    headers: Mapping[str, str]
    """Names in lower case."""
    seconds: float
    """From before the connection was made until the last byte was here."""

    @property
    def payload(self) -> str:
        """Its causal payload."""
        return str(self.fields["causal_payload"])

    @property
    def stale(self) -> bool:
        """Whether it is marked as perhaps not fresh."""
        return self.headers.get("kvs-stale") == "true"


def ask(
    name: str,
    method: str,
    path: str,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """
    Send a request.

    :param name: ``ip:port``.
    :raises OSError: if there is no answer; also for HTTP that is none.
    """
    began = time.monotonic()
    connection = HTTPConnection(name, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    return Answer(
        status=response.status,
        fields=json.loads(content),
        headers={key.lower(): value for key, value in response.getheaders()},
        seconds=time.monotonic() - began,
    )


def send_form(name: str, method: str, path: str, form: Mapping[str, str]) -> Answer:
    """Send a form, as clients of the API do, also with GET."""
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    return ask(name, method, path, body=urlencode(form).encode(), headers=kind)


def put(name: str, key: str, value: str, payload: str = "") -> Answer:
    """Write a key."""
    form = {"val": value, "causal_payload": payload}
    return send_form(name, "PUT", f"/kv-store/{quote(key)}", form)


def get(name: str, key: str, payload: str = "") -> Answer:
    """Read a key."""
    form = {"causal_payload": payload}
    return send_form(name, "GET", f"/kv-store/{quote(key)}", form)


def delete(name: str, key: str, payload: str = "") -> Answer:
    """Delete a key."""
    form = {"causal_payload": payload}
    return send_form(name, "DELETE", f"/kv-store/{quote(key)}", form)


def update_view(name: str, kind: str, other: str) -> Answer:
    """Add or remove a node."""
    path = f"/kv-store/update_view?type={kind}"
    return send_form(name, "PUT", path, {"ip_port": other})


def is_replica(name: str) -> bool:
    """Ask a node whether it is a replica."""
    answer = ask(name, "GET", "/kv-store/get_node_details")
    return {"Yes": True, "No": False}[answer.fields["replica"]]


def replicas(name: str) -> list[str]:
    """Ask a node who the replicas are."""
    found = ask(name, "GET", "/kv-store/get_all_replicas").fields["replicas"]
    assert isinstance(found, list)
    return found


def status(name: str) -> Mapping[str, Any]:
    """Ask a node what it says of itself."""
    return ask(name, "GET", "/kvs/status").fields
