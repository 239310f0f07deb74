"""The limit of open files and that of connections go together."""

from __future__ import annotations

import resource
from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase

from twisted_kvs.core.errors import BadConfiguration
from twisted_kvs.core.settings import Settings
from twisted_kvs.descriptors import RESERVED, Limits, fit_connections


class DescriptorTests(SynchronousTestCase):
    """Fits settings to a process that may open this and that."""

    settings = Settings()

    def fit(self, soft: int, hard: int) -> int:
        """Fit, and tell how many connections there may be."""
        self.written: list[Limits] = []
        fitted = fit_connections(
            self.settings, read=lambda: (soft, hard), write=self.written.append
        )
        return fitted.connections_max

    def test_a_limit_that_is_high_enough_is_left(self) -> None:
        """Nothing is changed where nothing has to be."""
        for limits in ((10**6, 10**6), (resource.RLIM_INFINITY,) * 2):
            self.assertEqual(self.fit(*limits), self.settings.connections_max)
            self.assertEqual(self.written, [])

    def test_a_low_limit_is_raised(self) -> None:
        """The usual 1024 files become as many as are needed."""
        wanted = self.settings.connections_max + RESERVED
        for hard in (10**6, resource.RLIM_INFINITY):
            self.assertEqual(self.fit(1024, hard), self.settings.connections_max)
            self.assertEqual(self.written, [(wanted, hard)])

    def test_fewer_files_mean_fewer_connections(self) -> None:
        """Where the limit cannot be raised enough, clients get what is left."""
        self.assertEqual(self.fit(1024, 4096), 4096 - RESERVED)
        self.assertEqual(self.written, [(4096, 4096)])
        self.assertEqual(self.fit(256, 256), 128)

    def test_what_was_asked_for_must_be_possible(self) -> None:
        """A number of connections that cannot be stops the start with its name."""
        self.settings = replace(self.settings, connections_max=20_000)
        error = self.assertRaises(BadConfiguration, self.fit, 1024, 4096)
        for part in ("KVS_CONNECTIONS_MAX", "20000", "3584", "4096"):
            self.assertIn(part, str(error))
        self.assertEqual(self.fit(1024, 65_536), 20_000)
