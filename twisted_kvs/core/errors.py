"""
Everything that can be wrong with what clients, peers and operators send.

Each error has a stable ``code`` (for logs and tests) and the HTTP ``status`` that a
client gets; its message says what was wrong and what is wanted.  The web edge maps
them in one place; nothing else in the package needs to know a status.
"""

from __future__ import annotations


class KVSError(Exception):
    """Base of all errors that are somebody else's fault: 4xx or 5xx, no traceback."""

    code = "error"
    status = 500


class BadRequest(KVSError):
    """A request that cannot be understood, whatever the state of the store."""

    code = "bad_request"
    status = 400


class BadPayload(BadRequest):
    """A causal payload that this cluster never issued (R18)."""

    code = "bad_payload"


class BadName(BadRequest):
    """Something that is no ``ip:port`` in the canonical form of the contract."""

    code = "bad_name"


class NotFound(KVSError):
    """No such key, no such path."""

    code = "not_found"
    status = 404


class MethodNotAllowed(KVSError):
    """The path exists, the method is none of its own."""

    code = "method_not_allowed"
    status = 405


class Removed(KVSError):
    """This node knows that it was removed from the view (R16)."""

    code = "removed"
    status = 410


class TooLarge(KVSError):
    """A key, value, payload or body over its limit."""

    code = "too_large"
    status = 413


class UnsupportedBody(KVSError):
    """A body whose Content-Type is not understood."""

    code = "unsupported_body"
    status = 415


class Overloaded(KVSError):
    """More in flight than the limit; nothing was done, try again in a second."""

    code = "overloaded"
    status = 503


class SlowDisk(KVSError):
    """A write was begun and is not known to be kept: it may yet be, or not."""

    code = "slow_disk"
    status = 504


class StorageFull(KVSError):
    """The disk takes no more and no replica can be reached; reads go on."""

    code = "storage_full"
    status = 507


class PeerError(KVSError):
    """A peer could not be asked, or what it answered cannot be used."""

    code = "peer"
    status = 502


class PeerUnreachable(PeerError):
    """No connection: refused, no route, no name, or not within the time to connect."""

    code = "peer_unreachable"


class PeerTimedOut(PeerError):
    """Connected, but no whole answer within its deadline."""

    code = "peer_timed_out"


class PeerRefused(PeerError):
    """A correctly signed answer that says why the peer will not do this."""

    code = "peer_refused"


class BadPeerMessage(PeerError):
    """Unsigned, truncated, oversized or wrongly typed: never touched any state."""

    code = "bad_peer_message"
    status = 400


class BadConfiguration(KVSError):
    """One line that names the variable, what it got and what it wants."""

    code = "bad_configuration"


class StoreRefused(KVSError):
    """A data directory that must not be used; the message names the file."""

    code = "store_refused"


class DiskFull(KVSError):
    """A commit failed because the disk takes no more; nothing of it is stored."""

    code = "disk_full"
    status = 507
