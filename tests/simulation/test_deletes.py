"""Deletes in a cluster of real nodes: gone for good, and without a trace at rest."""

from __future__ import annotations

from tests.simulation.cluster_case import ClusterCase
from twisted_kvs.core.causality import Name, VersionVector
from twisted_kvs.core.codec import Codec
from twisted_kvs.core.messages import HelloAnswer
from twisted_kvs.core.names import parse_name
from twisted_kvs.core.retiring import has_marker
from twisted_kvs.storage.api import Cursor

REST_S = 20.0
"""Long enough to compact, seal, drop and retire."""


class DeleteCase(ClusterCase):
    """Looks at what is stored."""

    def stored(self) -> set[int]:
        """Tell how many versions the replicas store."""
        return {
            node.cluster.storage.count()
            for node in self.nodes()
            if node.cluster.is_replica
        }

    def values(self, key: str) -> set[str | None]:
        """Ask every node that runs."""
        return {self.client().get(name, key) for name in sorted(self.cluster.nodes)}


class AnswerTests(DeleteCase):
    """What a DELETE is answered."""

    def test_a_deleted_key_is_gone_at_once_and_can_be_put_again(self) -> None:
        """200, then 404 wherever that client asks, then 201."""
        self.start(4)
        client = self.client()
        client.put(self.names[0], "k", "v")
        self.assertEqual(client.delete(self.names[3], "k").status, 200)
        for name in self.names:
            self.assertIsNone(client.get(name, "k"))
            self.assertFalse(client.stale)
        self.assertEqual(client.delete(self.names[1], "k").status, 404)
        self.assertEqual(client.put(self.names[1], "k", "w").status, 201)
        self.cluster.advance(1)
        self.assertEqual(self.values("k"), {"w"})

    def test_nothing_is_written_where_there_is_nothing_to_delete(self) -> None:
        """A 404 leaves no trace."""
        self.start(3)
        self.assertEqual(self.client().delete(self.names[0], "k").status, 404)
        self.cluster.advance(1)
        self.assertEqual(self.stored(), {0})

    def test_a_delete_looks_for_what_its_client_knows(self) -> None:
        """What was written elsewhere is fetched first; cut off, it deletes blindly."""
        self.start(3)
        one, _, three = self.names
        self.storm.do_partition(0b100)
        client = self.client()
        client.put(one, "k", "v")
        blind = self.client()
        blind.token = client.token
        self.assertEqual(blind.delete(three, "k").status, 200)
        self.storm.do_heal()
        self.cluster.advance(5)
        self.assertEqual(self.values("k"), {None})


