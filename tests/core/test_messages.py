"""What a replica asks its storage to do."""

from __future__ import annotations

from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase

from tests import strategies as kvs
from twisted_kvs.core.messages import (
    MESSAGE_BYTES_MAX,
    Commit,
    StagePart,
    Standing,
    ValidateStage,
)
from twisted_kvs.core.replica import Replica
from twisted_kvs.core.settings import Settings
from twisted_kvs.core.versions import VALUE_BYTES_MAX, Version
from twisted_kvs.core.view import ReplicaCount, View

STATE = Replica.fresh_state(View(), ReplicaCount(0, 3))
VERSION = Version(kvs.ACTORS[0], 1, "k", b"1", 1, {})


class CommitTests(SynchronousTestCase):
    """``Commit``."""

    def test_a_commit_is_empty_where_only_the_state_record_changes(self) -> None:
        """A store can tell the cheap commits from those that touch versions."""
        empty = Commit(number=1, state=STATE)
        self.assertTrue(empty.empty)
        self.assertTrue(replace(empty, minted=(VERSION,)).empty)
        for change in (
            replace(empty, insert=(VERSION,)),
            replace(empty, remove=(VERSION.dot,)),
            replace(empty, stage=StagePart(1, ())),
            replace(empty, validate=ValidateStage(1, {})),
            replace(empty, drop_stage=1),
            replace(empty, fold_versions=1),
            replace(empty, forget_all=True),
        ):
            self.assertFalse(change.empty)


class LimitTests(SynchronousTestCase):
    """How the limits of messages go together."""

    def test_the_greatest_parts_fit_into_a_message(self) -> None:
        """A part, a batch and a single greatest version stay below the limit."""
        settings = Settings()
        room = MESSAGE_BYTES_MAX - VALUE_BYTES_MAX
        self.assertGreater(room, settings.delta_part_bytes_max)
        self.assertGreater(room, settings.push_batch_bytes_max)
        self.assertGreaterEqual(VALUE_BYTES_MAX, settings.value_bytes_max)

    def test_standings_are_ordered(self) -> None:
        """Who serves has caught up further than who answers provisionally."""
        ordered = sorted(Standing)
        self.assertEqual(
            ordered, [Standing.LAGGING, Standing.PROVISIONAL, Standing.SERVING]
        )
