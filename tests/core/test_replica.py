"""One replica: writes, reads, pushes, deltas, identity (R1 to R8, R13, R14)."""

from __future__ import annotations

import itertools
import random
from types import MappingProxyType

from tests.core.replica_case import ReplicaCase
from twisted_kvs.core.causality import COUNTER_MAX, join, leq, make_actor
from twisted_kvs.core.errors import BadPeerMessage
from twisted_kvs.core.messages import Delta, Standing
from twisted_kvs.core.payload import Payload, before
from twisted_kvs.core.view import ReplicaCount, View


class WriteTests(ReplicaCase):
    """``put`` (R2, R3)."""

    def test_a_write_follows_all_that_its_node_and_its_client_know(self) -> None:
        """A write is after what its node has, has heard of, and its client has seen."""
        a, b, c = self.stations(3)
        seen, heard, had = a.put("x"), a.put("y"), b.put("z")
        c.pull(b)
        c.replica.hear_clock(heard.payload.vector)
        written = c.put("k", payload=seen.payload)
        for earlier in (seen, heard, had):
            self.assertTrue(leq(earlier.version.upto, written.version.past))
        self.assertTrue(before(seen.payload, written.payload))
        self.assertEqual(written.payload.vector, written.version.upto)

    def test_a_write_follows_what_its_node_answered_to_others(self) -> None:
        """Two writes through one node are ordered, whoever minted the first."""
        a, b = self.stations(2)
        forwarded = a.put()
        b.replica.answered(forwarded.payload.vector)
        later = b.put("other")
        self.assertTrue(before(forwarded.payload, later.payload))

    def test_writes_of_a_node_grow_strictly(self) -> None:
        """Each write of a node is after the one before, durable or not."""
        (a,) = self.stations(1)
        payloads = [a.put(durable=False).payload for _ in range(3)]
        for earlier, later in itertools.pairwise(payloads):
            self.assertTrue(before(earlier, later))
            self.assertFalse(before(later, earlier))

    def test_the_timestamp_is_the_wall_clock(self) -> None:
        """The number that is shown is the number that is compared, also after a set."""
        (a,) = self.stations(1)
        stamps = [a.put(at=at).version.ts for at in (7, 3, -1, COUNTER_MAX + 1)]
        self.assertEqual(stamps, [7, 3, 0, COUNTER_MAX])

    def test_a_clock_that_goes_back_hides_no_own_write(self) -> None:
        """The later write of a node is shown, whatever its clock said."""
        (a,) = self.stations(1)
        a.put(value=b"1", at=9)
        a.put(value=b"2", at=3)
        self.assertEqual(a.value(), b"2")

    def test_created_says_whether_there_was_a_value(self) -> None:
        """A first write creates, also before it is durable; the next replaces."""
        (a,) = self.stations(1)
        written = [a.put(durable=False).created, a.put(durable=False).created]
        self.assertEqual(written, [True, False])
        self.assertTrue(a.put("other").created)

    def test_a_vector_of_another_mapping_is_stored_as_it_is(self) -> None:
        """A payload's vector may be any mapping."""
        a, b = self.stations(2)
        vector = MappingProxyType(dict(a.put().payload.vector))
        b.replica.hear_clock(vector)
        written = b.put("other", payload=Payload(vector, 0))
        self.assertEqual(written.version.past, dict(vector))

    def test_writes_of_one_commit_are_pushed_in_order(self) -> None:
        """What was overwritten within a commit is not stored, and still pushed."""
        a, b = self.stations(2)
        first, second = a.put(durable=False), a.put(durable=False)
        (commit,) = a.commit()
        self.assertEqual(commit.insert, (second.version,))
        self.assertEqual(commit.minted, (first.version, second.version))
        self.assertFalse(b.push(*commit.minted).gap)
        self.assertEqual(b.vv, a.vv)