class CompactionTests(DeleteCase):
    """What is left of keys that were deleted."""

    def test_at_rest_nothing_is_left_of_deleted_keys_and_a_dot_of_others(self) -> None:
        """On every node, proxies and all."""
        self.start(4)
        client = self.client()
        for number in range(20):
            for value in ("1", "2"):
                client.put(self.names[number % 4], f"k{number}", value)
        for number in range(10):
            client.delete(self.names[number % 4], f"k{number}")
        self.cluster.advance(REST_S)
        self.assertEqual(self.stored(), {10})
        for node in self.nodes():
            if node.cluster.is_replica:
                chains = [node.cluster.storage.versions(f"k{n}") for n in range(20)]
                self.assertEqual([len(c) for c in chains], [0] * 10 + [1] * 10)
                self.assertFalse(any(v.past for chain in chains for v in chain))
        self.assertEqual(self.values("k3") | self.values("k13"), {None, "2"})

    def test_a_dead_member_holds_up_compaction_and_nothing_else(self) -> None:
        """Until it is back, or removed."""
        self.start(4)
        client = self.client()
        client.put(self.names[0], "k", "v")
        self.storm.do_kill(3, True)
        client.delete(self.names[1], "k")
        self.cluster.advance(REST_S)
        self.assertEqual(self.stored(), {1})
        held = self.node(0).compacting.held_up()
        self.assertEqual(list(held), [self.names[3]])
        self.assertEqual(client.put(self.names[0], "other", "v").status, 201)
        self.change_view(0, "remove", self.names[3])
        self.cluster.advance(REST_S)
        self.assertEqual(self.stored(), {1})
        self.assertEqual(self.node(0).compacting.held_up(), {})
        self.assertEqual(self.values("k"), {None})

    def test_a_lost_write_holds_up_compaction_and_is_named(self) -> None:
        """
        H12: its machine is gone, and clients have told others to come after it.

        No member holds anything up, so nobody could be found by ``held_up``.
        """
        self.start(3)
        client = self.client()
        self.storm.do_partition(0b100)
        self.cluster.advance(4)
        gone = self.node(2).replica.actor
        client.put(self.names[2], "k", "lost")
        self.storm.do_kill(2, False)
        self.storm.do_heal()
        self.storm.do_start(2)
        self.cluster.advance(2)
        self.assertEqual(self.node(0).compacting.missing(), {})
        client.put(self.names[0], "k", "after")
        client.delete(self.names[0], "k")
        self.cluster.advance(REST_S)
        self.assertEqual(self.stored(), {1})
        for node in self.nodes():
            self.assertEqual(node.compacting.held_up(), {})
            self.assertEqual(node.compacting.missing(), {gone: 1})
            self.assertIn(gone, repr(node.status()["compaction"]))

    def test_what_waits_for_others_is_not_looked_at_all_the_time(self) -> None:
        """
        Versions that cannot be settled yet are found by every pass, in vain.

        Else a store full of them would be read again and again as long as anybody
        writes.
        """
        self.start(3, compact_versions=1, compact_pause_s=0.1)
        client = self.client()
        self.storm.do_partition(0b100)
        self.cluster.advance(4)
        client.put(self.names[2], "k", "lost")
        self.storm.do_kill(2, False)
        self.storm.do_heal()
        self.storm.do_start(2)
        self.cluster.advance(2)
        for number in range(40):
            client.put(self.names[0], f"k{number}", "v")
        self.cluster.advance(10)
        slices = 0
        storage = self.node(0).cluster.storage
        whole = storage.unsettled

        def counted(
            upto: VersionVector, after: Cursor, *, versions_max: int, bytes_max: int
        ) -> tuple[list[str], Cursor | None]:
            nonlocal slices
            slices += 1
            return whole(upto, after, versions_max=versions_max, bytes_max=bytes_max)

        self.patch(storage, "unsettled", counted)
        compacted = self.node(0).compacting.compacted
        for number in range(100):
            client.put(self.names[0], "k0", str(number))
            self.cluster.advance(0.9)
        self.assertLess(slices, 150, "of 900 that would fit")
        self.assertEqual(self.node(0).compacting.compacted, compacted)

    def test_a_slice_is_one_turn_and_one_commit(self) -> None:
        """However many keys there are, few of them are looked at in one turn."""
        self.start(1, k=1, compact_versions=5)
        client = self.client()
        for number in range(23):
            client.put(self.names[0], f"k{number}", "v")
        compacting = self.node(0).compacting
        most, before = 0, compacting.compacted
        for _ in range(3000):
            self.cluster.advance(0.001)
            most = max(most, compacting.compacted - before)
            before = compacting.compacted
        # The first comes after nothing.
        self.assertEqual((compacting.compacted, most), (22, 5))

    def test_slices_that_take_long_become_smaller_and_grow_again(self) -> None:
        """However long a version takes, the event loop is not held up for long."""
        self.start(1, k=1, compact_versions=20)
        client = self.client()
        for number in range(80):
            client.put(self.names[0], f"k{number}", "v")
        storage, sizes = self.node(0).cluster.storage, list[int]()
        whole = storage.unsettled

        def slow(
            upto: VersionVector, after: Cursor, *, versions_max: int, bytes_max: int
        ) -> tuple[list[str], Cursor | None]:
            sizes.append(versions_max)
            if len(sizes) < 6:
                self.cluster.clock.rightNow += 0.002 * versions_max
            return whole(upto, after, versions_max=versions_max, bytes_max=bytes_max)

        self.patch(storage, "unsettled", slow)
        self.cluster.advance(REST_S)
        self.assertEqual(sizes[:9], [20, 10, 5, 5, 5, 5, 7, 9, 12])

    def test_a_store_survives_a_kill_in_the_middle_of_it(self) -> None:
        """Whichever slice was under way: the rest follows after the start."""
        self.start(3, compact_versions=2)
        client = self.client()
        for number in range(12):
            client.put(self.names[0], f"k{number}", "v")
            client.delete(self.names[0], f"k{number}")
        for _ in range(12):
            for index in (0, 1, 2):
                self.cluster.advance(0.211)
                self.storm.do_kill(index, True)
                self.cluster.advance(0.05)
                self.storm.do_start(index)
        self.cluster.advance(REST_S)
        self.assertEqual(self.stored(), {0})


