"""What does not come from a good node of the cluster: refused, and nothing changed."""

from __future__ import annotations

import re
import secrets
import socket
import time
from contextlib import closing
from typing import Any

import msgspec

from twisted_kvs.core.causality import Name
from twisted_kvs.core.codec import Codec
from twisted_kvs.core.messages import Refused
from twisted_kvs.core.secrets import Secrets
from twisted_kvs.signing import BODY_BYTES_MAX, NONCE_BYTES, PEER_PATH, Signer

from .asking import Answer, ask, get, put, replicas, send_form, status, update_view
from .bad_peer import BEHAVIOURS, BadPeer
from .harness import ProcessCase, free_names, start_all, wait_serving, wait_until

OURS = "the secret of this cluster"


def signer(name: str, secret: str = OURS) -> Signer:
    """Sign as this node."""
    keys = Secrets([secret.encode()]).peer_keys
    return Signer(me=Name(name), boot_id=secrets.randbits(64), keys=keys)


def state(name: str) -> tuple[Any, ...]:
    """Tell what must not change."""
    told = status(name)
    return tuple(
        told[field]
        for field in ("view", "replica_count", "version_vector", "clock", "versions")
    )


class BadMessagesTests(ProcessCase):
    """Messages to a live node."""

    def test_bad_messages_change_nothing(self) -> None:
        """Each is refused, one warning is logged, and the node goes on."""
        name, other = free_names(2)
        view = f"{name},{other}"
        node = self.node(name, K="1", VIEW=view, KVS_SECRET=OURS)
        start_all([node])
        wait_serving(name)
        written = put(name, "key", "value")
        before = state(name)
        good, bad = signer(other), signer(other, "another secret")
        body = Codec().encode(Refused(400, "no"))
        nonce = secrets.token_bytes(NONCE_BYTES)

        def sealed(by: Signer, body: bytes, to: str = name) -> dict[str, str]:
            _, header = by.sign_request(Name(to), body, nonce=nonce)
            return {"KVS-Peer": header.decode()}

        for headers, sent in (
            ({}, b""),
            ({}, b"garbage"),
            ({"KVS-Peer": "garbage"}, b"garbage"),
            (sealed(bad, body), body),
            (sealed(good, body), body[:-1] + b"X"),
            (sealed(good, body), body[:-1]),
            (sealed(good, body), b""),
            ({"Content-Length": str(BODY_BYTES_MAX + 1)}, b""),
            ({"Content-Length": str(2**40), **sealed(good, body)}, b""),
        ):
            answer = ask(name, "POST", PEER_PATH, body=sent, headers=headers)
            self.assertIn(answer.status, range(400, 500), (headers, sent))
            self.assertEqual(answer.fields["result"], "error")
        self.assertEqual(ask(name, "GET", PEER_PATH).status, 400)
        # What was signed is answered signed: HTTP says 200, the message says no.
        for message, to in (
            (b"garbage", name),
            (b"\x00\xc1", name),
            (b"\x01garbage", name),
            (body, name),
            (b"\x00" + msgspec.msgpack.encode(["Hello", 1]), name),
            (b"\x00" + msgspec.msgpack.encode(["Pull", None, {"a": -1}]), name),
            (b"\x00" + b"\x91" * 100_000, name),
            (body, other),
        ):
            reply = self.post(name, message, headers=sealed(good, message, to))
            self.assertIn(b'"Refused"'[1:-1], reply, message)
        # And one that ends before its announced end.
        with closing(self.connect(name)) as connection:
            connection.sendall(self.head(sealed(good, body), len(body)) + body[:3])
        self.assertEqual(get(name, "key", written.payload).fields["value"], "value")
        self.assertEqual(state(name), before)
        told = re.findall(
            r" warn .*: bad peer message from ([^:]+).*\((\w+)\)", node.log_text
        )
        self.assertEqual({who for who, _ in told}, {"127.0.0.1", other.split(":")[0]})
        # One for each of them and each kind of fault, not one for each message.
        self.assertEqual(len(told), len(set(told)), told)

    def post(self, name: str, body: bytes, *, headers: dict[str, str]) -> bytes:
        """Send a message; give all that comes back."""
        with closing(self.connect(name)) as connection:
            connection.sendall(self.head(headers, len(body)) + body)
            received = b""
            while piece := connection.recv(65536):
                received += piece
        return received

    def connect(self, name: str) -> socket.socket:
        """Open a connection."""
        host, port = name.split(":")
        return socket.create_connection((host, int(port)), timeout=5)

    def head(self, headers: dict[str, str], length: int) -> bytes:
        """Write the head of a message."""
        lines = [
            f"POST {PEER_PATH} HTTP/1.1",
            "Host: kvs",
            "Connection: close",
            f"Content-Length: {length}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        return "\r\n".join([*lines, "", ""]).encode()


class BadMembersTests(ProcessCase):
    """Addresses in VIEW where something else answers."""

    def test_bad_replicas_do_not_keep_a_proxy_from_answering(self) -> None:
        """Whatever the replicas do, each answer of the node comes within a second."""
        *bad, name = free_names(len(BEHAVIOURS) + 1)
        peers = self.listen(bad)
        node = self.node(name, K=str(len(bad)), VIEW=",".join([*bad, name]))
        start_all([node])
        self.assertEqual(replicas(name), bad)
        self.assert_goes_on(name)
        self.assertTrue(all(peer.connections for peer in peers))
        wait_until("it sees itself alone", lambda: replicas(name) == [name])

    def test_bad_peers_do_not_keep_a_replica_from_answering(self) -> None:
        """Whatever the others do, each answer of the node comes within a second."""
        name, *bad = free_names(len(BEHAVIOURS) + 1)
        peers = self.listen(bad)
        view = ",".join([name, *bad])
        node = self.node(name, K=str(len(bad)), VIEW=view)
        start_all([node])
        self.assert_goes_on(name)
        self.assertTrue(all(peer.connections for peer in peers))
        # Not one for every message: a peer that stays bad is told of at times.
        warnings = [line for line in node.log_text.splitlines() if " warn " in line]
        self.assertLess(len(warnings), 4 * len(bad))

    def listen(self, names: list[str]) -> list[BadPeer]:
        """Let each behave in its own bad way."""
        peers = [
            BadPeer(name, behaviour)
            for name, behaviour in zip(names, BEHAVIOURS.values(), strict=True)
        ]
        for peer in peers:
            self.addCleanup(peer.close)
        return peers

    def assert_goes_on(self, name: str) -> None:
        """Read and write for a while; all answers come in time."""
        answers, payload = list[Answer](), ""
        give_up_at = time.monotonic() + 4
        while time.monotonic() < give_up_at:
            key = f"key{len(answers)}"
            written = put(name, key, "value", payload)
            self.assertEqual(written.status, 201)
            read = get(name, key, written.payload)
            self.assertEqual((read.status, read.fields["value"]), (200, "value"))
            answers += [written, read]
            payload = read.payload
        self.assert_in_time(answer.seconds for answer in answers)


class BadChangesTests(ProcessCase):
    """Changes of the view that are none, and strangers."""

    def setUp(self) -> None:
        """Start a cluster of two, and nodes that do not belong to it."""
        super().setUp()
        first, second, stranger, third, fourth = self.names = free_names(5)
        ours, theirs = f"{first},{second}", f"{third},{fourth}"
        start_all(
            [
                self.node(first, K="2", VIEW=ours, KVS_SECRET=OURS),
                self.node(second, K="2", VIEW=ours, KVS_SECRET=OURS),
                self.node(stranger, KVS_SECRET="another secret"),
                self.node(third, K="2", VIEW=theirs, KVS_SECRET=OURS),
                self.node(fourth, K="2", VIEW=theirs, KVS_SECRET=OURS),
            ]
        )
        for name in self.names:
            wait_serving(name)

    def test_bad_changes_change_nothing(self) -> None:
        """What cannot be added or removed is a 400; what is so already, a 200."""
        first, second, stranger, third, _ = self.names
        nobody, *bad = free_names(len(BEHAVIOURS) + 1)
        for name, behaviour in zip(bad, BEHAVIOURS.values(), strict=True):
            self.addCleanup(BadPeer(name, behaviour).close)
        put(first, "key", "value")
        before = {name: state(name) for name in self.names}
        bad_changes = [
            *(("add", name) for name in (stranger, third, nobody, *bad)),
            *(("remove", name) for name in (stranger, nobody)),
            ("add", "nonsense"),
            ("add", ""),
            ("replace", second),
            ("", second),
        ]
        for kind, name in bad_changes:
            answer = update_view(first, kind, name)
            self.assert_error(answer, 400, (kind, name))
        answer = send_form(first, "PUT", "/kv-store/update_view?type=add", {})
        self.assert_error(answer, 400, "no ip_port")
        self.assert_error(update_view(stranger, "remove", stranger), 400, "the last")
        for name, number in ((first, 0), (second, 1), (first, 0), (second, 1)):
            answer = update_view(first, "add", name)
            self.assertEqual(answer.status, 200)
            self.assertEqual(answer.fields["node_id"], number)
            self.assertEqual(answer.fields["number_of_nodes"], 2)
        wait_until("all agree", lambda: get(second, "key").status == 200)
        before[second] = (*before[second][:2], *before[first][2:])
        self.assertEqual({name: state(name) for name in self.names}, before)

    def test_payload_of_another_cluster(self) -> None:
        """A payload under another secret, or a made up one, is a 400 everywhere."""
        first, second, stranger, *_ = self.names
        written = put(first, "key", "value")
        foreign = put(stranger, "key", "value").payload
        before = state(first)
        cut_short, altered = written.payload[:-1], written.payload[:-1] + "!"
        for payload in (foreign, cut_short, altered, "garbage", "v1.", "v1.AA.AA"):
            for name in (first, second):
                self.assert_error(get(name, "key", payload), 400, payload)
                self.assert_error(put(name, "key", "x", payload), 400, payload)
        self.assertEqual(state(first), before)
        self.assertEqual(get(second, "key", written.payload).fields["value"], "value")

    def assert_error(self, answer: Answer, status: int, case: object) -> None:
        """An answer is this error, in the form of all errors, and in time."""
        self.assertEqual(answer.status, status, case)
        self.assertEqual(set(answer.fields), {"result", "msg"}, case)
        self.assertEqual(answer.fields["result"], "error", case)
        self.assert_in_time([answer.seconds])