class ReadTests(ReplicaCase):
    """``read`` and what it must not show (R6, R14)."""

    def test_nothing_is_shown_before_it_is_durable(self) -> None:
        """A write is applied at once and shown when its commit is on the disk."""
        (a,) = self.stations(1)
        a.put(value=b"1")
        written = a.put(value=b"2", durable=False)
        self.assertEqual(a.value(), b"1")
        self.assertNotEqual(a.replica.durable.vv, a.vv)
        given = a.give()
        assert given is not None
        self.assertEqual(a.value(), b"1")
        self.assertLess(a.replica.durable_commit, written.commit)
        a.land(given)
        self.assertEqual(a.value(), b"2")
        self.assertEqual(a.replica.durable_commit, written.commit)

    def test_commits_become_durable_one_by_one(self) -> None:
        """While a later commit is under way, the earlier one is shown."""
        (a,) = self.stations(1)
        a.put(value=b"1", durable=False)
        first = a.give()
        a.put(value=b"2", durable=False)
        a.put("other", durable=False)
        assert first is not None
        a.land(first)
        self.assertEqual([a.value(), a.value("other")], [b"1", None])
        a.commit()
        self.assertEqual([a.value(), a.value("other")], [b"2", b'"v"'])

    def test_a_payload_that_is_not_covered_makes_the_answer_stale(self) -> None:
        """A node that lacks what its client knows says so; once it has it, it does."""
        a, b = self.stations(2)
        payload = a.put("x").payload
        read = b.read("k", payload)
        self.assertFalse(read.fresh)
        self.assertEqual(b.replica.lacks("k", payload.vector), {a.actor: 1})
        self.assertTrue(b.replica.applied_lacks("k", payload.vector))
        b.take(a.delta())
        self.assertFalse(b.replica.applied_lacks("k", payload.vector))
        self.assertFalse(b.read("k", payload).fresh)
        b.commit()
        self.assertTrue(b.read("k", payload).fresh)
        self.assertEqual(b.replica.lacks("k", payload.vector), {})

    def test_the_key_itself_may_cover_the_payload(self) -> None:
        """A client that reads what it has just overwritten need not wait for others."""
        a, b = self.stations(2)
        earlier = a.put("x").payload
        written = b.put("k", payload=earlier)
        self.assertTrue(b.read("k", written.payload).fresh)
        self.assertEqual(b.replica.lacks("k", written.payload.vector), {})
        self.assertFalse(b.replica.applied_lacks("k", written.payload.vector))
        self.assertFalse(b.read("x", written.payload).fresh)
        self.assertTrue(b.replica.applied_lacks("x", written.payload.vector))

    def test_every_answer_is_later_than_what_was_asked_with(self) -> None:
        """A read's payload is strictly greater than the client's, absent keys too."""
        (a,) = self.stations(1)
        payload = a.put().payload
        for key in ("k", "absent", "k"):
            read = a.read(key, payload)
            self.assertTrue(before(payload, read.payload))
            self.assertEqual(read.payload.vector, payload.vector)
            payload = read.payload

    def test_the_payload_names_the_losers_too(self) -> None:
        """Who read one sibling overwrites all of them."""
        a, b = self.stations(2)
        loser, winner = a.put(at=1), b.put(at=2)
        b.pull(a)
        read = b.read()
        assert read.version is not None
        self.assertEqual(read.version.dot, winner.version.dot)
        self.assertTrue(leq(loser.version.upto, read.payload.vector))


class PushTests(ReplicaCase):
    """``apply_push`` (R8)."""

    def test_the_next_write_of_an_actor_is_taken(self) -> None:
        """Pushes in turn are knowledge, and bring L with them."""
        a, b = self.stations(2)
        versions = [a.put().version, a.put("x").version]
        taken = b.push(*versions, lamport=40)
        self.assertEqual((taken.taken, taken.gap), (2, False))
        self.assertEqual(b.vv, a.vv)
        self.assertEqual(b.replica.applied.lamport, 40)
        b.commit()
        self.assertEqual(taken.commit, b.replica.durable_commit)
        self.assertEqual(b.value("x"), b'"v"')

    def test_a_push_out_of_turn_changes_nothing(self) -> None:
        """A gap is left to a pull: nothing early is ever live."""
        a, b = self.stations(2)
        a.put()
        late = a.put("x").version
        before_it = b.replica.applied
        taken = b.push(late, lamport=40)
        self.assertEqual((taken.taken, taken.gap), (0, True))
        self.assertEqual(b.replica.applied, before_it)
        self.assertEqual(taken.commit, b.replica.durable_commit)

    def test_a_push_of_what_is_covered_is_acknowledged(self) -> None:
        """A repeated push has nothing new and no gap; its ack waits for the first."""
        a, b = self.stations(2)
        version = a.put().version
        first = b.push(version)
        again = b.push(version)
        self.assertEqual((again.taken, again.gap), (0, False))
        self.assertEqual(again.commit, first.commit)
        b.commit()
        self.assertEqual(b.push(version).commit, first.commit)

    def test_a_proxy_takes_no_push(self) -> None:
        """A proxy's vector names its own writes only."""
        a, proxy = self.station(1), self.station(2, holds_all=False)
        taken = proxy.push(a.put().version)
        self.assertEqual((taken.taken, taken.gap, proxy.vv), (0, False, {}))

    def test_a_push_that_is_dominated_is_knowledge_all_the_same(self) -> None:
        """What arrives after its successor is not shown, and joins VV and clock."""
        a, b = self.stations(2)
        old = a.put(value=b"old")
        b.put(value=b"new", payload=old.payload)
        taken = b.push(old.version)
        self.assertEqual(taken.taken, 1)
        self.assertEqual(b.vv, join(a.vv, {b.actor: 1}))
        b.commit()
        self.assertEqual(b.value(), b"new")


