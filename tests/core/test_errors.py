"""Errors that are somebody else's fault."""

from __future__ import annotations

from collections.abc import Iterator

from twisted.trial.unittest import SynchronousTestCase

from twisted_kvs.core import errors
from twisted_kvs.core.errors import KVSError

# The contract's table of errors, and what an edge answers for what has no row there.
STATUS = {
    errors.BadRequest: 400,
    errors.BadPayload: 400,
    errors.BadName: 400,
    errors.NotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.Removed: 410,
    errors.TooLarge: 413,
    errors.UnsupportedBody: 415,
    errors.PeerError: 502,
    errors.PeerUnreachable: 502,
    errors.PeerTimedOut: 502,
    errors.PeerRefused: 502,
    errors.BadPeerMessage: 400,
    errors.Overloaded: 503,
    errors.SlowDisk: 504,
    errors.StorageFull: 507,
    errors.DiskFull: 507,
    errors.BadConfiguration: 500,
    errors.StoreRefused: 500,
}


def _below(kind: type[KVSError]) -> Iterator[type[KVSError]]:
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from _below(child)


class ErrorTests(SynchronousTestCase):
    """``KVSError`` and its children."""

    def test_every_error_has_the_status_of_the_contract(self) -> None:
        """A client can tell by the status what went wrong."""
        self.assertEqual({kind: kind.status for kind in _below(KVSError)}, STATUS)

    def test_every_error_has_its_own_code(self) -> None:
        """A line in the log names one kind of error."""
        codes = [KVSError.code, *(kind.code for kind in _below(KVSError))]
        self.assertEqual(len(set(codes)), len(codes))

    def test_a_failed_transfer_can_be_caught_as_one_kind(self) -> None:
        """Gossip goes on, in whatever way a peer failed."""
        for kind in (
            errors.PeerUnreachable,
            errors.PeerTimedOut,
            errors.PeerRefused,
            errors.BadPeerMessage,
        ):
            self.assertTrue(issubclass(kind, errors.PeerError))
