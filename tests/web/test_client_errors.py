"""The contract's table of errors, over HTTP and without a network."""

from __future__ import annotations

import json
from urllib.parse import quote

from tests.web.fakes import ClientApiTestCase, FakeOperations, RawClient
from twisted_kvs.core.errors import BadRequest, Removed, StorageFull
from twisted_kvs.core.settings import Settings
from twisted_kvs.web.client_api import ClientApi

KIB = 1024
FORM = "application/x-www-form-urlencoded"
JSON = "application/json"


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

    def test_nothing_to_delete(self) -> None:
        """A delete of a key without a value is a 404 from the node."""
        received = self.ask("DELETE", "/kv-store/a")
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
            self.assert_refused(400, "DELETE", "/kv-store/" + path)
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
        self.assert_refused(413, "DELETE", longest + "/")

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
            self.assert_refused(status, "DELETE", path, f"causal_payload={token}")
            body = json.dumps({"val": 1, "causal_payload": token})
            self.assert_refused(status, "PUT", path, body, content_type=JSON)

    def test_limits_of_payloads_are_settings(self) -> None:
        """The node's own limits count."""
        self.node = FakeOperations(
            Settings(payload_bytes_max=20, payload_header_bytes_max=10)
        )
        self.client = RawClient(ClientApi(self.node).resource)
        for size, status in [(20, 400), (21, 413)]:
            body = f"causal_payload={'v' * size}"
            self.assert_refused(status, "GET", "/kv-store/a", body)
        for size, status in [(10, 400), (11, 413)]:
            token = "v" * size
            self.assert_refused(status, "GET", "/kv-store/a", kvs_causal_payload=token)

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
            for method in ["GET", "DELETE"]:
                path = f"/kv-store/a?causal_payload={escaped}"
                self.assert_refused(400, method, path)
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
            for method in ["GET", "DELETE"]:
                self.assert_refused(
                    400,
                    method,
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
        """Reserved names are no keys: with a key's other methods they are a 400."""
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
            ("a", "GET, PUT, DELETE"),
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
            for method in ["GET", "PUT", "DELETE"]:
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
                    ("DELETE", "a", ""),
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
