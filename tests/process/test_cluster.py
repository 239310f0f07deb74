"""Four nodes, three of them replicas: what clients see while nodes come and go."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from .asking import Answer, delete, get, is_replica, put, replicas, status, update_view
from .harness import ProcessCase, free_names, start_all, wait_until


class RequestsTests(ProcessCase):
    """Nothing fails."""

    def setUp(self) -> None:
        """Start three replicas and a proxy."""
        super().setUp()
        self.names = free_names(4)
        self.cluster(self.names, 3)

    def test_an_overwritten_value_is_read_at_once(self) -> None:
        """With its payload an overwrite at one replica is seen at another, at once."""
        first, second, third, proxy = self.names
        for round_number in range(30):
            key = f"key/{round_number} \u00e9"
            written = put(first, key, "old")
            self.assertEqual(written.status, 201)
            self.assertEqual(written.fields["node_id"], 0)
            replaced = put(second, key, "new", written.payload)
            self.assertEqual(replaced.status, 200)
            for name in (third, proxy, first):
                self.assert_reads(get(name, key, replaced.payload), "new", 1)
        wait_until(
            "all have it without being told what to wait for",
            lambda: {get(name, key).fields["value"] for name in self.names} == {"new"},
            within_s=1.0,
        )

    def test_what_was_read_before_a_write_is_there_with_it(self) -> None:
        """Who sees a write sees what its writer had seen, across keys and nodes."""
        first, second, third, proxy = self.names
        for n, last in enumerate((third, proxy) * 15):
            t, u = f"t{n}", f"u{n}"
            put_t = put(first, t, "t")
            got_t = get(second, t, put_t.payload)
            self.assert_reads(got_t, "t", 0)
            put_u = put(second, u, "u", got_t.payload)
            got_u = get(last, u, put_u.payload)
            self.assert_reads(got_u, "u", 1)
            self.assert_reads(get(last, t, got_u.payload), "t", 0)

    def test_a_deleted_key_is_gone_at_once(self) -> None:
        """With its payload a delete at one node is seen at all, and a PUT is new."""
        first, second, third, proxy = self.names
        rounds = [(first, proxy), (second, third), (proxy, second), (third, first)]
        for n, (writer, deleter) in enumerate(rounds * 5):
            key = f"gone/{n} \u00e9"
            written = put(writer, key, "v")
            self.assertEqual(written.status, 201)
            deleted = delete(deleter, key, written.payload)
            self.assertEqual(deleted.status, 200)
            self.assertEqual(
                set(deleted.fields),
                {"result", "node_id", "causal_payload", "timestamp"},
            )
            self.assertIn("kvs-dot", deleted.headers)
            for name in self.names:
                self.assert_shows_nothing(get(name, key, deleted.payload))
            self.assert_shows_nothing(delete(writer, key, deleted.payload))
            again = put(writer, key, "w", deleted.payload)
            self.assertEqual(again.status, 201)
            read = get(deleter, key, again.payload)
            self.assertEqual((read.status, read.fields["value"]), (200, "w"))
            self.assertFalse(read.stale)
            self.assert_in_time(
                answer.seconds for answer in (written, deleted, again, read)
            )

    def assert_shows_nothing(self, answer: Answer) -> None:
        """There is no value, for sure, and the answer carries what that is based on."""
        self.assertEqual(answer.status, 404)
        self.assertEqual(set(answer.fields), {"result", "msg"})
        self.assertTrue(answer.headers["kvs-causal-payload"].startswith("v1."))
        self.assertFalse(answer.stale)
        self.assert_in_time([answer.seconds])

    def serving(self, name: str) -> int:
        """Count the replicas of which a node knows that they serve."""
        peers = status(name)["peers"].values()
        return sum(peer["standing"] == "serving" for peer in peers)

    def test_a_proxy_spreads_requests(self) -> None:
        """Of 1,000 writes through a proxy each replica handles a third, within 10 %."""
        proxy = self.names[3]
        wait_until("the proxy knows who serves", lambda: self.serving(proxy) == 3)

        def write(n: int) -> Answer:
            return put(proxy, f"key{n % 10}", str(n))

        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(write, range(1000)))
        self.assertLessEqual({answer.status for answer in answers}, {200, 201})
        counts = Counter(answer.fields["node_id"] for answer in answers)
        self.assertEqual(set(counts), {0, 1, 2})
        for count in counts.values():
            self.assertTrue(300 < count < 367, f"not even: {counts}")
        self.assert_in_time(answer.seconds for answer in answers)

    def assert_reads(self, answer: Answer, value: str, node_id: int) -> None:
        """A read gave this value, of a write that this node took, as fresh."""
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.fields["value"], value)
        self.assertEqual(answer.fields["node_id"], node_id)
        self.assertFalse(answer.stale)
        self.assert_in_time([answer.seconds])


class ViewTests(ProcessCase):
    """Nodes die, are added, are removed, and come back."""

    def test_nodes_come_and_go(self) -> None:
        """The cluster answers with everything it has while nodes are replaced."""
        first, second, third, proxy, fresh = names = free_names(5)
        self.cluster(names[:4], 3)
        self.assertEqual(
            [is_replica(name) for name in names[:4]], [True, True, True, False]
        )
        for name in names[:4]:
            self.assertEqual(replicas(name), names[:3])
        old = {f"old{n}": f"value {n}" for n in range(20)}
        for n, (key, value) in enumerate(old.items()):
            self.assertEqual(put(names[n % 4], key, value).status, 201)

        self.named(first).kill()
        self.named(proxy).kill()
        start_all([self.node(fresh)])
        added = update_view(second, "add", fresh)
        self.assertEqual(added.status, 200)
        self.assertEqual(
            dict(added.fields),
            {"result": "success", "msg": "success", "node_id": 4, "number_of_nodes": 3},
        )
        for name in (second, third, fresh):
            self.assertEqual(replicas(name), [second, third, fresh])
            self.assertTrue(is_replica(name))
        self.assert_has(fresh, old)

        self.named(third).kill()
        removed = update_view(second, "remove", third)
        self.assertEqual(removed.status, 200)
        self.assertEqual(
            dict(removed.fields),
            {"result": "success", "msg": "success", "number_of_nodes": 2},
        )
        for name in (second, fresh):
            self.assertEqual(replicas(name), [second, fresh])
        written = put(fresh, "degraded", "yes")
        self.assertEqual((written.status, written.fields["node_id"]), (201, 4))
        read = get(second, "degraded", written.payload)
        self.assertEqual((read.status, read.fields["value"]), (200, "yes"))

        # The removed one was started with a VIEW in which it still is a member.
        start_all([self.named(third)])
        wait_until("the removed node knows", lambda: get(third, "old0").status == 410)
        self.assertEqual(put(third, "old0", "x").status, 410)
        back = update_view(fresh, "add", third)
        self.assertEqual(back.status, 200)
        self.assertEqual(
            (back.fields["node_id"], back.fields["number_of_nodes"]), (2, 3)
        )
        for name in (second, third, fresh):
            self.assertEqual(set(replicas(name)), {second, third, fresh})
        self.assert_has(third, {**old, "degraded": "yes"})

        # And one that was killed and never removed finds its place again.
        start_all([self.named(first)])
        members = [first, second, fresh, third]
        wait_until(
            "all know that the first is back",
            lambda: all(replicas(name) == members[:3] for name in members),
        )
        self.assert_has(first, {**old, "degraded": "yes"})

    def assert_has(self, name: str, expected: dict[str, str]) -> None:
        """A node answers with these keys now."""
        for key, value in expected.items():
            answer = get(name, key)
            self.assertEqual((answer.status, answer.fields.get("value")), (200, value))
            self.assert_in_time([answer.seconds])
