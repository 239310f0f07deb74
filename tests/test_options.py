"""What an operator can say to a node, and what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase

from twisted_kvs.core.causality import Name
from twisted_kvs.core.secrets import DEFAULT_SECRET, Secrets
from twisted_kvs.core.settings import MIB, Settings
from twisted_kvs.logs import LogStyle
from twisted_kvs.options import (
    BACKLOG,
    DRAIN_DEFAULT_S,
    Configuration,
    Options,
    default_interface,
    directory_name,
    endpoint,
)

VIEW = "10.0.0.21:8080,10.0.0.22:8080"
CLUSTER = {"K": "2", "VIEW": VIEW, "IPPORT": "10.0.0.22:8080"}


def parsed(*argv: str, **environ: str) -> Configuration:
    """Read a command line and an environment."""
    options = Options(environ)
    options.parseOptions(list(argv))
    return options.configuration


class Defaults(SynchronousTestCase):
    """Nothing has to be configured."""

    def test_a_node_without_configuration_is_alone_on_loopback(self) -> None:
        """Without options and variables a node is 127.0.0.1:8080 and has no view."""
        configuration = parsed()
        self.assertEqual(configuration.me, "127.0.0.1:8080")
        self.assertIsNone(configuration.replica_count)
        self.assertEqual(configuration.first_view, ())
        self.assertIsNone(configuration.listen)
        self.assertEqual(
            configuration.directory, os.path.abspath("kvs-data/127.0.0.1_8080")
        )
        self.assertTrue(configuration.secrets.is_default)
        self.assertEqual(configuration.settings, Settings())


class EveryOption(SynchronousTestCase):
    """Each option can be given on the command line and in the environment."""

    def both(self, option: str, variable: str, text: str) -> list[Configuration]:
        """Give one text both ways, and as an option against another in a variable."""
        return [
            parsed(option, text),
            parsed(f"{option}={text}"),
            parsed(**{variable: text}),
            parsed(option, text, **{variable: "wrong on purpose"}),
        ]

    def test_replicas(self) -> None:
        """K is the number of replicas wanted; a node alone may have it, too."""
        for configuration in self.both("--replicas", "K", "5"):
            self.assertEqual(configuration.replica_count, 5)

    def test_view_and_ipport(self) -> None:
        """VIEW lists the first nodes in order, IPPORT says which one this is."""
        by_option = parsed(
            "--view", VIEW, "--replicas", "2", "--ipport", "10.0.0.22:8080"
        )
        for configuration in (by_option, parsed(**CLUSTER)):
            self.assertEqual(configuration.first_view, tuple(VIEW.split(",")))
            self.assertEqual(configuration.me, "10.0.0.22:8080")
            self.assertEqual(configuration.replica_count, 2)

    def test_names_become_canonical(self) -> None:
        """Blanks, upper case and long forms of IPv6 do not make another node."""
        configuration = parsed(
            K="1", VIEW=" Node-A:8080, [::0001]:8080", IPPORT="[0:0::1]:8080"
        )
        self.assertEqual(configuration.first_view, ("node-a:8080", "[::1]:8080"))
        self.assertEqual(configuration.me, "[::1]:8080")

    def test_listen(self) -> None:
        """An endpoint of the operator's is taken as it is."""
        for configuration in self.both("--listen", "KVS_LISTEN", "tcp:9000"):
            self.assertEqual(configuration.listen, "tcp:9000")

    def test_data_dir(self) -> None:
        """A data directory is made absolute, since a daemon changes its own."""
        for configuration in self.both("--data-dir", "KVS_DATA_DIR", "here"):
            self.assertEqual(configuration.directory, os.path.abspath("here"))
        self.assertEqual(parsed(KVS_DATA_DIR="/var/kvs").directory, "/var/kvs")

    def test_what_means_nothing_is_told(self) -> None:
        """A variable with a slip in its name would else be missed in silence."""
        known = parsed(KVS_DRAIN_S="2", KVS_SPREAD="no", KVS_SECRET="x", K="1")
        self.assertEqual(known.unknown, ())
        slips = parsed(KVS_DRAINS_S="x", KVS_DATADIR="/nope", PATH="/bin")
        self.assertEqual(slips.unknown, ("KVS_DATADIR", "KVS_DRAINS_S"))

    def test_data_dir_is_relative_to_rundir(self) -> None:
        """A relative data directory is where twistd --rundir will be."""
        options = Options({"KVS_DATA_DIR": "here"})
        options.parent = usage.Options()
        options.parent["rundir"] = "/var/lib"
        options.parseOptions([])
        self.assertEqual(options.configuration.directory, "/var/lib/here")

    def test_empty_data_dir_is_memory(self) -> None:
        """With an empty data directory nothing is kept on disk."""
        self.assertIsNone(parsed("--data-dir=").directory)
        self.assertIsNone(parsed(KVS_DATA_DIR="").directory)

    def test_secret(self) -> None:
        """A secret from the environment signs; blanks around it do not count."""
        wanted = Secrets([b"swordfish"]).fingerprints
        self.assertEqual(parsed(KVS_SECRET="swordfish").secrets.fingerprints, wanted)
        self.assertEqual(parsed(KVS_SECRET="swordfish\n").secrets.fingerprints, wanted)

    def test_secret_file(self) -> None:
        """A file of secrets: the first line signs, `default` is the well-known one."""
        path = self.mktemp()
        Path(path).write_text("new\ndefault\n")
        wanted = Secrets([b"new", DEFAULT_SECRET]).fingerprints
        for secrets in (
            parsed("--secret-file", path).secrets,
            parsed(KVS_SECRET_FILE=path).secrets,
        ):
            self.assertEqual(secrets.fingerprints, wanted)
            self.assertFalse(secrets.is_default)

    def test_spread(self) -> None:
        """Spreading is off, unless it is asked for; the option wins both ways."""
        self.assertFalse(parsed().settings.spread)
        self.assertTrue(parsed("--spread").settings.spread)
        for text, wanted in {"1": True, "Yes": True, "0": False, "off": False}.items():
            self.assertIs(parsed(KVS_SPREAD=text).settings.spread, wanted)
        self.assertFalse(parsed("--no-spread", KVS_SPREAD="1").settings.spread)
        self.assertTrue(parsed("--spread", KVS_SPREAD="0").settings.spread)

    def test_drain(self) -> None:
        """An operator says how long a node answers on when it is told to stop."""
        self.assertEqual(parsed().drain_s, DRAIN_DEFAULT_S)
        for text, wanted in {"0": 0.0, "2.5": 2.5, "300": 300.0}.items():
            for configuration in self.both("--drain-s", "KVS_DRAIN_S", text):
                self.assertEqual(configuration.drain_s, wanted)

    def test_log(self) -> None:
        """Format and level of the log, in any case; text and info by default."""
        self.assertEqual(parsed().log, LogStyle(form="text", level="info"))
        for configuration in self.both("--log-format", "KVS_LOG_FORMAT", "JSON"):
            self.assertEqual(configuration.log, LogStyle(form="json", level="info"))
        for configuration in self.both("--log-level", "KVS_LOG_LEVEL", "warn"):
            self.assertEqual(configuration.log, LogStyle(form="text", level="warn"))

    def test_log_requests(self) -> None:
        """Requests are not logged, unless it is asked for; the option wins."""
        self.assertFalse(parsed().log.requests)
        self.assertTrue(parsed("--log-requests").log.requests)
        self.assertTrue(parsed(KVS_LOG_REQUESTS="yes").log.requests)
        self.assertFalse(parsed("--no-log-requests", KVS_LOG_REQUESTS="1").log.requests)

    def test_limits(self) -> None:
        """Each limit of the settings that an operator may change reaches them."""
        limits: Mapping[str, float] = {
            "value_bytes_max": 16 * MIB,
            "requests_in_flight_max": 7,
            "body_bytes_in_flight_max": 64 * MIB,
            "gossip_interval_s": 0.25,
            "dead_after_s": 6,
        }
        for field, number in limits.items():
            option = "--" + field.replace("_", "-")
            given = self.both(option, f"KVS_{field.upper()}", str(number))
            for configuration in given:
                self.assertEqual(getattr(configuration.settings, field), number)

    def test_a_longer_patience_also_probes_later(self) -> None:
        """Who waits twice as long for a dead node also waits twice as long to probe."""
        settings = parsed("--dead-after-s=6").settings
        self.assertEqual(settings.probe_after_s, 2 * Settings().probe_after_s)


