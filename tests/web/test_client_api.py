"""The API for clients, over HTTP and without a network."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st
from treq.testing import StubTreq
from twisted.logger import capturedLogs

from tests.web.fakes import ClientApiTestCase, RawClient
from tests.web.test_parsing import json_texts, keys, texts
from twisted_kvs.core.causality import Name
from twisted_kvs.core.errors import StorageFull
from twisted_kvs.core.payload import EMPTY_PAYLOAD
from twisted_kvs.operations import Answer

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

    def test_delete(self) -> None:
        """A DELETE hands key and payload to the node; it may come without a body."""
        self.node.values = {"a/b": b"1", "c": b"2"}
        token = self.node.token(7)
        received = self.ask("DELETE", "/kv-store/a%2Fb", f"causal_payload={token}")
        self.assertEqual(received.status, 200)
        self.assertEqual(received.json, {"result": "success", "node_id": 0})
        self.assertEqual(received.headers["kvs-dot"], "d")
        self.assertEqual(received.headers["content-type"], JSON)
        self.assertEqual(self.ask("DELETE", "/kv-store/c").status, 200)
        payload = self.node.payloads.decode(token)
        self.assertEqual(
            self.node.calls,
            [("delete", "a/b", payload), ("delete", "c", EMPTY_PAYLOAD)],
        )
        self.assertEqual(self.ask("GET", "/kv-store/c").status, 404)
        self.assertEqual(self.ask("PUT", "/kv-store/c", "val=3").status, 201)

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
        deleted = self.successResultOf(client.request("DELETE", url))
        self.assertEqual((deleted.code, self.node.values), (200, {}))

    def test_one_connection(self) -> None:
        """A connection serves request after request, good ones and bad ones."""
        for _ in range(3):
            self.assertEqual(self.ask("GET", "/kv-store/").status, 400)
            self.assertIn(self.ask("PUT", "/kv-store/a", "val=1").status, (200, 201))
            self.assertEqual(self.ask("HEAD", "/kv-store/a").body, b"")
            self.assertEqual(self.ask("GET", "/kv-store/a").status, 200)
            self.assertEqual(self.ask("DELETE", "/kv-store/a", "x=1").status, 200)
            self.assertEqual(self.ask("DELETE", "/kv-store/a").status, 404)

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
        self.assertEqual(self.ask("DELETE", path).status, 200)
        self.assertEqual(self.node.values, {})

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

    def test_on_deletes(self) -> None:
        """A delete takes its payload from the same places."""
        token = self.node.token(5)
        field = f"causal_payload={token}"
        places: list[tuple[str, str | None, dict[str, str]]] = [
            ("", field, {}),
            ("", f'{{"causal_payload":"{token}"}}', {"content_type": JSON}),
            (f"?{field}", None, {}),
            ("", None, {"kvs_causal_payload": token}),
            (f"?{field}", field, {"kvs_causal_payload": token}),
        ]
        for query, body, headers in places:
            self.ask("DELETE", f"/kv-store/a{query}", body, **headers)
            payload = self.node.payloads.decode(token)
            self.assertEqual(self.node.calls.pop(), ("delete", "a", payload))

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
            ("DELETE", "a"),
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
        st.sampled_from(["GET", "PUT", "DELETE"]),
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
