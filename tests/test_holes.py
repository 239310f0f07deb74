"""
The known ways to get replication wrong, each as a short history on the real code.

A history fails when the rule that prevents it is broken; where it is cheap, the naive
rule stands beside it and is seen to go wrong.  The numbers are those of the design:
x(10) is x with timestamp 10.  Not here, since nothing is deleted or compacted yet: H4,
H11, H16, H17, H18, H20.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from twisted.internet.defer import ensureDeferred

from tests.core.replica_case import ReplicaCase
from twisted_kvs.core.causality import (
    Actor,
    VersionVector,
    join,
    leq,
    make_actor,
)
from twisted_kvs.core.codec import Codec
from twisted_kvs.core.errors import BadPayload, BadPeerMessage
from twisted_kvs.core.messages import Delta, Push, Standing
from twisted_kvs.core.names import parse_name
from twisted_kvs.core.payload import EMPTY_PAYLOAD, Payload, before
from twisted_kvs.core.settings import Settings
from twisted_kvs.core.versions import (
    Antichain,
    Version,
    dominates,
    insert,
    maximal,
    rank,
    winner,
)
from twisted_kvs.simulation.cluster import Client
from twisted_kvs.simulation.storm import Storm

A, B, C = (make_actor(parse_name(f"10.0.0.{n}:80"), n) for n in (1, 2, 3))


def version(
    actor: Actor,
    counter: int,
    ts: int,
    past: dict[Actor, int] | None = None,
    *,
    key: str = "k",
) -> Version:
    """Make a version whose value names it."""
    name = {A: "a", B: "b", C: "c"}[actor]
    return Version(actor, counter, key, f'"{name}{counter}"'.encode(), ts, past or {})


def shown(chain: Antichain) -> bytes | None:
    """Tell what a read shows."""
    best = winner(chain)
    return None if best is None else best.value


class RegisterTests(ReplicaCase):
    """H1: one version per key, decided pair by pair."""

    def test_h01_three_orders_three_winners(self) -> None:
        """Causal order, else timestamp, is no merge: the order of arrival decides."""
        a, b, c = version(A, 1, 30), version(B, 1, 10, {A: 1}), version(C, 1, 20)

        def beats(one: Version, other: Version) -> bool:
            if dominates(one, other) or dominates(other, one):
                return dominates(one, other)
            return rank(one) > rank(other)

        def pairwise(versions: Iterable[Version]) -> bytes | None:
            best: Version | None = None
            for one in versions:
                if best is None or beats(one, best):
                    best = one
            assert best is not None
            return best.value

        orders = list(itertools.permutations([a, b, c]))
        self.assertEqual({pairwise(o) for o in orders}, {b'"a1"', b'"b1"', b'"c1"'})
        self.assertEqual({shown(maximal(o)) for o in orders}, {b'"c1"'})

    def test_h01_replicas_agree_in_whatever_order_they_hear(self) -> None:
        """A value that was overwritten loses, even to one with an older stamp."""
        one, two, three = self.stations(3)
        first = three.put(value=b"a", at=30)
        one.put(value=b"b", at=10, payload=first.payload)
        two.put(value=b"c", at=20)
        self.assertEqual(self.converge(one, two, three), {b"c"})


class PartTests(ReplicaCase):
    """H2: a delta in parts, each of which claims something."""

    def settings(self) -> Settings:
        """Let every version travel alone."""
        return Settings(delta_part_versions_max=1)

    def test_h02_a_part_claims_nothing(self) -> None:
        """After some parts a node still says that it lacks what it lacks."""
        a, b = self.stations(2)
        first = a.put("k0").version
        second = a.put("k1", b"old")
        third = a.put("k1", b"new")
        for parts in ([first], [third.version]):
            stage = b.stage(a.delta(session=1), parts)
            read = b.read("k1", second.payload)
            self.assertEqual((read.fresh, read.version, b.vv), (False, None, {}))
            b.do(b.replica.drop_stage, stage)
            b.commit()
        naive = Delta(
            base={},
            claim={a.actor: 2},
            lamport=0,
            standing=Standing.SERVING,
            versions=[first],
        )
        c = self.station(3)
        c.replica.apply_delta(naive)
        while (commit := c.replica.take_commit()) is not None:
            c.storage.commit(commit)
            c.storage.flush()
            c.replica.committed(commit)
        read = c.replica.read("k1", second.payload)
        self.assertEqual((read.fresh, read.version), (True, None))

    def test_h02_a_transfer_that_breaks_off_shows_nothing_of_itself(self) -> None:
        """Cut in the middle of a delta, a node flags its answers; later it has all."""
        storm = Storm(nodes=2, k=2, settings=self.settings())
        one, two = storm.names
        storm.cluster.network.cut(one, two)
        writer = storm.cluster.client()
        for key, value in (("k0", "a"), ("k1", "old"), ("k1", "new"), ("k2", "b")):
            writer.put(one, key, value)
        storm.do_heal()
        receiver = storm.cluster.nodes[two].receiver
        for _ in range(9000):
            storm.cluster.advance(0.001)
            if receiver.received:
                break
        self.assertEqual((receiver.receiving, receiver.received), (one, 1))
        storm.cluster.network.cut(one, two)
        self.assertIsNone(writer.get(two, "k1"))
        self.assertTrue(writer.stale)
        storm.calm()
        self.assertEqual(writer.get(two, "k1"), "new")
        self.assertFalse(writer.stale)

    def test_h02_no_order_of_parts_helps(self) -> None:
        """Who remembers live versions only may claim nothing before all is sent."""
        a2 = version(A, 2, 2, {A: 1, B: 1}, key="k2")
        b2 = version(B, 2, 2, {A: 1, B: 1}, key="k1")
        crossed = [version(A, 1, 1, key="k1"), version(B, 1, 1, key="k2"), a2, b2]
        straight = [version(A, 1, 1, key="k2"), version(B, 1, 1, key="k1"), a2, b2]

        def honest(history: list[Version], sent: list[Version]) -> VersionVector:
            claim: dict[Actor, int] = {}
            for actor in (A, B):
                own = sorted((v.counter, v) for v in history if v.actor == actor)
                for counter, one in own:
                    if one not in sent and not any(
                        dominates(y, one) and y.key == one.key for y in sent
                    ):
                        break
                    claim[actor] = counter
            return claim

        for history in (crossed, straight):
            for key, left in (("k1", b2), ("k2", a2)):
                chain = maximal(v for v in history if v.key == key)
                self.assertEqual(chain, (left,))
            self.assertEqual(honest(history, [a2, b2]), {A: 2, B: 2})
        for sent in (a2, b2):
            claims = honest(crossed, [sent]), honest(straight, [sent])
            both = {x: min(n, claims[1].get(x, 0)) for x, n in claims[0].items()}
            self.assertEqual([n for n in both.values() if n], [])


class PayloadTests(ReplicaCase):
    """H3, H6, H8, H19: what a client is given, and what it may bring."""

    def test_h03_who_overwrites_what_it_read_overwrites_the_losers_too(self) -> None:
        """x(10) and y(11) stand, y is shown; z(5) over it must not bring x back."""
        for names_losers in (True, False):
            self.setUp()
            a, b, c = self.stations(3)
            a.put(value=b"x", at=10)
            b.put(value=b"y", at=11)
            b.pull(a)
            read = b.read()
            assert read.version is not None
            self.assertEqual(read.version.value, b"y")
            payload = read.payload
            if not names_losers:
                payload = Payload(read.version.upto, payload.lamport)
            c.put(value=b"z", at=5, payload=payload)
            self.assertEqual(self.converge(a, b, c), {b"z"} if names_losers else {b"x"})

    def test_h06_a_made_up_counter_would_swallow_writes(self) -> None:
        """Nothing is taken from a payload that this cluster has not signed."""
        a, b = self.stations(2)
        bogus = Payload({a.actor: 10**9}, 0)
        b.replica.put("k", b"mine", bogus, wall_us=1)
        b.replica.put("other", b"poisoned", EMPTY_PAYLOAD, wall_us=1)
        (commit,) = [b.replica.take_commit()]
        assert commit is not None
        a.put("k", b"lost", at=5)
        a.put("other", b"lost", at=5)
        a.replica.apply_push(list(commit.minted), 0)
        self.assertEqual(
            [a.replica._pending.applied(k)[0].value for k in ("k", "other")],
            [b"mine", b"poisoned"],
        )

    def test_h06_forged_payloads_touch_nothing(self) -> None:
        """A token that was changed, or comes from elsewhere, is refused at the door."""
        storm = Storm(nodes=2, k=2)
        client, forger = storm.cluster.client(), storm.cluster.client()
        client.put(storm.names[0], "k", "v")
        good = client.token
        before_it = storm.cluster.nodes[storm.names[1]].replica.applied
        for index in range(3, len(good)):
            other = "A" if good[index] != "A" else "B"
            forger.token = good[:index] + other + good[index + 1 :]
            self.assertRaises(BadPayload, forger.put, storm.names[1], "k", "x")
        forger.token = good[:-1]
        self.assertRaises(BadPayload, forger.get, storm.names[1], "k")
        after_it = storm.cluster.nodes[storm.names[1]].replica.applied
        self.assertEqual(before_it, after_it)

    def test_h06_peers_cannot_bring_counters_out_of_range(self) -> None:
        """A counter that nobody could count on from is no counter."""
        for counter in (2**63, 2**63 - 1, 0):
            bad = Push(lamport=0, versions=[version(A, counter, 1)])
            self.assertRaises(
                BadPeerMessage, Codec().decode_request, Codec().encode(bad)
            )

    def test_h08_a_read_makes_no_other_replica_look_stale(self) -> None:
        """What one replica says of a key is not more than what others can have."""
        a, b = self.stations(2)
        a.put()
        b.pull(a)
        for other in ("x", "y", "z"):
            a.put(other)
        payload = EMPTY_PAYLOAD
        for _ in range(3):
            payload = a.read("k", payload).payload
            self.assertTrue(b.read("k", payload).fresh)
            self.assertTrue(b.read("absent", payload).fresh)
        ticked = join(payload.vector, {a.actor: 9})
        self.assertFalse(b.read("k", Payload(ticked, 0)).fresh)
        whole = join(payload.vector, a.vv)
        self.assertFalse(b.read("k", Payload(whole, 0)).fresh)

    def test_h08_reads_under_load_need_no_pull(self) -> None:
        """A client that reads around while others write is never sent fetching."""
        storm = Storm(nodes=3)
        reader, writer = storm.cluster.client(), storm.cluster.client()
        writer.put(storm.names[0], "k", "v")
        storm.cluster.advance(0.1)
        for turn in range(6):
            writer.put(storm.names[turn % 3], f"busy{turn}", "v")
            self.assertEqual(reader.get(storm.names[turn % 3], "k"), "v")
            self.assertFalse(reader.stale)
        fetches = [n.fetch.fetches for n in storm.cluster.nodes.values()]
        self.assertEqual(fetches, [0, 0, 0])

    def test_h19_a_read_is_not_before_the_write_that_it_returns(self) -> None:
        """L travels with versions, by push and by delta, also through a restart."""
        for way in ("push", "delta", "stage", "restart"):
            self.setUp()
            a, b = self.stations(2)
            first = a.put()
            wrote = a.put()
            lamport = a.replica.durable.lamport
            if way == "push":
                b.push(first.version, wrote.version, lamport=lamport)
            elif way == "stage":
                stage = b.stage(a.delta(session=1), [wrote.version])
                b.do(b.replica.finish_stage, stage)
            elif way == "delta":
                b.take(a.delta())
            else:
                b = a.restart(9)
            b.commit()
            got = b.read().payload
            self.assertEqual(got.vector, wrote.payload.vector)
            self.assertTrue(before(wrote.payload, got), way)

    def test_h19_nodes_send_their_l(self) -> None:
        """A client without history reads at another node, after the write."""
        storm = Storm(nodes=3)
        writer = storm.cluster.client()
        for _ in range(3):
            writer.put(storm.names[0], "k", "v")
        wrote = storm.cluster.nodes[storm.names[0]].payloads.decode(writer.token)
        for name in storm.names[1:]:
            reader = storm.cluster.client()
            reader.get(name, "k")
            got = storm.cluster.nodes[name].payloads.decode(reader.token)
            self.assertEqual(got.vector, wrote.vector)
            self.assertGreater(got.lamport, wrote.lamport)


class DeltaTests(ReplicaCase):
    """H5: what was computed for somebody who had more."""

    def test_h05_a_delta_for_lost_data_leaves_no_hole(self) -> None:
        """The asker restarts empty; the delta for what it had is thrown away."""
        a, b = self.stations(2)
        a.put("k0")
        b.pull(a)
        a.put("k1")
        delta = a.delta(b.replica.durable.vv)
        again = b.restart(9, disk=False)
        self.assertIsNone(again.take(delta))
        again.pull(a)
        self.assertEqual([again.value("k0"), again.value("k1")], [b'"v"'] * 2)

    def test_h05_a_delta_in_parts_for_lost_data_leaves_no_hole(self) -> None:
        """The same in parts: what counts is what the node has at the last of them."""
        a, b = self.stations(2)
        first = a.put("k0")
        late = a.put("k1").version
        stage = b.stage(a.delta(first.payload.vector, session=1), [late])
        self.assertIsNone(b.do(b.replica.finish_stage, stage))
        b.pull(a)
        self.assertEqual([b.value("k0"), b.value("k1")], [b'"v"'] * 2)

    def test_h05_a_delta_without_its_base_is_a_hole_for_ever(self) -> None:
        """The naive rule: VV jumps over what is missing, nobody asks for it again."""
        a, b = self.stations(2)
        first = a.put("k0")
        a.put("k1")
        delta = a.delta(first.payload.vector)
        naive = Delta(
            base={},
            claim=delta.claim,
            lamport=0,
            standing=Standing.SERVING,
            versions=delta.versions,
        )
        b.replica.apply_delta(naive)
        self.assertEqual(a.delta(b.vv).versions, [])
        self.assertEqual(b.replica._pending.applied("k0"), ())

    def test_h05_a_late_delta_reaches_a_node_that_lost_its_disk(self) -> None:
        """On the network: a delta that was under way arrives after the restart."""
        storm = Storm(nodes=2, k=2)
        one, two = storm.names
        client = storm.cluster.client()
        client.put(one, "k0", "a")
        storm.cluster.advance(1)
        storm.cluster.network.cut(one, two)
        client.put(one, "k1", "b")
        late = self.late_delta(storm)
        self.assertEqual(len(late.versions), 1)
        self.deliver(storm, late)
        storm.calm()
        self.assertEqual([client.get(two, "k0"), client.get(two, "k1")], ["a", "b"])

    def test_h05_a_late_delta_of_a_proxy_has_a_base_too(self) -> None:
        """A proxy's second write does not hide its first from who lost that."""
        storm, client = self.proxy_that_wrote()
        two = storm.names[1]
        storm.cluster.network.cut(*storm.names)
        storm.cluster.advance(1)
        client.put(two, "k1", "b")
        self.assertFalse(storm.cluster.nodes[two].replica.holds_all)
        late = self.late_delta(storm, sender=1)
        self.assertEqual(len(late.versions), 1)
        self.deliver(storm, late, receiver=0)
        storm.calm()
        self.assertEqual([client.get(two, "k0"), client.get(two, "k1")], ["a", "b"])

    def test_h05_a_late_empty_delta_of_a_proxy_has_a_base_too(self) -> None:
        """A proxy has nothing new for a replica, which then loses everything."""
        storm, client = self.proxy_that_wrote()
        late = self.late_delta(storm, sender=1)
        self.assertEqual(late.versions, [])
        storm.cluster.network.cut(*storm.names)
        self.deliver(storm, late, receiver=0)
        storm.calm()
        self.assertEqual(client.get(storm.names[0], "k0"), "a")

    def proxy_that_wrote(self) -> tuple[Storm, Client]:
        """Let a cut-off proxy write k0, and the replica pull it."""
        storm = Storm(nodes=2, k=1)
        storm.cluster.network.cut(*storm.names)
        storm.cluster.advance(1)
        client = storm.cluster.client()
        client.put(storm.names[1], "k0", "a")
        self.assertTrue(client.stale)
        storm.do_heal()
        storm.cluster.advance(6)
        self.assertFalse(storm.cluster.nodes[storm.names[1]].cluster.is_replica)
        self.assertEqual(client.get(storm.names[0], "k0"), "a")
        return storm, client

    def late_delta(self, storm: Storm, *, sender: int = 0) -> Delta:
        """Make what one of two nodes would send the other now."""
        source, target = storm.names[sender], storm.names[1 - sender]
        had = storm.cluster.nodes[target].replica.durable.vv
        delta = storm.cluster.nodes[source].sender.make(target, had, one_part=True)
        assert delta is not None
        self.assertNotEqual(dict(had), {})
        return delta

    def deliver(self, storm: Storm, delta: Delta, *, receiver: int = 1) -> None:
        """Let a node lose its disk, restart, and then get this."""
        storm.do_kill(receiver, False)
        storm.do_start(receiver)
        node = storm.cluster.nodes[storm.names[receiver]]
        peer = storm.names[1 - receiver]
        taking = ensureDeferred(node.receiver.take(peer, delta))
        self.assertFalse(storm.cluster.wait(taking))


