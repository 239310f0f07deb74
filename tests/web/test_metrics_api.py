"""``GET /metrics``, of nodes of a simulated cluster behind a real port."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.task import Clock

from tests.simulation.cluster_case import ClusterCase
from tests.web.fakes import RawClient, Received
from twisted_kvs.core.codec import Codec
from twisted_kvs.metrics import Outcome, Traffic, TurnProbe
from twisted_kvs.signing import Signer
from twisted_kvs.web.metrics_api import MetricsApi
from twisted_kvs.web.peer_gate import PeerGate
from twisted_kvs.web.root import make_port
from twisted_kvs.web.server import Site


class MetricsCase(ClusterCase):
    """A cluster, the port of its first node, and what its metrics say."""

    def open(self, nodes: int = 3, at: int = 0, **tuned: int) -> None:
        """Start a cluster and open a port at one of its nodes."""
        self.start(nodes, **tuned)
        self.port = self.port_of(at)
        self.client_of_port = RawClient.of(self.port)

    def port_of(self, at: int) -> Site:
        """Open a port."""
        self.own_clock = Clock()
        node, self.turns = self.node(at), TurnProbe(self.own_clock)
        gate = PeerGate(
            signer=Signer(me=node.me, boot_id=1, keys=[b"key"]),
            codec=Codec(),
            clock=self.cluster.clock,
        )
        self.traffic = Traffic()
        return make_port(
            node,
            gate=gate,
            traffic=(self.traffic, gate.traffic),
            turns=self.turns,
            reactor=self.cluster.clock,
        )

    def ask(
        self,
        method: bytes,
        path: bytes,
        body: bytes | None = None,
        **headers: str | bytes,
    ) -> Received:
        """Ask the port, and let time pass until it has answered."""
        self.client_of_port.send(method, path, body, **headers)
        while (received := self.client_of_port.received()) is None:
            self.cluster.advance(0.001)
        return received

    def samples(self, name: str) -> dict[tuple[str, ...], float]:
        """Read the values of one metric by the values of their labels."""
        answer = self.ask(b"GET", b"/metrics")
        assert answer.status == 200, answer
        families = text_string_to_metric_families(answer.body.decode())
        return {
            tuple(sample.labels.values()): sample.value
            for family in families
            for sample in family.samples
            if sample.name == name
        }

    def value(self, name: str, *labels: str) -> float:
        """Read one value."""
        return self.samples(name)[labels]


class FormTests(MetricsCase):
    """How metrics are answered."""

    def test_what_is_there(self) -> None:
        """Everything has a help text and a type, and names follow the conventions."""
        self.open()
        answer = self.ask(b"GET", b"/metrics")
        self.assertEqual(answer.status, 200)
        self.assertTrue(answer.headers["content-type"].startswith("text/plain;"))
        families = list(text_string_to_metric_families(answer.body.decode()))
        names = {family.name for family in families}
        self.assertEqual(len(names), len(families))
        self.assertLessEqual(
            {"process_resident_memory_bytes", "process_open_fds", "kvs_requests"},
            names,
        )
        for family in families:
            self.assertTrue(family.documentation, family)
            self.assertIn(family.type, {"counter", "gauge", "histogram"})
            self.assertRegex(family.name, r"^(kvs|process)_[a-z_]+$")

    def test_the_form_that_is_asked_for(self) -> None:
        """Text that every scraper reads, or OpenMetrics for those who ask for it."""
        self.open()
        text, open_metrics = "text/plain; version=0.0.4", "application/openmetrics-text"
        for accepted, given in (("*/*", text), (open_metrics, open_metrics)):
            answer = self.ask(b"GET", b"/metrics", accept=accepted)
            self.assertEqual(answer.status, 200)
            self.assertTrue(answer.headers["content-type"].startswith(given))
        self.assertTrue(answer.body.endswith(b"# EOF\n"))

    def test_a_form_that_is_none(self) -> None:
        """Who asks for what there is not, or for nonsense, gets one of those."""
        self.open()
        for accepted in (
            b"application/openmetrics-text; version=abc",
            b"text/plain; version=1.x",
            b"\xff",
            b";;,=,",
        ):
            answer = self.ask(b"GET", b"/metrics", accept=accepted)
            self.assertEqual(answer.status, 200, accepted)
            # Which one differs between releases of the library.
            forms = r"^(text/plain|application/openmetrics-text); version="
            self.assertRegex(answer.headers["content-type"], forms)

    def test_only_to_be_read(self) -> None:
        """Other methods get 405."""
        self.open()
        for method in (b"PUT", b"POST", b"DELETE", b"HEAD"):
            answer = self.ask(method, b"/metrics")
            self.assertEqual((answer.status, answer.headers["allow"]), (405, "GET"))

    def test_a_bug(self) -> None:
        """Metrics that cannot be made are a 500 without details, and are logged."""
        self.open()
        del self.node(0).exchanges
        answer = self.ask(b"GET", b"/metrics")
        self.assertEqual(answer.status, 500)
        self.assertEqual(set(answer.json), {"result", "msg"})
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)

    def test_nodes_share_nothing(self) -> None:
        """Two nodes of one process count apart."""
        self.open()
        self.ask(b"GET", b"/kv-store/k")
        self.assertEqual(self.value("kvs_requests_total", "get", "404"), 1)
        self.client_of_port = RawClient.of(self.port_of(1))
        self.assertEqual(self.value("kvs_requests_total", "get", "404"), 0)


class RequestTests(MetricsCase):
    """What is counted of clients' requests."""

    def test_kind_and_status(self) -> None:
        """Each request counts once, by what it was about and what it got."""
        self.open()
        for method, path, body in (
            (b"PUT", b"/kv-store/k", b"val=1"),
            (b"PUT", b"/kv-store/k", b"val=2"),
            (b"PUT", b"/kv-store/k", b"nothing=1"),
            (b"GET", b"/kv-store/k", None),
            (b"GET", b"/kv-store/get_node_details", None),
            (b"POST", b"/kv-store/k", b""),
            (b"GET", b"/health/ready", None),
            (b"GET", b"/kvs/status", None),
            (b"GET", b"/nothing/here", None),
            (b"GET", b"/metrics", None),
        ):
            self.ask(method, path, body)
        samples = self.samples("kvs_requests_total")
        self.assertEqual(samples["get", "503"], 0, "told before it happens")
        counted = {labels: count for labels, count in samples.items() if count}
        wanted = {
            ("put", "201"): 1,
            ("put", "200"): 1,
            ("put", "400"): 1,
            ("get", "200"): 1,
            ("view", "200"): 1,
            ("health", "200"): 1,
            ("status", "200"): 1,
            ("metrics", "200"): 1,
            ("other", "404"): 1,
            ("other", "405"): 1,
        }
        self.assertEqual(counted, wanted)
        counts = self.samples("kvs_request_duration_seconds_count")
        self.assertEqual(counts["put",], 3)

    def test_what_is_no_request(self) -> None:
        """What cannot be understood is counted, too."""
        self.open()
        self.client_of_port._channel.dataReceived(b"nonsense\r\n\r\n")
        self.client_of_port._connect()
        self.assertEqual(self.value("kvs_requests_total", "other", "400"), 1)

    def test_latency(self) -> None:
        """From the last byte of a request to its answer, by the node's own clock."""
        self.open()
        self.client_of_port.send(b"PUT", b"/kv-store/k", b"val=1")
        began = self.cluster.clock.seconds()
        while self.client_of_port.received() is None:
            self.cluster.advance(0.001)
        took = self.cluster.clock.seconds() - began
        self.assertGreater(took, 0)
        total = self.value("kvs_request_duration_seconds_sum", "put")
        self.assertAlmostEqual(total, took)

    def test_in_flight(self) -> None:
        """Requests under way are seen while they are; asking for it is not counted."""
        self.open()
        waiting = RawClient.of(self.port)
        waiting.send(b"PUT", b"/kv-store/k", b"val=1")
        self.assertEqual(self.value("kvs_requests_in_flight", "clients"), 1)
        self.assertEqual(self.value("kvs_connections"), 2)
        self.cluster.advance(0.5)
        self.assertEqual(self.value("kvs_requests_in_flight", "clients"), 0)