class ProxyTests(DeleteCase):
    """What a proxy wrote itself, while it reached nobody."""

    def test_a_proxy_keeps_nothing_that_all_replicas_have(self) -> None:
        """It stores as little as one that never wrote; what is deleted stays so."""
        self.start(4)
        self.storm.do_partition(0b1000)
        self.cluster.advance(5)
        client, proxy = self.client(), self.names[3]
        for number in range(20):
            client.put(proxy, f"k{number}", "v")
            if number % 2:
                client.delete(proxy, f"k{number}")
        self.assertGreater(self.node(3).cluster.storage.count(), 10)
        self.storm.do_heal()
        self.cluster.advance(10)
        self.assertEqual(client.delete(self.names[0], "k0").status, 200)
        self.cluster.advance(self.cluster.settings.demotion_s + REST_S)
        counts = [node.cluster.storage.count() for node in self.nodes()]
        self.assertEqual(counts, [9, 9, 9, 0])
        self.assertEqual(self.node(3).replica.durable.vv, {})
        # They told what was all here then, and is not any more (R12).
        for record in self.node(3).cluster.records.values():
            self.assertIsNone(record.report)
        self.storm.do_partition(0b1000)
        self.cluster.advance(5)
        self.assertIsNone(self.client().get(proxy, "k0"))
        self.storm.do_heal()
        self.cluster.advance(5)
        self.assertEqual(self.values("k2"), {"v"})

    def test_a_node_that_was_alone_gives_its_data_away(self) -> None:
        """Added as a proxy, it keeps it until all replicas have it, and no longer."""
        self.start(3)
        name = parse_name("10.0.0.77:8080")
        self.cluster.start_alone(name)
        self.cluster.advance(1)
        for number in range(5):
            self.client().put(name, f"k{number}", "v")
        self.change_view(0, "add", name)
        self.cluster.advance(self.cluster.settings.demotion_s + REST_S)
        self.assertEqual(self.cluster.nodes[name].cluster.storage.count(), 0)
        self.assertEqual(self.stored(), {5})
        self.assertEqual(self.values("k4"), {"v"})


