"""
How an answer about a key is written: fields, headers, and the causal payload in both.

One place for what a client is shown, so that whoever mints or reads shows it alike.
"""

from __future__ import annotations

import msgspec

from .cluster import Cluster
from .core.causality import VersionVector, join
from .core.messages import Standing
from .core.outcomes import Read, Written
from .core.payload import Payload, PayloadCodec
from .core.versions import Version
from .operations import Answer


class Answers:
    """Writes the answers of one node, and reads the payloads that came with them."""

    def __init__(self, cluster: Cluster, payloads: PayloadCodec) -> None:
        """
        Answer for the node of ``cluster``.

        :param payloads: signs what clients are given.
        """
        self._cluster = cluster
        self._payloads = payloads
        self.stale = 0
        """Answers that were flagged."""

    @property
    def _serving(self) -> bool:
        cluster = self._cluster
        return cluster.is_replica and cluster.standing is Standing.SERVING

    def of_read(self, key: str, read: Read) -> Answer:
        """Show what was read: 200, or 404 if that is nothing."""
        token = self._token(read.payload)
        stale = not (read.fresh and self._serving)
        if read.version is None:
            message = f"no such key: {key!r}"
            return self._answer(404, {"result": "error", "msg": message}, token, stale)
        assert read.version.value is not None, "a tombstone is not shown"
        fields: dict[str, object] = {
            "result": "success",
            "value": msgspec.Raw(read.version.value),
            **self._fields(read.version, token),
        }
        return self._answer(200, fields, token, stale)

    def of_write(self, written: Written, *, unread: VersionVector) -> Answer:
        """
        Tell of a write: 201 for a new value; 200 for one that replaces or a delete.

        :param unread: the client's payload, if it could not be read in full: the write
            does not come after it, which is flagged; its client still does.
        """
        vector, lamport = written.payload
        version = written.version
        token = self._token(Payload(join(vector, unread), lamport))
        fields: dict[str, object] = {
            "result": "success",
            **self._fields(version, token),
        }
        created = written.created and version.value is not None
        stale = bool(unread) or not self._serving
        dot = ("KVS-Dot", f"{version.actor}:{version.counter}")
        return self._answer(201 if created else 200, fields, token, stale, dot)

    def read_payload(self, payload: Payload) -> Payload:
        """
        Read a payload in which retired actors may be one marker (R20).

        A marker that is not known here stays: reads wait for it as for a write that is
        missing, and a write cannot say what it comes after.
        """
        vector = self._cluster.replica.durable.retired.unpack(payload.vector)
        return Payload(vector, payload.lamport)

    def _token(self, payload: Payload) -> str:
        retired = self._cluster.replica.durable.retired
        vector = retired.pack(payload.vector, self._cluster.shared_generation)
        return self._payloads.encode(Payload(vector, payload.lamport))

    def _fields(self, version: Version, token: str) -> dict[str, object]:
        return {
            "node_id": self._cluster.view.numbers.get(version.origin, 0),
            "causal_payload": token,
            "timestamp": f"{version.ts // 1_000_000}.{version.ts % 1_000_000:06d}",
        }

    def _answer(
        self,
        status: int,
        fields: dict[str, object],
        token: str,
        stale: bool,
        *more: tuple[str, str],
    ) -> Answer:
        headers = []
        if len(token) <= self._cluster.settings.payload_header_sent_bytes_max:
            headers.append(("KVS-Causal-Payload", token))
        if stale:
            self.stale += 1
            headers.append(("KVS-Stale", "true"))
        return Answer(status, msgspec.json.encode(fields), (*headers, *more))
