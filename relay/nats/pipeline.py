"""Many requests over one connection, for what is limited by what a request costs.

The client's own `request` spends more on a request than nats-server does: a random token, a timer and a task of its
own to wait in. Here the answers come to one inbox, each under the number of its request. Where many are under way
their answers are given out some at a time, and what is asked then is sent before the next ones: so the server has
work while we have, too.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from typing import Final
from urllib.parse import ParseResult

import msgspec
import nats.errors

from relay.nats.frames import FrameClient, publication

_MANY: Final = 64
"""With more than this under way, answers are gathered before they are given out; else each is at once."""
_GATHER_S: Final = 0.005
"""How long."""
_AT_A_TIME: Final = 128
"""So many answers are given out before what is asked then is sent."""
_LOOK_EVERY_S: Final = 0.1
"""How often to look for requests that wait for too long."""
_NO_RESPONDERS: Final = b"NATS/1.0 503"


class _Answer(msgspec.Struct, frozen=True):
    data: bytes


_Waiting = asyncio.Future[_Answer]


@contextlib.asynccontextmanager
async def pipelined(client: FrameClient) -> AsyncGenerator["Pipeline"]:
    """A pipeline over the connection of `client`, which can be used otherwise meanwhile."""
    pipeline = Pipeline(client)
    subscription = await client.listen(f"{pipeline.inbox}.*", pipeline.take)
    running = asyncio.create_task(pipeline.run())
    try:
        yield pipeline
    finally:
        running.cancel()
        pipeline.close()
        if not client.is_closed:
            await subscription.unsubscribe()
        if running.done() and not running.cancelled():
            running.result()  # raises what ended it


class Pipeline:
    """A Requester; see broker/connection.py."""

    def __init__(self, client: FrameClient) -> None:
        self.inbox = client.new_inbox()
        self._inbox = self.inbox.encode()
        self._client = client
        self._last = 0
        self._waiting: dict[int, tuple[_Waiting, float]] = {}
        """Until when, by the number of the request."""
        self._arrived: deque[tuple[int, bytes | Exception]] = deque()
        self._stirred = asyncio.Event()
        """There are answers to give out."""
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_connected(self) -> bool:
        return self._client.is_connected

    @property
    def connected_url(self) -> ParseResult | None:
        return self._client.connected_url

    @property
    def max_payload(self) -> int:
        return self._client.max_payload

    @property
    def last_error(self) -> Exception | None:
        return self._client.last_error

    def new_inbox(self) -> str:
        return self._client.new_inbox()

    def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,
        headers: Mapping[str, str] | None = None,
    ) -> _Waiting:
        """The answer to a request. Raises as the client's does; a timeout comes up to a tenth of a second late."""
        self._last = number = self._last + 1
        self._client.write(publication(subject.encode(), payload, b"%b.%d" % (self._inbox, number), headers))
        waiting: _Waiting = self._loop.create_future()
        self._waiting[number] = waiting, self._loop.time() + timeout
        if self._timer is None:
            self._timer = self._loop.call_later(_LOOK_EVERY_S, self._look)
        return waiting

    async def run(self) -> None:
        """Give out what is answered while many are under way, until cancelled."""
        while True:
            await self._stirred.wait()
            await asyncio.sleep(_GATHER_S)
            self._stirred.clear()
            while self._arrived:
                for _ in range(min(_AT_A_TIME, len(self._arrived))):
                    self._give(*self._arrived.popleft())
                await asyncio.sleep(0)  # whoever has an answer now asks on

    def take(self, subject: bytes, _reply: bytes, headers: bytes, body: bytes) -> None:
        """Take an answer."""
        number = int(subject[subject.rindex(b".") + 1 :])
        answer = nats.errors.NoRespondersError() if headers.startswith(_NO_RESPONDERS) else body
        if len(self._waiting) <= _MANY:
            self._give(number, answer)
        else:
            self._arrived.append((number, answer))
            self._stirred.set()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _give(self, number: int, answer: bytes | Exception) -> None:
        waiting, _ = self._waiting.pop(number, (None, 0.0))
        if waiting is None or waiting.done():
            return  # it is too late, or whoever asked was cancelled
        if isinstance(answer, bytes):
            waiting.set_result(_Answer(answer))
        else:
            waiting.set_exception(answer)

    def _look(self) -> None:
        now = self._loop.time()
        for number in [number for number, (_, until_s) in self._waiting.items() if now >= until_s]:
            self._give(number, nats.errors.TimeoutError())
        self._timer = self._loop.call_later(_LOOK_EVERY_S, self._look) if self._waiting else None