class ReplicationTests(MetricsCase):
    """What is counted between nodes."""

    def test_lag(self) -> None:
        """It grows while a replica is cut off, and is gone when it has caught up."""
        self.open()
        third = (self.names[2],)
        self.cluster.advance(1)
        self.storm.do_partition(0b100)
        self.client().put(self.names[0], "k", "v")
        self.cluster.advance(2)
        lags = self.samples("kvs_replication_lag_seconds")
        self.assertEqual(set(lags), {(name,) for name in self.names[1:]})
        self.assertEqual(lags[self.names[1],], 0)
        self.assertTrue(1.9 < lags[third] < 2.2, lags)
        self.storm.do_heal()
        self.cluster.advance(5)
        self.assertEqual(self.samples("kvs_replication_lag_seconds")[third], 0)

    def test_a_proxy_has_no_lag(self) -> None:
        """It is not meant to have the writes of others."""
        self.open(4)
        self.client().put(self.names[0], "k", "v")
        self.cluster.advance(3)
        lags = self.samples("kvs_replication_lag_seconds")
        self.assertEqual(set(lags), {(name,) for name in self.names[1:3]})

    def test_versions_come_by_push_and_by_delta(self) -> None:
        """In a healthy network by push; what was missed in a delta."""
        self.open(at=2)
        self.cluster.advance(1)
        before = self.value("kvs_versions_applied_total", "delta")
        self.client().put(self.names[0], "k", "v")
        self.cluster.advance(0.2)
        self.assertEqual(self.value("kvs_versions_applied_total", "push"), 1)
        self.storm.do_partition(0b100)
        for n in range(3):
            self.client().put(self.names[0], f"k{n}", "v")
        self.storm.do_heal()
        self.cluster.advance(5)
        self.assertEqual(self.value("kvs_versions_applied_total", "push"), 1)
        self.assertEqual(self.value("kvs_versions_applied_total", "delta"), before + 3)
        self.assertEqual(self.value("kvs_keys"), 4)

    def test_a_delta_in_parts(self) -> None:
        """All of its versions count when it is applied."""
        self.open(at=2, delta_part_versions_max=2)
        self.cluster.advance(1)
        self.storm.do_partition(0b100)
        for n in range(7):
            self.client().put(self.names[0], f"k{n}", "v")
        self.storm.do_heal()
        self.cluster.advance(5)
        self.assertEqual(self.value("kvs_versions_applied_total", "delta"), 7)

    def test_causal_reads(self) -> None:
        """A read that has to fetch counts, and so does the pull, and staleness."""
        self.open(at=2)
        self.cluster.advance(1)
        self.storm.do_partition(0b100)
        client = self.client()
        client.put(self.names[0], "k", "v")
        pulls = self.value("kvs_pulls_total")
        path = f"/kv-store/k?causal_payload={client.token}".encode()
        stale = self.ask(b"GET", path)
        self.assertEqual((stale.status, stale.headers["kvs-stale"]), (404, "true"))
        self.assertEqual(self.value("kvs_stale_answers_total"), 1)
        self.storm.do_heal()
        self.cluster.advance(2)
        self.assertEqual(self.ask(b"GET", path).status, 200)
        self.assertEqual(self.value("kvs_stale_answers_total"), 1)
        self.assertGreaterEqual(self.value("kvs_causal_fetches_total"), 1)
        self.assertGreater(self.value("kvs_pulls_total"), pulls)

    def test_conflicts(self) -> None:
        """Two writes that know nothing of each other are one conflict at each node."""
        self.open()
        self.cluster.advance(1)
        self.storm.do_partition(0b001)
        for name in self.names[:2]:
            self.client().put(name, "k", name)
            self.client().put(name, f"own {name}", name)
        self.assertEqual(self.value("kvs_conflicts_total"), 0)
        self.storm.do_heal()
        self.cluster.advance(5)
        self.assertEqual(self.value("kvs_conflicts_total"), 1)
        # Who has seen both and writes settles it; that is none.
        client = self.client()
        client.get(self.names[0], "k")
        client.put(self.names[0], "k", "settled")
        self.cluster.advance(1)
        self.assertEqual(self.value("kvs_conflicts_total"), 1)

    def test_compaction(self) -> None:
        """A deletion is sealed and forgotten, unless a member is away."""
        self.open()
        self.cluster.advance(1)
        client = self.client()
        client.put(self.names[0], "k", "v")
        self.storm.do_kill(2, True)
        client.delete(self.names[0], "k")
        self.cluster.advance(15)
        away = self.names[2]
        self.assertGreater(self.value("kvs_compaction_held_up_seconds", away), 10)
        self.assertEqual(self.value("kvs_keys"), 1)
        self.storm.do_start(2)
        self.cluster.advance(15)
        self.assertEqual(self.value("kvs_compaction_held_up_seconds", away), 0)
        self.assertEqual(self.value("kvs_keys"), 0)
        self.assertEqual(self.value("kvs_seals_total"), 1)
        self.assertGreater(self.value("kvs_compacted_keys_total"), 0)

    def test_exchanges(self) -> None:
        """Each that was begun ends in one way, and it is told in which."""
        self.open()
        self.cluster.advance(5)
        ends = self.samples("kvs_exchanges_total")
        self.assertEqual({one for (one,) in ends}, {one.value for one in Outcome})
        self.assertGreater(ends["equal",], 3)
        self.assertEqual(ends["unreachable",] + ends["timed_out",], 0)
        self.assertLessEqual(sum(ends.values()), self.node(0).exchanges.exchanges)
        self.storm.do_partition(0b001)
        self.client().put(self.names[0], "k", "v")
        self.cluster.advance(5)
        cut_off = self.samples("kvs_exchanges_total")
        self.assertGreater(cut_off["unreachable",] + cut_off["timed_out",], 1)
        self.assertEqual(cut_off["equal",], ends["equal",])
        self.storm.do_heal()
        self.cluster.advance(10)
        healed = self.samples("kvs_exchanges_total")
        self.assertGreater(healed["equal",], cut_off["equal",])

    def test_traffic(self) -> None:
        """Bytes of questions and of answers are added up."""
        self.open()
        self.traffic.sent, self.traffic.received = 7, 5
        self.assertEqual(self.value("kvs_peer_sent_bytes_total"), 7)
        self.assertEqual(self.value("kvs_peer_received_bytes_total"), 5)


