"""Where the container's health check asks."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twisted_kvs.healthcheck import where


class WhereTests(SynchronousTestCase):
    """It follows the variables that tell the node where to listen."""

    def assert_asks(self, host: str, port: int, **environment: str) -> None:
        """With this environment it asks there."""
        self.assertEqual(where(environment), (host, port))

    def test_without_variables(self) -> None:
        """A node that was told nothing listens on loopback."""
        self.assert_asks("localhost", 8080)

    def test_port_of_the_name(self) -> None:
        """Else it listens on the port of its name, on all addresses or on loopback."""
        self.assert_asks("localhost", 9001, IPPORT="10.0.0.21:9001")
        self.assert_asks("localhost", 9002, IPPORT="[::1]:9002")
        self.assert_asks("localhost", 9003, IPPORT="kvs-0.kvs:9003")
        self.assert_asks("127.0.0.5", 9004, IPPORT="127.0.0.5:9004 ")

    def test_endpoint(self) -> None:
        """An endpoint of its own comes first, the address that it names included."""
        self.assert_asks("localhost", 81, IPPORT="a:80", KVS_LISTEN="tcp:81")
        self.assert_asks("localhost", 81, KVS_LISTEN="tcp:port=81:backlog=5")
        self.assert_asks("10.0.0.1", 81, KVS_LISTEN="tcp:81:interface=10.0.0.1")
        self.assert_asks("10.0.0.1", 81, KVS_LISTEN="tcp:interface=10.0.0.1:port=81")
        self.assert_asks("localhost", 81, KVS_LISTEN="tcp:81:interface=0.0.0.0")
        self.assert_asks("localhost", 81, KVS_LISTEN="tcp6:81:interface=\\:\\:")
        self.assert_asks("fe80::1", 81, KVS_LISTEN="tcp6:81:interface=fe80\\:\\:1")

    def test_endpoint_that_is_none_of_tcp(self) -> None:
        """Of any other endpoint it knows nothing, and takes the name's port."""
        self.assert_asks("localhost", 80, IPPORT="a:80", KVS_LISTEN="unix:/tmp/x")
