"""
A client of the store that carries the causal payload for its caller.

Invariant: the operations of one client happen one after the other, each with the
payload of the last answer; so a client reads its own writes, whichever node it asks.
Payloads are opaque to a client and cannot be joined, which is why there is no
concurrency inside one; use several clients where no order is wanted.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar
from urllib.parse import quote, urlsplit

import msgspec
import treq
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredLock,
    ensureDeferred,
)
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.error import ConnectionRefusedError as RefusedError
from twisted.internet.error import TimeoutError as ConnectTimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from .core.errors import (
    BadRequest,
    KVSError,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    Removed,
    SlowDisk,
    StorageFull,
    TooLarge,
    UnsupportedBody,
)
from .core.names import parse_name

TIMEOUT_S = 3.0
"""Nodes promise an answer within a second of the last byte; the rest is transfer."""
ANSWER_BYTES_MAX = 128 * 2**20
"""Of one answer: the largest value, each byte escaped, and the rest."""

JSONValue: TypeAlias = (
    "bool | int | float | str | list[JSONValue] | dict[str, JSONValue] | None"
)
"""Anything that JSON can say: what can be put, and what comes back."""
_T = TypeVar("_T")
_JSON = ["application/json"]


class NoNodeReached(KVSError):
    """No node could be connected to, or none would; nothing was done."""

    code = "no_node_reached"
    status = 503


class Unanswered(KVSError):
    """A node was asked to change something and did not answer: it may have done so."""

    code = "unanswered"
    status = 504


class BadAnswer(KVSError):
    """Something answered that is no node of this store."""

    code = "bad_answer"
    status = 502


class ServerFailed(KVSError):
    """A node answered that it failed; its log says how."""

    code = "server_failed"
    status = 500


class NoNode(BadAnswer):
    """Another program answered that it knows nothing of this."""

    code = "no_node"


_ERRORS: Mapping[int, type[KVSError]] = {
    error.status: error
    for error in (
        BadRequest,
        NotFound,
        MethodNotAllowed,
        Removed,
        TooLarge,
        UnsupportedBody,
        Overloaded,
        SlowDisk,
        StorageFull,
    )
}
_ASK_ANOTHER = (Removed, Overloaded, StorageFull)
"""They speak of the node that was asked, which has done nothing."""
_NOT_SENT = (ConnectError, DNSLookupError)


class Requests(Protocol):
    """The part of ``treq.client.HTTPClient`` that is needed."""

    def request(
        self,
        method: str,
        url: str,
        *,
        data: bytes | None,
        headers: Headers,
        unbuffered: bool,
    ) -> Deferred[IResponse]:
        """Send one request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a read found."""

    value: JSONValue
    node_id: int
    """Number of the node that first processed the write."""
    timestamp: str
    """Of the write: seconds since the epoch, with six decimals."""
    stale: bool
    """Whether something newer that the client knows of may be missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What became of a write."""

    created: bool
    """False where it replaced a value."""
    node_id: int
    timestamp: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deleted:
    """What became of a delete."""

    node_id: int
    """Number of the node that first processed it."""
    timestamp: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewChanged:
    """What became of a change of the view."""

    number_of_nodes: int
    """Members that are alive."""
    node_id: int | None
    """Number of the node that was added; None for a removal."""


@dataclass(frozen=True, slots=True)
class _Answered:
    status: int
    fields: dict[str, JSONValue]
    stale: bool
    payload: str | None

    def field(self, name: str, kind: type[_T]) -> _T:
        """
        Read one field.

        :raises BadAnswer: if it is missing or of another type.
        """
        try:
            return msgspec.convert(self.fields.get(name), kind)
        except msgspec.ValidationError:
            raise BadAnswer(f"an answer without a good {name}") from None


class KVSClient:
    """
    Talks to a cluster through any of the nodes that it was told of.

    It stays with the node that answered last; when that one cannot be reached, it goes
    on to the next.  All errors are children of ``KVSError``.
    """

    def __init__(
        self,
        nodes: str | Sequence[str],
        requests: Requests,
        *,
        clock: IReactorTime,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """
        Make a client that has read nothing.

        :param nodes: one or more, tried in this order: ``ip:port`` or a URL.
        :param requests: for example ``treq.client.HTTPClient(Agent(reactor))``.
        :param clock: the reactor; times the requests.
        :param timeout_s: for one node to answer, connecting and bodies included.
        :raises BadRequest: if there is no node, or one of them is no such thing.
        """
        given = [nodes] if isinstance(nodes, str) else list(nodes)
        self._urls = [base_url(node) for node in given]
        if not self._urls:
            raise BadRequest("got no node to ask, want one at least")
        self._requests = requests
        self._clock = clock
        self._timeout_s = timeout_s
        self._lock = DeferredLock()
        self.payload = ""
        """The causal payload of the last answer; may be kept and set."""

    async def get(self, key: str) -> Found:
        """
        Read a key.

        :raises NotFound: if it has no value; that too is a read.
        """
        path = _key_path(key)
        answer = await self._in_order(
            lambda: self._ask("GET", path, {"causal_payload": self.payload})
        )
        if "value" not in answer.fields:
            raise BadAnswer("an answer without value")
        return Found(
            value=answer.fields["value"],
            node_id=answer.field("node_id", int),
            timestamp=answer.field("timestamp", str),
            stale=answer.stale,
        )

    async def put(self, key: str, value: JSONValue) -> Stored:
        """
        Write a key; comes after everything that this client has read and written.

        :param value: a text, or anything else that JSON can say.
        :raises Unanswered: if nobody knows whether it was written.
        """
        path = _key_path(key)
        answer = await self._in_order(
            lambda: self._ask(
                "PUT", path, {"val": value, "causal_payload": self.payload}
            )
        )
        return Stored(
            created=answer.status == 201,
            node_id=answer.field("node_id", int),
            timestamp=answer.field("timestamp", str),
        )

    async def delete(self, key: str) -> Deleted:
        """
        Delete a key; comes after everything that this client has read and written.

        :raises NotFound: if it has no value; that too is a read.
        :raises Unanswered: if nobody knows whether it was deleted.
        """
        path = _key_path(key)
        # The body is more than a place for the payload: Twisted's client sends a DELETE
        # without one again, on its own, when a kept connection breaks; and the second
        # would also delete what somebody else has put after the first.
        answer = await self._in_order(
            lambda: self._ask("DELETE", path, {"causal_payload": self.payload})
        )
        return Deleted(
            node_id=answer.field("node_id", int),
            timestamp=answer.field("timestamp", str),
        )

    async def add_node(self, name: str) -> ViewChanged:
        """Add the node at this ``ip:port`` to the view."""
        return await self._update_view("add", name)

    async def remove_node(self, name: str) -> ViewChanged:
        """Remove the node of this ``ip:port`` from the view."""
        return await self._update_view("remove", name)

    async def all_replicas(self) -> list[str]:
        """List the replicas, in the order of the view."""
        answer = await self._ask("GET", "/kv-store/get_all_replicas", None)
        return answer.field("replicas", list[str])

    async def is_replica(self) -> bool:
        """Tell whether the node that answers is a replica."""
        answer = await self._ask("GET", "/kv-store/get_node_details", None)
        return answer.field("replica", str) == "Yes"

    async def status(self) -> dict[str, JSONValue]:
        """Ask how the node that answers sees itself and the others."""
        answer = await self._ask("GET", "/kvs/status", None)
        return answer.fields

    async def _update_view(self, kind: str, name: str) -> ViewChanged:
        path = f"/kv-store/update_view?type={kind}"
        answer = await self._ask("PUT", path, {"ip_port": name})
        added = kind == "add"
        return ViewChanged(
            number_of_nodes=answer.field("number_of_nodes", int),
            node_id=answer.field("node_id", int) if added else None,
        )

    async def _in_order(self, ask: Callable[[], Awaitable[_Answered]]) -> _Answered:
        """Ask when all that was asked before is answered, and keep the payload."""
        await self._lock.acquire()
        try:
            return await ask()
        finally:
            self._lock.release()

    async def _ask(
        self, method: str, path: str, fields: dict[str, JSONValue] | None
    ) -> _Answered:
        """
        Ask one node after the other until one answers.

        :raises KVSError: what the answer says, or that there was none.
        """
        body = None if fields is None else _json(fields)
        troubles: list[str] = []
        refusal: KVSError | None = None
        for _ in range(len(self._urls)):
            url = self._urls[0]
            exchange = ensureDeferred(self._exchange(method, url + path, body))
            try:
                answered = await exchange.addTimeout(self._timeout_s, self._clock)
                return self._judge(answered)
            except Exception as error:
                if not _may_go_on(method, error):
                    if isinstance(error, BadAnswer):
                        raise BadAnswer(f"{url} {error}") from None
                    if isinstance(error, KVSError):
                        raise
                    raise Unanswered(
                        f"{url} did not answer ({_reason(error)}); the change may "
                        "have been made"
                    ) from error
                refusal = error if isinstance(error, _ASK_ANOTHER) else refusal
                troubles.append(f"{url} ({_reason(error)})")
            self._urls.append(self._urls.pop(0))
        raise refusal or NoNodeReached(f"no node answers at {', '.join(troubles)}")

    async def _exchange(self, method: str, url: str, body: bytes | None) -> _Answered:
        response = await self._requests.request(
            method,
            url,
            data=body,
            headers=Headers({} if body is None else {"Content-Type": _JSON}),
            unbuffered=True,
        )
        chunks: list[bytes] = []
        left = ANSWER_BYTES_MAX

        def collect(chunk: bytes) -> None:
            nonlocal left
            left -= len(chunk)
            if left < 0:
                # Stops the transfer: nothing of this size comes from a node.
                raise BadAnswer(f"answers more than {ANSWER_BYTES_MAX} bytes")
            chunks.append(chunk)

        await treq.collect(response, collect)
        try:
            fields = json.loads(b"".join(chunks))
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            alien = BadAnswer if response.code >= 500 else NoNode
            raise alien(f"answers {response.code}, but is no node of this store")
        headers = response.headers
        return _Answered(
            response.code,
            fields,
            headers.getRawHeaders("KVS-Stale") == ["true"],
            (headers.getRawHeaders("KVS-Causal-Payload") or [None])[0],
        )

    def _judge(self, answered: _Answered) -> _Answered:
        """Keep the payload, of a 404 too; raise what the answer says."""
        payload = answered.fields.get("causal_payload", answered.payload)
        if isinstance(payload, str) and payload:
            self.payload = payload
        if answered.status < 400:
            return answered
        message = str(answered.fields.get("msg", "no reason given"))
        raise _ERRORS.get(answered.status, ServerFailed)(message)


def base_url(node: str) -> str:
    """
    Make a URL of a node's ``ip:port``; a URL stays what it is.

    :returns: without a slash at the end.
    :raises BadRequest: if it is neither.
    """
    text = node.strip().rstrip("/")
    if "://" not in text:
        return f"http://{parse_name(text)}"
    try:
        parts = urlsplit(text)
        # The port is read when it is asked for.
        good = parts.hostname and parts.port != 0 and text.isascii()
    except ValueError:
        good = False
    if not good or parts.scheme not in ("http", "https"):
        raise BadRequest(f"got {text!r}, want ip:port or a URL with http or https")
    return text


def _key_path(key: str) -> str:
    """
    Write a key as a path that nothing on the way normalises.

    :raises BadRequest: if it is empty or no text in UTF-8.
    """
    if not key:
        raise BadRequest("got an empty key, want one character at least")
    try:
        return "/kv-store/" + quote(key, safe="").replace(".", "%2E")
    except UnicodeEncodeError:
        raise BadRequest("got a key that is not UTF-8") from None


def _may_go_on(method: str, error: Exception) -> bool:
    """Tell whether another node may be asked, without the risk of a second change."""
    if isinstance(error, KVSError):
        return isinstance(error, (*_ASK_ANOTHER, NoNode))
    return method == "GET" or isinstance(error, _NOT_SENT)


def _json(fields: dict[str, JSONValue]) -> bytes:
    try:
        return json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRequest(
            f"got a value that JSON in UTF-8 cannot say: {error}"
        ) from None


def _reason(error: BaseException) -> str:
    # What fails on its way comes as a list of failures; only time cancels.
    for failure in getattr(error, "reasons", ()):
        return _reason(failure.value)
    if isinstance(error, CancelledError | DeferredTimeoutError | ConnectTimeoutError):
        return "not within the time"
    if isinstance(error, RefusedError):
        return "connection refused"
    return " ".join(str(error).split()) or type(error).__name__
