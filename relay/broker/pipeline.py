"""Many requests at a time over one connection, for what is limited by the rate of requests.

The client's own `request` spends more on a request than nats-server does: a random token, a timer and a task of its
own to wait in. Here the answers come to one inbox, each under the number of its request, and one timer serves all.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator
from typing import Any, Final, cast

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

_LOOK_EVERY_S: Final = 0.5
"""How often to look for requests that wait for too long."""
_STATUS_HEADER: Final = "Status"
_NO_RESPONDERS: Final = "503"


@contextlib.asynccontextmanager
async def pipelined(client: Client) -> AsyncGenerator[Client]:
    """`client`, as far as `api_request` and `publish_confirmed` use it, with a faster `request`."""
    pipeline = _Pipeline(client)
    # No pending limits: beyond them the client drops messages, and whoever asks bounds how much is under way.
    subscription: Subscription = await client.subscribe(  # pyright: ignore[reportUnknownMemberType] - a bare Future
        f"{pipeline.inbox}.*", cb=pipeline.receive, pending_msgs_limit=0, pending_bytes_limit=0
    )
    try:
        yield cast("Client", pipeline)
    finally:
        pipeline.close()
        if not client.is_closed:
            await subscription.unsubscribe()


class _Pipeline:
    """As much of a client as requests take."""

    def __init__(self, client: Client) -> None:
        self.inbox = client.new_inbox()
        self._client = client
        self._numbers = itertools.count()
        self._waiting: dict[str, tuple[asyncio.Future[Msg], float]] = {}
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,  # noqa: ASYNC109 - the client's own name for it
        headers: dict[str, Any] | None = None,
    ) -> Msg:
        """The answer to a request. Raises as the client's does; a timeout comes up to half a second late."""
        number = str(next(self._numbers))
        answer: asyncio.Future[Msg] = self._loop.create_future()
        self._waiting[number] = answer, self._loop.time() + timeout
        if self._timer is None:
            self._timer = self._loop.call_later(_LOOK_EVERY_S, self._look)
        try:
            await self._client.publish(subject, payload, f"{self.inbox}.{number}", headers)
            return await answer
        finally:
            del self._waiting[number]

    async def receive(self, message: Msg) -> None:
        waiting = self._waiting.get(message.subject.rpartition(".")[2])
        if waiting is None or waiting[0].done():
            return  # too late
        if message.headers and message.headers.get(_STATUS_HEADER) == _NO_RESPONDERS:
            waiting[0].set_exception(nats.errors.NoRespondersError())
        else:
            waiting[0].set_result(message)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        for answer, until_s in self._waiting.values():
            if now >= until_s and not answer.done():
                answer.set_exception(nats.errors.TimeoutError())
        self._timer = self._loop.call_later(_LOOK_EVERY_S, self._look) if self._waiting else None
