"""
Tests, and the Hypothesis profiles: the only place where they are set.

``default`` draws the same examples at every run, so that a change alone can make a test
fail.  ``soak`` draws new ones for hours, ``quick`` a few:
``HYPOTHESIS_PROFILE=soak python -m twisted.trial tests.core``.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# No deadlines and no check for slowness: both time examples by the wall clock, and a
# busy machine is not a bug.
settings.register_profile(
    "default",
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("quick", settings.get_profile("default"), max_examples=10)
settings.register_profile(
    "soak",
    settings.get_profile("default"),
    derandomize=False,
    max_examples=5_000,
    stateful_step_count=100,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
