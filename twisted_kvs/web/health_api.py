"""
Whether the node may be asked: ``/health/live`` and ``/health/ready``.

Invariant: both are answered in the turn in which they came, and a node that is full of
requests answers them, too (see ``Request.admit``).
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from twisted.web.iweb import IRequest
from twisted.web.resource import Resource

from twisted_kvs.core.errors import KVSError, MethodNotAllowed

from .errors import answer_error
from .paths import LIVE_PATH, READY_PATH

_ALIVE = msgspec.json.encode({"result": "success", "live": True})
_READY = msgspec.json.encode({"result": "success", "ready": True})


class NotReady(KVSError):
    """Clients should ask another node for now."""

    code = "not_ready"
    status = 503


class _NotGet(MethodNotAllowed):
    allow = "GET"


class HealthApi(Resource):
    """Answers both paths; any other must not come here."""

    isLeaf = True

    def __init__(self, obstacle: Callable[[], str | None]) -> None:
        """
        Tell of a node.

        :param obstacle: why the node is not ready, None if it is; asked each time.
        """
        super().__init__()
        self._obstacle = obstacle

    def render(self, request: IRequest) -> bytes:
        """Answer GET; 405 to every other method."""
        if request.method != b"GET":
            body = answer_error(request, _NotGet("health can only be read"))
            return b"" if request.method == b"HEAD" else body
        assert request.path in (LIVE_PATH, READY_PATH)
        obstacle = self._obstacle() if request.path == READY_PATH else None
        if obstacle is not None:
            return answer_error(request, NotReady(f"not ready: {obstacle}"))
        request.responseHeaders.setRawHeaders("Content-Type", ["application/json"])
        return _READY if request.path == READY_PATH else _ALIVE
