"""
``twistd kvs`` and ``twist kvs``: options in, one service out.

Invariant: loading this module imports neither the reactor nor Klein, since Twisted
loads it to read options; ``makeService`` does, and builds everything.
"""

from __future__ import annotations

import gc
import random
import secrets
import signal
import socket
import time
from contextlib import closing
from functools import partial
from typing import cast

from twisted.application import strports
from twisted.application.service import IService
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import (
    IReactorCore,
    IReactorFromThreads,
    IReactorTCP,
    IReactorTime,
)

from .core.codec import Codec
from .core.errors import BadConfiguration, KVSError, StoreRefused
from .core.names import split_name
from .core.payload import PayloadCodec
from .core.view import View
from .descriptors import fit_connections
from .first_process import die_of_signals_as_others
from .logs import LoggedService, find_observer
from .options import Configuration, Options, default_interface, endpoint
from .services import (
    ANSWER_S,
    GossipService,
    KVSService,
    NodeService,
    StoreService,
    end_process,
    not_usable,
    one_line,
    start_line,
)
from .signing import Signer
from .storage.api import Storage

__all__ = ["Options", "makeService"]

_NO_SECRET = (
    "KVS_SECRET is not set: the well-known secret stops accidents, not attackers"  # noqa: S105 - no secret
)


class INodeReactor(IReactorCore, IReactorTime, IReactorTCP, IReactorFromThreads):
    """What a node needs of a reactor."""


def makeService(options: Options) -> IService:
    """
    Build a node that starts when its service does.

    :raises SystemExit: with one line, if the data directory must not be used, or the
        node cannot listen where it should.
    """
    from twisted.internet import reactor

    # Twisted times by the wall clock: set back by an hour, it would make every interval
    # and limit an hour longer.  Nothing is scheduled yet.
    vars(reactor)["seconds"] = time.monotonic
    running = cast(INodeReactor, reactor)
    # What was made by the start stays: looking through it for garbage, again and again,
    # takes 7 % of a durable write.
    running.callWhenRunning(gc.freeze)
    die_of_signals_as_others()
    try:
        service = node_service(options.configuration, running)
        observer = find_observer(
            options.configuration.log,
            getattr(options, "parent", None),
            call_later=running.callFromThread,
        )
        # Twisted would stop a second time, which is an error, with a traceback.
        running.addSystemEventTrigger(
            "before", "shutdown", _hurry_on_signals, service, running
        )
        logged = LoggedService(observer)
        service.setServiceParent(logged)
        return logged
    except (KVSError, OSError) as error:
        raise SystemExit(f"kvs: {one_line(error)}") from None


def node_service(configuration: Configuration, reactor: INodeReactor) -> KVSService:
    """
    Build a node; nothing is opened yet, what can be checked is.

    :raises KVSError: if something would keep it from starting.
    """
    # These import Klein, which installs a reactor.
    from .metrics import TurnProbe
    from .node import Node
    from .peers import TreqTransport
    from .web.peer_gate import PeerGate
    from .web.root import make_port

    me, settings = configuration.me, fit_connections(configuration.settings)
    listen = _listen(configuration, reactor)
    storage = _storage(configuration, reactor)
    rng = random.Random(secrets.randbits(256))
    boot_id = secrets.randbits(64)
    signer = Signer(me=me, boot_id=boot_id, keys=configuration.secrets.peer_keys)
    codec = Codec()
    gate = PeerGate(signer=signer, codec=codec, clock=reactor)
    transport = TreqTransport(reactor, signer=signer, codec=codec, settings=settings)
    node = Node(
        me=me,
        settings=settings,
        storage=storage,
        transport=transport,
        payloads=PayloadCodec(configuration.secrets),
        clock=reactor,
        wall_us=wall_us,
        rng=rng,
        boot_id=boot_id,
        first_view=View.start(configuration.first_view),
        replica_count=configuration.replica_count,
        fatal=end_process,
    )
    turns = TurnProbe(reactor)
    site = make_port(
        node,
        gate=gate,
        traffic=(transport.traffic, gate.traffic),
        turns=turns,
        reactor=reactor,
    )
    site.tells_requests = configuration.log.requests
    store = StoreService(storage)
    line = start_line(
        me=me,
        listen=listen,
        directory=configuration.directory,
        replica_count=configuration.replica_count,
        first_view=configuration.first_view,
    )
    warnings = [_NO_SECRET] if configuration.secrets.is_default else []
    warnings += [f"{name} is set and means nothing" for name in configuration.unknown]
    return KVSService(
        store=store,
        port=strports.service(listen, site, reactor),
        listen_given=_listen_given(configuration),
        directory_given=_directory_given(configuration),
        node=NodeService(node, store, start_line=line, warnings=warnings),
        gossip=GossipService(
            node.gossip_round,
            clock=reactor,
            rng=rng,
            interval_s=settings.gossip_interval_s,
            jitter=settings.gossip_jitter,
        ),
        turns=turns,
        close_connections=partial(site.close, grace_s=ANSWER_S),
        close_transport=transport.close,
        leave=site.drain,
        drain_s=configuration.drain_s,
        clock=reactor,
    )