class BadConfiguration(SynchronousTestCase):
    """What is wrong is one line that says what, what was got and what is wanted."""

    def refused(self, *argv: str, **environ: str) -> str:
        """Read what must be refused, and give the line."""
        stop = self.assertRaises(SystemExit, parsed, *argv, **environ)
        line = stop.code
        # A text as code is printed, and the exit status is 1.
        assert isinstance(line, str)
        self.assertNotIn("\n", line)
        self.assertTrue(line.startswith("kvs: "), line)
        return line

    def test_bad_numbers(self) -> None:
        """No number in disguise is taken: K=0, nan, negative, fractions, blanks."""
        for text in ("0", "x", "-1", "1.5", "1e3", "nan", "inf", "1_0", "٣", " "):
            for line in (self.refused(K=text), self.refused(f"--replicas={text}")):
                self.assertIn("K (--replicas)", line)
                self.assertIn("want", line)
        for text in ("nan", "inf", "-1", "0", "x", "", "1e-3", "3601", "9" * 400):
            line = self.refused(f"--dead-after-s={text}")
            self.assertIn("KVS_DEAD_AFTER_S (--dead-after-s)", line)
        for text in ("-1", "300.1", "x", ""):
            line = self.refused(KVS_DRAIN_S=text)
            self.assertIn("KVS_DRAIN_S (--drain-s)", line)
        for text in ("xml", "", "json,text"):
            line = self.refused(KVS_LOG_FORMAT=text)
            self.assertIn("KVS_LOG_FORMAT (--log-format)", line)
        self.refused("--log-requests", "--no-log-requests")
        line = self.refused(KVS_LOG_REQUESTS="perhaps")
        self.assertIn("KVS_LOG_REQUESTS (--log-requests)", line)
        self.assertIn("want one of debug, info", self.refused("--log-level=loud"))
        self.assertIn("'nan'", self.refused(KVS_GOSSIP_INTERVAL_S="nan"))
        self.assertIn("'2.5'", self.refused(KVS_REQUESTS_IN_FLIGHT_MAX="2.5"))

    def test_a_value_over_the_protocols_limit(self) -> None:
        """A limit for values over what nodes can send each other is refused."""
        line = self.refused(KVS_VALUE_BYTES_MAX=str(16 * MIB + 1))
        self.assertIn(str(16 * MIB), line)

    def test_gossip_slower_than_patience(self) -> None:
        """Gossip so rare that live nodes would look dead is refused."""
        line = self.refused("--gossip-interval-s=2", "--dead-after-s=3")
        self.assertIn("KVS_GOSSIP_INTERVAL_S", line)

    def test_bodies_that_never_fit(self) -> None:
        """A value must not be refused for ever as too much at once."""
        line = self.refused(
            KVS_VALUE_BYTES_MAX=str(16 * MIB),
            KVS_BODY_BYTES_IN_FLIGHT_MAX=str(32 * MIB),
        )
        self.assertIn("KVS_BODY_BYTES_IN_FLIGHT_MAX", line)
        self.assertIn(str(48 * MIB + 128 * 1024), line)

    def test_bad_ipport(self) -> None:
        """An ip:port that is none is named."""
        bad = ("here", "10.0.0.1", "10.0.0.256:80", "10.0.0.1:0", "::1:80")
        for text in (*bad, "0.0.0.0:8080", "[::]:8080"):
            line = self.refused(IPPORT=text)
            self.assertIn("IPPORT (--ipport)", line)
            self.assertIn(repr(text), line)

    def test_bad_view(self) -> None:
        """One bad item spoils a view, and so does one that is there twice."""
        me = {"K": "1", "IPPORT": "10.0.0.1:80"}
        line = self.refused(VIEW="10.0.0.1:80,nonsense", **me)
        self.assertIn("VIEW (--view)", line)
        self.assertIn("'nonsense'", line)
        line = self.refused(VIEW="10.0.0.1:80,10.0.0.1:80", **me)
        self.assertIn("twice", line)

    def test_view_without_k(self) -> None:
        """A view without the number of replicas is no configuration."""
        line = self.refused(VIEW=VIEW, IPPORT="10.0.0.22:8080")
        self.assertIn("K (--replicas)", line)
        self.assertIn("VIEW", line)

    def test_ipport_missing_from_view(self) -> None:
        """A node that is not in the view that it was given stops."""
        line = self.refused(K="2", VIEW=VIEW, IPPORT="10.0.0.23:8080")
        self.assertIn("IPPORT (--ipport): got 10.0.0.23:8080", line)
        self.assertIn(VIEW, line)
        self.assertIn("127.0.0.1:8080", self.refused(K="2", VIEW=VIEW))

    def test_empty_texts(self) -> None:
        """An empty variable was forgotten somewhere: it stops the start."""
        for variable in ("K", "VIEW", "IPPORT", "KVS_LISTEN", "KVS_SECRET_FILE"):
            self.assertIn(variable, self.refused(**{variable: ""}))
        self.assertIn("KVS_SECRET", self.refused(KVS_SECRET=" "))
        self.assertIn("KVS_SPREAD", self.refused(KVS_SPREAD=""))

    def test_bad_spread(self) -> None:
        """What is neither yes nor no is refused, and so are both at once."""
        self.assertIn("KVS_SPREAD", self.refused(KVS_SPREAD="perhaps"))
        self.assertIn("--no-spread", self.refused("--spread", "--no-spread"))

    def test_bad_secret_file(self) -> None:
        """A file of secrets that is missing, empty or no text stops the start."""
        missing = self.mktemp()
        self.assertIn("No such file", self.refused(KVS_SECRET_FILE=missing))
        for content in (b"", b" \n\n", b"\xff\xfe", b"x" * (MIB + 1)):
            path = self.mktemp()
            Path(path).write_bytes(content)
            self.assertIn("KVS_SECRET_FILE", self.refused(KVS_SECRET_FILE=path))

    def test_secret_and_file(self) -> None:
        """A secret and a file of secrets at once: nobody knows which one counts."""
        line = self.refused("--secret-file=x", KVS_SECRET="swordfish")
        self.assertIn("KVS_SECRET_FILE", line)
        self.assertNotIn("swordfish", line)

    def test_unknown_options_and_arguments(self) -> None:
        """A misspelt option is one line, too, and not a page of usage."""
        self.assertIn("--replica-count", self.refused("--replica-count=3"))
        self.assertIn("listen", self.refused("--listen"))
        self.assertIn("'start'", self.refused("start"))


