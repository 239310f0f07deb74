"""
The ``kvs`` command: ask a node, or try a cluster.

Invariant: what goes wrong is one line on standard error and an exit status that is not
0; standard output holds nothing but what was asked for.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol, TypeVar, cast

import click
from treq.client import HTTPClient
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import react
from twisted.python.failure import Failure
from twisted.web.client import Agent

from .client import KVSClient, NoNodeReached, Requests
from .core.errors import KVSError, NotFound
from .demo import DEMO_NODES, DEMO_PORT, DEMO_REPLICAS, NODES_MAX, Plan, run_demo
from .status_table import status_table

NODES_DEFAULT = ",".join(
    f"127.0.0.1:{port}" for port in (8080, *range(DEMO_PORT, DEMO_PORT + DEMO_NODES))
)
"""A node that was started with no configuration, else those of the demo."""
CONNECT_S = 0.5

_T = TypeVar("_T")


class Ask(Protocol):
    """How commands reach nodes; tests bring their own."""

    def __call__(
        self, nodes: Sequence[str], work: Callable[[KVSClient], Awaitable[_T]]
    ) -> _T:
        """
        Let ``work`` use a client of these nodes, and give what it gives.

        :raises KVSError: what ``work`` raises.
        """


def ask_over_http(
    nodes: Sequence[str], work: Callable[[KVSClient], Awaitable[_T]]
) -> _T:
    """Run a reactor for as long as ``work`` takes."""
    outcome: list[_T | Failure] = []

    async def main(reactor: IReactorTime) -> None:
        try:
            outcome.append(await work(http_client(nodes, reactor)))
        except Exception:
            outcome.append(Failure())

    def begin(reactor: object) -> Deferred[None]:
        return ensureDeferred(main(cast(IReactorTime, reactor)))

    try:
        react(begin)
    except SystemExit:
        # The outcome says more than its status; without one it was interrupted.
        if not outcome:
            raise click.Abort from None
    if isinstance(outcome[0], Failure):
        outcome[0].raiseException()
    return outcome[0]


def http_client(nodes: Sequence[str], reactor: IReactorTime) -> KVSClient:
    """Make a client that asks over real connections."""
    client = HTTPClient(Agent(reactor, connectTimeout=CONNECT_S))
    # Its annotations hide that what it gives are responses.
    return KVSClient(nodes, cast(Requests, client), clock=reactor)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except NoNodeReached as error:
        hint = "; say where one is with --node or KVS_NODE"
        raise click.ClickException(str(error) + hint) from None
    except (KVSError, OSError) as error:
        raise click.ClickException(" ".join(str(error).split())) from None


_node_option = click.option(
    "--node",
    "nodes",
    envvar="KVS_NODE",
    metavar="IP:PORT",
    default=NODES_DEFAULT,
    show_default="127.0.0.1:8080, else the demo's",
    show_envvar=True,
    help="The node to ask, or several with commas between: the first that answers.",
)
_payload_option = click.option(
    "--payload",
    "payload_file",
    envvar="KVS_PAYLOAD_FILE",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    show_envvar=True,
    help="Keeps what was read and written so far, so that this command sees and "
    "follows what earlier ones with the same file saw.  Made if it is not there.",
)
_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print everything, as JSON."
)


def _version() -> str:
    try:
        return version("twisted-kvs")
    except PackageNotFoundError:
        return "of a checkout that is not installed"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(_version(), prog_name="kvs")
@click.pass_context
def main(context: click.Context) -> None:
    """
    A distributed, always available, eventually consistent key-value store.

    Try a cluster on this machine with "kvs demo"; start a node of your own with
    "twistd --nodaemon --pidfile= kvs".
    """
    if context.obj is None:
        context.obj = ask_over_http


@main.command()
@click.argument("key")
@_node_option
@_payload_option
@_json_option
@click.pass_obj
def get(
    ask: Ask, key: str, nodes: str, payload_file: Path | None, as_json: bool
) -> None:
    """Print the value of KEY."""
    with _one_line_errors():

        async def work(client: KVSClient) -> str:
            found = await client.get(key)
            if found.stale:
                click.echo("kvs: perhaps not the newest: the node lags", err=True)
            if as_json:
                return json.dumps(asdict(found), ensure_ascii=False)
            value = found.value
            return value if isinstance(value, str) else json.dumps(value)

        try:
            click.echo(_in_session(ask, nodes, payload_file, work))
        except NotFound:
            raise click.ClickException(f"no value for {key!r}") from None


@main.command()
@click.argument("key")
@click.argument("value")
@_node_option
@_payload_option
@_json_option
@click.pass_obj
def put(
    ask: Ask,
    key: str,
    value: str,
    nodes: str,
    payload_file: Path | None,
    as_json: bool,
) -> None:
    """Write VALUE under KEY."""
    with _one_line_errors():

        async def work(client: KVSClient) -> str:
            stored = await client.put(key, value)
            if as_json:
                return json.dumps(asdict(stored))
            return "created" if stored.created else "replaced"

        click.echo(_in_session(ask, nodes, payload_file, work))


@main.command()
@_node_option
@_json_option
@click.pass_obj
def status(ask: Ask, nodes: str, as_json: bool) -> None:
    """Show a node, its view, and how far its peers are behind."""
    with _one_line_errors():
        answer = ask(nodes.split(","), lambda client: client.status())
        click.echo(json.dumps(answer, indent=2) if as_json else status_table(answer))


def _in_session(
    ask: Ask,
    nodes: str,
    payload_file: Path | None,
    work: Callable[[KVSClient], Awaitable[_T]],
) -> _T:
    """Let the payload come from the file and go back to it, after a 404 too."""

    async def with_payload(client: KVSClient) -> _T:
        if payload_file is None:
            return await work(client)
        if payload_file.exists():
            client.payload = payload_file.read_text("utf-8").strip()
        before = client.payload
        try:
            return await work(client)
        finally:
            if client.payload != before:
                payload_file.write_text(client.payload + "\n", "utf-8")

    return ask(nodes.split(","), with_payload)


@main.command()
@click.option(
    "--nodes",
    "count",
    type=click.IntRange(1, NODES_MAX),
    default=DEMO_NODES,
    show_default=True,
    help="How many nodes.",
)
@click.option(
    "--replicas",
    type=click.IntRange(1, NODES_MAX),
    default=DEMO_REPLICAS,
    show_default=True,
    help="K: how many of them keep the data; the others forward.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=DEMO_PORT,
    show_default=True,
    help="Of the first node; the others take the next ones.",
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where data and logs stay.  [default: a directory that is removed at the end]",
)
def demo(count: int, replicas: int, port: int, data_dir: Path | None) -> None:
    """
    Run a cluster on this machine until Ctrl-C.

    Prints where its nodes listen, what to try, and what becomes of them: kill some.
    """
    if port + count - 1 > 65535:
        raise click.UsageError(f"--port {port} leaves no room for {count} nodes")
    plan = Plan(nodes=count, replicas=replicas, port=port, directory=data_dir)
    with _one_line_errors():
        sys.exit(run_demo(plan, client_of=http_client, echo=click.echo))