class DeltaTests(ReplicaCase):
    """``apply_delta`` (R7)."""

    def test_a_delta_brings_all_that_its_asker_lacks(self) -> None:
        """One delta, and both know the same; only the missing versions travel."""
        a, b = self.stations(2)
        a.put("x")
        b.pull(a)
        a.put("x")
        a.put("y")
        delta = a.delta(b.replica.durable.vv)
        self.assertEqual(len(delta.versions), 2)
        commit = b.take(delta)
        b.commit()
        self.assertEqual(commit, b.replica.durable_commit)
        self.assertEqual(b.vv, a.vv)
        self.assertEqual(a.delta(b.vv).versions, [])

    def test_a_delta_for_more_than_we_know_is_thrown_away(self) -> None:
        """A delta whose base is not covered would leave a hole for ever."""
        a, b = self.stations(2)
        first = a.put("x")
        a.put("y")
        delta = a.delta(first.version.upto)
        self.assertIsNone(b.take(delta))
        self.assertEqual(b.vv, {})
        self.assertIsNone(b.give())

    def test_what_came_meanwhile_is_skipped(self) -> None:
        """Versions that were pushed while the delta was under way count once."""
        a, b = self.stations(2)
        version = a.put().version
        delta = a.delta()
        b.push(version)
        b.commit()
        self.assertIsNotNone(b.take(delta))
        self.assertEqual(b.commit(), [])

    def test_a_delta_that_says_nothing_new_needs_no_commit(self) -> None:
        """Gossip at rest writes nothing to the disk."""
        a, b = self.stations(2)
        a.put()
        b.pull(a)
        self.assertEqual(b.take(a.delta(b.vv)), b.replica.durable_commit)
        self.assertIsNone(b.give())

    def test_a_claim_alone_is_knowledge(self) -> None:
        """A version that was overwritten at the sender is known without coming."""
        a, b, c = self.stations(3)
        first = a.put(value=b"1")
        b.pull(a)
        b.put(value=b"2", payload=first.payload)
        c.pull(b)
        self.assertEqual(c.vv, b.vv)
        self.assertEqual(c.value(), b"2")

    def test_a_version_above_the_claim_is_refused(self) -> None:
        """A delta that lists more than it claims has touched nothing."""
        a, b = self.stations(2)
        version = a.put().version
        bad = Delta(
            base={}, claim={}, lamport=9, standing=Standing.SERVING, versions=[version]
        )
        self.assertRaises(BadPeerMessage, b.take, bad)
        self.assertEqual((b.vv, b.replica.applied.lamport), ({}, 0))

    def test_a_proxy_takes_no_delta(self) -> None:
        """A proxy never pulls."""
        a, proxy = self.station(1), self.station(2, holds_all=False)
        a.put()
        self.assertIsNone(proxy.take(a.delta()))
        self.assertEqual(proxy.vv, {})

    def test_the_clock_takes_in_what_was_not_kept(self) -> None:
        """The past of a version that arrives dominated is in the next write's past."""
        a, b, c = self.stations(3)
        other = a.put("x")
        old = a.put(value=b"old")
        c.put(value=b"new", payload=Payload({a.actor: 2}, 0))
        b.pull(c)
        b.take(a.delta())
        self.assertTrue(leq(old.version.upto, b.put("y").version.past))
        self.assertTrue(leq(other.version.upto, b.put("y").version.past))

    def test_a_proxys_delta_is_for_its_own_actors(self) -> None:
        """A proxy claims its own writes, on the base of what the asker has of them."""
        a, proxy = self.station(1), self.station(2, holds_all=False)
        a.put("x")
        first = proxy.put("k", b"1")
        a.pull(proxy)
        proxy.put("k", b"2")
        delta = proxy.delta(a.replica.durable.vv)
        self.assertEqual(delta.base, {proxy.actor: 1})
        self.assertEqual(delta.claim, {proxy.actor: 2})
        a.take(delta)
        a.commit()
        self.assertEqual(a.value(), b"2")
        self.assertEqual(first.version.counter, 1)

    def test_a_promoted_proxy_keeps_its_own_writes(self) -> None:
        """A proxy that becomes a replica is a replica that lags."""
        a, proxy = self.station(1), self.station(2, holds_all=False)
        a.put("x")
        proxy.put("k", b"own")
        proxy.replica.set_holds_all(True)
        proxy.replica.set_holds_all(True)
        proxy.pull(a)
        self.assertEqual([proxy.value(), proxy.value("x")], [b"own", b'"v"'])
        self.assertTrue(proxy.replica.holds_all)


