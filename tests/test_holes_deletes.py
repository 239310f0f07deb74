"""
The known ways to get deletes and compaction wrong, as short histories on the real code.

A history fails when the rule that prevents it is broken; where it is cheap, the naive
rule stands beside it and is seen to go wrong.  The numbers are those of the design.
"""

from __future__ import annotations

import random

from tests.core.replica_case import ReplicaCase, Station
from twisted_kvs.core.names import parse_name
from twisted_kvs.core.versions import maximal
from twisted_kvs.simulation.cluster import SimulatedCluster
from twisted_kvs.simulation.storm import Storm


class DeleteCase(ReplicaCase):
    """Compacts replicas by hand."""

    def settle(self, *members: Station) -> None:
        """Exchange and compact until nothing changes any more."""
        for _ in range(4):
            for one in members:
                for other in members:
                    if one is not other:
                        one.pull(other)
            for index, one in enumerate(members):
                one.compact(*members, seal=not index)

    def dots(self, station: Station, key: str = "k") -> int:
        """Count what is stored of a key."""
        return len(station.storage.versions(key))


class TombstoneTests(DeleteCase):
    """H4: a tombstone that is dropped once all have its dot."""

    def test_h04_a_beaten_value_does_not_rise_again(self) -> None:
        """A delete that won against a concurrent value still wins when it is gone."""
        a, b = self.stations(2)
        b.put(value=b'"old"', at=1)
        deleted = a.put(value=None, at=2)
        a.pull(b)
        b.pull(a)
        chain = b.storage.versions("k")
        naive = maximal(v for v in chain if v.dot != deleted.version.dot)
        self.assertEqual([v.value for v in naive], [b'"old"'])
        self.settle(a, b)
        for one in (a, b):
            self.assertEqual((one.value(), self.dots(one)), (None, 0))

    def test_h04_nothing_is_dropped_before_all_have_the_seal(self) -> None:
        """Sealed at one node and unknown at the other, the deletion still stands."""
        a, b = self.stations(2)
        a.put(value=b'"v"')
        a.put(value=None, at=5)
        b.pull(a)
        a.pull(b)
        self.assertEqual(a.compact(a, b), 1)
        a.compact(a, b)
        self.assertEqual((self.dots(a), self.dots(b)), (1, 1))
        self.assertEqual((a.value(), b.value()), (None, None))
        self.assertTrue(a.storage.versions("k")[0].is_seal)
        self.settle(a, b)
        self.assertEqual((self.dots(a), self.dots(b)), (0, 0))

    def test_a_member_that_reports_nothing_holds_up_compaction(self) -> None:
        """While one has not reported, tombstones and pasts stay."""
        a, b, away = self.stations(3)
        a.put(value=b'"v"')
        a.put(value=None, at=5)
        for _ in range(4):
            a.pull(b)
            b.pull(a)
            self.assertEqual(a.compact(a, b, away), 0)
            b.compact(a, b, away)
        self.assertEqual((self.dots(a), a.replica.applied.floor), (1, {}))
        self.settle(a, b, away)
        self.assertEqual(self.dots(a), 0)

    def test_a_stable_version_is_one_dot(self) -> None:
        """Pasts are forgotten, and what was concurrent is still decided right."""
        a, b = self.stations(2)
        a.put(value=b'"1"', at=9)
        b.put(value=b'"2"', at=5)
        self.settle(a, b)
        for one in (a, b):
            self.assertEqual([v.past for v in one.storage.versions("k")], [{}, {}])
            self.assertEqual(one.value(), b'"1"')
        b.put(value=b'"3"', at=1, payload=b.read().payload)
        self.settle(a, b)
        self.assertEqual((a.value(), self.dots(a)), (b'"3"', 1))


