"""
What a process did to its files, in order; and what a power cut would have left of it.

``recorder.c`` is loaded into the process and writes the record; ``Disk`` replays it.
Certain is only what was synced: the bytes of a file when the file was, a name in a
directory (of a file that was made, renamed or removed) when the directory was.  Of the
rest a cut leaves anything: nothing, all, or some sectors of some writes.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import SkipTest

SOURCE = Path(__file__).parent / "recorder.c"
SECTOR_BYTES = 512
_HEAD = struct.Struct("=ciqI")


@dataclass(frozen=True, slots=True)
class Kill:
    """The change of a file in the midst of which a process is to die."""

    at: int
    """Its number, from 1."""
    told: Path
    """The process writes here what change that was."""
    within: str = ""
    """Only changes of files count whose path ends so."""

    def moment(self) -> str:
        """Tell what the process died in."""
        kind, path = self.told.read_text().split()
        match Path(path).name:
            case "kvs.sqlite":
                return "a checkpoint"
            case "kvs.sqlite-wal" if kind in ("write", "sync"):
                return "a commit"
            case _:
                return "a directory's change"


def build_recorder(directory: Path) -> Path:
    """
    Compile the library.

    :raises SkipTest: where there is no compiler.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SkipTest("needs a C compiler (gcc and libc6-dev)")
    library = directory / "recorder.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
    subprocess.run([*command, "-ldl", "-lpthread"], check=True)
    return library


