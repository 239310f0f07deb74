"""
The database of a store: its tables, how it is made, opened and looked over.

Invariant: a file with the database's name is a whole one; it is made under another name
and renamed when it is on disk.  Looking a database over changes nothing of it.

Measured with 100,000 to 1,000,000 versions of 120 bytes, two cores, SQLite 3.40:

* Pages of 8 KiB take parts of 1000 versions a quarter faster than those of 4 KiB, and
  single commits as fast (16 KiB: slower by a fifth).
* A cache of 16 MB does as well as one of 64 MB; with 2 MB parts take a sixth longer.
* ``quick_check`` takes 36 ms for 100,000 versions and 0.3 s for a million (200 MB), but
  ten times as long from a cold disk, since it jumps about; reading the file once from
  end to end before makes that 0.8 s.  Above ``CHECK_BYTES_MAX`` it is left out: damage
  is found when it is read.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path

import msgspec

from ..core.errors import StoreRefused
from ..core.fence import Fence
from ..core.messages import ReplicaState
from ..core.versions import WireVector
from .api import STORE_FORMAT
from .tally import Standing, Tally

CHECK_BYTES_MAX = 256 * 2**20
READ_BYTES = 2**20
PAGE_BYTES = 8192
CACHE_KIB = 16 * 1024
SNAPSHOT_CACHE_KIB = 1024
LOG_KEPT_BYTES = 16 * 2**20
"""The log file is cut to this size when it starts anew."""
BUSY_MS = 5000
"""Only somebody who looks into the file with other tools makes us wait."""

INCREMENTAL = 2
"""``auto_vacuum``: pages that are free can be given back, a few at a time."""

_FIRST_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE actor (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE version (
    dot INTEGER PRIMARY KEY, -- actor's id << 43 | counter
    key TEXT NOT NULL,
    value BLOB NOT NULL,     -- JSON text; of length 0: a tombstone
    ts INTEGER NOT NULL,     -- microseconds
    past BLOB,               -- MessagePack [actor's id, counter, ...]; NULL if empty
    stage INTEGER NOT NULL,  -- 0: ordinary
    hash INTEGER NOT NULL    -- of dot and value
);
CREATE INDEX version_key ON version (key);
CREATE INDEX version_stage ON version (stage) WHERE stage != 0;
"""
IS_UNSETTLED = "(past IS NOT NULL OR length(value) = 0)"
"""As it stands in the index, or SQLite does not use that."""
_SECOND_TABLES = f"""
CREATE TABLE listed (
    part INTEGER PRIMARY KEY,
    stage INTEGER NOT NULL,
    dots BLOB NOT NULL       -- MessagePack [[actor's id, counter, step, ...], ...]
);
CREATE INDEX version_unsettled ON version (stage) WHERE {IS_UNSETTLED};
"""

FULL_CODES = frozenset(
    {
        sqlite3.SQLITE_FULL,
        # What a quota, a file size limit or a full disk make of a write, or of the room
        # for the index of the log.
        sqlite3.SQLITE_IOERR_WRITE,
        sqlite3.SQLITE_IOERR_SHMSIZE,
    }
)