class ReturnTests(DeleteCase):
    """H11: a member that comes back with what was deleted meanwhile."""

    def test_h11_zombies_go_and_own_writes_stay(self) -> None:
        """What only the returner has is kept; what was deleted does not come back."""
        a, b, c = self.stations(3)
        a.put("k", b'"zombie"')
        a.put("kept", b'"kept"')
        self.settle(a, b, c)
        a.put("k", None, at=5, payload=a.read("k").payload)
        own = c.put("own", b'"own"')
        self.settle(a, b)  # c was removed from the view.
        self.assertEqual((self.dots(a), self.dots(c)), (0, 1))
        c.pull(b)
        self.assertEqual((c.value("k"), c.value("kept")), (None, b'"kept"'))
        self.settle(a, b, c)
        for one in (a, b, c):
            shown = [one.value(key) for key in ("k", "kept", "own")]
            self.assertEqual(shown, [None, b'"kept"', b'"own"'])
        self.assertEqual(a.storage.versions("own")[0].dot, own.version.dot)

    def test_h11_a_restored_backup_is_told_what_lives(self) -> None:
        """An old state under a new incarnation gets a full join."""
        a, b = self.stations(2)
        a.put("k", b'"zombie"')
        b.pull(a)
        self.settle(a, b)
        backup = b.restart(7)
        a.put("k", None, at=5, payload=a.read("k").payload)
        del a.reports[b.name]
        lonely = [a]
        self.settle(*lonely)
        self.assertEqual((self.dots(a), self.dots(backup)), (0, 1))
        backup.pull(a)
        self.assertEqual((backup.value(), self.dots(backup)), (None, 0))

    def test_h11_a_write_that_nobody_knew_wins_alike_everywhere(self) -> None:
        """It was concurrent with a deletion that is forgotten: it shows, on all."""
        a, b, c = self.stations(3)
        a.put(value=b'"v"', at=40)
        a.put(value=None, at=50)
        self.settle(a, b)
        c.put(value=b'"late"', at=1)
        self.settle(a, b, c)
        self.assertEqual({x.value() for x in (a, b, c)}, {b'"late"'})

    def test_h11_what_comes_during_a_full_join_stays(self) -> None:
        """Unless it is below the claim and does not live at the sender."""
        a, b, c = self.stations(3)
        a.put("k", b'"v"')
        a.put("k", None, at=5)
        self.settle(a, b)
        beaten, late = b.put("x", b'"x1"'), b.put("x", b'"x2"')
        a.pull(b)
        delta = a.delta(c.vv)
        stage = c.stage(delta, delta.versions)
        c.do(c.replica.add_part, stage, [], a.live)
        c.push(beaten.version)
        own = c.put("y", b'"y"')
        c.commit()
        self.assertEqual(c.value("x"), b'"x1"')
        self.assertIsNotNone(c.do(c.replica.finish_stage, stage))
        self.assertEqual(c.replica.applied.vv, {**a.vv, c.actor: 1})
        c.commit()
        self.assertEqual((c.value("x"), c.value("y")), (b'"x2"', b'"y"'))
        c.fold()
        dots = [c.storage.versions(key)[0].dot for key in ("x", "y")]
        self.assertEqual(dots, [late.version.dot, own.version.dot])


class ReaderTests(DeleteCase):
    """H16: what a reader of an absent key is told."""

    def test_h16_the_payload_of_an_absent_key_covers_the_floor(self) -> None:
        """A node that still shows the old value sees that it is behind."""
        a, b, c = self.stations(3)
        a.put(value=b'"v"')
        self.settle(a, b, c)
        a.put(value=None, at=5, payload=a.read().payload)
        self.settle(a, b)
        read = a.read()
        self.assertEqual((read.version, read.fresh), (None, True))
        self.assertTrue(c.read().fresh)
        self.assertFalse(c.read("k", read.payload).fresh)
        c.pull(a)
        again = c.read("k", read.payload)
        self.assertEqual((again.version, again.fresh), (None, True))


