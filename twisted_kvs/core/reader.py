"""
The seam through which a replica reads stored versions: synchronous and bounded.

Reading is not I/O in the core's sense; writing always is an effect (a ``Commit``).
"""

from __future__ import annotations

from typing import Protocol

from .versions import Antichain


class VersionReader(Protocol):
    """Shows the last committed state, never what a crash could take back."""

    def versions(self, key: str) -> Antichain:
        """Read the antichain of a key; empty if there is none."""

    def staged(self, stage: int, key: str) -> Antichain:
        """Read what a stage that is not valid yet holds of a key, as an antichain."""
