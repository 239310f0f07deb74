"""
How an error looks to a client: one shape, on every path.

``{"result": "error", "msg": "..."}`` with the error's own status and nothing else; a
503 says when to come back, a 405 what would have worked.
"""

from __future__ import annotations

import json

from twisted.web.iweb import IRequest

from twisted_kvs.core.errors import KVSError

RETRY_AFTER_S = 1
"""What a 503 tells its client to wait, whole seconds."""
_UNAVAILABLE = 503


def error_body(message: str) -> bytes:
    """Write an error's body as JSON; lone surrogates are escaped, never refused."""
    return json.dumps({"result": "error", "msg": message}).encode("ascii")


def error_headers(error: KVSError) -> list[tuple[str, str]]:
    """List the headers that belong to an error beside its length."""
    headers = [("Content-Type", "application/json")]
    if error.status == _UNAVAILABLE:
        headers.append(("Retry-After", str(RETRY_AFTER_S)))
    allow = getattr(error, "allow", None)
    if allow:
        headers.append(
            ("Allow", allow if isinstance(allow, str) else ", ".join(sorted(allow)))
        )
    return headers


def answer_error(request: IRequest, error: KVSError) -> bytes:
    """
    Set status and headers of the answer to a request that failed.

    :param error: may carry ``allow``: the methods that would have worked, as text or as
        a set, for the ``Allow`` header.
    :returns: the body, to be returned by a route or written.
    """
    request.setResponseCode(error.status)
    for name, value in error_headers(error):
        request.responseHeaders.setRawHeaders(name, [value])
    return error_body(str(error))
