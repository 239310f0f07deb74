"""
What a node says of itself, for operators: ``GET /kvs/status``.

No part of the contract with clients: fields may be added at any time.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from twisted.logger import Logger
from twisted.web.iweb import IRequest
from twisted.web.resource import Resource

from twisted_kvs.core.errors import KVSError, MethodNotAllowed

from .errors import answer_error


class _NotGet(MethodNotAllowed):
    allow = "GET"


class StatusApi(Resource):
    """Answers with the status as JSON."""

    isLeaf = True
    _log = Logger()

    def __init__(self, status: Callable[[], dict[str, object]]) -> None:
        """
        Serve a status.

        :param status: called for each request; what it gives must be JSON-able.
        """
        super().__init__()
        self._status = status

    def render(self, request: IRequest) -> bytes:
        """Answer GET; 405 to every other method."""
        if request.method != b"GET":
            body = answer_error(request, _NotGet("the status can only be read"))
            return b"" if request.method == b"HEAD" else body
        try:
            body = msgspec.json.encode(self._status())
        except Exception:
            self._log.failure("no status")
            return answer_error(request, KVSError("this node failed, its log says how"))
        request.responseHeaders.setRawHeaders("Content-Type", ["application/json"])
        return body
