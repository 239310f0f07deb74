"""``kvs simulate``: runs by seed, in which all promises are checked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twisted_kvs.cli import main
from twisted_kvs.core import messages
from twisted_kvs.core.settings import Settings
from twisted_kvs.simulation import histories
from twisted_kvs.simulation.checkers import Violation, check_queues
from twisted_kvs.simulation.faults import FAULTS, MESSAGES, Op
from twisted_kvs.simulation.histories import Plan, draw, run, shrink, shrunk
from twisted_kvs.simulation.report import command, violation
from twisted_kvs.simulation.runner import Broken, Order, explain, run_all
from twisted_kvs.simulation.storm import FaultMissing, Storm, spell

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

ORPHANING = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from twisted_kvs.simulation.runner import begin

context = multiprocessing.get_context("spawn")
pool = ProcessPoolExecutor(1, context, initializer=begin)
pool.submit(time.sleep, 0).result()
pool.submit(time.sleep, 60)
os._exit(0)
"""


def ask(*words: str) -> tuple[int, str]:
    """Run the command; gives its status and what it prints."""
    result = CliRunner().invoke(main, ["simulate", *words])
    return result.exit_code, result.output


class DrawTests(SynchronousTestCase):
    """What a seed decides."""

    def test_a_seed_is_a_plan(self) -> None:
        """The same seed draws the same run, another one another."""
        self.assertEqual(draw(7), draw(7))
        self.assertNotEqual(draw(7), draw(8))

    def test_only_what_is_allowed_is_drawn(self) -> None:
        """Each fault can be switched; without any there are clients alone."""
        for name in FAULTS:
            planned = {f for seed in range(30) for f in draw(seed, (name,)).faults}
            self.assertLessEqual(planned, {name})
        self.assertEqual({draw(seed, ()).faults for seed in range(30)}, {()})

    def test_a_planned_fault_has_its_operation(self) -> None:
        """What is planned is also drawn, at least once."""
        for seed in range(200):
            plan = draw(seed)
            names = {op[0] for op in plan.history}
            for fault in plan.faults:
                self.assertIn(next(iter(FAULTS[fault].ops)), names)

    def test_every_operation_can_be_spelled(self) -> None:
        """A history is read by people: each argument has a name."""
        for fault in FAULTS.values():
            for name, how in fault.ops.items():
                words = spell((name, *(next(iter(choice)) for choice in how))).split()
                self.assertEqual(len(words), 1 + len(how), words)