def _hurry_on_signals(service: KVSService, reactor: INodeReactor) -> None:
    """Let who tells a node again to stop wait no longer than it takes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: reactor.callFromThread(service.hurry))


def wall_us() -> int:
    """Tell the wall clock, microseconds since the epoch."""
    return time.time_ns() // 1000


def _storage(configuration: Configuration, reactor: INodeReactor) -> Storage:
    """Check the directory before a daemon forks; what is opened survives no fork."""
    if configuration.directory is None:
        from .storage.memory import MemoryStorage

        return MemoryStorage()
    from .storage.sqlite import SqliteStorage, check_directory
    from .storage.thread import StoreThread

    fingerprints = configuration.secrets.fingerprints
    try:
        check_directory(
            configuration.directory, name=configuration.me, fingerprints=fingerprints
        )
    except StoreRefused as error:
        given = _directory_given(configuration)
        raise BadConfiguration(not_usable(given, error)) from None
    return SqliteStorage(
        configuration.directory,
        name=configuration.me,
        fingerprints=fingerprints,
        thread=StoreThread(reactor),
        clock=reactor,
    )


def _directory_given(configuration: Configuration) -> str:
    return f"KVS_DATA_DIR (--data-dir): got {configuration.directory!r}"


def _listen_given(configuration: Configuration) -> str:
    if configuration.listen is None:
        return f"IPPORT (--ipport): got {configuration.me}"
    return f"KVS_LISTEN (--listen): got {configuration.listen!r}"


def _listen(configuration: Configuration, reactor: INodeReactor) -> str:
    """
    Choose the endpoint, and try it as far as that leaves no trace.

    A daemon that cannot listen could only say so in its log.
    """
    listen = configuration.listen
    if listen is not None:
        try:
            serverFromString(reactor, listen)
        except Exception as error:
            raise BadConfiguration(
                f"KVS_LISTEN (--listen): got {listen!r} ({one_line(error)}), want a "
                "Twisted server endpoint such as tcp:8080"
            ) from None
        return listen
    _, port = split_name(configuration.me)
    interface = default_interface(configuration.me, has_ipv6=_has_ipv6())
    family = socket.AF_INET6 if ":" in interface else socket.AF_INET
    try:
        with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
            # As Twisted will: what was just closed does not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((interface, port))
            probe.listen(1)
    except OSError as error:
        raise BadConfiguration(
            f"IPPORT (--ipport): got {configuration.me}, but {interface or '*'} port "
            f"{port} cannot be listened on ({error.strerror}), want a free one"
        ) from None
    return endpoint(interface, port)


def _has_ipv6() -> bool:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True
