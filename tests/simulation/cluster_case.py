"""Asks and watches a simulated cluster, every step of which is checked."""

from __future__ import annotations

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from twisted_kvs.core.causality import Name
from twisted_kvs.core.payload import Payload
from twisted_kvs.core.settings import Settings
from twisted_kvs.node import Node
from twisted_kvs.operations import Answer
from twisted_kvs.simulation.cluster import Client
from twisted_kvs.simulation.storm import Storm


class ClusterCase(SynchronousTestCase):
    """Asks and watches a cluster whose every step is checked."""

    def start(self, nodes: int = 4, k: int = 3, **tuned: object) -> Storm:
        """Start a healthy cluster."""
        self.storm = Storm(Settings(**tuned), nodes=nodes, k=k)  # type: ignore[arg-type] # fields of Settings
        self.cluster = self.storm.cluster
        self.names = self.storm.names
        return self.storm

    def client(self) -> Client:
        """Make a client without history."""
        return self.cluster.client()

    def node(self, index: int) -> Node:
        """Give a node that runs."""
        return self.cluster.nodes[self.names[index]]

    def nodes(self) -> list[Node]:
        """Give all nodes that run."""
        return list(self.cluster.nodes.values())

    def payload(self, client: Client) -> Payload:
        """Read what a client carries."""
        return self.node(0).payloads.decode(client.token)

    def change_view(self, at: int, kind: str, name: Name) -> dict[str, object]:
        """Add or remove a member."""
        self.storm.events["view change asked"] += 1
        answer = self.cluster.wait(self.node(at).update_view(kind, name))
        return dict(msgspec.json.decode(answer.body))

    def replicas(self, at: Name) -> list[Name]:
        """Ask a node for the replicas."""
        answer = self.cluster.nodes[at].all_replicas()
        return list(msgspec.json.decode(answer.body)["replicas"])

    def dot(self, answer: Answer) -> str:
        """Tell which node minted a write."""
        return dict(answer.headers)["KVS-Dot"].partition("#")[0]
