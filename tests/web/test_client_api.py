"""The API for clients, over HTTP and without a network."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st
from treq.testing import StubTreq
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from tests.web.fakes import FakeOperations, RawClient, Received
from tests.web.test_parsing import json_texts, keys, texts
from twisted_kvs.core.causality import Name
from twisted_kvs.core.errors import BadRequest, Removed, StorageFull
from twisted_kvs.core.payload import EMPTY_PAYLOAD
from twisted_kvs.core.settings import Settings
from twisted_kvs.operations import Answer
from twisted_kvs.web.client_api import ClientApi

KIB = 1024
FORM = "application/x-www-form-urlencoded"
JSON = "application/json"
PUNCTUATION = [b"{", b"}", b"[", b"]", b'"', b":", b"=", b"&", b"\\"]
FRAGMENTS = [
    b"val",
    b'"val":',
    b"\\ud800",
    b"causal_payload",
    b"%4",
    b"%41",
    b"ip_port",
]


class ClientApiTestCase(SynchronousTestCase):
    """A node, its API, and a connection to it."""

    def setUp(self) -> None:
        self.node = FakeOperations()
        self.api = ClientApi(self.node)
        self.client = RawClient(self.api.resource)

    def ask(
        self, method: str, path: str, body: str | bytes | None = None, **headers: Any
    ) -> Received:
        raw = body.encode() if isinstance(body, str) else body
        return self.client.ask(method.encode(), path.encode(), raw, **headers)

    def assert_refused(
        self, status: int, method: str, path: str, *body: Any, **headers: Any
    ) -> Received:
        """Demand an error as the contract words it, and that nobody was called."""
        received = self.ask(method, path, *body, **headers)
        self.assertEqual(received.status, status, received.body)
        self.assert_error(received)
        self.assertEqual(self.node.calls, [])
        return received

    def assert_error(self, received: Received) -> None:
        self.assertEqual(set(received.json), {"result", "msg"})
        self.assertEqual(received.json["result"], "error")
        self.assertTrue(received.json["msg"])
        self.assertEqual(received.headers["content-type"], JSON)

    def sees(self, body: str | bytes | None = None, **headers: Any) -> int:
        """Read a key; return the counter in the payload that the node was given."""
        self.node.calls.clear()
        path = "/kv-store/a" + headers.pop("query", "")
        self.ask("GET", path, body, **headers)
        [(_, _, payload)] = self.node.calls
        return sum(payload.vector.values())


class SuccessTests(ClientApiTestCase):
    """What the node is asked, and what the client gets."""

    def test_put(self) -> None:
        """A PUT hands key, value and payload to the node and passes its answer on."""
        token = self.node.token(7)
        received = self.ask("PUT", "/kv-store/a", f"val=b+c&causal_payload={token}")
        self.assertEqual(received.status, 201)
        self.assertEqual(received.json, {"result": "success", "node_id": 0})
        self.assertEqual(received.headers["kvs-dot"], "d")
        self.assertEqual(received.headers["content-type"], JSON)
        payload = self.node.payloads.decode(token)
        self.assertEqual(self.node.calls, [("put", "a", b'"b c"', payload)])

    def test_get(self) -> None:
        """A GET passes the node's answer on, bytes and headers."""
        self.node.values["a"] = b'"v"'
        received = self.ask("GET", "/kv-store/a")
        self.assertEqual(received.status, 200)
        self.assertEqual(received.body, b'{"result":"success","value":"v"}')
        self.assertEqual(received.headers["content-length"], str(len(received.body)))
        self.assertEqual(received.headers["kvs-causal-payload"], "x")
        self.assertEqual(self.node.calls, [("get", "a", EMPTY_PAYLOAD)])

    def test_get_node_details(self) -> None:
        """Whether the node is a replica can be asked, whatever comes with it."""
        received = self.ask(
            "GET", "/kv-store/get_node_details?x=%", "%", content_type="x"
        )
        self.assertEqual(received.json, {"result": "success", "replica": "Yes"})

    def test_get_all_replicas(self) -> None:
        """The replicas can be asked for, also by an escaped name."""
        for path in ["get_all_replicas", "get%5Fall%5freplicas"]:
            received = self.ask("GET", f"/kv-store/{path}")
            self.assertEqual(received.json["replicas"], ["10.0.0.21:8080"])

    def test_update_view(self) -> None:
        """The view is changed under both names, from a form and from JSON."""
        for path, kind in [("update_view", "add"), ("update-view", "remove")]:
            for body, type_ in [
                ("ip_port=10.0.0.22:8080", FORM),
                ("ip_port=10.0.0.22%3A8080", FORM),
                ('{"ip_port": "10.0.0.22:8080"}', JSON),
            ]:
                self.node.calls.clear()
                received = self.ask(
                    "PUT", f"/kv-store/{path}?type={kind}", body, content_type=type_
                )
                self.assertEqual(received.status, 200)
                self.assertEqual(received.json["msg"], "success")
                self.assertEqual(
                    self.node.calls, [("update_view", kind, Name("10.0.0.22:8080"))]
                )

    def test_names_are_canonical(self) -> None:
        """The node is given the canonical form of an address."""
        self.ask("PUT", "/kv-store/update_view?type=add", "ip_port=[2001:DB8::0]:80")
        self.assertEqual(
            self.node.calls, [("update_view", "add", Name("[2001:db8::]:80"))]
        )

    def test_treq_clients(self) -> None:
        """An ordinary client puts and gets, by form and by JSON."""
        client: Any = StubTreq(self.api.resource)
        url = "http://10.0.0.21:8080/kv-store/a%2Fb c"
        requests: list[tuple[dict[str, Any], Any]] = [
            ({"data": {"val": "x & \u20ac", "causal_payload": ""}}, "x & \u20ac"),
            ({"json": {"val": {"y": [None]}, "causal_payload": ""}}, {"y": [None]}),
            ({"data": {"val": ""}}, ""),
        ]
        for fields, value in requests:
            put = self.successResultOf(client.request("PUT", url, **fields))
            self.assertIn(put.code, (200, 201))
            query = {"causal_payload": self.node.token()}
            got = self.successResultOf(client.request("GET", url, params=query))
            self.assertEqual(self.successResultOf(got.json())["value"], value)
        self.assertEqual(list(self.node.values), ["a/b c"])

    def test_one_connection(self) -> None:
        """A connection serves request after request, good ones and bad ones."""
        for _ in range(3):
            self.assertEqual(self.ask("GET", "/kv-store/").status, 400)
            self.assertIn(self.ask("PUT", "/kv-store/a", "val=1").status, (200, 201))
            self.assertEqual(self.ask("HEAD", "/kv-store/a").body, b"")
            self.assertEqual(self.ask("GET", "/kv-store/a").status, 200)

    def test_any_host(self) -> None:
        """By which name a client calls the node makes no difference."""
        for host in [b"a..b", b"\xff", b"[::1]:80", b"x" * 100, b"x:y:z", b""]:
            received = self.ask("GET", "/kv-store/get_node_details", host=host)
            self.assertEqual(received.status, 200)

    def test_nothing_is_logged(self) -> None:
        """Requests leave nothing in the log, bad ones neither."""
        with capturedLogs() as events:
            self.ask("PUT", "/kv-store/a", "val=1")
            for method in ["GET", "HEAD", "POST", "DELETE"]:
                for path in ["/kv-store/a", "/kv-store/%ff", "/", "/kv-store/b"]:
                    self.ask(method, path, "%", content_type="text/plain")
        self.assertEqual(events, [])


