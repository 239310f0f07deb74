"""The rules can be broken: each mutation still fits the package."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.simulation.broken_rules import MUTATIONS, Mutation
from tests.simulation.mutations import check, patched

STORIES = {
    "whisper": "(H17)",
    "handover": "has dropped",
    "hearsay": "(H18)",
    "amnesia": "(H20)",
}
RULES = tuple(f"R{number}" for number in range(1, 13))
RULES_OF_NODES = ("R13", "R14", "R15", "R16", "R17", "R18", "R19", "R20")


class MutationTests(SynchronousTestCase):
    """Whether they are caught is seen by ``python -m tests.simulation.mutations``."""

    def test_each_fits_exactly_once(self) -> None:
        """A rule whose code has moved on is broken somewhere else, or not at all."""
        for mutation in MUTATIONS:
            self.assertGreater(len(list(patched(mutation))), 0, mutation)
        with self.assertRaises(ValueError):
            list(patched(Mutation("R0", "no such text", (("no such text", ""),))))

    def test_each_rule_is_broken(self) -> None:
        """At least once."""
        broken = {mutation.rule for mutation in MUTATIONS}
        self.assertEqual(broken, {*RULES, *RULES_OF_NODES})

    def test_one_is_caught(self) -> None:
        """From the patch to the checker, for one that takes a history or two."""
        mutation = named("before it is on disk")
        self.assertEqual(check(mutation, seed=1, limit=100).checker, "durability")

    def test_each_story_catches_what_it_is_for(self) -> None:
        """They are told in the order in which the hole opens, at least now and then."""
        for story, hole in STORIES.items():
            op = (story, 0, 0)
            caught = check(named(hole), seed=1, limit=60, history=[op])
            self.assertEqual(caught.checker, "stability", caught)


def named(words: str) -> Mutation:
    """Find the one mutation that is told in these words."""
    (mutation,) = (m for m in MUTATIONS if words in m.says)
    return mutation
