"""Everything that a node answers on its port, put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prometheus_client.registry import Collector
from twisted.internet.interfaces import IReactorTime
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource, Resource

from twisted_kvs.health import obstacle
from twisted_kvs.metrics import Traffic, TurnProbe
from twisted_kvs.node import Node
from twisted_kvs.operations import Operations

from .client_api import ClientApi
from .health_api import HealthApi
from .metrics_api import MetricsApi, NodeCollector, Sources
from .paths import LIVE_PATH, METRICS_PATH, READY_PATH, STATUS_PATH
from .peer_api import PeerApi
from .peer_gate import PeerGate
from .server import Root, Site, make_site
from .status_api import StatusApi


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """What a node shows its operators."""

    status: Callable[[], dict[str, object]]
    """JSON-able."""
    obstacle: Callable[[], str | None]
    """Why the node is not ready; None: it is."""
    collector: Collector
    """Of its metrics."""


class _Clients(Resource):
    """Sends a few exact paths to resources of theirs, all others to the routes."""

    isLeaf = True

    def __init__(self, exact: Mapping[bytes, IResource], *, others: IResource) -> None:
        super().__init__()
        self._exact = exact
        self._others = others

    def render(self, request: IRequest) -> bytes | int:
        chosen = self._exact.get(request.path, self._others)
        answer: bytes | int = chosen.render(request)
        return answer


def make_root(
    operations: Operations,
    *,
    views: Views,
    gate: PeerGate,
) -> IResource:
    """
    Make the resource of a whole node: clients, peers, operators.

    :param operations: the node.
    :param gate: verifies peers; shared with ``make_site``.
    """
    others = ClientApi(operations).resource
    health = HealthApi(views.obstacle)
    exact: dict[bytes, IResource] = {
        STATUS_PATH: StatusApi(views.status),
        METRICS_PATH: MetricsApi(views.collector),
        LIVE_PATH: health,
        READY_PATH: health,
    }
    clients = _Clients(exact, others=others)
    return Root(clients=clients, peers=PeerApi(operations, gate=gate).resource)


def make_port(
    node: Node,
    *,
    gate: PeerGate,
    traffic: tuple[Traffic, ...],
    turns: TurnProbe,
    reactor: IReactorTime,
) -> Site:
    """
    Make what listens on a node's port, with all that it answers.

    Once it is told to ``drain`` the node is not ready any more.

    :param traffic: what is counted of messages between nodes, ``gate``'s included.
    :param turns: what is known of the reactor's turns.
    """

    def obstacle_now() -> str | None:
        leaving = "this node is stopping" if site.draining else None
        return leaving or obstacle(node.cluster)

    sources = Sources(
        node=node,
        port=lambda: site,
        traffic=traffic,
        turns=turns,
        ready=lambda: obstacle_now() is None,
    )
    views = Views(
        status=node.status,
        obstacle=obstacle_now,
        collector=NodeCollector(sources),
    )
    root = make_root(node, views=views, gate=gate)
    site = make_site(root, settings=node.settings, gate=gate, reactor=reactor)
    # The start line says more than Twisted's own about factories.
    site.noisy = False
    return site