class KeyTests(ClientApiTestCase):
    """Keys reach the node as the client wrote them."""

    def key_of(self, path: str) -> str:
        self.node.calls.clear()
        self.ask("GET", "/kv-store/" + path)
        [(_, key, _)] = self.node.calls
        assert isinstance(key, str)
        return key

    @given(key=keys, safe=st.sampled_from(["", "/", "/.~!$&'()*+,;=:@|<>"]))
    def test_any_key(self, key: str, safe: str) -> None:
        """Whatever characters a key has, it can be written and read."""
        self.setUp()
        path = "/kv-store/" + quote(key, safe=safe)
        self.assertEqual(self.ask("PUT", path, "val=1").status, 201)
        self.assertEqual(self.ask("GET", path).json["value"], "1")
        self.assertEqual(list(self.node.values), [key])

    def test_slashes(self) -> None:
        """Slashes are not merged, cut off or redirected; %2F is one."""
        for path, key in [
            ("/a", "/a"),
            ("//", "//"),
            ("a/", "a/"),
            ("a//b", "a//b"),
            ("a%2Fb", "a/b"),
            ("a/%2f/b/", "a///b/"),
        ]:
            self.assertEqual(self.key_of(path), key)

    def test_dots(self) -> None:
        """Dots are not resolved."""
        for path in ["..", ".", "../../etc/passwd", "a/./b/..", "..//"]:
            self.assertEqual(self.key_of(path), path)

    def test_nearly_reserved(self) -> None:
        """Only the reserved names themselves are no keys."""
        for path in [
            "get_node_details/",
            "/update_view",
            "Update_View",
            "update_views",
        ]:
            self.assertEqual(self.key_of(path), path)

    def test_queries_are_no_part(self) -> None:
        """A key ends at the question mark, an escaped one is part of it."""
        self.assertEqual(self.key_of("a?b=c?d"), "a")
        self.assertEqual(self.key_of("a?"), "a")
        self.assertEqual(self.key_of("a%3Fb"), "a?b")

    def test_characters_of_werkzeug(self) -> None:
        """What means something to the routing is a character like others."""
        for path in ["<key>", "|", "a|b", "%7C%7C", "__rest__", "kv-store/"]:
            self.assertEqual(self.key_of(path), path.replace("%7C", "|"))


