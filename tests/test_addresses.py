"""Where hosts are: few look-ups, and never in the way."""

from __future__ import annotations

import threading
from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twisted_kvs.addresses import (
    FRESH_S,
    HOSTS_MAX,
    LOOKUPS_MAX,
    RETRY_S,
    AddressBook,
    thread_lookup,
)
from twisted_kvs.core.errors import PeerUnreachable


class AddressBookTests(SynchronousTestCase):
    """The book, with a resolver that answers when it is told to."""

    def setUp(self) -> None:
        """Start with an empty book."""
        self.clock = Clock()
        self.lookups: list[tuple[str, Deferred[list[str]]]] = []
        self.book = AddressBook(self.clock, lookup=self.look_up)

    def look_up(self, host: str) -> Deferred[list[str]]:
        """Begin a look-up."""
        found: Deferred[list[str]] = Deferred()
        self.lookups.append((host, found))
        return found

    def find(self, *found: str) -> None:
        """Find the host for the first time."""
        asked = self.book.find("host")
        self.lookups[-1][1].callback(list(found))
        self.successResultOf(asked)

    def test_addresses_need_no_look_up(self) -> None:
        """An IP address is its own answer."""
        for address in ("10.0.0.1", "fd00::1"):
            self.assertEqual(self.successResultOf(self.book.find(address)), [address])
        self.assertEqual(self.lookups, [])

    def test_one_look_up_serves_all_who_wait(self) -> None:
        """Of each name at most one look-up is in flight."""
        asked = [self.book.find("host") for _ in range(3)]
        self.assertEqual(len(self.lookups), 1)
        self.lookups[0][1].callback(["10.0.0.1"])
        for deferred in asked:
            self.assertEqual(self.successResultOf(deferred), ["10.0.0.1"])

    def test_found_address_is_used_for_a_while(self) -> None:
        """A name is not looked up again at each use."""
        self.find("10.0.0.1")
        self.clock.advance(FRESH_S - 1)
        self.successResultOf(self.book.find("host"))
        self.assertEqual(len(self.lookups), 1)

    def test_old_address_serves_while_it_is_looked_up_again(self) -> None:
        """Dead DNS does not keep anybody from an address that was good."""
        self.find("10.0.0.1")
        for _ in range(3):
            self.clock.advance(FRESH_S)
            found = self.successResultOf(self.book.find("host"))
            self.assertEqual(found, ["10.0.0.1"])
        self.assertEqual(len(self.lookups), 2)
        self.lookups[1][1].errback(OSError("dead"))
        found = self.successResultOf(self.book.find("host"))
        self.assertEqual(found, ["10.0.0.1"])

    def test_address_that_fails_is_looked_up_soon(self) -> None:
        """A host that moved is found soon, and without looking it up all the time."""
        self.find("10.0.0.1")
        self.book.failed("host")
        self.book.find("host")
        self.assertEqual(len(self.lookups), 1)
        self.clock.advance(RETRY_S)
        self.book.find("host")
        self.lookups[1][1].callback(["10.0.0.2"])
        self.assertEqual(self.successResultOf(self.book.find("host")), ["10.0.0.2"])

    def test_address_that_worked_comes_first(self) -> None:
        """The next question goes where the last one got through."""
        self.find("fd00::1", "10.0.0.1")
        self.book.worked("host", "10.0.0.1")
        wanted = ["10.0.0.1", "fd00::1"]
        self.assertEqual(self.successResultOf(self.book.find("host")), wanted)
        self.clock.advance(FRESH_S)
        self.book.find("host")
        self.lookups[-1][1].callback(["fd00::1", "10.0.0.1"])
        self.assertEqual(self.successResultOf(self.book.find("host")), wanted)

    def test_unknown_host_is_not_looked_up_all_the_time(self) -> None:
        """A name that is wrong costs one look-up a second at most."""
        asked = self.book.find("host")
        self.lookups[0][1].errback(OSError("no such name"))
        self.failureResultOf(asked, PeerUnreachable)
        error = self.failureResultOf(self.book.find("host"), PeerUnreachable)
        self.assertIn("no such name", str(error.value))
        self.assertEqual(len(self.lookups), 1)
        self.clock.advance(RETRY_S)
        self.assertNoResult(self.book.find("host"))
        self.assertEqual(len(self.lookups), 2)

    def test_host_without_addresses_is_unreachable(self) -> None:
        """A name may exist and mean nothing."""
        asked = self.book.find("host")
        self.lookups[0][1].callback([])
        self.failureResultOf(asked, PeerUnreachable)

    def test_waiting_can_be_called_off(self) -> None:
        """One who waits no longer does not disturb the others."""
        first, second = self.book.find("host"), self.book.find("host")
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.lookups[0][1].callback(["10.0.0.1"])
        self.successResultOf(second)

    def test_look_ups_and_hosts_are_limited(self) -> None:
        """Whoever names hosts can fill neither memory nor threads."""
        asked = [self.book.find(f"host{n}") for n in range(HOSTS_MAX * 2)]
        self.assertEqual(len(self.lookups), LOOKUPS_MAX)
        for deferred in asked[LOOKUPS_MAX:]:
            self.failureResultOf(deferred, PeerUnreachable)
        for _, found in list(self.lookups):
            found.callback(["10.0.0.1"])
        for n in range(HOSTS_MAX * 2):
            self.book.find(f"more{n}").addErrback(lambda _: None)
            if not self.lookups[-1][1].called:
                self.lookups[-1][1].callback(["10.0.0.1"])
        self.assertLessEqual(len(self.book._hosts), HOSTS_MAX)


class ThreadLookupTests(SynchronousTestCase):
    """Asking the operating system."""

    def test_look_up_runs_in_its_own_thread(self) -> None:
        """A look-up comes back by way of the reactor, whatever else hangs."""
        told: list[Callable[[], None]] = []
        arrived = threading.Semaphore(0)

        class Threads:
            def callFromThread(
                self, function: Callable[..., None], *args: object
            ) -> None:
                told.append(lambda: function(*args))
                arrived.release()

        look_up = thread_lookup(Threads())  # type: ignore[arg-type]  # one method of it
        found = look_up("127.0.0.1")
        self.assertTrue(arrived.acquire(timeout=60))
        told.pop()()
        self.assertEqual(self.successResultOf(found), ["127.0.0.1"])
        # A label of more than 63 characters is refused before anybody is asked.
        found = look_up("a" * 64)
        self.assertTrue(arrived.acquire(timeout=60))
        told.pop()()
        self.failureResultOf(found, UnicodeError, OSError)