class IdentityTests(ReplicaCase):
    """Actors and the state record (R1, R16, R18)."""

    def test_every_start_has_an_actor_of_its_own(self) -> None:
        """A counter that a crash took back is never counted again."""
        (a,) = self.stations(1)
        kept = a.put(value=b"1")
        a.put(value=b"lost", durable=False)
        again = a.restart(9)
        self.assertNotEqual(again.actor, a.actor)
        written = again.put(value=b"2")
        self.assertEqual(written.version.counter, 1)
        self.assertTrue(leq(kept.payload.vector, written.version.past))
        self.assertEqual(again.value(), b"2")

    def test_a_clash_is_seen_and_ended(self) -> None:
        """Dots of ours that we never minted make us take another actor."""
        (a,) = self.stations(1)
        a.put()
        self.assertFalse(a.replica.identity_clash({a.actor: 1}))
        self.assertFalse(a.replica.identity_clash({make_actor(a.name, 0): 5}))
        self.assertTrue(a.replica.identity_clash({a.actor: 2}))
        old = a.actor
        a.do(a.replica.take_incarnation, random.Random(4))
        self.assertNotEqual(a.actor, old)
        self.assertEqual(a.put().version.counter, 1)

    def test_only_news_of_the_view_is_stored(self) -> None:
        """View and K are kept, and gossip about the same costs no commit."""
        (a,) = self.stations(1)
        view, count = View.start([a.name]), ReplicaCount(1, 2)
        commit = a.replica.set_view(view, count)
        a.replica.set_started_with_k(2)
        a.commit()
        self.assertEqual(commit, a.replica.durable_commit)
        self.assertEqual(a.replica.set_view(view, count), commit)
        a.replica.set_started_with_k(2)
        self.assertIsNone(a.give())
        again = a.restart(9).replica
        self.assertEqual((again.view, again.replica_count), (view, count))
        self.assertEqual(again.started_with_k, 2)

    def test_the_clock_and_l_survive_a_restart(self) -> None:
        """A proxy that heard of writes writes after them, also after a restart."""
        a, proxy = self.station(1), self.station(2, holds_all=False)
        heard = a.put("x")
        proxy.replica.hear_clock(heard.payload.vector)
        proxy.replica.hear_lamport(77)
        proxy.put("y")
        again = proxy.restart(9)
        self.assertEqual(again.replica.durable.lamport, 78)
        self.assertTrue(leq(heard.payload.vector, again.put("k").version.past))

    def test_l_only_grows_and_leaves_room(self) -> None:
        """A peer's L never sets ours back, nor so high that it cannot count on."""
        (a,) = self.stations(1)
        for heard in (7, 3, COUNTER_MAX):
            a.replica.hear_lamport(heard)
        self.assertEqual(a.replica.applied.lamport, 7)

    def test_idle_means_that_all_is_durable(self) -> None:
        """A node knows whether something is still to be stored."""
        (a,) = self.stations(1)
        self.assertTrue(a.replica.idle)
        a.put(durable=False)
        self.assertFalse(a.replica.idle)
        given = a.give()
        assert given is not None
        self.assertFalse(a.replica.idle)
        self.assertEqual(a.replica.last_commit, given[0].number)
        a.land(given)
        self.assertTrue(a.replica.idle)
