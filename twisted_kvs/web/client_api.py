"""
The API for clients, as Klein routes: parse, call the node, answer.

Invariants: a key reaches its route exactly as the client wrote it, although Klein would
merge and redirect; every answer, whatever went wrong, is JSON of one shape; and what a
client has started ends even if the client does not wait for it.

HEAD answers 405 like any other method that the contract does not name.
"""

from __future__ import annotations

from klein import Klein, KleinRenderable
from klein.resource import KleinResource
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.server import NOT_DONE_YET
from werkzeug.routing import BaseConverter

from twisted_kvs.core.errors import BadName, BadRequest, KVSError
from twisted_kvs.core.names import parse_name
from twisted_kvs.core.payload import Payload
from twisted_kvs.operations import Answer, Operations

from . import parsing
from .errors import error_body, error_headers


def error_answer(failure: Failure) -> Answer:
    """
    Turn any failure into an answer; the only place that does.

    What is no ``KVSError`` is a bug of ours: logged, and answered without its details.
    """
    error = failure.value
    if not isinstance(error, KVSError):
        Logger(__name__).failure("a request failed", failure=failure)
        error = KVSError("this node failed, its log says how")
    return Answer(error.status, error_body(str(error)), tuple(error_headers(error)))


def write_answer(answer: Answer, request: IRequest) -> bytes:
    """
    Set status and headers of an answer.

    :returns: its body, to be written.
    """
    request.setResponseCode(answer.status)
    set_header = request.responseHeaders.setRawHeaders
    set_header(b"content-type", [b"application/json"])
    set_header(b"content-length", [b"%d" % len(answer.body)])
    for name, value in answer.headers:
        set_header(name, [value])
    return answer.body


class _AnyCharacters(BaseConverter):
    """Matches keys: slashes are characters like others."""

    regex = ".+"
    part_isolating = False


class _RawPathResource(KleinResource):
    """
    Reads the key from the raw path and hands it to Klein so that it stays what it is.

    Klein itself joins what was split at slashes, redirects ``//``, and answers bytes
    that are no UTF-8 with a page, and a traceback in the log.
    """

    def render(self, request: IRequest) -> KleinRenderable:
        try:
            key = parsing.parse_path(request.path)
            parsing.check_method(request.method, key)
            request.prepath, request.postpath = [], [b"kv-store", key.encode()]
            return super().render(request)
        except Exception:
            # Not returned: Twisted would log each body that it drops for HEAD.
            request.write(write_answer(error_answer(Failure()), request))
            request.finish()
            return NOT_DONE_YET  # type: ignore[return-value]  # just as Klein itself


class _RawPathKlein(Klein):
    """A Klein whose routes get raw keys."""

    def resource(self) -> KleinResource:
        return _RawPathResource(self)


class ClientApi:
    """The routes of a node for clients; ``resource`` serves all paths."""

    app = _RawPathKlein()
    app.url_map.converters["any_characters"] = _AnyCharacters

    def __init__(self, operations: Operations) -> None:
        """
        Serve a node.

        :param operations: what the routes call, after all checks.
        """
        self._operations = operations
        self._settings = operations.settings
        self.resource = self.app.resource()

    @app.route("/kv-store/<any_characters:key>", methods=["GET"])
    def get(self, request: IRequest, key: str) -> Deferred[bytes]:
        """Read a key."""
        payload = self._payload(request, _fields(request))
        return _shielded(self._operations.get(key, payload), request)

    @app.route("/kv-store/<any_characters:key>", methods=["PUT"])
    def put(self, request: IRequest, key: str) -> Deferred[bytes]:
        """Write a key."""
        fields = _fields(request)
        payload = self._payload(request, fields)
        value = parsing.value_field(fields, bytes_max=self._settings.value_bytes_max)
        return _shielded(self._operations.put(key, value, payload), request)

    @app.route("/kv-store/<any_characters:key>", methods=["DELETE"])
    def delete(self, request: IRequest, key: str) -> Deferred[bytes]:
        """Delete a key."""
        payload = self._payload(request, _fields(request))
        return _shielded(self._operations.delete(key, payload), request)

    @app.route("/kv-store/get_node_details", methods=["GET"])
    def get_node_details(self, request: IRequest) -> bytes:
        """Tell whether this node is a replica."""
        return write_answer(self._operations.node_details(), request)

    @app.route("/kv-store/get_all_replicas", methods=["GET"])
    def get_all_replicas(self, request: IRequest) -> bytes:
        """List the replicas."""
        return write_answer(self._operations.all_replicas(), request)

    @app.route("/kv-store/update_view", methods=["PUT"])
    @app.route("/kv-store/update-view", methods=["PUT"])
    def update_view(self, request: IRequest) -> Deferred[bytes]:
        """Add or remove a node: ``type`` is in the query, ``ip_port`` in the body."""
        kind = parsing.parse_form(_query(request)).get("type")
        if kind not in {"add", "remove"}:
            raise BadRequest("type must be add or remove, in the query")
        try:
            name = parse_name(parsing.text_field(_fields(request), "ip_port"))
        except BadName as error:
            raise BadName(f"ip_port: {error}") from None
        return _shielded(self._operations.update_view(kind, name), request)

    @app.handle_errors(Exception)
    def _failed(self, request: IRequest, failure: Failure) -> bytes:
        return write_answer(error_answer(failure), request)

    def _payload(self, request: IRequest, fields: parsing.Fields) -> Payload:
        token = parsing.text_field(fields, "causal_payload")
        query = _query(request)
        headers = request.requestHeaders.getRawHeaders(b"kvs-causal-payload")
        if query or headers:
            # A token is ASCII, so any decoding will do that cannot fail.
            others = [header.decode("latin-1") for header in headers or ()]
            others.append(parsing.parse_form(query).get("causal_payload", ""))
            token = parsing.only_token(
                token, others, bytes_max=self._settings.payload_header_bytes_max
            )
        return self._operations.payloads.decode(
            token, bytes_max=self._settings.payload_bytes_max
        )


def _query(request: IRequest) -> bytes:
    query: bytes = request.uri.partition(b"?")[2]
    return query


def _fields(request: IRequest) -> parsing.Fields:
    # Where it was written to last is up to who wrote it.
    request.content.seek(0)
    return parsing.parse_body(
        request.content.read(),
        content_type=request.getHeader(b"content-type"),
        content_encoding=request.getHeader(b"content-encoding"),
    )


def _shielded(work: Deferred[Answer], request: IRequest) -> Deferred[bytes]:
    """
    Answer with the outcome of work that nobody can cancel.

    Klein cancels what a route returns when the client hangs up.  The work ends all the
    same, and its failure, unless it is the client's own, is logged all the same.
    """
    outer: Deferred[Answer] = Deferred()
    # Once cancelled, a Deferred without a canceller takes one more result, unused.
    work.addErrback(error_answer).addCallback(outer.callback)
    return outer.addCallback(write_answer, request)
