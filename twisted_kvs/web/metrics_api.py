"""
``GET /metrics``: what a node counts, in Prometheus' text format.

Families are made when somebody asks, of the plain numbers that the node keeps.  The
registry is the node's own: two nodes in one process share nothing.

Invariant: labels are of a fixed set, or members of the view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from twisted.logger import Logger
from twisted.web.iweb import IRequest
from twisted.web.resource import Resource

from twisted_kvs.core.errors import KVSError, MethodNotAllowed
from twisted_kvs.core.messages import Standing
from twisted_kvs.metrics import Histogram, Traffic, TurnProbe
from twisted_kvs.node import Node

from .errors import answer_error
from .server import Site


class _NotGet(MethodNotAllowed):
    allow = "GET"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where a node's numbers are; it has started."""

    node: Node
    port: Callable[[], Site]
    """Where requests come in."""
    traffic: tuple[Traffic, ...]
    """Of questions, of answers."""
    turns: TurnProbe
    ready: Callable[[], bool]


class NodeCollector(Collector):
    """Makes the families of one node."""

    def __init__(self, sources: Sources) -> None:
        """Read from these when asked."""
        self._sources = sources

    def describe(self) -> Iterable[Metric]:
        """Tell nothing before the node has started."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Give all families."""
        yield from self._requests()
        yield from self._gossip()
        yield from self._data()
        yield from self._cluster()
        yield from self._compaction()
        yield from self._commits()
        yield _gauge(
            "kvs_reactor_turn_longest_seconds",
            "Longest time in the last minute that the event loop was busy or waited "
            "for a processor; probed every 0.05 s.",
            self._sources.turns.longest_s,
        )

    def _requests(self) -> Iterator[Metric]:
        port = self._sources.port()
        total = CounterMetricFamily(
            "kvs_requests", "Requests answered.", labels=["kind", "status"]
        )
        seconds = HistogramMetricFamily(
            "kvs_request_duration_seconds",
            "From the last byte of a request to its answer; without what was refused "
            "for load, or before that byte.",
            labels=["kind"],
        )
        for kind, counted in port.requests.kinds.items():
            for status, count in sorted(counted.statuses.items()):
                total.add_metric([kind.value, str(status)], count)
            if counted.statuses:
                _add(seconds, [kind.value], counted.seconds)
        yield total
        yield seconds
        lanes = {"clients": port.admission.clients, "peers": port.admission.peers}
        yield _gauges(
            "kvs_requests_in_flight",
            "Requests between the end of their headers and their answer.",
            "asker",
            {asker: lane.requests for asker, lane in lanes.items()},
        )
        yield _gauge(
            "kvs_connections",
            "Connections to this node's port that are open.",
            port.connections,
        )

    def _gossip(self) -> Iterator[Metric]:
        node, traffic = self._sources.node, self._sources.traffic
        yield _counters(
            "kvs_exchanges",
            "Exchanges of gossip that this node began, by their end.",
            "outcome",
            {one.value: n for one, n in node.exchanges.outcomes.items()},
        )
        yield _counter(
            "kvs_peer_sent_bytes",
            "Bytes of messages to other nodes, without heads.",
            sum(one.sent for one in traffic),
        )
        yield _counter(
            "kvs_peer_received_bytes",
            "Bytes of messages from other nodes, without heads.",
            sum(one.received for one in traffic),
        )
        yield _counters(
            "kvs_versions_applied",
            "Versions taken from other nodes: one by one by push, or with a delta.",
            "by",
            {"push": node.exchanges.pushed, "delta": node.receiver.applied},
        )
        yield _counter("kvs_pulls", "Deltas asked for out of turn.", node.pulls.pulls)
        yield _counter(
            "kvs_causal_fetches",
            "Requests that had to wait for what their causal payload names.",
            node.fetch.fetches,
        )

    def _data(self) -> Iterator[Metric]:
        node = self._sources.node
        cluster = node.cluster
        yield _gauge(
            "kvs_keys",
            "Versions that are stored and visible: one for each key, and one more for "
            "each sibling, each that waits to be folded, and each deletion that is not "
            "forgotten yet.",
            cluster.storage.count(),
        )
        yield _gauge(
            "kvs_store_bytes",
            "Bytes of the store on disk, or of keys and values in memory.",
            cluster.storage.size_bytes,
        )
        yield _counter(
            "kvs_stale_answers",
            "Answers about a key that were marked as perhaps not fresh.",
            node.answers.stale,
        )
        yield _counter(
            "kvs_conflicts",
            "Times that a key got a version beside others, so that the timestamp "
            "decides which is shown; without those in deltas of many parts.",
            cluster.committer.metrics.conflicts,
        )
        yield _counter(
            "kvs_hash_mismatches",
            "Peers that knew the same and had other data: look at the log.",
            cluster.hash_mismatches,
        )
        yield _gauge(
            "kvs_disk_full", "1 while the disk takes no writes.", cluster.committer.full
        )

    def _cluster(self) -> Iterator[Metric]:
        cluster = self._sources.node.cluster
        members = cluster.view.members or {cluster.me}
        yield _gauge("kvs_members", "Members of the view.", len(members))
        yield _gauge(
            "kvs_members_alive",
            "Members of the view that are believed alive, this node included.",
            len(cluster.alive() & members),
        )
        role = "replica" if cluster.is_replica else "proxy"
        yield _gauges(
            "kvs_role",
            "1 for the role that this node has.",
            "role",
            {name: name == role for name in ("replica", "proxy")},
        )
        yield _gauges(
            "kvs_standing",
            "1 for how far this node has caught up.",
            "standing",
            {one.name.lower(): one is cluster.standing for one in Standing},
        )
        yield _gauge(
            "kvs_ready", "1 while clients may ask this node.", self._sources.ready()
        )
        lags = {peer: cluster.lag_s(peer) for peer in sorted(cluster.peers)}
        yield _gauges(
            "kvs_replication_lag_seconds",
            "Age of the oldest write of this node that a replica has not said it has.",
            "peer",
            {peer: lag for peer, lag in lags.items() if lag is not None},
        )

    def _compaction(self) -> Iterator[Metric]:
        compacting = self._sources.node.compacting
        yield _counter(
            "kvs_compacted_keys",
            "Keys of which a past was forgotten, or a seal written or dropped.",
            compacting.compacted,
        )
        yield _counter(
            "kvs_seals", "Deletions that this node has sealed.", compacting.seals
        )
        yield _gauges(
            "kvs_compaction_held_up_seconds",
            "How long a member has held up compaction, since it does not report what "
            "it has; 0 while it does not.",
            "peer",
            {
                peer: compacting.held_up().get(peer, 0.0)
                for peer in sorted(self._sources.node.cluster.peers)
            },
        )

        yield _gauge(
            "kvs_missing_writers",
            "Processes whose writes others come after and nobody has brought: until "
            "they come, what was written since then is not compacted; see the log.",
            len(compacting.missing()),
        )

    def _commits(self) -> Iterator[Metric]:
        metrics = self._sources.node.cluster.committer.metrics
        for name, what, histogram in (
            ("kvs_commit_versions", "Versions in a commit.", metrics.versions),
            (
                "kvs_commit_duration_seconds",
                "From handing a commit to the store until it is durable.",
                metrics.seconds,
            ),
        ):
            family = HistogramMetricFamily(name, what, labels=[])
            _add(family, [], histogram)
            yield family