def recorder_variables(
    library: Path,
    root: Path,
    *,
    log: Path | None = None,
    kill: Kill | None = None,
) -> dict[str, str]:
    """
    Make the environment of a process that is to be watched.

    :param root: what is below it is watched.
    :param log: where the record goes; None: nothing is recorded.
    :param kill: when it is to die; None: not by itself.
    """
    variables = {"LD_PRELOAD": str(library), "RECORDER_ROOT": str(root)}
    if log is not None:
        variables["RECORDER_LOG"] = str(log)
    if kill is not None:
        variables["RECORDER_KILL_AT"] = str(kill.at)
        variables["RECORDER_KILLED"] = str(kill.told)
        if kill.within:
            variables["RECORDER_KILL_IN"] = kill.within
    return variables


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that a process did."""

    kind: str
    """A letter, as in ``recorder.c``."""
    fd: int
    number: int
    content: bytes

    @property
    def is_sync(self) -> bool:
        """Whether it made something certain."""
        return self.kind == "S"

    @property
    def said(self) -> str:
        """What was acknowledged with it; empty if nothing."""
        return self.content.decode("utf-8", "replace") if self.kind == "A" else ""


def read_events(log: Path) -> Iterator[Event]:
    """Read a record; a last event that was cut off is left out."""
    with log.open("rb") as file:
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            kind, fd, number, length = _HEAD.unpack(head)
            content = file.read(length)
            if len(content) < length:
                return
            yield Event(kind.decode(), fd, number, content)


@dataclass(slots=True)
class _File:
    """What is certain of a file, and what was done since."""

    certain: bytearray = field(default_factory=bytearray)
    since: list[tuple[int, bytes | None]] = field(default_factory=list)
    """Offset and bytes of a write; a size and None: cut off or stretched to it."""

    def sync(self) -> None:
        for offset, written in self.since:
            _change(self.certain, offset, written)
        self.since.clear()

    def after_a_cut(self, chance: random.Random | None) -> bytes:
        """Tell what is left; without ``chance`` only what is certain."""
        left = bytearray(self.certain)
        for offset, written in self.since if chance else ():
            assert chance is not None
            if written is None:
                if chance.random() < 0.5:
                    _change(left, offset, None)
                continue
            # All of a write, nothing, or any of its sectors.
            kept = chance.choice((0.0, 0.5, 1.0))
            at = 0
            while at < len(written):
                end = SECTOR_BYTES - (offset + at) % SECTOR_BYTES + at
                if chance.random() < kept:
                    _change(left, offset + at, written[at:end])
                at = end
        return bytes(left)


def _change(content: bytearray, offset: int, written: bytes | None) -> None:
    if written is None:
        del content[offset:]
    content.extend(bytes(max(0, offset - len(content))))
    if written is not None:
        content[offset : offset + len(written)] = written


_Entry = _File | None
"""None: a directory."""


@dataclass(frozen=True, slots=True)
class _Renaming:
    """A name that was taken, given, or both at once."""

    before: str | None
    after: str | None
    entry: _Entry
    """What it stands for afterwards."""

    @property
    def directory(self) -> str:
        return _parent(self.before or self.after or "")

    def do(self, names: dict[str, _Entry]) -> None:
        if self.before is not None:
            names.pop(self.before, None)
        if self.after is not None:
            names[self.after] = self.entry


class Disk:
    """A directory whose power may be cut after any event."""

    def __init__(self, root: Path, *, deaf_to: str = "") -> None:
        """
        Start with an empty directory.

        :param deaf_to: a disk that lies: "files" or "directories", whose syncs count
            for nothing; for tests of tests.
        """
        self._root = str(root)
        self._deaf_to = deaf_to
        self._now: dict[str, _Entry] = {self._root: None}
        self._certain: dict[str, _Entry] = {self._root: None}
        self._since: list[_Renaming] = []
        self._open: dict[int, tuple[str, _Entry]] = {}

    def play(self, event: Event) -> None:
        """Do what the process did."""
        path = event.content.decode("utf-8", "replace") if event.kind in "OUM" else ""
        match event.kind:
            case "B":
                self._open.clear()
            case "O":
                self._opened(event, path)
            case "C":
                del self._open[event.fd]
            case "W":
                self._file(event).since.append((event.number, event.content))
            case "T":
                self._file(event).since.append((event.number, None))
            case "S":
                self._sync(*self._open[event.fd])
            case "R":
                before, after = event.content.decode().split("\n")
                self._name(_Renaming(before, after, self._now[before]))
            case "U":
                self._name(_Renaming(path, None, None))
            case "M":
                self._made(path, None)

    def _opened(self, event: Event, path: str) -> None:
        if path not in self._now:
            assert event.number & os.O_CREAT, f"{path} was never made"
            self._made(path, _File())
        entry = self._now[path]
        if entry is not None and event.number & os.O_TRUNC:
            entry.since.append((0, None))
        self._open[event.fd] = path, entry

    def _made(self, path: str, entry: _Entry) -> None:
        self._name(_Renaming(None, path, entry))

    def _name(self, renaming: _Renaming) -> None:
        renaming.do(self._now)
        self._since.append(renaming)

    def _file(self, event: Event) -> _File:
        _, entry = self._open[event.fd]
        assert entry is not None
        return entry

    def _sync(self, path: str, entry: _Entry) -> None:
        if entry is not None:
            if self._deaf_to != "files":
                entry.sync()
            return
        if self._deaf_to == "directories":
            return
        for renaming in self._since:
            if renaming.directory == path:
                renaming.do(self._certain)
        self._since = [x for x in self._since if x.directory != path]

    def cut(self, target: Path, chance: random.Random | None) -> None:
        """
        Make the directory as it is when the power comes back.

        :param target: must not be there yet.
        :param chance: decides what is left of what was not synced; None: nothing is.
        """
        names = dict(self._certain)
        if chance is not None:
            # Not in order: only some file systems keep a journal of such changes.
            for renaming in self._since:
                if chance.random() < 0.5:
                    renaming.do(names)
        for path in sorted(names):
            if path != self._root and _parent(path) not in names:
                continue
            place = target / os.path.relpath(path, self._root)
            entry = names[path]
            if entry is None:
                place.mkdir()
            else:
                place.write_bytes(entry.after_a_cut(chance))


def _parent(path: str) -> str:
    return path.rpartition("/")[0]