class ErrorTests(ClientApiTestCase):
    """The contract's table of errors; the node is asked nothing."""

    def test_unknown_paths(self) -> None:
        """There is nothing at other paths, whatever the method."""
        for path in [
            "/",
            "*",
            "/kv-store",
            "/kv-stores/a",
            "//kv-store/a",
            "/%6bv-store/a",
        ]:
            for method in ["GET", "PUT", "POST", "DELETE", "HEAD"]:
                received = self.client.ask(method.encode(), path.encode())
                self.assertEqual(received.status, 404)
            self.assert_refused(404, "GET", path)

    def test_key_not_found(self) -> None:
        """A key without a value is a 404 from the node."""
        received = self.ask("GET", "/kv-store/a")
        self.assertEqual(received.status, 404)
        self.assert_error(received)

    def test_no_value(self) -> None:
        """A PUT needs val in its body; the query does not count."""
        self.assert_refused(400, "PUT", "/kv-store/a")
        self.assert_refused(400, "PUT", "/kv-store/a", "value=1")
        self.assert_refused(400, "PUT", "/kv-store/a?val=1", "causal_payload=")
        self.assert_refused(400, "PUT", "/kv-store/a", "{}", content_type=JSON)

    def test_bad_keys(self) -> None:
        """Empty keys, bad UTF-8, bad escapes and control characters are refused."""
        for path in ["", "%ff", "%c3%28", "%ED%A0%80", "a%00", "%0A", "%C2%85", "%"]:
            self.assert_refused(400, "GET", "/kv-store/" + path)
            self.assert_refused(400, "PUT", "/kv-store/" + path, "val=1")

    def test_stray_bytes(self) -> None:
        """Bytes in a path that no URL may have are refused, too."""
        received = self.client.ask(b"GET", b"/kv-store/a\xff")
        self.assertEqual(received.status, 400)
        self.assert_error(received)

    def test_long_keys(self) -> None:
        """A key has at most 200 characters."""
        longest = "/kv-store/" + quote("\u20ac" * 200)
        self.assertEqual(self.ask("PUT", longest, "val=1").status, 201)
        self.node.calls.clear()
        self.assert_refused(413, "PUT", longest + "a", "val=1")
        self.assert_refused(413, "GET", longest + "/")

    def test_large_values(self) -> None:
        """A value of 1 MiB of UTF-8 is taken, one byte more is not."""
        limit = self.node.settings.value_bytes_max
        for start, end, type_ in [
            ("val=", "", FORM),
            ('{"val":"', '"}', JSON),
        ]:
            text = start + "\u20ac" * (limit // 3) + "a" * (limit % 3) + end
            received = self.ask("PUT", "/kv-store/a", text, content_type=type_)
            self.assertIn(received.status, (200, 201))
            self.node.calls.clear()
            larger = start + "a" * (limit + 1) + end
            self.assert_refused(413, "PUT", "/kv-store/a", larger, content_type=type_)

    def test_limit_of_values_is_an_option(self) -> None:
        """The operator's limit counts."""
        self.node = FakeOperations(Settings(value_bytes_max=3))
        self.client = RawClient(ClientApi(self.node).resource)
        self.assert_refused(413, "PUT", "/kv-store/a", "val=abcd")
        self.assert_refused(
            413, "PUT", "/kv-store/a", '{"val":1234}', content_type=JSON
        )
        self.assertEqual(self.ask("PUT", "/kv-store/a", "val=abc").status, 201)

    def test_large_payloads(self) -> None:
        """Payloads have a limit: 8 KiB in a header or the query, 64 KiB in a body."""
        path = "/kv-store/a"
        for size, status in [(8 * KIB, 400), (8 * KIB + 1, 413)]:
            token = "v" * size
            self.assert_refused(status, "GET", path, kvs_causal_payload=token)
            self.assert_refused(status, "GET", f"{path}?causal_payload={token}")
        for size, status in [(64 * KIB, 400), (64 * KIB + 1, 413)]:
            token = "v" * size
            self.assert_refused(status, "GET", path, f"causal_payload={token}")
            body = json.dumps({"val": 1, "causal_payload": token})
            self.assert_refused(status, "PUT", path, body, content_type=JSON)

    def test_payloads_never_issued(self) -> None:
        """Garbage, cut and changed payloads are refused, wherever they are."""
        token = self.node.token()
        for bad in [
            "x",
            token[:-1],
            token + "A",
            token.upper(),
            token[1:],
            "v1..",
            " ",
        ]:
            escaped = quote(bad)
            self.assert_refused(
                400, "PUT", "/kv-store/a", f"val=1&causal_payload={escaped}"
            )
            self.assert_refused(400, "GET", f"/kv-store/a?causal_payload={escaped}")
            body = json.dumps({"val": 1, "causal_payload": bad})
            self.assert_refused(400, "PUT", "/kv-store/a", body, content_type=JSON)
            if bad.strip():
                self.assert_refused(400, "GET", "/kv-store/a", kvs_causal_payload=bad)
        self.assert_refused(400, "GET", "/kv-store/a", kvs_causal_payload=b"\xff\xe9")

    def test_payloads_of_another_kind(self) -> None:
        """A payload is a string, or null for none."""
        for bad in ["1", "[]", "{}", "true"]:
            body = f'{{"val": 1, "causal_payload": {bad}}}'
            self.assert_refused(400, "PUT", "/kv-store/a", body, content_type=JSON)
        self.assertEqual(self.sees('{"causal_payload": null}', content_type=JSON), 0)

    def test_different_payloads(self) -> None:
        """Two payloads that differ cannot both be what the client has read."""
        one, two = self.node.token(1), self.node.token(2)
        path = "/kv-store/a"
        for body, query, header in [
            (one, two, ""),
            (one, "", two),
            ("", one, two),
            (one, one, two),
        ]:
            self.assert_refused(
                400,
                "GET",
                f"{path}?causal_payload={query}",
                f"causal_payload={body}",
                kvs_causal_payload=header,
            )
        self.assert_refused(400, "GET", path, kvs_causal_payload=[one, two])
        self.assert_refused(
            400, "GET", path, f"causal_payload={one}&causal_payload={two}"
        )

    def test_bad_text(self) -> None:
        """Bad UTF-8, lone surrogates and deep nesting are refused."""
        deep = '{"val":' + "[" * 101 + "]" * 101 + "}"
        for body, type_ in [
            (b"val=\xff", FORM),
            (b"val=%ff", FORM),
            (b"val=%", FORM),
            (b"val=%ED%A0%80", FORM),
            (b'{"val":"\xff"}', JSON),
            (rb'{"val":"\ud800"}', JSON),
            (rb'{"val":[{"\udfff":1}]}', JSON),
            (deep, JSON),
            ('{"val":' + "[" * 100_000, JSON),
            ('{"val":NaN}', JSON),
            ('{"val":1} x', JSON),
            ('{"val":1,"val":2}', JSON),
            ("val=1&val=2", FORM),
            ("[]", JSON),
            ('"val"', JSON),
        ]:
            self.assert_refused(400, "PUT", "/kv-store/a", body, content_type=type_)
        self.assert_refused(400, "GET", "/kv-store/a?x=%ff")

    def test_reserved_names(self) -> None:
        """Reserved names are no keys: with another's method they are a 400."""
        for name, methods in [
            ("get_node_details", ["PUT", "DELETE"]),
            ("get_all_replicas", ["PUT", "DELETE"]),
            ("update_view", ["GET", "DELETE"]),
            ("update-view", ["GET", "DELETE"]),
            ("update%5Fview", ["GET", "DELETE"]),
        ]:
            for method in methods:
                self.assert_refused(
                    400, method, f"/kv-store/{name}?type=add", "val=1&ip_port=1.2.3.4:5"
                )

    def test_bad_view_changes(self) -> None:
        """A view change says what to do with which address."""
        address = "ip_port=10.0.0.22:8080"
        for query in ["", "?type=", "?type=Add", "?type=%", "?type=add&type=remove"]:
            self.assert_refused(400, "PUT", f"/kv-store/update_view{query}", address)
        for body in ["", "ip_port=", "ip_port=10.0.0.22", "ip_port=1.2.3.4:0", "x=1"]:
            received = self.assert_refused(
                400, "PUT", "/kv-store/update_view?type=add", body
            )
            self.assertIn("ip_port", received.json["msg"])
        for text in ['{"ip_port": 1}', '{"ip_port": null}', "[]"]:
            self.assert_refused(
                400, "PUT", "/kv-store/update_view?type=add", text, content_type=JSON
            )
        self.assert_refused(
            415, "PUT", "/kv-store/update_view?type=add", address, content_type="x/y"
        )

    def test_other_methods(self) -> None:
        """Other methods are told which there are."""
        for path, allow in [
            ("a", "GET, PUT"),
            ("get_node_details", "GET"),
            ("get_all_replicas", "GET"),
            ("update_view", "PUT"),
            ("update-view", "PUT"),
        ]:
            for method in ["POST", "PATCH", "OPTIONS", "TRACE", "get", "X"]:
                received = self.assert_refused(
                    405, method, f"/kv-store/{path}", "val=1"
                )
                self.assertEqual(received.headers["allow"], allow)
        received = self.assert_refused(405, "DELETE", "/kv-store/a")
        self.assertEqual(received.headers["allow"], "GET, PUT")

    def test_head(self) -> None:
        """HEAD is no method of this API; its answer has no body."""
        for path in ["a", "get_node_details"]:
            received = self.ask("HEAD", f"/kv-store/{path}")
            self.assertEqual((received.status, received.body), (405, b""))
            self.assertNotEqual(received.headers["content-length"], "0")
        self.assertEqual(self.node.calls, [])

    def test_bodies_not_understood(self) -> None:
        """A body of another type, charset or coding is refused, on a GET as well."""
        for type_ in [
            "text/plain",
            "multipart/form-data; boundary=x",
            f"{FORM};charset=x",
        ]:
            for method in ["GET", "PUT"]:
                self.assert_refused(
                    415, method, "/kv-store/a", "val=1", content_type=type_
                )
        self.assert_refused(415, "PUT", "/kv-store/a", "val=1", content_encoding="gzip")

    def test_types_of_nothing(self) -> None:
        """An empty body may have any type."""
        self.assertEqual(self.sees(content_type="text/plain"), 0)
        self.assertEqual(self.sees("", content_type=JSON), 0)

    def test_errors_of_the_node(self) -> None:
        """The node's own errors keep their status."""
        for error, status in [
            (Removed("this node was removed from the view"), 410),
            (StorageFull("the disk is full"), 507),
            (BadRequest("no node answers there"), 400),
        ]:
            for raises in [False, True]:
                self.node.failure, self.node.raises = error, error if raises else None
                for method, path, body in [
                    ("GET", "a", ""),
                    ("PUT", "a", "val=1"),
                    ("PUT", "update_view?type=add", "ip_port=1.2.3.4:5"),
                ]:
                    received = self.ask(method, f"/kv-store/{path}", body)
                    self.assertEqual(received.status, status)
                    self.assert_error(received)
                    self.assertEqual(received.json["msg"], str(error))

    def test_bugs(self) -> None:
        """A bug is logged, and answered without its details."""
        self.node.failure = RuntimeError("secret")
        for path in ["a", "get_node_details"]:
            received = self.ask("GET", f"/kv-store/{path}")
            self.assertEqual(received.status, 500)
            self.assert_error(received)
            self.assertNotIn(b"secret", received.body)
            self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
            self.node.raises = self.node.failure


class PayloadTests(ClientApiTestCase):
    """Where a causal payload may come from."""

    def test_places(self) -> None:
        """Body, query and header are places for a payload; equal ones are one."""
        token = self.node.token(5)
        field = f"causal_payload={token}"
        self.assertEqual(self.sees(), 0)
        self.assertEqual(self.sees(field), 5)
        self.assertEqual(self.sees(field, content_type=FORM), 5)
        self.assertEqual(
            self.sees(f'{{"causal_payload":"{token}"}}', content_type=JSON), 5
        )
        self.assertEqual(self.sees(query=f"?{field}"), 5)
        self.assertEqual(self.sees(query=f"?x=1&{field}&y"), 5)
        self.assertEqual(self.sees(kvs_causal_payload=token), 5)
        self.assertEqual(
            self.sees(field, query=f"?{field}", kvs_causal_payload=token), 5
        )

    def test_empty_ones(self) -> None:
        """An empty payload is none, and does not contradict another."""
        field = f"causal_payload={self.node.token(5)}"
        empty = "causal_payload="
        self.assertEqual(self.sees(empty, query=f"?{empty}", kvs_causal_payload=""), 0)
        self.assertEqual(self.sees(field, query=f"?{empty}", kvs_causal_payload=""), 5)
        self.assertEqual(self.sees(empty, query=f"?{field}"), 5)

    def test_on_writes(self) -> None:
        """A write takes its payload from the same places."""
        token = self.node.token(5)
        for query, header in [(f"?causal_payload={token}", ""), ("", token)]:
            self.ask("PUT", f"/kv-store/a{query}", "val=1", kvs_causal_payload=header)
            self.assertEqual(
                self.node.calls.pop(),
                ("put", "a", b'"1"', self.node.payloads.decode(token)),
            )


class HangUpTests(ClientApiTestCase):
    """A client that does not wait for its answer."""

    def leave(self, method: str = "PUT", path: str = "a") -> None:
        self.node.holds = True
        body = b"val=1&ip_port=1.2.3.4:5"
        self.client.send(method.encode(), f"/kv-store/{path}".encode(), body)
        self.assertIsNone(self.client.received())
        self.client.hang_up()

    def test_late_answers(self) -> None:
        """An answer that takes its time arrives."""
        self.node.holds = True
        self.client.send(b"GET", b"/kv-store/a")
        self.assertIsNone(self.client.received())
        self.node.held.pop().callback(Answer(200, b"{}"))
        received = self.client.received()
        assert received is not None
        self.assertEqual((received.status, received.body), (200, b"{}"))

    def test_writes_go_on(self) -> None:
        """What was begun goes on without the client, and leaves no trace in the log."""
        for method, path in [
            ("PUT", "a"),
            ("GET", "a"),
            ("PUT", "update_view?type=add"),
        ]:
            with capturedLogs() as events:
                self.leave(method, path)
                self.assertEqual(self.node.cancelled, 0)
                self.node.held.pop().callback(Answer(201, b"{}"))
            self.assertEqual(events, [])
            self.client = RawClient(self.api.resource)

    def test_late_errors(self) -> None:
        """An error that nobody waits for is nothing special."""
        with capturedLogs() as events:
            self.leave()
            self.node.held.pop().errback(StorageFull("full"))
        self.assertEqual(events, [])

    def test_late_bugs(self) -> None:
        """A bug is logged, whether or not its client has left."""
        self.leave()
        self.node.held.pop().errback(RuntimeError("bug"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class AnyBytesTests(ClientApiTestCase):
    """Whatever a client sends gets a proper answer."""

    @given(json_texts())
    def test_any_json_value(self, text: str) -> None:
        """A value put as JSON comes back as the same JSON text."""
        self.ask("PUT", "/kv-store/a", f'{{"val": {text}\n}}', content_type=JSON)
        received = self.ask("GET", "/kv-store/a")
        self.assertEqual(
            received.body, b'{"result":"success","value":%s}' % text.strip().encode()
        )

    @given(texts)
    def test_any_string(self, text: str) -> None:
        """A string put by form comes back as it was."""
        self.ask("PUT", "/kv-store/a", f"val={quote(text)}")
        self.assertEqual(self.ask("GET", "/kv-store/a").json["value"], text)

    @given(
        st.sampled_from(["GET", "PUT"]),
        st.sampled_from(["a", "update_view?type=add"]),
        st.sampled_from([FORM, JSON]),
        st.one_of(
            st.binary(),
            st.lists(
                st.binary(max_size=3) | st.sampled_from([*PUNCTUATION, *FRAGMENTS])
            ).map(b"".join),
        ),
    )
    def test_any_body(self, method: str, path: str, type_: str, body: bytes) -> None:
        """No bytes in a body make the node fail."""
        received = self.ask(method, f"/kv-store/{path}", body, content_type=type_)
        self.assertIn(received.status, (200, 201, 400, 404))
        self.assertIn(received.json["result"], ("success", "error"))

    @given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E)))
    def test_any_path(self, path: str) -> None:
        """No path makes the node fail."""
        received = self.ask("PUT", f"/kv-store/{path}", "val=1")
        self.assertIn(received.status, (200, 201, 400))
        self.assertIn(received.json["result"], ("success", "error"))

    @given(st.binary().filter(lambda value: not {0, 10, 13} & set(value)))
    def test_any_headers(self, value: bytes) -> None:
        """No bytes in a header make the node fail."""
        received = self.ask(
            "PUT",
            "/kv-store/a",
            "val=1",
            content_type=value,
            content_encoding=value,
            kvs_causal_payload=value,
            host=value,
        )
        self.assertIn(received.status, (200, 201, 400, 415))
