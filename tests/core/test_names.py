"""Canonical names and their order."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import strategies as kvs
from twisted_kvs.core.causality import Name, make_actor
from twisted_kvs.core.errors import BadName
from twisted_kvs.core.names import (
    HOST_CHARACTERS_MAX,
    is_actor,
    is_ip,
    is_loopback,
    is_name,
    name_order,
    parse_name,
    parse_names,
    split_name,
)

NO_NAMES = [
    "",
    ":",
    "a",
    "a:",
    ":80",
    "a:0",
    "a:080",
    "a:+80",
    "a: 80",
    "a:8_0",
    "a:65536",
    "a:99999999999999999999",
    "a:x",
    "a:\uff18\uff10",
    "a:80 ",
    " a:80",
    "a:80\n",
    "a\n:80",
    "a b:80",
    "a/b:80",
    "a@b:80",
    "http://a:80",
    "a:80:90",
    "a..b:80",
    ".a:80",
    "a.:80",
    "-a:80",
    "a-:80",
    "a.-b:80",
    "ä:80",
    "\u212a:80",  # the Kelvin sign, whose lower case is k
    "a" * 64 + ":80",
    ".".join(["a" * 63] * 4) + ":80",
    "256.0.0.1:80",
    "10.0.0:80",
    "10.0.0.0.1:80",
    "010.0.0.1:80",
    "10.0.0.1.:80",
    "167772161:80",
    "0x0a000001:80",
    "10.0.0.0x1:80",
    "::1:80",
    "[]:80",
    "[::1:80",
    "::1]:80",
    "[[::1]]:80",
    "[1.2.3.4]:80",
    "[a]:80",
    "[:::]:80",
    "[fe80::1%eth0]:80",
]


class ParseNameTests(SynchronousTestCase):
    """``parse_name`` and ``parse_names``."""

    def test_equivalent_addresses_become_one_name(self) -> None:
        """An address has one name, however it was written."""
        for text, name in {
            "10.0.0.21:8080": "10.0.0.21:8080",
            "KVS-1.Example:1": "kvs-1.example:1",
            "my_node:65535": "my_node:65535",
            "7:80".replace("7", "7a"): "7a:80",
            "[2001:DB8:0:0:0:0:0:1]:80": "[2001:db8::1]:80",
            "[0:0:0:0:0:0:0:0]:80": "[::]:80",
            "[2001:db8:0:1:1:1:1:1]:80": "[2001:db8:0:1:1:1:1:1]:80",
            "[::ffff:1.2.3.4]:80": "[::ffff:1.2.3.4]:80",
            "[::FFFF:102:304]:80": "[::ffff:1.2.3.4]:80",
            "[64:ff9b::1.2.3.4]:80": "[64:ff9b::102:304]:80",
        }.items():
            self.assertEqual(parse_name(text), name)
            self.assertTrue(is_name(name))
            self.assertEqual(is_name(text), text == name)

    def test_what_is_no_name_is_refused_and_said(self) -> None:
        """The error shows what was given and says what is wanted."""
        for text in NO_NAMES:
            error = self.assertRaises(BadName, parse_name, text)
            self.assertIn(f"got {text!r}"[:100], str(error))
            self.assertIn("want an IPv4 address", str(error))
            self.assertFalse(is_name(text))

    def test_a_long_text_is_not_repeated_in_full(self) -> None:
        """A megabyte given for a name does not end up in the log."""
        error = self.assertRaises(BadName, parse_name, "a:" * 10**6)
        self.assertLess(len(str(error)), 300)

    def test_the_longest_host_is_a_name(self) -> None:
        """A host name has 253 characters at most."""
        host = ".".join(["a" * 63] * 3 + ["a" * 61])
        self.assertEqual(len(host), HOST_CHARACTERS_MAX)
        self.assertEqual(split_name(parse_name(f"{host}:65535")), (host, 65535))
        self.assertRaises(BadName, parse_name, f"a{host}:80")

    @given(kvs.names())
    def test_canonical_names_stay_as_they_are(self, name: Name) -> None:
        """Reading a name that this store has written changes nothing."""
        self.assertEqual(parse_name(name), name)
        self.assertTrue(is_name(name))

    @given(kvs.names())
    def test_upper_case_and_long_forms_are_the_same_name(self, name: Name) -> None:
        """Letters' case and the zeros of an IPv6 address do not matter."""
        host, port = split_name(name)
        self.assertEqual(parse_name(name.upper()), name)
        if is_ip(name) == 6:
            long = ipaddress.IPv6Address(host).exploded
            self.assertEqual(parse_name(f"[{long}]:{port}"), name)

    @given(st.text() | st.text("0123456789abx.:[]%-_", max_size=30))
    def test_any_text_is_a_name_or_refused(self, text: str) -> None:
        """Nothing that is given as a name can crash a node."""
        try:
            name = parse_name(text)
        except BadName:
            self.assertFalse(is_name(text))
        else:
            self.assertEqual(parse_name(name), name)

    def test_a_list_keeps_its_order(self) -> None:
        """The first nodes are numbered in the order in which they were given."""
        self.assertEqual(
            parse_names(" 10.0.0.9:1 ,A:2,\t[::1]:3\n"),
            ("10.0.0.9:1", "a:2", "[::1]:3"),
        )
        self.assertEqual(parse_names("a:1"), ("a:1",))

    def test_a_name_given_twice_is_named(self) -> None:
        """Two spellings of one address are a mistake, and it is said which."""
        error = self.assertRaises(BadName, parse_names, "[::1]:1,B:1,[0::1]:1")
        self.assertIn("got [::1]:1 twice", str(error))

    def test_an_empty_list_or_item_is_refused(self) -> None:
        """A list that has a comma too many is a mistake."""
        for text in ["", " ", ",", "a:1,", "a:1,,b:1", "a:1 b:1"]:
            self.assertRaises(BadName, parse_names, text)


