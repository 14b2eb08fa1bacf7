"""A TCP proxy on loopback that causes the faults of a network.

async with RoughProxy(server.port).serving() as proxy, scene.relay(NATS_URL=proxy.nats_url):
    await proxy.cut_after(Way.DOWN, 100)
"""

import asyncio
import contextlib
import enum
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

from relay.local.facilitator import PATH

_CHUNK_BYTES = 65536
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)
"""With this SO_LINGER, closing a socket sends RST instead of FIN."""


def port_of(url: str) -> int:
    """The port in a URL."""
    port = urlsplit(url).port
    assert port is not None
    return port


class Way(enum.Enum):
    UP = enum.auto()  # from the client to the server
    DOWN = enum.auto()


@dataclass(eq=False)
class _Link:
    """One client's connection, and the connection to the server that belongs to it."""

    ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    passing: list[asyncio.Task[None]] = field(default_factory=list)
    silent: bool = False

    def end(self, *, reset: bool) -> None:
        for end in self.ends:
            if reset:
                its_socket = end.get_extra_info("socket")
                if its_socket.fileno() >= 0:  # else it has just ended
                    its_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
                end.transport.abort()
            else:
                end.close()


@dataclass(eq=False)
class _Cut:
    """A cut that lets `left_bytes` more through, then ends the connection."""

    left_bytes: int
    reset: bool
    made: asyncio.Event = field(default_factory=asyncio.Event)


class RoughProxy:
    """Passes bytes between its clients and a port of this machine.

    target_port: may be changed until the first client connects.
    slice_bytes: how many bytes are passed at a time, each slice in a segment of its own.
    delay_s: how long each chunk is held; chunks in one direction wait for each other.
    edit: changes what clients send. It gets chunks as they come, whatever the protocol.
    """

    def __init__(
        self,
        target_port: int,
        *,
        slice_bytes: int = _CHUNK_BYTES,
        delay_s: float = 0.0,
        edit: Callable[[bytes], bytes] = lambda sent: sent,
    ) -> None:
        self.target_port = target_port
        self.edit = edit
        self.port = 0
        self.connections = 0
        """Connections made so far, open or not."""
        self._slice_bytes = slice_bytes
        self._delay_s = delay_s
        self._cuts: dict[Way, _Cut] = {}
        self._links: dict[_Link, asyncio.Task[None]] = {}
        self._joined = asyncio.Condition()
        self._passable = asyncio.Event()
        self._passable.set()

    @property
    def nats_url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def facilitator_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}{PATH}"

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Self]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            joined = list(self._links.values())
            for task in joined:
                task.cancel()
            await asyncio.gather(*joined, return_exceptions=True)

    async def joined(self, connections: int) -> None:
        """Wait until this many connections have been made."""
        async with self._joined:
            await self._joined.wait_for(lambda: self.connections >= connections)

    def cut(self, *, reset: bool = False) -> None:
        """End every open connection: with FIN, or with RST."""
        for link in self._links:
            link.end(reset=reset)

    async def cut_after(self, way: Way, count: int, *, reset: bool = False) -> None:
        """Pass `count` more bytes one way, then end the connection that carried the last; returns when it has ended."""
        cut = self._cuts[way] = _Cut(count, reset)
        await cut.made.wait()

    def go_silent(self) -> None:
        """Pass nothing more on the open connections, and leave them open, like a peer that has vanished."""
        for link in self._links:
            link.silent = True
            for task in link.passing:
                task.cancel()

    def hold(self) -> None:
        """Pass nothing, also on new connections, until `release`: a network that is interrupted.

        Nothing is lost if both sides wait long enough, as with a real network.
        """
        self._passable.clear()

    def release(self) -> None:
        """Pass again, beginning with what was held."""
        self._passable.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self._joined:
            self.connections += 1
            self._joined.notify_all()
        await self._passable.wait()
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:  # the server does not listen, so the client's connection fails as well
            writer.transport.abort()
            return
        link = _Link((writer, server_writer))
        link.passing = [
            asyncio.create_task(self._pass(link, reader, server_writer, Way.UP)),
            asyncio.create_task(self._pass(link, server_reader, writer, Way.DOWN)),
        ]
        self._links[link] = asyncio.create_task(self._see_to_the_end(link))

    async def _see_to_the_end(self, link: _Link) -> None:
        try:
            await asyncio.wait(link.passing, return_when=asyncio.FIRST_COMPLETED)
            if link.silent:
                await asyncio.Event().wait()  # until the proxy stops
            link.end(reset=False)
            await asyncio.gather(*(end.wait_closed() for end in link.ends), return_exceptions=True)
        finally:
            del self._links[link]
            for task in link.passing:
                task.cancel()
            for end in link.ends:
                end.transport.abort()

    async def _pass(self, link: _Link, source: asyncio.StreamReader, sink: asyncio.StreamWriter, way: Way) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await source.read(_CHUNK_BYTES):
                await self._passable.wait()
                if way is Way.UP:
                    chunk = self.edit(chunk)
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                cut = self._cuts.get(way)
                await self._write(sink, chunk if cut is None else chunk[: cut.left_bytes])
                if cut is not None:
                    self._count_down(cut, way, len(chunk), link)

    def _count_down(self, cut: _Cut, way: Way, passed_bytes: int, link: _Link) -> None:
        cut.left_bytes -= passed_bytes
        if cut.left_bytes <= 0:
            del self._cuts[way]
            link.end(reset=cut.reset)
            cut.made.set()

    async def _write(self, sink: asyncio.StreamWriter, chunk: bytes) -> None:
        for start in range(0, len(chunk), self._slice_bytes):
            sink.write(chunk[start : start + self._slice_bytes])
            await sink.drain()
            if len(chunk) > self._slice_bytes:
                # Yield twice to the event loop, so that a reader in this process sees each slice by itself.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