class StateTests(MetricsCase):
    """What a node says of itself."""

    def test_roles_and_members(self) -> None:
        """A proxy is told from a replica, and the dead from the living."""
        self.open(4, at=3)
        self.cluster.advance(3)
        self.assertEqual(self.samples("kvs_role"), {("replica",): 0.0, ("proxy",): 1.0})
        self.assertEqual(self.value("kvs_ready"), 1)
        self.assertEqual(self.value("kvs_members_alive"), 4)
        self.cluster.kill(self.names[0])
        self.cluster.advance(8)
        self.assertEqual(self.value("kvs_role", "replica"), 1)
        self.assertEqual(self.value("kvs_standing", "serving"), 1)
        self.assertEqual(self.value("kvs_standing", "lagging"), 0)
        self.assertEqual(self.value("kvs_members_alive"), 3)
        self.assertEqual(self.value("kvs_members"), 4)

    def test_a_node_that_is_about_to_stop(self) -> None:
        """It is ready no more, whoever asks."""
        self.open()
        self.cluster.advance(1)
        self.assertEqual(self.ask(b"GET", b"/health/ready").status, 200)
        self.port.drain()
        self.client_of_port = RawClient.of(self.port)
        answer = self.ask(b"GET", b"/health/ready")
        self.assertEqual(answer.status, 503)
        self.assertIn("stopping", answer.json["msg"])
        self.client_of_port = RawClient.of(self.port)
        self.assertEqual(self.value("kvs_ready"), 0)

    def test_commits(self) -> None:
        """How many versions a commit had, and how long it took."""
        self.open()
        self.cluster.advance(1)
        before = self.value("kvs_commit_versions_sum")
        count = self.value("kvs_commit_duration_seconds_count")
        self.client().put(self.names[0], "k", "v")
        self.assertEqual(self.value("kvs_commit_versions_sum"), before + 1)
        self.assertGreater(self.value("kvs_commit_duration_seconds_count"), count)
        self.assertGreater(self.value("kvs_commit_duration_seconds_sum"), 0)

    def test_turns(self) -> None:
        """What the probe of the reactor has seen is told."""
        self.open()
        self.turns.startService()
        self.own_clock.advance(0.5)
        self.assertAlmostEqual(self.value("kvs_reactor_turn_longest_seconds"), 0.45)


class RegistryTests(MetricsCase):
    """Metrics of a node that has not started."""

    def test_nothing_is_asked_of_it(self) -> None:
        """Its collector is only asked when somebody wants to know."""

        class Unready:
            def collect(self) -> list[object]:
                raise AssertionError("asked too early")

            def describe(self) -> list[object]:
                return []

        MetricsApi(Unready())  # type: ignore[arg-type]  # a fake