class MetricsApi(Resource):
    """Answers with all metrics of a node and its process."""

    isLeaf = True
    _log = Logger()

    def __init__(self, collector: Collector) -> None:
        """
        Publish what ``collector`` gives, and the figures of this process.
        """
        super().__init__()
        self._registry = CollectorRegistry()
        self._registry.register(collector)
        ProcessCollector(registry=self._registry)

    def render(self, request: IRequest) -> bytes:
        """Answer GET, in the form that is asked for; 405 to every other method."""
        if request.method != b"GET":
            body = answer_error(request, _NotGet("metrics can only be read"))
            return b"" if request.method == b"HEAD" else body
        accepted = request.requestHeaders.getRawHeaders(b"Accept", [])
        write, content_type = _form(b",".join(accepted).decode("latin-1"))
        try:
            body = write(self._registry)
        except Exception:
            self._log.failure("no metrics")
            return answer_error(request, KVSError("this node failed, its log says how"))
        request.responseHeaders.setRawHeaders("Content-Type", [content_type])
        return body


def _form(accepted: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    """Choose what writes the metrics, and the type of that."""
    try:
        return choose_encoder(accepted)
    except (TypeError, ValueError):
        # It fails at versions like "abc"; who asks for what is not gets the usual.
        return choose_encoder("")


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(name, what, value=float(value))


def _gauges(
    name: str, what: str, label: str, values: Mapping[str, float | bool]
) -> Metric:
    family = GaugeMetricFamily(name, what, labels=[label])
    for one, value in values.items():
        family.add_metric([one], float(value))
    return family


def _counter(name: str, what: str, value: float) -> Metric:
    return CounterMetricFamily(name, what, value=value)


def _counters(name: str, what: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, what, labels=[label])
    for one, value in values.items():
        family.add_metric([one], value)
    return family


def _add(
    family: HistogramMetricFamily, labels: list[str], histogram: Histogram
) -> None:
    buckets = [
        (floatToGoString(bound), count) for bound, count in histogram.cumulative()
    ]
    family.add_metric(labels, buckets=buckets, sum_value=histogram.total)
