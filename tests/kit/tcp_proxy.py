"""A TCP proxy that can misbehave."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

_CHUNK_BYTES = 65536


class TcpProxy:
    """Passes bytes between clients and a port.

    `edit` changes what clients send. `freeze` acts like a peer that vanishes without closing its connections.
    """

    def __init__(self, target_port: int, edit: Callable[[bytes], bytes] = lambda sent: sent) -> None:
        self.target_port = target_port
        self.edit = edit
        self.port = 0
        self.connections = 0
        self._upstream: set[asyncio.Task[None]] = set()
        self._connections: set[asyncio.Task[None]] = set()
        self._clients: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def freeze(self) -> None:
        """Read nothing more from the clients that are connected now, and leave their sockets open."""
        for task in self._upstream:
            task.cancel()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["TcpProxy"]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=_CHUNK_BYTES)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
            for client in self._clients:  # also one whose task was cancelled before it began
                client.transport.abort()
            await asyncio.sleep(0)  # the event loop closes what was aborted

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._clients.add(writer)
        self._connections.add(asyncio.create_task(self._join(reader, writer)))

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        upstream = asyncio.create_task(_pass(reader, server_writer, self.edit))
        self._upstream.add(upstream)
        try:
            await _pass(server_reader, writer, lambda sent: sent)
        finally:
            upstream.cancel()
            server_writer.transport.abort()
            writer.transport.abort()


async def _pass(source: asyncio.StreamReader, sink: asyncio.StreamWriter, edit: Callable[[bytes], bytes]) -> None:
    with contextlib.suppress(ConnectionError):
        while chunk := await source.read(_CHUNK_BYTES):
            sink.write(edit(chunk))
            await sink.drain()
        # When one side ends its stream, close the connection to the other.
        sink.close()
