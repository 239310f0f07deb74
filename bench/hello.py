"""
The reference: Klein's own hello world, without an access log.

A process of its own: ``python -m bench.hello HOST PORT``.
"""

from __future__ import annotations

import sys
from typing import cast

from klein import Klein
from twisted.internet import reactor
from twisted.internet.interfaces import IReactorCore, IReactorTCP
from twisted.web.http import Request
from twisted.web.iweb import IRequest
from twisted.web.server import Site


class Hello:
    """The application of Klein's first page of documentation."""

    app = Klein()

    @app.route("/")
    def home(self, request: IRequest) -> str:
        """Greet."""
        return "Hello, world!"


class QuietSite(Site):
    """A site that writes no access log: that alone costs a quarter."""

    def log(self, request: Request) -> None:
        """Log nothing."""


class _Reactor(IReactorCore, IReactorTCP):
    """What is needed of it."""


def main() -> None:
    """Serve until killed."""
    host, port = sys.argv[1], int(sys.argv[2])
    installed = cast(_Reactor, reactor)
    site = QuietSite(Hello().app.resource())
    installed.listenTCP(port, site, interface=host)  # type: ignore[arg-type] # a Site
    installed.run()


if __name__ == "__main__":
    main()
