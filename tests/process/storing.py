"""
A process that commits without end, and says what is durable: to be killed.

``python -m tests.process.storing DIRECTORY ROUND``.  Writes overwrite each other in
turn; deltas are staged in parts, made valid and folded; pasts are forgotten, seals
written and dropped.  Every other delta is a full join, after which what nobody has any
more, the *zombies*, must be gone.  Now and then the file gives its room back.

Each line says one thing that was done: ``wrote`` and ``valid``, which must not be lost
any more, ``part``, ``fold``, ``forgot``, ``sealed``, ``rested``.
"""

from __future__ import annotations

import sys

from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure

from tests.storage.commits import (
    NAME,
    Commits,
    dots,
    fence_of,
    tombstone,
    version,
)
from twisted_kvs.core.causality import Actor, Name, make_actor
from twisted_kvs.core.messages import Commit, CommitResult
from twisted_kvs.core.versions import Version
from twisted_kvs.storage.sqlite import SqliteStorage
from twisted_kvs.storage.thread import StoreThread

FINGERPRINTS = ("f1",)
LIVE = 20
"""Versions of a writer that are not overwritten."""
DELTA = 300
PART = 100
ZOMBIES = 60
RESTS = 4
"""One of so many deltas is followed by a rest."""


def writer(turn: int) -> Actor:
    """Tell who writes in a round."""
    return make_actor(NAME, turn)


def sender(turn: int, number: int) -> Actor:
    """Tell whose versions a delta of a round holds."""
    return make_actor(Name("10.0.0.2:8080"), turn << 32 | number)


def zombie(turn: int, number: int) -> Actor:
    """Tell who wrote what the full join of that number dooms."""
    return make_actor(Name("10.0.0.3:8080"), turn << 32 | number)


def sealer(turn: int) -> Actor:
    """Tell who deletes in a round; one seal of it may be there, and nothing else."""
    return make_actor(Name("10.0.0.4:8080"), turn)


def is_full_join(number: int) -> bool:
    """Tell which deltas list what is live."""
    return number % 2 == 0


def zombies(turn: int, number: int) -> list[Version]:
    """Make what a full join dooms."""
    actor = zombie(turn, number)
    keys = [f"{turn} zombie {number} {n}" for n in range(1, ZOMBIES + 1)]
    return [version(actor, n, key) for n, key in enumerate(keys, 1)]


def written(turn: int, counter: int) -> Version:
    """Make one write of a round."""
    past = {writer(turn): counter - 1} if counter > 1 else {}
    return version(writer(turn), counter, f"{turn} {counter % LIVE}", past=past)


def delta(turn: int, number: int) -> list[Version]:
    """
    Make all versions of a delta.

    Every other one overwrites a version of the delta before.
    """
    actor, before = sender(turn, number), sender(turn, number - 1)
    return [
        version(
            actor,
            n,
            f"{turn} delta {n}" if n % 2 else f"{turn} delta {number} {n}",
            past={before: n} if number > 1 else {},
        )
        for n in range(1, DELTA + 1)
    ]


class _Storing:
    def __init__(self, directory: str, turn: int) -> None:
        self._turn = turn
        self._storage = SqliteStorage(
            directory,
            name=NAME,
            fingerprints=FINGERPRINTS,
            thread=StoreThread(IReactorFromThreads(reactor)),
        )
        stored = self._storage.open()
        self._commits = Commits(vv={} if stored is None else stored.vv)
        self._counter = 0

    def _finish(self, commit: Commit) -> Deferred[CommitResult]:
        return self._storage.commit(commit)

    async def _write(self) -> None:
        self._counter += 1
        n = self._counter
        gone = [(writer(self._turn), n - LIVE)] if n > LIVE else []
        await self._finish(
            self._commits.of(insert=[written(self._turn, n)], remove=gone)
        )
        print("wrote", n, flush=True)

    async def run(self) -> None:
        number = 0
        while True:
            number += 1
            await self._receive(number)
            while self._storage.result.unfolded:
                await self._write()
                await self._finish(self._commits.of(fold=PART))
                print("fold", number, flush=True)
            await self._compact(number)
            if number % RESTS == 0:
                self._storage.rest()
                print("rested", number, flush=True)

    async def _receive(self, number: int) -> None:
        turn, whole = self._turn, delta(self._turn, number)
        claim, live, fence = {sender(turn, number): DELTA}, dots(whole), None
        if is_full_join(number):
            await self._finish(self._commits.of(insert=zombies(turn, number)))
            claim[zombie(turn, number)] = ZOMBIES
            fence = fence_of(claim, live)
        for first in range(0, DELTA, PART):
            end = first + PART
            spared = live[first:end] if fence else ()
            part = self._commits.part(number, whole[first:end], spared)
            await self._finish(part)
            print("part", number, flush=True)
            await self._write()
        await self._finish(self._commits.validate(number, claim, fence))
        print("valid", number, flush=True)

    async def _compact(self, number: int) -> None:
        whole = dots(delta(self._turn, number))
        for first in range(0, DELTA, PART):
            stable = whole[first : first + PART]
            await self._finish(self._commits.of(forget_pasts=stable))
            print("forgot", number, flush=True)
        actor = sealer(self._turn)
        seal = tombstone(actor, number, f"{self._turn} gone", seal=True)
        gone = [(actor, number - 1)] if number > 1 else []
        await self._finish(self._commits.of(insert=[seal], remove=gone))
        print("sealed", number, flush=True)


def main() -> None:
    """Store until killed."""
    storing = _Storing(sys.argv[1], int(sys.argv[2]))

    def failed(failure: Failure) -> None:
        failure.printTraceback()
        reactor.stop()

    ensureDeferred(storing.run()).addErrback(failed)
    reactor.run()


if __name__ == "__main__":
    main()
