"""
Whatever happens, all replicas end with the same winner, and it is the right one.

First replicas alone, in thousands of adversarial steps; then whole nodes on a network.
An oracle that saw every write knows the winner, and what each client has a right to.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.simulation import histories as kvs
from tests.simulation.histories import Op, Ops, histories, seeded, shrunk
from tests.simulation.replicas import ReplicaWorld
from twisted_kvs.core.settings import Settings
from twisted_kvs.simulation.storm import Storm

Shape = dict[str, int]
TUNED = Settings(delta_part_versions_max=1, fold_versions=1, demotion_s=3.5)
Run = Callable[[list[Op], Shape], Counter[str]]
"""Runs a history and tells what happened in it; raises where a promise is broken."""


class HistoryCase(SynchronousTestCase):
    """Runs many histories, and tells what happened in all of them."""

    shapes: tuple[Shape, ...]
    """How many nodes, keys and clients there are."""
    drawn = 100
    """Histories that Hypothesis draws, by default; other profiles in proportion."""
    seeds = 100
    """Histories that come from a seed."""

    def run_one(self, history: list[Op], shape: Shape) -> Counter[str]:
        """Run a history."""
        raise NotImplementedError

    def hold(self, always: Ops, *sometimes: Ops, size: int = 60) -> Counter[str]:
        """Let histories end well."""
        events: Counter[str] = Counter()
        examples = settings().max_examples

        @settings(max_examples=max(1, self.drawn * examples // 100))
        @given(histories(always, *sometimes, size=size), st.sampled_from(self.shapes))
        def law(history: list[Op], shape: Shape) -> None:
            events.update(self.run_one(history, shape))

        law()
        for seed in range(self.seeds * examples // 100):
            shape = self.shapes[seed % len(self.shapes)]
            history = seeded(seed, always, *sometimes, size=size)
            try:
                events.update(self.run_one(history, shape))
            except Exception as error:
                least = shrunk(history, functools.partial(self.fails, shape))
                self.fail(f"seed {seed}, {shape}: {least}\n{error!r}")
        return events

    def fails(self, shape: Shape, history: list[Op]) -> bool:
        """Tell whether a history breaks a promise."""
        try:
            self.run_one(history, shape)
        except Exception:
            return True
        return False

    def assert_happened(self, events: Counter[str], **least: int) -> None:
        """
        A fault that never happened proves nothing.

        :param least: how often what happened in a hundred examples or more; a fifth of
            that is enough, as every release of Hypothesis draws others.
        """
        share = min(1.0, settings().max_examples / 100) / 5
        counts = {event: events[event.replace("_", " ")] for event in least}
        few = {
            event: count
            for event, count in counts.items()
            if count < int(share * least[event])
        }
        self.assertEqual(few, {}, dict(events))


class ReplicaTests(HistoryCase):
    """Replicas, their disks and their messages, without time."""

    shapes = (
        {"nodes": 3, "keys": 1},
        {"nodes": 2, "keys": 1},
        {"nodes": 3, "keys": 2},
        {"nodes": 4, "keys": 2},
        {"nodes": 5, "keys": 3, "clients": 3},
    )
    drawn = 150
    seeds = 700

    def run_one(self, history: list[Op], shape: Shape) -> Counter[str]:
        """Run a history."""
        return ReplicaWorld(**shape).run(history).events

    def test_clocks_that_are_wrong_and_clients_that_wander(self) -> None:
        """Clients go from node to node, and clocks are wrong by any amount."""
        events = self.hold(kvs.CLIENTS | kvs.MEETINGS)
        self.assert_happened(events, written=999, read_fresh=999, read_stale=99)

    def test_a_network_that_loses_repeats_and_reorders(self) -> None:
        """Pushes and deltas, in parts, arrive late, twice, in any order or never."""
        events = self.hold(kvs.CLIENTS | kvs.MESSAGES, kvs.MEETINGS)
        self.assert_happened(
            events,
            delta_in_parts=99,
            dropped=99,
            push_out_of_turn=9,
            push_taken=99,
            repeated=99,
        )

    def test_processes_that_die_and_disks_that_fill_up(self) -> None:
        """What was acknowledged survives every crash; what was not durable is gone."""
        always = kvs.CLIENTS | kvs.MEETINGS | kvs.RESTARTS
        events = self.hold(always, kvs.MESSAGES, size=80)
        self.assert_happened(events, crashed=999, disk_full=99)

    def test_disks_that_are_lost_or_restored(self) -> None:
        """Nodes come back empty, or as they were long ago; late messages find them."""
        always = kvs.CLIENTS | kvs.MESSAGES | kvs.LOSSES
        events = self.hold(always, kvs.MEETINGS, size=80)
        self.assert_happened(events, state_lost=99, delta_refused=9)

    def test_everything_at_once(self) -> None:
        """All of it, in long histories."""
        events = self.hold(
            kvs.CLIENTS | kvs.MEETINGS,
            kvs.MESSAGES,
            kvs.ROLES,
            kvs.RESTARTS,
            kvs.LOSSES,
            size=150,
        )
        self.assert_happened(events, state_lost=99, demoted=99, disk_full=99)

    def test_a_drop_of_all_data_is_no_store_to_merge_into(self) -> None:
        """Found by a search: the old store was seen while its drop was under way."""
        history: list[Op] = [
            ("put", 0, 1, 1),
            ("disk", 1, 1),
            ("sync", 0, 1),
            ("demote", 1),
            ("put", 1, 1, 1),
        ]
        world = ReplicaWorld(nodes=2).run(history)
        self.assertEqual(world.events["demoted"], 1)


class ProxyTests(HistoryCase):
    """Replicas and proxies, without time."""

    shapes = (
        {"nodes": 2, "proxies": 1, "keys": 1},
        {"nodes": 1, "proxies": 2, "keys": 1},
        {"nodes": 3, "proxies": 1, "clients": 3},
        {"nodes": 2, "proxies": 2, "clients": 3},
    )
    drawn = 150
    seeds = 1000

    def run_one(self, history: list[Op], shape: Shape) -> Counter[str]:
        """Run a history."""
        return ReplicaWorld(**shape).run(history).events

    def test_proxies_and_roles_that_change(self) -> None:
        """Proxies write, forward, become replicas and drop their data again."""
        always = kvs.CLIENTS | kvs.MEETINGS | kvs.ROLES
        events = self.hold(always, kvs.MESSAGES, kvs.RESTARTS, size=80)
        self.assert_happened(events, demoted=99, forwarded=999)


class NodeTests(HistoryCase):
    """Whole nodes: gossip, pushes, causal reads, forwarding, roles."""

    shapes = (
        {"nodes": 3, "seed": 1},
        {"nodes": 4, "seed": 2},
        {"nodes": 2, "seed": 3},
        {"nodes": 5, "keys": 3, "seed": 4},
        {"nodes": 3, "k": 2, "keys": 1, "seed": 5},
        {"nodes": 4, "k": 1, "seed": 6},
        {"nodes": 4, "k": 2, "seed": 7},
    )
    drawn = 30
    seeds = 150

    def run_one(self, history: list[Op], shape: Shape) -> Counter[str]:
        """Run a storm; it checks times and answers by itself."""
        return Storm(None, **shape).run(history).events

    def test_links_that_break(self) -> None:
        """Cut links in one direction or both, partitions, and clocks that are wrong."""
        events = self.hold(kvs.REQUESTS | kvs.CUTS, kvs.CLOCKS)
        self.assert_happened(events, cut=999, read_stale=9, read_fresh=99)

    def test_messages_that_are_lost_late_or_doubled(self) -> None:
        """Half of the messages may be lost or doubled, and any may take long."""
        events = self.hold(kvs.REQUESTS | kvs.NOISE, kvs.CLOCKS)
        self.assert_happened(events, lost=999, duplicated=500, read_fresh=99)

    def test_processes_that_are_killed(self) -> None:
        """Kill -9 at any moment, restarts, disks without room; nothing is lost."""
        events = self.hold(kvs.REQUESTS | kvs.KILLS, kvs.CUTS)
        self.assert_happened(
            events,
            killed=99,
            request_lost_with_its_node=9,
            commits_refused=99,
            answered_StorageFull=9,
        )

    def test_disks_that_are_lost(self) -> None:
        """Nodes that come back empty take the cluster's state, and hide nothing."""
        events = self.hold(kvs.REQUESTS | kvs.WIPES, kvs.CUTS, kvs.NOISE)
        self.assert_happened(events, disk_lost=99, write_fresh=99)

    def test_members_that_come_and_go(self) -> None:
        """Operators remove and add anybody anywhere; no write is lost on the way."""
        events = self.hold(kvs.REQUESTS | kvs.VIEWS, kvs.CUTS, kvs.KILLS)
        self.assert_happened(events, view_changed=200, answered_Removed=50)


class ManyPartsTests(HistoryCase):
    """Whole nodes whose deltas travel version by version, and whose roles change."""

    shapes = ({"nodes": 3, "seed": 1}, {"nodes": 5, "k": 2, "keys": 3, "seed": 2})
    drawn = 20
    seeds = 150

    def run_one(self, history: list[Op], shape: Shape) -> Counter[str]:
        """Run a storm in which every delta of two versions has parts."""
        return Storm(TUNED, **shape).run(history).events

    def test_deltas_in_many_parts_and_roles_that_change(self) -> None:
        """Deltas break off half-way, and demoted nodes drop all that they have."""
        events = self.hold(
            kvs.REQUESTS | kvs.CUTS | kvs.RELIEFS,
            kvs.NOISE,
            kvs.KILLS,
            kvs.CLOCKS,
            size=100,
        )
        self.assert_happened(events, delta_in_parts=99, dropped_all_data=50)
