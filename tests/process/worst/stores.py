"""Looks into the stores of nodes that do not run."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import msgspec

from tests.process.surviving import check_whole
from twisted_kvs.core.causality import Name
from twisted_kvs.core.secrets import DEFAULT_SECRET, Secrets
from twisted_kvs.core.versions import winner
from twisted_kvs.options import directory_name
from twisted_kvs.storage.sqlite import SqliteStorage, check_directory
from twisted_kvs.storage.thread import CallersThread

from .registers import number_of

FINGERPRINTS = Secrets([DEFAULT_SECRET]).fingerprints


def directory_of(run_directory: Path, name: str) -> Path:
    """Tell where a node has its store."""
    return run_directory / "kvs-data" / directory_name(Name(name))


def check_registers(path: Path, name: str, least: Mapping[str, int]) -> str:
    """
    Check a node's store, as it was left, on a copy of it.

    :param least: the number that each key must show at least.
    :returns: what it was in the midst of: "receiving" a delta in parts, "folding" one,
        "beginning" (nothing is stored yet), or nothing that can be seen.
    :raises AssertionError, StoreRefused: if it is damaged, or something is lost.
    """
    copy = path.with_name(path.name + ".copy")
    shutil.rmtree(copy, ignore_errors=True)
    if path.exists():
        shutil.copytree(path, copy)
    check_directory(copy, name=Name(name), fingerprints=FINGERPRINTS)
    staged = _staged(copy / "kvs.sqlite")
    store = SqliteStorage(
        copy, name=Name(name), fingerprints=FINGERPRINTS, thread=CallersThread()
    )
    state = store.open()
    try:
        for key, number in least.items():
            shown = winner(store.versions(key))
            assert shown is not None and shown.value, (
                f"{key}: lost, {number} was acknowledged"
            )
            found = number_of(key, msgspec.json.decode(shown.value, type=str))
            assert found >= number, f"{key}: {found}, {number} was acknowledged"
        unfolded = store.result.unfolded
    finally:
        store.close()
    check_whole(copy / "kvs.sqlite")
    if state is None:
        return "beginning"
    return "folding" if unfolded else "receiving" if staged else ""


def _staged(database: Path) -> int:
    if not database.exists():
        return 0
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True)) as opened:
        query = "SELECT count(*) FROM version WHERE stage != 0"
        return int(opened.execute(query).fetchone()[0])
