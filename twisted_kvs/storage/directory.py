"""
The directory of a store: whose it is, and that one process uses it at a time.

Three files: ``kvs.lock`` is locked with flock as long as a process uses the directory
(such a lock dies with its process, unlike a pid, which in a container is always 1);
``kvs.identity`` says whose the store is; ``kvs.sqlite`` is the database, with SQLite's
own files beside it.

Invariant: ``kvs.identity`` says that the database is made before anything is stored in
it.  So a database without identity, or an identity without its database, is never taken
for a fresh store: what was there is missing.  Both carry the store's id.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
from pathlib import Path

import msgspec

from ..core.causality import Name
from ..core.errors import StoreRefused
from .api import STORE_FORMAT
from .schema import create_database

LOCK_FILE = "kvs.lock"
IDENTITY_FILE = "kvs.identity"
DATABASE_FILE = "kvs.sqlite"
DIRECTORY_MODE = 0o700


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Whose store this is; the content of ``kvs.identity``, as JSON."""

    format: int
    store: str
    """Random id, also in the database."""
    node: Name
    secret: str
    """Fingerprint of the secret that the node signed with at its last start."""
    made: bool
    """False while the database is being made: nothing is stored yet."""


class _Format(msgspec.Struct):
    format: int


class StoreDirectory:
    """One directory, as the node of one name with some secrets sees it."""

    def __init__(
        self, path: Path, *, name: Name, fingerprints: tuple[str, ...]
    ) -> None:
        """
        Name a directory; nothing is looked at yet.

        :param fingerprints: of the secrets that this node knows, the signing one first.
        """
        assert fingerprints
        # Absolute, since a daemon may change to another directory.
        path = path.absolute()
        self.path = path
        self.database = path / DATABASE_FILE
        self._lock_path = path / LOCK_FILE
        self._identity_path = path / IDENTITY_FILE
        self._name = name
        self._fingerprints = fingerprints
        self._lock: int | None = None
        self._found: tuple[int, int] | None = None
        """Which file the database is; known from the first commit on."""

    def inspect(self) -> Identity | None:
        """
        Look whose store is there; takes no lock and changes nothing.

        :returns: None where nothing is stored: no such directory, or a fresh one.
        :raises StoreRefused: if it is not this node's, or cannot be used as it is.
        """
        try:
            self._check_usable()
            identity = self._read_identity()
            database = self.database.exists()
        except OSError as error:
            raise self._refused(error) from error
        made = identity is not None and identity.made
        # What is beside an identity that was not finished was never used.
        if database and identity is None:
            raise StoreRefused(f"{self._identity_path}: missing beside {DATABASE_FILE}")
        if made and not database:
            raise StoreRefused(
                f"{self.database}: missing, {IDENTITY_FILE} says that there was one"
            )
        return identity if made else None

    def acquire(self) -> Identity:
        """
        Take the directory for this process; make it, and a database, where none is.

        :raises StoreRefused: as ``inspect``, and if another process has it or it cannot
            be written; then nothing was changed.
        """
        self.inspect()
        try:
            self._make_directory()
            self._take_lock()
            # Another process may have changed it before we had the lock.
            identity = self.inspect() or self._make_database()
        except OSError as error:
            self.release()
            raise self._refused(error) from error
        except sqlite3.Error as error:
            self.release()
            raise StoreRefused(f"{self.database}: cannot be made: {error}") from error
        except BaseException:
            self.release()
            raise
        return identity

    def adopt(self, identity: Identity) -> None:
        """
        Remember that this node signs with the first of its secrets now.

        :raises StoreRefused: if it cannot be written.
        """
        if identity.secret != self._fingerprints[0]:
            changed = msgspec.structs.replace(identity, secret=self._fingerprints[0])
            try:
                self._write_identity(changed)
            except OSError as error:
                raise self._refused(error) from error

    def hold(self) -> Identity | None:
        """
        Take the directory as it is, without making anything; ``release`` it afterwards.

        :returns: as ``inspect``.
        :raises StoreRefused: as ``acquire``.
        """
        identity = self.inspect()
        try:
            if self._lock_path.exists():
                self._take_lock()
        except OSError as error:
            raise self._refused(error) from error
        return identity

    def check_in_place(self) -> None:
        """
        See that the files of this process's store were not removed or replaced.

        Call it after each commit: only then are all of them there.

        :raises StoreRefused: if they were.
        """
        assert self._lock is not None
        try:
            here = os.stat(self.database)
            os.stat(f"{self.database}-wal")
        except FileNotFoundError:
            raise StoreRefused(f"{self.database}: was removed while in use") from None
        except OSError as error:
            raise self._refused(error) from error
        if not os.fstat(self._lock).st_nlink:
            raise StoreRefused(f"{self._lock_path}: was removed while in use")
        found = here.st_dev, here.st_ino
        if self._found not in (None, found):
            raise StoreRefused(f"{self.database}: was replaced while in use")
        self._found = found

    def release(self) -> None:
        """Let other processes have the directory."""
        self._found = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> None:
        # Also against other stores of this process: each opens the file for itself.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self._lock_path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise StoreRefused(
                f"{self._lock_path}: in use by another process"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        self._lock = descriptor

    def _check_usable(self) -> None:
        # The directory, or where it would be made.
        place = self.path
        while not place.exists() and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise StoreRefused(f"{place}: not a directory")
        if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
            raise StoreRefused(f"{place}: not writable for user {os.geteuid()}")

    def _read_identity(self) -> Identity | None:
        path = self._identity_path
        try:
            content = path.read_bytes()
            # First alone: the other fields of a newer format may be others.
            format_ = msgspec.json.decode(content, type=_Format).format
            if format_ > STORE_FORMAT:
                raise StoreRefused(
                    f"{path}: of format {format_}, "
                    f"this program knows {STORE_FORMAT} at most"
                )
            identity = msgspec.json.decode(content, type=Identity)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise StoreRefused(f"{path}: damaged: {error}") from error
        if identity.node != self._name:
            raise StoreRefused(
                f"{path}: the store of node {identity.node}, not of {self._name}"
            )
        if identity.secret not in self._fingerprints:
            raise StoreRefused(
                f"{path}: the store of a cluster with another secret "
                f"(fingerprint {identity.secret})"
            )
        return identity

    def _make_directory(self) -> None:
        missing = []
        place = self.path
        while not place.exists():
            missing.append(place)
            place = place.parent
        for path in reversed(missing):
            path.mkdir(DIRECTORY_MODE, exist_ok=True)
            _sync_directory(path.parent)

    def _make_database(self) -> Identity:
        identity = Identity(
            format=STORE_FORMAT,
            store=secrets.token_hex(16),
            node=self._name,
            secret=self._fingerprints[0],
            made=False,
        )
        self._write_identity(identity)
        create_database(self.database, identity.store)
        _sync_directory(self.path)
        identity = msgspec.structs.replace(identity, made=True)
        self._write_identity(identity)
        return identity

    def _write_identity(self, identity: Identity) -> None:
        unfinished = self.path / (IDENTITY_FILE + ".new")
        descriptor = os.open(
            unfinished, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600
        )
        with open(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(identity)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(self._identity_path)
        _sync_directory(self.path)

    def _refused(self, error: OSError) -> StoreRefused:
        return StoreRefused(f"{error.filename or self.path}: {error.strerror}")


def _sync_directory(path: Path) -> None:
    # A file that was made or renamed is there after a power cut only then.
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