SELECT_VERSIONS = "SELECT key, dot, value, ts, past FROM version"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What every commit rewrites: one row of ``meta``."""

    state: ReplicaState
    """Without who is retired, which grows with every start: a row of its own."""
    serial: int
    live_hash: int
    visible: int
    valid: list[tuple[int, int]]
    """Valid stages and how many versions are left of each, the oldest first."""
    fences: list[tuple[int, int, WireVector]] = []
    """Of valid stages: stage, how far its doomed were looked for, claim."""

    def tally(self, fences: Mapping[int, Fence]) -> Tally:
        """
        Make what the next commit goes on from.

        :param fences: by stage, all that the record names.
        """
        return Tally(
            serial=self.serial,
            live_hash=self.live_hash,
            visible=self.visible,
            valid=dict(self.valid),
            standing={
                stage: Standing(fences[stage], looked)
                for stage, looked, _ in self.fences
            },
        )


def make_record(state: ReplicaState, tally: Tally) -> Record:
    """Make the record of a commit."""
    return Record(
        state=msgspec.structs.replace(state, retired=b""),
        serial=tally.serial,
        live_hash=tally.live_hash,
        visible=tally.visible,
        valid=list(tally.valid.items()),
        fences=[
            (stage, standing.looked, dict(standing.fence.claim))
            for stage, standing in tally.standing.items()
        ],
    )


def create_database(path: Path, store_id: str) -> None:
    """
    Make an empty database, whole or not at all; the caller syncs the directory.

    :raises OSError, sqlite3.Error: if it cannot be written.
    """
    unfinished = path.with_name(path.name + ".new")
    for left_over in (".new", ".new-journal", "-wal", "-shm", "-journal"):
        path.with_name(path.name + left_over).unlink(missing_ok=True)
    # Made before SQLite opens it, so that nobody else may read it.
    os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    connection = sqlite3.connect(unfinished, isolation_level=None)
    try:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute(f"PRAGMA auto_vacuum = {INCREMENTAL}")
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(f"BEGIN; {_FIRST_TABLES} {_SECOND_TABLES}")
        connection.execute("INSERT INTO meta VALUES ('store', ?)", (store_id.encode(),))
        connection.execute(f"PRAGMA user_version = {STORE_FORMAT}")
        connection.execute("COMMIT")
    finally:
        connection.close()
    unfinished.rename(path)


def bring_up_to_date(connection: sqlite3.Connection) -> None:
    """
    Make the database of an older program one of this one's, whole or not at all.

    It is written anew for that, once.  Where there is no room for it the file can be
    used, but does not shrink.

    :raises sqlite3.Error: if it cannot be written.
    """
    (vacuum,) = connection.execute("PRAGMA auto_vacuum").fetchone()
    if vacuum != INCREMENTAL:
        connection.execute(f"PRAGMA auto_vacuum = {INCREMENTAL}")
        try:
            connection.execute("VACUUM")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode not in FULL_CODES:
                raise
    (format_,) = connection.execute("PRAGMA user_version").fetchone()
    if format_ == 1:
        connection.executescript(
            f"BEGIN IMMEDIATE; {_SECOND_TABLES} PRAGMA user_version = 2; COMMIT;"
        )
    assert format_ <= STORE_FORMAT == 2, "refused before, or not brought up to date"


def connect(path: Path, *, cache_kib: int = CACHE_KIB) -> sqlite3.Connection:
    """
    Connect to a database that is there.

    Commits are on disk before they are visible (WAL, synchronous=FULL).  The connection
    may wander between threads, but is used by one at a time.
    """
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=BUSY_MS / 1000,
    )
    try:
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise sqlite3.OperationalError("its file system cannot share memory")
        connection.execute("PRAGMA synchronous = FULL")
        # Where fsync leaves it to the disk when it writes (macOS); nothing elsewhere.
        connection.execute("PRAGMA fullfsync = 1")
        connection.execute("PRAGMA checkpoint_fullfsync = 1")
        # The store says itself when the log is worked off.
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute(f"PRAGMA journal_size_limit = {LOG_KEPT_BYTES}")
        connection.execute(f"PRAGMA cache_size = -{cache_kib}")
    except BaseException:
        connection.close()
        raise
    return connection


def look_over(path: Path, store_id: str) -> Record | None:
    """
    Check a database without changing it, before it is opened for use.

    With a log beside it SQLite makes its index of that log; nothing else is written.

    :returns: the record of its last commit; None if there was none.
    :raises StoreRefused: if it is damaged, of a newer format or not this store's.
    """
    try:
        whole = _read_through(path)
        log = path.with_name(path.name + "-wal")
        # Without a log nothing is to be shared with other connections: no file is made.
        alone = "" if log.exists() and log.stat().st_size else "&immutable=1"
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro{alone}", uri=True, isolation_level=None
        )
        try:
            return _look_over(connection, path, store_id=store_id, whole=whole)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StoreRefused(f"{path}: damaged or not a database: {error}") from error
    except OSError as error:
        raise StoreRefused(f"{path}: {error.strerror}") from error


def decode_record(stored: bytes) -> Record:
    """
    Decode the record of a commit.

    :raises msgspec.MsgspecError: if it is none.
    """
    return msgspec.msgpack.decode(stored, type=Record)


def read_record(connection: sqlite3.Connection) -> bytes | None:
    """Read the record of the commit that a connection sees."""
    row = connection.execute("SELECT value FROM meta WHERE name = 'record'").fetchone()
    return None if row is None else bytes(row[0])


def read_retired(connection: sqlite3.Connection) -> bytes:
    """Read who is retired, as the state has it (R20)."""
    row = connection.execute("SELECT value FROM meta WHERE name = 'retired'").fetchone()
    return b"" if row is None else bytes(row[0])


def _read_through(path: Path) -> bool:
    # Closing any descriptor of a file drops SQLite's locks on it: it has none yet.
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size < PAGE_BYTES:
            raise StoreRefused(f"{path}: damaged: cut off after {size} bytes")
        if size > CHECK_BYTES_MAX:
            return False
        while file.read(READ_BYTES):
            pass
    return True


def _look_over(
    connection: sqlite3.Connection, path: Path, *, store_id: str, whole: bool
) -> Record | None:
    (format_,) = connection.execute("PRAGMA user_version").fetchone()
    if format_ > STORE_FORMAT:
        raise StoreRefused(
            f"{path}: of format {format_}, this program knows {STORE_FORMAT} at most"
        )
    tables = "" if whole else "('meta')"
    (found,) = connection.execute(f"PRAGMA quick_check{tables}").fetchone()
    if found != "ok":
        raise StoreRefused(f"{path}: damaged: {' '.join(found.split())}")
    connection.execute("SELECT id, name FROM actor LIMIT 1").fetchall()
    connection.execute(f"{SELECT_VERSIONS} LIMIT 1").fetchall()
    row = connection.execute("SELECT value FROM meta WHERE name = 'store'").fetchone()
    if row is None or bytes(row[0]) != store_id.encode():
        raise StoreRefused(f"{path}: belongs to another directory than this")
    stored = read_record(connection)
    try:
        return None if stored is None else decode_record(stored)
    except msgspec.MsgspecError as error:
        raise StoreRefused(f"{path}: damaged: the state record: {error}") from error
