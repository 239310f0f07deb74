"""
The ``kvs`` command: ask a node, or try a cluster.

Invariant: what goes wrong is one line on standard error and an exit status that is not
0; standard output holds nothing but what was asked for.
"""

from __future__ import annotations

import json
import math
import secrets
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import Protocol, TypeVar, cast

import click
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import react
from twisted.python.failure import Failure
from twisted.web.client import Agent, FileBodyProducer
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IResponse

from .client import KVSClient, NoNodeReached
from .core.errors import BadPayload, KVSError, NotFound
from .demo import DEMO_NODES, DEMO_PORT, DEMO_REPLICAS, NODES_MAX, Plan, run_demo
from .simulation.faults import FAULTS
from .status_table import status_table

NODES_DEFAULT = ",".join(
    f"127.0.0.1:{port}" for port in (8080, *range(DEMO_PORT, DEMO_PORT + DEMO_NODES))
)
"""A node that was started with no configuration, else those of the demo."""
CONNECT_S = 0.5
PAYLOAD_FILE_BYTES_MAX = 2**20
"""Read of a file that keeps a payload, which has at most 64 KiB."""

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


class AgentRequests:
    """Sends by Twisted's own agent: treq takes no IPv6 address in a URL."""

    def __init__(self, agent: IAgent) -> None:
        """Send by ``agent``."""
        self._agent = agent

    def request(
        self,
        method: str,
        url: str,
        *,
        data: bytes | None,
        headers: Headers,
        unbuffered: bool,
    ) -> Deferred[IResponse]:
        """Send one request; its answer is never buffered."""
        assert unbuffered
        body = None if data is None else FileBodyProducer(BytesIO(data))
        return self._agent.request(method.encode(), url.encode(), headers, body)


def http_client(nodes: Sequence[str], reactor: IReactorTime) -> KVSClient:
    """Make a client that asks over real connections."""
    requests = AgentRequests(Agent(reactor, connectTimeout=CONNECT_S))
    return KVSClient(nodes, requests, clock=reactor)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except NoNodeReached as error:
        hint = "; say where one is with --node or KVS_NODE"
        raise click.ClickException(str(error) + hint) from None
    except BrokenPipeError:
        # Nobody reads on: click ends without a word, as others do.
        raise
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
            # As bytes: of texts click takes away what colours them, when no terminal
            # reads it, and a value is printed as it was written.
            click.echo(_in_session(ask, nodes, payload_file, work).encode())
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
@click.argument("key")
@_node_option
@_payload_option
@_json_option
@click.pass_obj
def delete(
    ask: Ask, key: str, nodes: str, payload_file: Path | None, as_json: bool
) -> None:
    """Delete KEY, whatever its value."""
    with _one_line_errors():

        async def work(client: KVSClient) -> str:
            deleted = await client.delete(key)
            return json.dumps(asdict(deleted)) if as_json else "deleted"

        try:
            click.echo(_in_session(ask, nodes, payload_file, work))
        except NotFound:
            raise click.ClickException(f"no value for {key!r}") from None


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
        client.payload = before = _kept_payload(payload_file)
        try:
            return await work(client)
        finally:
            if client.payload != before:
                payload_file.write_text(client.payload + "\n", "utf-8")

    return ask(nodes.split(","), with_payload)


def _kept_payload(payload_file: Path) -> str:
    """
    Read a file that keeps a payload; make it, if it is not there.

    :raises OSError: if it cannot be written, either: a change that was made and then
        not remembered would not be seen by the next command.
    :raises BadPayload: if it is no text.
    """
    with payload_file.open("a+b") as file:
        file.seek(0)
        kept = file.read(PAYLOAD_FILE_BYTES_MAX)
    try:
        return kept.decode().strip()
    except UnicodeDecodeError:
        raise BadPayload(f"{payload_file} does not keep a payload") from None


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


_fault_choice = click.Choice(tuple(FAULTS))


@main.command()
@click.option(
    "--runs",
    type=click.IntRange(1),
    help="How many histories.  [default: 1000, or as many as --minutes allow]",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    help="Of the first history, the next ones take the next numbers.  [default: drawn]",
)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Stop then.")
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="How many processes.",
)
@click.option("--only", multiple=True, type=_fault_choice, help="Only this fault.")
@click.option("--without", multiple=True, type=_fault_choice, help="Not this fault.")
@click.option("--no-faults", is_flag=True, help="Clients alone, in good weather.")
@click.option("--faults", "list_faults", is_flag=True, help="List the faults and end.")
@click.option(
    "--trace",
    "trace_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where all that happened in a history goes that broke a promise.",
)
def simulate(
    runs: int | None,
    minutes: float | None,
    jobs: int,
    trace_file: Path | None,
    **chosen: object,
) -> None:
    """
    Run whole clusters in virtual time, with every fault, and check all promises.

    The nodes are real, their clocks, disks and network are simulated.  A seed decides
    everything: the same seed is the same history.  Ends with status 1 at the first
    history in which a promise is broken, after looking for a shorter one.
    """
    if minutes is not None and math.isnan(minutes):
        raise click.BadParameter("nan is no number", param_hint="--minutes")
    # Late, as other commands should not load whole nodes.
    from .simulation.report import fault_lines, summary, violation
    from .simulation.runner import INTERRUPTED, Order, explain, run_all

    if chosen["list_faults"]:
        click.echo("\n".join(fault_lines()))
        return
    seed = chosen["seed"]
    order = Order(
        seed=secrets.randbelow(10**9) if seed is None else cast(int, seed),
        runs=1000 if runs is None and minutes is None else runs,
        seconds=None if minutes is None else 60 * minutes,
        jobs=jobs,
        faults=_allowed(chosen),
    )
    if trace_file is not None:
        # Now, and not when hours have been spent.
        _write(trace_file, "")
    click.echo(f"seed {order.seed}")
    result = run_all(order, lambda line: click.echo(line, err=True))
    click.echo("\n".join(summary(result)))
    for broken in result.broken[:1]:
        seed, checker = broken.plan.seed, broken.checker
        click.echo(
            f"\nseed {seed} breaks a promise ({checker}): looking for a shorter one",
            err=True,
        )
        shorter, trace = explain(broken)
        click.echo("\n" + "\n".join(violation(shorter, trace, order)))
        if trace_file is not None:
            _write(trace_file, "\n".join(trace) + "\n")
        sys.exit(1)
    if trace_file is not None:
        trace_file.unlink()
    if result.interrupted:
        sys.exit(INTERRUPTED)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise click.BadParameter(
            f"{path}: {error.strerror}", param_hint="--trace"
        ) from None


def _allowed(chosen: dict[str, object]) -> tuple[str, ...]:
    """Choose the faults that may be drawn, in the order of their table."""
    only = cast("tuple[str, ...]", chosen["only"]) or tuple(FAULTS)
    without = cast("tuple[str, ...]", chosen["without"])
    if chosen["no_faults"]:
        if chosen["only"] or without:
            raise click.UsageError("--no-faults leaves none to choose from")
        return ()
    allowed = tuple(name for name in FAULTS if name in only and name not in without)
    if chosen["only"] and not allowed:
        raise click.UsageError("--only and --without leave no fault")
    return allowed
