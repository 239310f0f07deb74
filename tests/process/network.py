"""
A network between nodes that can be cut, pair by pair, without any rights on the system.

Each node's ``ip:port`` is a relay's, which passes on to where the node really listens.
What is sent over a link that is cut waits until it is healed, as with packets that TCP
sends again, or until the sender has given the connection up; so nothing is refused and
nothing answers.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Coroutine, Mapping
from contextlib import closing, suppress
from threading import Thread

from .harness import POLL_S

SENDER = re.compile(rb"\r\nkvs-peer: v\d+ (\S+)", re.IGNORECASE)
"""Nodes say who they are in the head of every request."""
HEAD_BYTES_MAX = 64 * 1024


class Network:
    """Relays in a thread of their own."""

    def __init__(self, routes: Mapping[str, str]) -> None:
        """
        Prepare; ``start`` opens the ports.

        :param routes: from the name of each node to the address where it listens.
        """
        self._routes = routes
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, daemon=True)
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._side: Mapping[str, int] = {}
        self.held = 0
        """Pieces that had to wait: whether a cut did anything."""

    def start(self) -> None:
        """Open the ports."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(5)

    def stop(self) -> None:
        """Close everything."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def cut(self, *sides: Collection[str]) -> None:
        """Let nodes reach those on their own side only."""
        self._side = {name: n for n, side in enumerate(sides) for name in side}

    def heal(self) -> None:
        """Let all reach all."""
        self._side = {}

    async def _listen(self) -> None:
        for name in self._routes:
            host, port = name.split(":")

            def accept(
                reader: asyncio.StreamReader,
                writer: asyncio.StreamWriter,
                receiver: str = name,
            ) -> None:
                self._spawn(self._relay(reader, writer, receiver))

            server = await asyncio.start_server(accept, host, int(port))
            self._servers.append(server)

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        # What was just accepted becomes a task in the next turn.
        await asyncio.sleep(POLL_S)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _relay(
        self, near: asyncio.StreamReader, back: asyncio.StreamWriter, receiver: str
    ) -> None:
        """Pass one connection on, both ways, until either end closes."""
        with suppress(OSError), closing(back):
            head = b""
            while not (found := SENDER.search(head)):
                more = await near.read(HEAD_BYTES_MAX)
                head += more
                if not more or len(head) > HEAD_BYTES_MAX:
                    return
            link = (found[1].decode(), receiver)
            if not await self._passes(link, near):
                return
            host, port = self._routes[receiver].split(":")
            far, forth = await asyncio.open_connection(host, int(port))
            forth.write(head)
            pumps = [
                self._spawn(self._pump(link, near, forth)),
                self._spawn(self._pump(link, far, back)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            forth.close()

    async def _pump(
        self,
        link: tuple[str, str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(HEAD_BYTES_MAX):
                if not await self._passes(link, reader):
                    return
                writer.write(data)
                await writer.drain()

    async def _passes(
        self, link: tuple[str, str], sender: asyncio.StreamReader
    ) -> bool:
        """Wait as long as this link is cut; False if the sender does not."""
        if self._is_cut(link):
            self.held += 1
        while self._is_cut(link):
            await asyncio.sleep(POLL_S)
            if sender.at_eof() or sender.exception():
                return False
        return True

    def _is_cut(self, link: tuple[str, str]) -> bool:
        side = self._side
        return side.get(link[0]) != side.get(link[1])
