"""
Paths: which are for operators, which a node that is full answers, too, and what kind of
request each stands for where requests are counted.
"""

from __future__ import annotations

from twisted_kvs.metrics import Kind

STATUS_PATH = b"/kvs/status"
LIVE_PATH = b"/health/live"
READY_PATH = b"/health/ready"

METRICS_PATH = b"/metrics"

ALWAYS_ADMITTED = frozenset({LIVE_PATH, READY_PATH, METRICS_PATH})
"""Without a body; answered at once, so that none of them is ever in flight."""

_KEYS = b"/kv-store/"
_OF_KEYS = {b"GET": Kind.GET, b"PUT": Kind.PUT, b"DELETE": Kind.DELETE}
_OF_PATHS = {
    _KEYS + b"get_node_details": Kind.VIEW,
    _KEYS + b"get_all_replicas": Kind.VIEW,
    _KEYS + b"update_view": Kind.VIEW,
    _KEYS + b"update-view": Kind.VIEW,
    LIVE_PATH: Kind.HEALTH,
    READY_PATH: Kind.HEALTH,
    METRICS_PATH: Kind.METRICS,
    STATUS_PATH: Kind.STATUS,
}


def kind_of(method: bytes, path: bytes) -> Kind:
    """Tell what a client's request is about; whatever it sent, it is one of a few."""
    kind = _OF_PATHS.get(path)
    if kind is not None:
        return kind
    if path.startswith(_KEYS):
        return _OF_KEYS.get(method, Kind.OTHER)
    return Kind.OTHER


def origin_form(uri: bytes) -> bytes:
    """Tell path and query of what a request line names."""
    # Clients of proxies name the whole URL, and servers must take that (RFC 9112).
    if uri[:7].lower() != b"http://":
        return uri
    at = uri.find(b"/", 7)
    return uri[at:] if at >= 0 else b"/"