class Help(SynchronousTestCase):
    """The help names everything."""

    def test_help_names_every_variable(self) -> None:
        """Who reads the help finds each option with its variable."""
        text = str(Options({}))
        for word in (
            *("K:", "VIEW:", "IPPORT:", "KVS_LISTEN:", "KVS_DATA_DIR:"),
            *("KVS_SECRET", "KVS_SECRET_FILE:", "KVS_SPREAD:", "--no-spread"),
            *("KVS_VALUE_BYTES_MAX:", "KVS_DEAD_AFTER_S:", "--gossip-interval-s="),
        ):
            self.assertIn(word, text)


class Places(SynchronousTestCase):
    """Where a node listens and stores when its operator does not say."""

    def test_endpoints(self) -> None:
        """Loopback where the node is on loopback, else all addresses."""
        endpoints = {
            "127.0.0.1:8081": "tcp:8081:interface=127.0.0.1",
            "127.0.0.2:80": "tcp:80:interface=127.0.0.2",
            "localhost:80": "tcp:80:interface=127.0.0.1",
            "[::1]:80": "tcp6:80:interface=\\:\\:1",
            "10.0.0.21:8080": "tcp:8080",
            "[fe80::1]:80": "tcp6:80:interface=\\:\\:",
            "kvs-1.example:80": "tcp6:80:interface=\\:\\:",
        }
        for name, wanted in endpoints.items():
            interface = default_interface(Name(name), has_ipv6=True)
            port = int(name.rpartition(":")[2])
            wanted += f":backlog={BACKLOG}"
            self.assertEqual(endpoint(interface, port), wanted)

    def test_a_name_without_ipv6(self) -> None:
        """A node with a host name also starts where there is no IPv6."""
        self.assertEqual(default_interface(Name("kvs-1:80"), has_ipv6=False), "")

    def test_directory_names(self) -> None:
        """Every node has a directory of its own, with a name that is none's trouble."""
        names = {
            "127.0.0.1:8081": "127.0.0.1_8081",
            "kvs-1.example:80": "kvs-1.example_80",
            "[::1]:80": "ipv6---1_80",
            "[fe80::1]:80": "ipv6-fe80--1_80",
        }
        for name, directory in names.items():
            self.assertEqual(directory_name(Name(name)), directory)
