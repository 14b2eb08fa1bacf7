"""TCP servers of a test, which leave no connection behind when it ends, and ports for other servers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from relay.local.server import reserve_port

Converse = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def tcp_server(converse: Converse, host: str = "127.0.0.1", port: int = 0, **options: Any) -> AsyncIterator[int]:
    """The port of a server that runs `converse` for each connection, and then closes it.

    At the end conversations that still go on are cancelled. `options` are those of `asyncio.start_server`.
    """
    conversations: set[asyncio.Task[Any] | None] = set()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversations.add(asyncio.current_task())
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await converse(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async with await asyncio.start_server(take, host, port, **options) as server:
        yield server.sockets[0].getsockname()[1]
    going_on = [each for each in conversations if each is not None]
    for each in going_on:
        each.cancel()
    await asyncio.gather(*going_on, return_exceptions=True)


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A port of 127.0.0.1 for a server that asks for it; meanwhile nobody gets it who asks for any free port."""
    with reserve_port() as reserved:
        yield reserved.getsockname()[1]