class FaultTests(SynchronousTestCase):
    """A fault that is planned happens."""

    def test_each_fault_alone_happens(self) -> None:
        """In every run for which it was drawn, and the run ends well."""
        for name, fault in FAULTS.items():
            for seed in range(2):
                storm = run(draw(seed, (name,)))
                if name in draw(seed, (name,)).faults:
                    self.assertGreater(storm.events[fault.event], 0, name)

    def test_a_kill_hits_the_midst_of_a_message(self) -> None:
        """Of each kind that can be drawn there is one; who sends none is left alone."""
        for kind in MESSAGES:
            self.assertTrue(hasattr(messages, kind), kind)
        storm = Storm()
        storm.do_ambush(0, 1, "HelloAnswer")
        self.assertEqual(storm.events["disk lost"], 1)
        storm.do_trip(0, 1, "NextPart")
        self.assertEqual(storm.events["killed"], 1)

    def test_a_fault_that_does_not_happen_is_an_error(self) -> None:
        """Nobody takes a run for proof that had no proxy to be cut off."""
        with self.assertRaises(FaultMissing) as raised:
            Storm(nodes=2, k=2).run([], ["isolated-proxy"])
        self.assertIn("isolated-proxy", str(raised.exception))

    @settings(max_examples=settings().max_examples // 3)
    @given(
        st.lists(
            st.one_of(
                *(
                    st.tuples(st.just(name), *map(st.sampled_from, how))
                    for fault in FAULTS.values()
                    for name, how in {**histories.CLIENTS, **fault.ops}.items()
                )
            ),
            max_size=20,
        )
    )
    def test_any_history_ends_well(self, history: list[Op]) -> None:
        """Hypothesis draws from everything at once, and would shrink it."""
        Storm(histories.SMALL, nodes=4, k=2).run(history)


class CheckerTests(SynchronousTestCase):
    """What is broken is seen, by the right checker."""

    def violated(self, storm: Storm, history: list[Op]) -> str:
        """Run a history that must not end well."""
        with self.assertRaises(Violation) as raised:
            storm.run(history)
        return str(raised.exception.checker)

    def test_a_lost_write(self) -> None:
        """An acknowledged write whose disks go behind the back of all is missed."""
        storm = Storm(nodes=3)
        for op in (("everywhere", 0), ("advance", 1000)):
            storm.step(op)
        for name in storm.names:
            storm.cluster.kill(name, keep_disk=False)
        # So that no report is expected to hold.
        storm.events["disk lost"] += 1
        self.assertEqual(self.violated(storm, []), "durability")

    def test_a_queue_that_grows(self) -> None:
        """The queue is named, and where it is."""
        storm = Storm(nodes=2, k=2)
        node = storm.cluster.nodes[storm.names[0]]
        check_queues(node, storm.cluster.settings)
        node.cluster.committer.waiting_bytes = 2**40
        with self.assertRaises(Violation) as raised:
            check_queues(node, storm.cluster.settings)
        self.assertIn("bytes that wait for the disk", str(raised.exception))

    def test_a_silent_node(self) -> None:
        """A node that gets nothing, and is not known to stand still, is too slow."""
        storm = Storm(nodes=3)
        storm.cluster.network.pause(storm.cluster.processes[0].boot_id)
        history: list[Op] = [("put", 0, 0, 0), ("advance", 1500)]
        self.assertEqual(self.violated(storm, history), "answers")

    def test_an_unsure_answer_in_health(self) -> None:
        """Nothing is wrong, so nothing may be flagged."""
        # So small a queue may be dropped: nobody waits for another copy.
        storm = Storm(Settings(push_queue_versions_max=2), nodes=3)
        node = storm.cluster.nodes[storm.names[0]]
        node.replica.lacks = lambda key, vector: {}  # type: ignore[method-assign] # a node that never waits
        node.pushes.push = lambda versions: None  # type: ignore[method-assign] # and nobody tells it
        for name in storm.names[1:]:
            other = storm.cluster.nodes[name]
            other.pushes.push = lambda versions: None  # type: ignore[method-assign] # as above
        history: list[Op] = [("put", 0, 1, 0), ("advance", 100), ("get", 0, 0, 0)]
        self.assertEqual(self.violated(storm, history), "staleness")


class ShrinkTests(SynchronousTestCase):
    """A violation becomes a script of a few lines."""

    def test_what_is_not_needed_is_left_out(self) -> None:
        """Only what makes it fail stays, in its order."""
        history: list[Op] = [("advance", n) for n in range(40)]
        wanted = [("advance", 7), ("advance", 31)]

        def fails(less: list[Op]) -> bool:
            return all(op in less for op in wanted)

        self.assertEqual(shrunk(history, fails), wanted)

    def test_a_run_that_ends_well_stays_as_it_is(self) -> None:
        """There is nothing to shrink."""
        plan = draw(3)
        self.assertEqual(shrink(plan, "sessions"), plan)

    def test_a_violation_is_told_with_all_that_is_needed(self) -> None:
        """Seed, checker, history, trace, and the command that shows it again."""
        order = Order(seed=3, runs=1, faults=("loss", "views"))
        plan: Plan = draw(3, order.faults)
        shorter, trace = explain(Broken(plan, "sessions", "something is wrong"))
        text = "\n".join(violation(shorter, trace, order))
        self.assertGreater(len(shorter.plan.history), 0)
        for words in (
            "VIOLATION of sessions, seed 3",
            "something is wrong",
            *shorter.plan.lines(),
        ):
            self.assertIn(words, text)
        self.assertIn("kvs simulate --runs 1 --seed 3 --only loss --only views", text)
        self.assertTrue(any("Hello" in line for line in trace))
        self.assertEqual(command(Order(seed=1, runs=1), 9).split()[-1], "9")


class CommandTests(SynchronousTestCase):
    """What users call."""

    def test_tells_what_was_run(self) -> None:
        """The seed first, then what has happened."""
        status, output = ask("--runs", "12", "--seed", "5")
        self.assertEqual(status, 0, output)
        self.assertEqual(output.splitlines()[0], "seed 5")
        for words in ("histories", "virtual hours", "slowest answer", "one-way-cut"):
            self.assertIn(words, output)

    def test_faults_can_be_listed_and_left_out(self) -> None:
        """Every fault has a name and a sentence."""
        status, output = ask("--faults")
        self.assertEqual(len(output.splitlines()), len(FAULTS))
        words = [word for name in FAULTS for word in ("--without", name)]
        status, output = ask("--runs", "4", "--seed", "1", *words)
        self.assertEqual(status, 0)
        self.assertIn(f"{'loss':<16}{0:>14}", output)
        self.assertEqual(ask("--only", "rain")[0], 2)
        self.assertEqual(ask("--only", "loss", "--without", "loss")[0], 2)
        self.assertEqual(ask("--only", "loss", "--no-faults")[0], 2)

    def test_processes_find_the_same(self) -> None:
        """How many processes run them changes nothing."""
        one = run_all(Order(seed=40, runs=30), lambda line: None)
        two = run_all(Order(seed=40, runs=30, jobs=2), lambda line: None)
        self.assertEqual(one.totals, two.totals)
        self.assertEqual((one.broken, two.broken), ([], []))

    def test_processes_end_with_the_one_that_started_them(self) -> None:
        """Also where that is killed: nobody runs on who tells nobody."""
        environ = {**os.environ, "PYTHONPATH": ROOT}
        # It ends when all who write to the pipe have.
        subprocess.run(
            [sys.executable, "-c", ORPHANING],
            env=environ,
            check=True,
            timeout=20,
            stdout=subprocess.PIPE,
        )

    def test_the_order_of_sets_decides_nothing(self) -> None:
        """Processes that hash text differently run the same, byte by byte."""
        traces = set()
        words = ("simulate", "--runs", "20", "--seed", "77")
        for hashing in ("1", "2"):
            output = subprocess.check_output(
                [sys.executable, "-m", "twisted_kvs", *words],
                env={**os.environ, "PYTHONHASHSEED": hashing, "PYTHONPATH": ROOT},
                stderr=subprocess.DEVNULL,
                text=True,
            )
            lines = [x for x in output.splitlines() if not x.startswith("took")]
            self.assertTrue(any(line.startswith("trace") for line in lines))
            traces.add("\n".join(lines))
        self.assertEqual(len(traces), 1, traces)

    def test_a_trace_goes_to_a_file(self) -> None:
        """Only where a promise was broken: else there is none."""
        path = Path(self.mktemp())
        self.assertEqual(ask("--runs", "2", "--seed", "1", "--trace", str(path))[0], 0)
        self.assertFalse(path.exists())
        status, output = ask("--runs", "2", "--trace", str(path / "no" / "such"))
        self.assertEqual(status, 2)
        self.assertNotIn("seed", output)
        self.assertIn("No such file", output)

    def test_an_interrupted_run_says_so(self) -> None:
        """Its histories are told, none of them is taken for a broken promise."""
        told: list[str] = []
        interrupt = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        interrupt.start()
        result = run_all(Order(seed=1, runs=100_000), told.append)
        interrupt.join()
        self.assertTrue(result.interrupted)
        self.assertEqual(result.broken, [])
        self.assertLess(result.totals.histories, 100_000)
        self.assertTrue(any("interrupted" in line for line in told), told)