class ReportTests(DeleteCase):
    """H17: a report that is taken from a digest."""

    def test_h17_a_digest_is_no_report(self) -> None:
        """What its node wrote before it must be here, too; else a seal comes early."""
        shown = {}
        for how in ("digest", "delta"):
            self.setUp()
            a, b = self.stations(2)
            a.put(value=b'"v"', at=5)
            a.put(value=None, at=10)
            b.put(value=b'"x"', at=1)
            b.pull(a)
            if how == "digest":
                a.reports[b.name] = b.replica.durable.vv
            else:
                a.pull(b)
            self.assertEqual(a.compact(a, b), 1)
            a.pull(b)
            b.pull(a)
            self.assertEqual(a.value(), b.value())
            shown[how] = a.value()
        self.assertEqual(shown, {"digest": b'"x"', "delta": None})

    def test_h17_a_node_takes_for_a_report_only_what_it_has(self) -> None:
        """Vectors that name a write of their sender that is not here are none."""
        cluster = SimulatedCluster(3)
        names = [parse_name(f"10.0.0.{n}:80") for n in (1, 2)]
        cluster.start(names)
        cluster.advance(1)
        one, two = (cluster.nodes[name] for name in names)
        cluster.network.cut(*names)
        cluster.client().put(names[1], "k", "v")
        told = two.cluster.vectors(names[0])
        record = one.cluster.record(names[1])
        before = record.report
        one.cluster.learn_report(names[1], told)
        self.assertIs(record.report, before)
        cluster.network.heal()
        cluster.advance(3)
        one.cluster.learn_report(names[1], told)
        self.assertEqual(record.report, told.vv)

    def test_h17_nor_from_who_has_dropped_what_is_not_here(self) -> None:
        """A proxy has dropped a write that both others had; a third comes back."""
        storm = Storm(nodes=4, k=2)
        cluster, names = storm.cluster, storm.names
        storm.do_partition(0b1000)
        cluster.advance(4)
        cluster.client().put(names[3], "k", "v")
        storm.do_heal()
        storm.do_partition(0b0001)
        cluster.advance(cluster.settings.demotion_s + 10)
        first, proxy = cluster.nodes[names[0]], cluster.nodes[names[3]]
        told = proxy.cluster.vectors(names[0])
        self.assertEqual(told.vv, {})
        first.cluster.learn_report(names[3], told)
        self.assertFalse(first.cluster.record(names[3]).report)
        self.assertFalse(proxy.cluster.header().whole)
        storm.do_heal()
        cluster.advance(5)
        self.assertEqual(
            first.cluster.record(names[3]).report, proxy.replica.durable.clock
        )


class SealTests(DeleteCase):
    """H18: a seal is a write, and overwrites what it comes after."""

    def test_h18_no_seal_over_what_was_merely_heard_of(self) -> None:
        """While the clock names a write that is not here, nothing is sealed."""
        a, b, c = self.stations(3)
        a.put(value=b'"v"', at=1)
        a.put(value=None, at=2)
        self.settle_without_sealing(a, b, c)
        unseen = b.put(value=b'"x"', at=9)
        other = a.put("other", b'"o"', unseen.payload)
        c.pull(a)
        self.assertEqual(c.value("other"), b'"o"')
        self.assertFalse(c.replica.may_seal)
        self.assertEqual(c.compact(a, b, c), 0)
        for _ in range(2):
            for one, two in ((a, b), (b, c), (c, a)):
                one.pull(two)
                two.pull(one)
        self.assertEqual({x.value() for x in (a, b, c)}, {b'"x"'})
        self.assertTrue(other.version.past)

    def settle_without_sealing(self, *members: Station) -> None:
        """All have all, and have reported it."""
        for _ in range(2):
            for one in members:
                for two in members:
                    if one is not two:
                        one.pull(two)


class LoggedClockTests(DeleteCase):
    """H20: what a proxy has reported it must remember."""

    def test_h20_a_proxys_clock_outlives_its_process(self) -> None:
        """An older write of a restarted, cut-off proxy comes after what it reported."""
        a = self.station(1)
        proxy = self.station(2, holds_all=False)
        a.put(value=b'"v"', at=5)
        a.put(value=None, at=10)
        durable = a.replica.durable
        proxy.do(proxy.replica.hear_clock, durable.clock)
        proxy.do(proxy.replica.hear_clock, durable.vv)
        self.assertEqual(proxy.replica.durable.clock, {}, "not logged, not reported")
        a.reports[proxy.name] = proxy.replica.durable.vv
        self.assertEqual(a.compact(a, proxy), 0)
        proxy.commit()
        a.pull(proxy)
        self.assertEqual(a.compact(a, proxy), 1)
        again = proxy.restart(random.Random(3).getrandbits(16))
        late = again.put(value=b'"late"', at=1)
        self.assertIn(a.actor, late.version.past)
        a.pull(again)
        self.assertEqual(a.value(), b'"late"')
