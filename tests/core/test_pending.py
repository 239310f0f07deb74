"""Antichains that are applied and not yet durable (R6)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import strategies as kvs
from twisted_kvs.core.causality import Dot, VersionVector, covers
from twisted_kvs.core.pending import PendingChains
from twisted_kvs.core.versions import Antichain, Version, insert, maximal

KEYS = ("k", "l")
State = dict[str, Antichain]


class Disk:
    """What is durable, and stages that are not valid yet."""

    def __init__(self) -> None:
        self.state: State = {}
        self.stages: dict[int, State] = {}

    def versions(self, key: str) -> Antichain:
        """Read a key."""
        return self.state.get(key, ())

    def staged(self, stage: int, key: str) -> Antichain:
        """Read a key of a stage."""
        return self.stages.get(stage, {}).get(key, ())


class Naive:
    """The same thing, by a copy of the whole state for every commit."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.pending = PendingChains(disk)
        self.commits: list[tuple[int, State]] = []
        self.last = 0
        self.open = False
        self.forgetting = False

    @property
    def applied(self) -> State:
        """The state after all that was done."""
        return self.commits[-1][1] if self.commits else self.disk.state

    def _begin(self) -> None:
        if not self.open:
            self.last += 1
            self.commits.append((self.last, dict(self.applied)))
            self.open = True

    def seal(self) -> None:
        """What comes now goes into the next commit."""
        self.open = False

    def write(self, version: Version) -> None:
        """Merge one version in the commit that is being collected."""
        self._begin()
        key = version.key
        read = self.pending.applied(key)
        chain = insert(read, version)
        before = self._before(key)
        self.applied[key] = chain
        known = read if version.counter % 2 else None
        self.pending.change(key, chain, self.last, before=known)
        difference = self.pending.difference(key, self.last)
        assert {v.dot for v in difference.come} == dots(chain) - dots(before)
        assert set(difference.go) == dots(before) - dots(chain)
        assert not difference.forget

    def _before(self, key: str) -> Antichain:
        state = self.commits[-2][1] if len(self.commits) > 1 else self.disk.state
        return state.get(key, ())

    def validate(self, stage: int, covered: VersionVector) -> None:
        """Make a stage valid, in a commit of its own, when its parts are durable."""
        self.seal()
        if self.forgetting:
            self.publish()
        self._begin()
        for key, chain in self.disk.stages.get(stage, {}).items():
            new = (v for v in chain if not covers(covered, v.dot))
            self.applied[key] = maximal((*self.applied.get(key, ()), *new))
        self.pending.validate(stage, covered, commit=self.last)
        self.seal()

    def forget_all(self) -> None:
        """Drop everything, where nothing is under way."""
        if self.commits:
            return
        self._begin()
        self.applied.clear()
        self.pending.forget_all(self.last)
        self.seal()
        self.forgetting = True

    def publish(self) -> None:
        """The oldest commit is durable."""
        if len(self.commits) > self.open:
            number, self.disk.state = self.commits.pop(0)
            self.pending.published(number)
            self.forgetting = False

    def fail(self) -> None:
        """The oldest commit failed."""
        self.commits.clear()
        self.seal()
        self.forgetting = False
        self.pending.clear()

    def check(self) -> None:
        """Both agree."""
        for key in KEYS:
            applied, durable = self.applied, self.disk.state
            assert dots(self.pending.applied(key)) == dots(applied.get(key, ()))
            assert dots(self.pending.durable(key)) == dots(durable.get(key, ()))
        seen: State = {}
        self.pending.each_applied(seen.__setitem__)
        assert len(seen) == len(self.pending)
        assert all(dots(c) == dots(self.applied.get(k, ())) for k, c in seen.items())
        if not self.commits:
            assert not seen


def dots(chain: Antichain) -> set[Dot]:
    """Tell what is in an antichain."""
    return {version.dot for version in chain}


STEPS = st.lists(
    st.sampled_from(["write", "write", "seal", "publish", "stage", "forget", "fail"]),
    min_size=12,
    max_size=40,
)


class PendingTests(SynchronousTestCase):
    """``PendingChains`` against a copy of everything."""

    @given(kvs.histories(writes_max=12, keys=KEYS), STEPS, st.data())
    def test_both_states_are_what_copies_of_everything_show(
        self, written: list[Version], steps: list[str], data: st.DataObject
    ) -> None:
        """Applied and durable are right at every moment, for every key."""
        world = Naive(Disk())
        coming = iter(written)
        for number, step in enumerate(steps):
            version = next(coming, None) if step in ("write", "stage") else None
            if step == "write" and version is not None:
                world.write(version)
            elif step == "stage" and version is not None:
                staged = [version, *(v for _, v in zip(range(2), coming, strict=False))]
                world.disk.stages[number] = {
                    key: maximal(v for v in staged if v.key == key) for key in KEYS
                }
                covered = dict([version.dot]) if data.draw(st.booleans()) else {}
                world.validate(number, covered)
            elif step == "seal":
                world.seal()
            elif step == "publish":
                world.publish()
            elif step == "forget":
                world.forget_all()
            elif step == "fail":
                world.fail()
            world.check()
        world.seal()
        while world.commits:
            world.publish()
            world.check()
        assert len(world.pending) == 0
