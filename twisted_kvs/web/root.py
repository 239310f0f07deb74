"""Everything that a node answers on its port, put together."""

from __future__ import annotations

from collections.abc import Callable

from twisted.web.iweb import IRequest
from twisted.web.resource import IResource, Resource

from twisted_kvs.operations import Operations

from .client_api import ClientApi
from .peer_api import PeerApi
from .peer_gate import PeerGate
from .server import Root
from .status_api import STATUS_PATH, StatusApi


class _Clients(Resource):
    """Sends one exact path to the status and all others to the clients' routes."""

    isLeaf = True

    def __init__(self, *, status: IResource, others: IResource) -> None:
        super().__init__()
        self._status = status
        self._others = others

    def render(self, request: IRequest) -> bytes | int:
        wants_status = request.path == STATUS_PATH
        chosen = self._status if wants_status else self._others
        answer: bytes | int = chosen.render(request)
        return answer


def make_root(
    operations: Operations,
    *,
    status: Callable[[], dict[str, object]],
    gate: PeerGate,
) -> IResource:
    """
    Make the resource of a whole node: clients, peers, and its status.

    :param operations: the node.
    :param gate: verifies peers; shared with ``make_site``.
    """
    others = ClientApi(operations).resource
    clients = _Clients(status=StatusApi(status), others=others)
    return Root(clients=clients, peers=PeerApi(operations, gate=gate).resource)