class ReturnTests(DeleteCase):
    """Members that were away while something was deleted."""

    def test_a_member_that_comes_back_after_a_partition_deletes_too(self) -> None:
        """And its own write that knew nothing of the delete is decided by time."""
        self.start(3)
        client = self.client()
        client.put(self.names[0], "k", "v")
        client.put(self.names[0], "own", "v")
        self.cluster.advance(REST_S)
        self.storm.do_partition(0b100)
        client.delete(self.names[0], "k")
        client.delete(self.names[0], "own")
        self.cluster.advance(1)
        other = self.client()
        other.put(self.names[2], "own", "later")
        self.cluster.advance(REST_S)
        self.assertEqual(self.client().get(self.names[2], "k"), "v")
        self.storm.do_heal()
        self.cluster.advance(REST_S)
        self.assertEqual((self.values("k"), self.values("own")), ({None}, {"later"}))
        self.assertEqual(self.stored(), {2}, "the deletion that lost is a sibling")
        other.get(self.names[0], "own")
        other.put(self.names[0], "own", "last")
        self.cluster.advance(REST_S)
        self.assertEqual(self.stored(), {1})

    def test_a_removed_member_returns_with_old_data(self) -> None:
        """H11: what was deleted stays deleted; what only it has is kept."""
        self.start(4, k=4)
        away = self.names[3]
        client = self.client()
        for number in range(5):
            client.put(self.names[0], f"k{number}", "v")
        self.cluster.advance(REST_S)
        self.storm.do_partition(0b1000)
        self.cluster.advance(5)
        self.client().put(away, "own", "mine")
        self.change_view(0, "remove", away)
        for number in range(3):
            client.delete(self.names[1], f"k{number}")
        self.cluster.advance(REST_S)
        self.assertEqual({self.node(i).cluster.storage.count() for i in (0, 1, 2)}, {2})
        self.storm.do_heal()
        self.change_view(0, "add", away)
        self.cluster.advance(REST_S)
        for key, wanted in (("k0", None), ("k2", None), ("k3", "v"), ("own", "mine")):
            self.assertEqual(self.values(key), {wanted}, key)
        self.assertEqual(self.stored(), {3})


