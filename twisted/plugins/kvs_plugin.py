"""Makes ``twistd kvs`` and ``twist kvs`` known to Twisted."""

from __future__ import annotations

from twisted.application.service import ServiceMaker

kvs = ServiceMaker(
    "kvs",
    "twisted_kvs.tap",
    "A distributed, always available, eventually consistent key-value store.",
    "kvs",
)
