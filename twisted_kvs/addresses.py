"""
The addresses of hosts: looked up seldom, one look-up at a time, never in the way.

Invariants: of each name at most one look-up is in flight; a name that was ever found
can be used at once, whatever its look-ups do now; and no look-up uses the reactor's
threads, of which dead DNS would soon hold every one.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.python.failure import Failure

from .core.errors import PeerUnreachable

FRESH_S = 30.0
"""A found address is looked up again when it is used after this time."""
RETRY_S = 1.0
"""A look-up is not repeated before, whatever came of it."""
HOSTS_MAX = 256
LOOKUPS_MAX = 32
"""Threads that may hang in look-ups; names beyond them are unreachable for now."""

Lookup = Callable[[str], "Deferred[list[str]]"]
"""Finds the addresses of a host, best first; may never come back."""


@dataclass(slots=True)
class _Host:
    addresses: list[str] = field(default_factory=list)
    """First the one that was connected to last, or the resolver's favourite; last those
    that could not be connected to since."""
    looked_up: float = float("-inf")
    """When the last look-up ended."""
    suspect: bool = False
    """An address of it did not work since the last look-up."""
    looking: bool = False
    failure: str = "no such host"
    waiting: list[Deferred[list[str]]] = field(default_factory=list)


class AddressBook:
    """Remembers where hosts are."""

    def __init__(self, clock: IReactorTime, *, lookup: Lookup) -> None:
        """
        Start empty.

        :param lookup: see ``thread_lookup``.
        """
        self._clock = clock
        self._lookup = lookup
        self._hosts: dict[str, _Host] = {}
        self._looking = 0

    def find(self, host: str) -> Deferred[list[str]]:
        """
        Tell where a host is, most promising address first.

        :returns: fires at once for IP addresses and for hosts that were ever found; may
            be cancelled; fails with ``PeerUnreachable``.
        """
        if _is_ip(host):
            return succeed([host])
        known = self._known(host)
        now = self._clock.seconds()
        due = now - known.looked_up >= (RETRY_S if known.suspect else FRESH_S)
        if due and not known.looking:
            self._look_up(host, known)
        if known.addresses:
            return succeed(list(known.addresses))
        if not known.looking:
            return fail(PeerUnreachable(f"{host}: {known.failure}"))
        # One that was cancelled stays in the list and is passed over there.
        waiting: Deferred[list[str]] = Deferred(lambda _: None)
        known.waiting.append(waiting)
        return waiting

    def worked(self, host: str, address: str) -> None:
        """Take an address first from now on: it was connected to."""
        known = self._hosts.get(host)
        if known is not None and address in known.addresses:
            known.addresses.remove(address)
            known.addresses.insert(0, address)

    def failed(self, host: str, address: str | None = None) -> None:
        """
        Look a host up again soon: an address of it did not work.

        :param address: it could not be connected to: it is tried last from now on.
        """
        known = self._hosts.get(host)
        if known is None:
            return
        known.suspect = True
        if address in known.addresses:
            known.addresses.remove(address)
            known.addresses.append(address)

    def _known(self, host: str) -> _Host:
        known = self._hosts.pop(host, None) or _Host()
        if len(self._hosts) >= HOSTS_MAX:
            unused = [name for name, other in self._hosts.items() if not other.looking]
            for name in unused[:1]:
                del self._hosts[name]
        # The order of the dict is that of use.
        self._hosts[host] = known
        return known

    def _look_up(self, host: str, known: _Host) -> None:
        if self._looking >= LOOKUPS_MAX:
            known.failure = "too many names are being looked up"
            return
        known.looking = True
        self._looking += 1

        def over(found: list[str] | Failure) -> None:
            self._looking -= 1
            known.looking = False
            known.looked_up = self._clock.seconds()
            # One that failed is tried again after RETRY_S, too.
            known.suspect = isinstance(found, Failure) or not found
            waiting, known.waiting = known.waiting, []
            if isinstance(found, Failure):
                known.failure = f"look-up failed: {found.getErrorMessage()}"
            elif found:
                # The address in use stays first while the name still means it.
                used = known.addresses[:1]
                known.addresses = sorted(found, key=lambda address: [address] != used)
            for deferred in waiting:
                if deferred.called:
                    continue
                if known.addresses:
                    deferred.callback(list(known.addresses))
                else:
                    deferred.errback(PeerUnreachable(f"{host}: {known.failure}"))

        self._lookup(host).addBoth(over)


def thread_lookup(reactor: IReactorFromThreads) -> Lookup:
    """
    Make look-ups that ask the operating system, each in a thread of its own.

    The threads are daemons: a process does not wait for them to end.
    """

    def look_up(host: str) -> Deferred[list[str]]:
        found: Deferred[list[str]] = Deferred()

        def ask() -> None:
            try:
                entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError):
                reactor.callFromThread(found.errback, Failure())
                return
            addresses = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
            reactor.callFromThread(found.callback, addresses)

        try:
            threading.Thread(target=ask, name=f"look-up of {host}", daemon=True).start()
        except RuntimeError:
            return fail(Failure())
        return found

    return look_up


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