class ClosedPastTests(ReplicaCase):
    """H7: pasts that name a write and not what that came after."""

    def test_h07_dominance_that_is_not_transitive_diverges(self) -> None:
        """With z over y, y over x, z not over x, the order of arrival decides."""
        x = version(A, 1, 30)
        y = version(B, 1, 20, {A: 1})
        z = version(C, 1, 10, {B: 1})
        ends = {
            shown(insert(insert(insert((), p), q), r))
            for p, q, r in itertools.permutations([x, y, z])
        }
        self.assertEqual(ends, {b'"a1"', b'"c1"'})
        closed = version(C, 1, 10, {A: 1, B: 1})
        for order in itertools.permutations([x, y, closed]):
            self.assertEqual(shown(maximal(order)), b'"c1"')

    def test_h07_the_clock_takes_in_payloads(self) -> None:
        """n0 overwrites on a client's word; its next write knows what that knew."""
        n0, n1 = self.stations(2)
        x = n1.put(value=b"x", at=1000)
        n0.put(value=b"y", at=1, payload=x.payload)
        n0.put(value=b"z", at=2)
        self.assertEqual(self.converge(n0, n1), {b"z"})

    def test_h07_the_clock_takes_in_received_pasts(self) -> None:
        """n2 gets y and not the x that y came after; who follows n2 follows both."""
        n0, n1, n2, n3 = self.stations(4)
        x = n0.put(value=b"x", at=1000)
        y = n1.put(value=b"y", at=1000, payload=x.payload)
        n2.push(y.version, lamport=1)
        n2.commit()
        w = n2.put("other", b"w")
        n3.put(value=b"z", at=1, payload=w.payload)
        self.assertEqual(self.converge(n0, n1, n2, n3), {b"z"})

    def test_h07_a_stage_brings_its_pasts_with_its_vector(self) -> None:
        """The same where y came in a delta in parts, before anything is folded."""
        n0, n1, n2, n3 = self.stations(4)
        x = n0.put(value=b"x", at=1000)
        y = n1.put(value=b"y", at=1000, payload=x.payload)
        stage = n2.stage(n1.delta(session=1), [y.version])
        n2.do(n2.replica.finish_stage, stage)
        w = n2.put("other", b"w")
        n3.put(value=b"z", at=1, payload=w.payload)
        n2.fold()
        self.assertEqual(self.converge(n0, n1, n2, n3), {b"z"})

    def test_h07_a_proxy_follows_clocks_not_vectors_alone(self) -> None:
        """A proxy hears a replica that has y and not x, then overwrites y alone."""
        storm = Storm(nodes=4, seed=3)
        n0, n1, n2, n3 = storm.names
        network, client = storm.cluster.network, storm.cluster.client()
        network.partition([n0], [n1, n2], [n3])
        client.put(n0, "k0", "x")
        client.put(n1, "k0", "y")
        storm.cluster.advance(1)
        x, y = storm.oracle.writes
        held = storm.cluster.nodes[n2].replica.durable.vv
        self.assertEqual(held, {y[0]: 1})
        network.heal()
        network.partition([n0], [n1], [n2, n3])
        hearing = storm.cluster.nodes[n3].exchanges.start(n2)
        self.assertTrue(storm.cluster.wait(hearing))
        network.partition([n2], [n3])
        storm.do_skew(3, -1000)
        storm.cluster.advance(1.2)
        storm.cluster.client().put(n3, "k0", "z")
        z = list(storm.oracle.writes.values())[-1]
        self.assertEqual(z.actor.partition("#")[0], n3)
        self.assertTrue(leq({x[0]: 1, y[0]: 1}, z.past))
        storm.calm()
        self.assertEqual(
            {storm.cluster.client().get(n, "k0") for n in storm.names}, {"z"}
        )
