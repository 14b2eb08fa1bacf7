"""What the peers that wait for each update's reply share: one WebSocket on which several updates wait at once."""

import asyncio
import json
import os
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from websockets.asyncio.client import ClientConnection, connect

WINDOW: Final = 32
"""How many unanswered updates the Facilitator allows a connection."""


class Facilitator:
    """One connection; replies come in the order of the updates."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def forward(self, update: bytes) -> None:
        """Send one update and wait for its reply; raises ConnectionClosed if the connection is lost."""
        reply = asyncio.get_running_loop().create_future()
        self._waiting.append(reply)
        await self._socket.send(update, text=True)
        await reply

    async def read_replies(self) -> None:
        """Run as long as the connection lives; raises RuntimeError for a refusal, which the sink never sends."""
        async for reply in self._socket:
            if json.loads(reply)["status"] != "success":
                raise RuntimeError(f"the sink refused an update: {reply!r}")
            answered = self._waiting.popleft()
            if not answered.done():  # done means that its handler was cancelled because the process is being stopped
                answered.set_result(None)


@asynccontextmanager
async def connected() -> AsyncIterator[Facilitator]:
    """A connection to the sink, authenticated, whose replies are read until the end of the block."""
    async with (
        connect(os.environ["BENCH_FACILITATOR_URL"], compression=None, proxy=None) as socket,
        asyncio.TaskGroup() as group,
    ):
        await socket.send("{}")
        await socket.recv()
        facilitator = Facilitator(socket)
        reading = group.create_task(facilitator.read_replies())
        yield facilitator
        reading.cancel()
