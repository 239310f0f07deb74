"""
How long a replica that missed many writes takes to have them, and who waits meanwhile.

Three replicas.  Two have all keys; the third was down while all but a few were written:
its store has those few (see ``preload``).  The two serve, then the third is started.

* It can exchange from its first answer on, any answer: then its port is open, and it
  starts to look for others at the same moment.
* It has the keys when its durable version vector covers them; a delta in parts becomes
  visible as a whole, so all keys come at once.  Reads of some keys, one by one, then
  prove it: 200, not stale, at that node.
* With ``forgotten`` the two have forgotten all pasts, as if the third had been removed
  for a while: it is below their floor and gets a full join, with the list of all that
  is live.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .asker import NEVER, Task, Wait
from .load import key_name
from .observing import median
from .preload import Contents, make_stores
from .processes import Node, RunFailed, Sandbox, status
from .report import Row, row
from .wire import Address, get_request, key_path

TARGETS_S = {20_000: 1.5, 100_000: 5.0}
WAIT_TARGET_MS = 100.0
SHARED = 100
CHECKED = 200
BEFORE_S = 1.0
WITHIN_S = 60.0
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to measure."""

    turns: int = 3
    sizes: tuple[int, ...] = (20_000, 100_000)
    """Keys that were missed."""
    forgotten: bool = False
    """Whether what was missed takes a full join."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    """What one start of the third replica gave."""

    from_exchange_s: float
    from_process_s: float
    folded_s: float
    """From the first answer until nothing of the delta is left to be folded."""
    waits: dict[str, float]
    """The longest one, ms, by who was asked and what for."""
    failures: int
    rss_mib: tuple[float, float]
    """Of the node that caught up, and of the largest of the others."""


def measure(sandbox: Sandbox, plan: Plan) -> Iterator[Row]:
    """Measure each size."""
    for missed in plan.sizes:
        view = sandbox.addresses(3)
        prepared = sandbox.directory / f"prepared-{missed}"
        prepared.mkdir()
        contents = Contents(
            keys=missed + SHARED, shared=SHARED, forgotten=plan.forgotten
        )
        make_stores(prepared, view, contents, holders=2)
        turns = [_turn(sandbox, view, prepared, missed) for _ in range(plan.turns)]
        yield from _rows(missed, turns, full_join=plan.forgotten)
        shutil.rmtree(prepared)


def _turn(sandbox: Sandbox, view: list[Address], prepared: Path, missed: int) -> _Turn:
    used = sandbox.directory / "used"
    shutil.copytree(prepared, used)
    nodes = [
        Node(sandbox, address, used / str(address.port), view=view, replicas=3)
        for address in view
    ]
    late, others = nodes[-1], nodes[:-1]
    for node in others:
        node.start()
    for node in others:
        node.until_serving()
    with others[0].client() as client:
        found = status(client)
        wanted, floor = _counters(found), _counters(found, "floor")
    with AskerProcess(sandbox, Task(nodes=view, keys=missed + SHARED)) as asker:
        time.sleep(BEFORE_S)
        late.start()
        answered_at = late.ready()
        had_at, folded_at = _wait_for(late, wanted)
        _check(late, missed + SHARED, floor)
        rss = (late.rss_bytes() / MIB, max(x.rss_bytes() for x in others) / MIB)
        waits = asker.stop()
    for node in nodes:
        node.kill()
    shutil.rmtree(used)
    meanwhile = [w for w in waits if answered_at - BEFORE_S < w.at < folded_at]
    return _Turn(
        from_exchange_s=had_at - answered_at,
        from_process_s=had_at - late.started_at,
        folded_s=folded_at - answered_at,
        waits=_longest(meanwhile, len(nodes)),
        failures=sum(w.status in (NEVER, 404) or w.status >= 500 for w in meanwhile),
        rss_mib=rss,
    )


def _counters(found: dict[str, object], name: str = "version_vector") -> dict[str, int]:
    vector = found[name]
    assert isinstance(vector, dict)
    return vector


def _wait_for(late: Node, wanted: dict[str, int]) -> tuple[float, float]:
    """Tell when it had all, and when it had tidied up behind that."""
    with late.client() as client:

        def has_all() -> bool | None:
            vector = _counters(status(client))
            return all(vector.get(a, 0) >= n for a, n in wanted.items()) or None

        def folded() -> bool | None:
            return status(client)["unfolded"] == 0 or None

        had_at, _ = late.until("missed keys", has_all, within_s=WITHIN_S, every_s=0.01)
        folded_at, _ = late.until("end of folding", folded, within_s=WITHIN_S)
    return had_at, folded_at


def _check(late: Node, keys: int, floor: dict[str, int]) -> None:
    rng = random.Random(keys)
    numbers = [0, keys - 1, *(rng.randrange(keys) for _ in range(CHECKED))]
    with late.client() as client:
        reached = _counters(status(client), "floor")
        if any(reached.get(actor, 0) < n for actor, n in floor.items()):
            raise RunFailed(f"{late.address.name} did not take over the floor")
        for number in numbers:
            answer = client.ask(get_request(key_path(key_name(number))))
            value = json.loads(answer.body).get("value", "")
            if answer.status != 200 or len(value) != 100:
                raise RunFailed(f"key {number} is not readable: {answer}")
            if b"kvs-stale" in answer.head.lower():
                raise RunFailed(f"key {number} is stale: {answer}")


def _longest(waits: Sequence[Wait], nodes: int) -> dict[str, float]:
    longest = {}
    for who, numbers in (("late", {nodes - 1}), ("serving", set(range(nodes - 1)))):
        for kind, put in (("GET", False), ("PUT", True)):
            mine = [w.seconds for w in waits if w.node in numbers and w.put is put]
            longest[f"{who} {kind}"] = max(mine, default=0.0) * 1e3
    return longest


def _rows(missed: int, turns: Sequence[_Turn], *, full_join: bool) -> Iterator[Row]:
    target = None if full_join else TARGETS_S.get(missed)
    name, after = ("full_join", " after a full join") if full_join else ("catch_up", "")
    times = [turn.from_exchange_s for turn in turns]
    yield row(
        f"{name}.{missed}",
        f"{missed} missed keys there and readable{after}",
        median(times),
        unit=" s",
        at_most=target,
        besides=(
            f"from the first answer on; {max(times):.2f} s at most in {len(turns)}; "
            f"from the start of the process "
            f"{median([t.from_process_s for t in turns]):.2f} s; "
            f"folded after {median([t.folded_s for t in turns]):.2f} s"
        ),
        samples={"turns": [asdict(turn) for turn in turns]},
    )
    longest = {name: max(turn.waits[name] for turn in turns) for name in turns[0].waits}
    failures = sum(turn.failures for turn in turns)
    yield row(
        f"{name}.{missed}.wait",
        f"longest wait of a client meanwhile ({missed} keys{after})",
        max(longest.values()),
        unit=" ms",
        at_most=WAIT_TARGET_MS,
        besides=", ".join(f"{kind} {ms:.0f} ms" for kind, ms in longest.items())
        + f"; {failures} requests failed",
    )
    yield row(
        f"{name}.{missed}.rss",
        f"memory of the replica that caught up ({missed} keys{after})",
        median([turn.rss_mib[0] for turn in turns]),
        unit=" MiB",
        besides=f"of one that served {median([t.rss_mib[1] for t in turns]):.0f} MiB",
    )


class AskerProcess:
    """Runs ``bench.asker`` beside."""

    def __init__(self, sandbox: Sandbox, task: Task) -> None:
        """Name a task; nothing is asked before it is entered."""
        self._sandbox = sandbox
        self._task = task
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> AskerProcess:
        """Start to ask."""
        self._process = self._sandbox.spawn(["-m", "bench.asker"], piped=True)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(self._task)).encode() + b"\n")
        self._process.stdin.flush()
        return self

    def stop(self) -> list[Wait]:
        """
        Ask no more.

        :returns: everything that was asked.
        :raises RunFailed: if the process failed.
        """
        try:
            output, _ = self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            raise RunFailed("the light client does not end") from None
        if self._process.returncode != 0 or not output:
            raise RunFailed("the light client failed")
        return [Wait(*fields) for fields in json.loads(output)]

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._sandbox.end(self._process, by=signal.SIGKILL)