class NameOrderTests(SynchronousTestCase):
    """``name_order``."""

    def test_addresses_sort_as_numbers_hosts_as_text_then_ports(self) -> None:
        """IPv4 comes before IPv6 before host names, and 9 before 10 but for hosts."""
        wanted = [
            "9.0.0.1:65535",
            "10.0.0.9:8080",
            "10.0.0.10:80",
            "10.0.0.10:8080",
            "10.0.0.100:1",
            "255.255.255.255:1",
            "[::]:1",
            "[::1]:9",
            "[::1]:10",
            "[::ffff:1.2.3.4]:1",
            "[2001:db8::9]:1",
            "[2001:db8::10]:1",
            "kvs1:9",
            "kvs1:10",
            "kvs10:1",
            "kvs2:1",
        ]
        for name in wanted:
            self.assertTrue(is_name(name), name)
        shuffled = sorted(map(Name, wanted))
        self.assertNotEqual(shuffled, wanted)
        self.assertEqual(sorted(shuffled, key=name_order), wanted)

    def test_what_is_no_name_comes_last(self) -> None:
        """A peer that calls itself nonsense breaks no comparison."""
        for text in [*NO_NAMES, "A:1", "[0::1]:1", "x" * 10**6, "\ud800"]:
            self.assertGreater(name_order(Name(text)), name_order(Name("zzz:65535")))

    @given(st.lists(kvs.names() | st.text().map(Name), unique=True))
    def test_order_is_total(self, names: list[Name]) -> None:
        """No two different names tie, so all nodes sort any names in the same way."""
        once = sorted(names, key=name_order)
        names.reverse()
        self.assertEqual(sorted(names, key=name_order), once)
        self.assertEqual(len({name_order(name) for name in names}), len(names))


class NamePartsTests(SynchronousTestCase):
    """``split_name``, ``is_ip``, ``is_loopback`` and ``is_actor``."""

    def test_host_and_port_are_told_apart(self) -> None:
        """A host comes without brackets, as one connects to it."""
        self.assertEqual(split_name(Name("10.0.0.1:80")), ("10.0.0.1", 80))
        self.assertEqual(split_name(Name("[::1]:80")), ("::1", 80))
        self.assertEqual(split_name(Name("a.b:80")), ("a.b", 80))

    def test_only_canonical_names_are_split(self) -> None:
        """A text that is no name has no host that one could connect to."""
        for text in [*NO_NAMES, "A:80"]:
            error = self.assertRaises(BadName, split_name, Name(text))
            self.assertIn("canonical", str(error))

    def test_the_version_of_ip_is_told(self) -> None:
        """A host name or nonsense has none."""
        names = ["10.0.0.1:80", "[::1]:80", "a:80", "nonsense"]
        self.assertEqual([is_ip(Name(x)) for x in names], [4, 6, 0, 0])

    def test_loopback_addresses_are_known(self) -> None:
        """A node that only its own machine reaches listens there only."""
        for text in [
            "127.0.0.1:80",
            "127.255.0.9:80",
            "[::1]:80",
            "[::ffff:127.0.0.1]:80",
            "localhost:80",
        ]:
            self.assertTrue(is_loopback(Name(text)), text)
        for text in [
            "10.0.0.1:80",
            "128.0.0.1:80",
            "0.0.0.0:80",
            "[::2]:80",
            "[::]:80",
            "[::ffff:10.0.0.1]:80",
            "localhost.example:80",
            "nonsense",
            "localhost",
        ]:
            self.assertFalse(is_loopback(Name(text)), text)

    @given(kvs.names(), st.integers(0, 2**64 - 1))
    def test_actors_that_are_minted_are_actors(self, name: Name, number: int) -> None:
        """Every process of every node has an actor that peers accept."""
        self.assertTrue(is_actor(make_actor(name, number)))

    def test_the_longest_name_has_actors(self) -> None:
        """A node with a name of 253 characters can write."""
        name = parse_name(".".join(["a" * 63] * 3 + ["a" * 61]) + ":65535")
        self.assertTrue(is_actor(make_actor(name, 2**64 - 1)))

    def test_other_texts_are_no_actors(self) -> None:
        """What has another form was minted by nobody."""
        for text in [
            "",
            "#",
            "a:80",
            "a:80#",
            "a:80#000000000000001",
            "a:80#00000000000000001",
            "a:80#000000000000000A",
            "a:80#000000000000000g",
            "a:80#000000000000000\n",
            "A:80#0000000000000001",
            "#0000000000000001",
            "nonsense#0000000000000001",
            "a:80#0#0000000000000001",
            "x" * 10**6 + ":80#0000000000000001",
        ]:
            self.assertFalse(is_actor(text), text[:50])
