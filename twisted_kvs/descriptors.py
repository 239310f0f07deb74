"""
How many files and connections the process may open, and how many clients may have.

Invariant: what clients may open leaves room for peers, for connections that are
refused, for the store and for logs.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import replace

from .core.errors import BadConfiguration
from .core.settings import Settings

RESERVED = 512
"""Or half of all where there are not so many: 128 connections beyond the limit, those
from and to peers, at most 16 for each snapshot and commit of the store."""

Limits = tuple[int, int]
"""What is in force, and the most that the process may choose itself."""


def _read() -> Limits:
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def _write(limits: Limits) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def fit_connections(
    settings: Settings,
    *,
    read: Callable[[], Limits] = _read,
    write: Callable[[Limits], None] = _write,
) -> Settings:
    """
    Raise the limit of open files as far as needed and allowed; fit the settings to it.

    :returns: with fewer connections where the default ones cannot be.
    :raises BadConfiguration: where others were asked for and cannot be.
    """
    soft, hard = read()
    wanted = settings.connections_max + RESERVED
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        write((soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return settings
    possible = soft - min(RESERVED, soft // 2)
    if settings.connections_max != Settings().connections_max:
        raise BadConfiguration(
            f"KVS_CONNECTIONS_MAX (--connections-max): got {settings.connections_max}, "
            f"want at most {possible} where a process may open {soft} files (ulimit -n)"
        )
    return replace(settings, connections_max=max(1, possible))
