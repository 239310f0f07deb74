"""
What a store must hold after a kill or a power cut, told from what was acknowledged.

For stores that ``tests.process.storing`` wrote: its writers and deltas are known, so
what a VV covers can be made again and compared, version by version.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

from tests.storage.commits import NAME, Commits, dots, hash_of, listed
from twisted_kvs.core.causality import VersionVector
from twisted_kvs.core.messages import ReplicaState
from twisted_kvs.core.versions import SEAL_TS, Version
from twisted_kvs.storage.sqlite import SqliteStorage, check_directory
from twisted_kvs.storage.thread import CallersThread

from .storing import (
    DELTA,
    FINGERPRINTS,
    LIVE,
    delta,
    is_full_join,
    sender,
    writer,
    written,
    zombie,
    zombies,
)

Said = Mapping[str, int]
"""The last number of each kind that a process told; see ``storing``."""


def last_said(lines: Iterable[str]) -> dict[str, int]:
    """Read what a storing process told; a last line that was cut off does not count."""
    pairs = [line.split() for line in lines if line.endswith("\n")]
    return {word: int(number) for word, number in pairs}


def check_whole(database: Path) -> None:
    """Let SQLite look at every page and every entry of every index."""
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True)) as opened:
        (found,) = opened.execute("PRAGMA integrity_check").fetchone()
    assert found == "ok", found


def check_store(path: Path, said: Mapping[int, Said]) -> ReplicaState | None:
    """
    Check that a store opens, is whole, and has all that was acknowledged.

    :param said: what was told in each round.
    :returns: its state before it was folded to its end here; None: it is empty.
    """
    check_directory(path, name=NAME, fingerprints=FINGERPRINTS)
    store = SqliteStorage(
        path, name=NAME, fingerprints=FINGERPRINTS, thread=CallersThread()
    )
    state = store.open()
    try:
        vv = {} if state is None else state.vv
        for turn, told in said.items():
            wrote, valid = told.get("wrote", 0), told.get("valid", 0)
            assert vv.get(writer(turn), 0) >= wrote, f"lost writes up to {wrote}"
            assert not valid or sender(turn, valid) in vv, f"lost delta {valid}"
        if state is not None:
            _check_content(store, vv, turns=max(said))
    finally:
        store.close()
    check_whole(path / "kvs.sqlite")
    return state


def _check_content(store: SqliteStorage, vv: VersionVector, *, turns: int) -> None:
    """All that the VV covers is there, and no half delta; before folding and after."""
    expected = list(live(vv, turns))
    shown = {x.key: set(dots(store.versions(x.key))) for x in expected}
    for one in doomed(vv, turns):
        assert not store.versions(one.key), f"{one.dot} is doomed, and is shown"
    commits = Commits(vv=vv)
    while store.result.unfolded:
        store.commit(commits.of(fold=500))
    snapshot = store.snapshot()
    found = [x for x in listed(snapshot) if x.ts != SEAL_TS]
    seals = [x for x in listed(snapshot) if x.ts == SEAL_TS]
    snapshot.close()
    assert len(seals) <= turns, seals
    assert dots(found) == dots(expected), "not all, or too much"
    assert store.result.live_hash == hash_of(found), "the check sum is another"
    assert all(one.dot in shown[one.key] for one in found), "hidden before folding"


def doomed(vv: VersionVector, turns: int) -> Iterator[Version]:
    """Tell what must not be there any more."""
    for turn in range(1, turns + 1):
        for number in _numbers(vv, turn):
            if is_full_join(number):
                yield from zombies(turn, number)


def _numbers(vv: VersionVector, turn: int) -> Iterator[int]:
    number = 1
    while sender(turn, number) in vv:
        yield number
        number += 1


def live(vv: VersionVector, turns: int) -> Iterator[Version]:
    """Tell what must be there, whole, of what a VV covers after so many rounds."""
    for turn in range(1, turns + 1):
        last = vv.get(writer(turn), 0)
        for n in range(max(1, last - LIVE + 1), last + 1):
            yield written(turn, n)
        number = 0
        for number in _numbers(vv, turn):
            assert vv[sender(turn, number)] == DELTA
            newest = sender(turn, number + 1) not in vv
            for one in delta(turn, number):
                if newest or not one.counter % 2:
                    yield one
        # Written for a full join that was not valid yet.
        if zombie(turn, number + 1) in vv:
            yield from zombies(turn, number + 1)
