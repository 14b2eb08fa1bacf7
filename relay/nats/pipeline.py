"""Many requests at a time over one connection, for work whose speed depends on the cost of each request.

nats-py's `request` takes longer than nats-server needs to answer: it makes a random token, a timer and a task to wait
in. Here all answers come to one inbox, on a subject with the request's number. While many requests are unanswered,
answers are given out in groups: the callers of one group send their next requests before the next group is given out,
so that the server and this process work at the same time.
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
from relay.nats.refusals import Refusals

_MANY: Final = 64
"""With more unanswered requests than this, answers are gathered; otherwise each is given out at once."""
_GATHER_S: Final = 0.005
"""How long answers are gathered."""
_AT_A_TIME: Final = 128
"""How many answers are given out before the next requests are sent."""
_NO_RESPONDERS: Final = b"NATS/1.0 503"


class _Answer(msgspec.Struct, frozen=True):
    data: bytes


_Waiting = asyncio.Future[_Answer]


@contextlib.asynccontextmanager
async def pipelined(client: FrameClient, look_every_s: float = 0.1) -> AsyncGenerator["Pipeline"]:
    """A pipeline over the connection of `client`, which stays usable for other things.

    `look_every_s`: how often to look for requests that have timed out.
    """
    pipeline = Pipeline(client, look_every_s)
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
    """A Requester; made by `pipelined`."""

    def __init__(self, client: FrameClient, look_every_s: float) -> None:
        self.inbox = client.new_inbox()
        self._inbox = self.inbox.encode()
        self._client = client
        self._look_every_s = look_every_s
        self._last = 0
        self._waiting: dict[int, tuple[_Waiting, float]] = {}
        """By the request's number: the future of its answer, and its deadline on the event loop's clock."""
        self._arrived: deque[tuple[int, bytes | Exception]] = deque()
        self._has_answers = asyncio.Event()
        """Set if `_arrived` may hold answers."""
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
    def refusals(self) -> Refusals:
        return self._client.refusals

    def on_wire(self, subject: str) -> str:
        return self._client.on_wire(subject)

    def new_inbox(self) -> str:
        return self._client.new_inbox()

    def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,
        headers: Mapping[str, str] | None = None,
    ) -> _Waiting:
        """Send a request and return the future of its answer, which may be cancelled.

        Errors are those of nats-py's `request`; a timeout comes up to `look_every_s` late.
        """
        self._last = number = self._last + 1
        to = self._client.on_wire(subject).encode()
        self._client.write(publication(to, payload, b"%b.%d" % (self._inbox, number), headers))
        waiting: _Waiting = self._loop.create_future()
        self._waiting[number] = waiting, self._loop.time() + timeout
        if self._timer is None:
            self._timer = self._loop.call_later(self._look_every_s, self._look)
        return waiting

    async def run(self) -> None:
        """Give out gathered answers until cancelled."""
        while True:
            await self._has_answers.wait()
            await asyncio.sleep(_GATHER_S)
            self._has_answers.clear()
            while self._arrived:
                for _ in range(min(_AT_A_TIME, len(self._arrived))):
                    self._give(*self._arrived.popleft())
                await asyncio.sleep(0)  # lets the callers that got an answer send their next request

    def take(self, subject: bytes, _reply: bytes, headers: bytes, body: bytes) -> None:
        """Called by the client with each answer."""
        number = int(subject[subject.rindex(b".") + 1 :])
        answer = nats.errors.NoRespondersError() if headers.startswith(_NO_RESPONDERS) else body
        if len(self._waiting) <= _MANY:
            self._give(number, answer)
        else:
            self._arrived.append((number, answer))
            self._has_answers.set()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _give(self, number: int, answer: bytes | Exception) -> None:
        waiting, _ = self._waiting.pop(number, (None, 0.0))
        if waiting is None or waiting.done():
            return  # it came too late, or the request was cancelled
        if isinstance(answer, bytes):
            waiting.set_result(_Answer(answer))
        else:
            waiting.set_exception(answer)

    def _look(self) -> None:
        now = self._loop.time()
        for number in [number for number, (_, until_s) in self._waiting.items() if now >= until_s]:
            self._give(number, nats.errors.TimeoutError())
        self._timer = self._loop.call_later(self._look_every_s, self._look) if self._waiting else None