class GrowthTests(DeleteCase):
    """R20: what does not grow with the number of starts."""

    def sizes(self) -> tuple[int, int, int]:
        """Tell the bytes of a token and of vectors; and entries of a state record."""
        client = self.client()
        client.put(self.names[1], "probe", "v")
        put = len(client.token)
        client.get(self.names[1], "probe")
        node = self.node(0)
        told = HelloAnswer(node.cluster.header(), node.cluster.vectors(self.names[1]))
        vectors = node.cluster.shrunk(self.names[1], told)
        return (
            max(put, len(client.token)),
            len(Codec().encode(vectors)),
            len(
                node.replica.durable.retired.pack(
                    node.replica.durable.clock, node.replica.durable.retired.head
                )
            ),
        )

    def restart(self, name: Name, times: int) -> None:
        """Kill and start a node, which writes each time."""
        index = self.names.index(name)
        for number in range(times):
            self.client().put(name, "k", str(number))
            self.storm.do_kill(index, True)
            self.cluster.advance(0.2)
            self.storm.do_start(index)
            self.cluster.advance(1)
        self.cluster.advance(REST_S)

    def test_a_hundred_restarts_cost_no_more_than_two(self) -> None:
        """In what clients carry, what nodes exchange, and what each commit writes."""
        self.start(3)
        self.restart(self.names[2], 2)
        two = self.sizes()
        self.cluster.advance(REST_S)
        self.restart(self.names[2], 100)
        hundred = self.sizes()
        for few, many in zip(two, hundred, strict=True):
            self.assertLess(many, few * 1.1 + 20)
        self.assertEqual(self.values("k"), {"99"})
        vv = self.node(0).replica.durable.vv
        self.assertGreater(len(vv), 100, "nobody was forgotten")

    def test_a_dead_member_makes_no_token_long(self) -> None:
        """Although a node that starts anew cannot ask it what it knows."""
        self.start(4)
        self.restart(self.names[2], 20)
        self.storm.do_kill(1)
        self.storm.do_kill(0)
        self.storm.do_start(0)
        self.cluster.advance(REST_S)
        client = self.client()
        client.put(self.names[0], "probe", "v")
        payload = self.node(0).payloads.decode(client.token)
        self.assertTrue(has_marker(payload.vector))
        self.assertLess(len(payload.vector), 6)

    def test_no_marker_before_all_have_said_that_they_know_it(self) -> None:
        """A payload that a member cannot read makes its answers unsure for nothing."""
        self.start(3)
        self.restart(self.names[2], 2)
        self.storm.do_partition(0b100)
        # What is retired now only two of the three hear of.
        replica = self.node(0).replica
        before = replica.durable.retired.head
        replica.retire(replica.durable.retired.retire({replica.actor: 1}))
        self.node(0).cluster.committer.kick()
        self.cluster.advance(2)
        self.assertNotEqual(replica.durable.retired.head, before)
        self.assertEqual(
            self.node(1).replica.durable.retired.head, replica.durable.retired.head
        )
        self.assertEqual(self.node(0).cluster.shared_generation, before)
        self.storm.do_heal()
        self.cluster.advance(3)
        self.assertNotEqual(self.node(0).cluster.shared_generation, before)

    def test_a_cluster_that_never_rests_retires_actors_too(self) -> None:
        """However often clients write: else what they carry grew with every start."""
        self.start(3)
        client = self.client()
        for number in range(12):
            client.put(self.names[2], "k", str(number))
            self.storm.do_kill(2, True)
            self.cluster.advance(0.2)
            self.storm.do_start(2)
            for more in range(12):
                client.put(self.names[0], "busy", str(more))
                self.cluster.advance(0.5)
        durable = self.node(0).replica.durable
        self.assertEqual(len(durable.vv), 13)
        packed = durable.retired.pack(durable.clock, durable.retired.head)
        self.assertLess(len(packed), 7)

    def test_an_old_token_is_understood_later(self) -> None:
        """A payload from before, between and after is as good as ever."""
        self.start(3)
        client = self.client()
        client.put(self.names[2], "mine", "1")
        tokens = [client.token]
        for _ in range(3):
            self.restart(self.names[2], 3)
            client.get(self.names[0], "mine")
            tokens.append(client.token)
        for token in tokens:
            late = self.client()
            late.token = token
            self.assertEqual(late.get(self.names[1], "mine"), "1")
            self.assertFalse(late.stale)
            self.assertEqual(late.put(self.names[1], "mine", "1").status, 200)

    def test_a_marker_that_a_forwarder_cannot_read_is_in_no_write_of_its_own(
        self,
    ) -> None:
        """
        A proxy without its disk hands on a write before it knows who is retired.

        What it writes itself later, cut off, comes after the answer to that, and not
        after an "actor" of which there will never be a write: nothing that came after
        it would ever be forgotten, on any node.
        """
        self.start(4)
        self.restart(self.names[1], 3)
        client = self.client()
        client.put(self.names[0], "k", "known")
        self.assertNotEqual(self.node(0).cluster.shared_generation, "")
        self.storm.do_kill(3, False)
        self.cluster.advance(1)
        self.storm.do_start(3)
        answer = client.put(self.names[3], "k", "handed on")
        self.assertNotEqual(self.dot(answer), self.names[3])
        self.assertFalse(has_marker(self.node(3).replica.seen))
        self.cluster.advance(1)
        self.storm.do_partition(0b1000)
        self.cluster.advance(5)
        answer = self.client().put(self.names[3], "other", "its own")
        self.assertEqual(self.dot(answer), self.names[3])
        self.client().delete(self.names[0], "k")
        self.storm.do_heal()
        self.cluster.advance(REST_S)
        self.assertEqual(self.stored(), {1})
        for node in self.nodes():
            self.assertFalse(has_marker(node.replica.durable.clock))

    def test_a_node_without_a_disk_does_not_take_a_marker_for_nothing(self) -> None:
        """Cut off, it flags what it cannot read, and a write of it does no harm."""
        self.start(3)
        self.restart(self.names[1], 3)
        client = self.client()
        client.put(self.names[0], "k", "known")
        self.assertNotEqual(self.node(0).cluster.shared_generation, "")
        self.storm.do_kill(2, False)
        self.storm.do_partition(0b100)
        self.storm.do_start(2)
        self.cluster.advance(1)
        self.assertIsNone(client.get(self.names[2], "k"))
        self.assertTrue(client.stale)
        client.put(self.names[2], "k", "written blindly")
        self.assertTrue(client.stale)
        # Its client still comes after all that it has seen, wherever it asks next.
        self.assertTrue(has_marker(self.node(2).payloads.decode(client.token).vector))
        self.storm.do_heal()
        self.cluster.advance(REST_S)
        self.assertEqual(len(self.values("k")), 1)
