"""A connection to NATS that is made when it is first needed, and again whenever it is lost."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator
from typing import Final

import nats.errors
from nats.aio.client import Client

from relay.contract.errors import BrokerUnavailable
from relay.contract.settings import NatsSettings
from relay.core.backoff import Backoff
from relay.nats.connection import connect
from relay.nats.nats_py import end_reconnect
from relay.observability.logs import get_logger

_BACKOFF: Final = Backoff(initial_s=0.1, max_s=2.0, random=random.random)
_CLOSE_TIMEOUT_S: Final = 5.0
"""Longer than `connect`'s client waits for a socket that does not close."""
_log = get_logger(__name__, guest=True)


class Reconnector:
    """The connection of one publisher. It belongs to the event loop in which it is first used."""

    def __init__(self, settings: NatsSettings) -> None:
        self.trouble = "there is no connection to NATS yet"
        """Why there is no connection, in words; while there is one, of no meaning."""
        self._settings = settings
        self._client: Client | None = None
        self._up = asyncio.Event()
        self._watches: set[asyncio.Timeout] = set()
        self._keeping: asyncio.Task[None] | None = None

    @property
    def complaint(self) -> str | None:
        """What the server complained of last on the connection that there is, such as a missing permission."""
        error = self._client.last_error if self._client is not None else None
        return str(error).removeprefix("nats: ") if error else None

    async def up(self, deadline_s: float) -> Client:
        """A client that is connected; it is waited for until `deadline_s` of the loop's clock.

        Raises TimeoutError, ConfigurationError for credentials or certificates that cannot be used.
        """
        if (client := self._client) is not None and client.is_connected:
            return client
        if self._keeping is None or self._keeping.done():
            self._up.clear()
            self._keeping = asyncio.create_task(self._keep_up())
            self._keeping.add_done_callback(lambda _: self._up.set())
        keeping = self._keeping
        async with asyncio.timeout_at(deadline_s):
            while True:
                await self._up.wait()
                if keeping.done():
                    keeping.result()
                if (client := self._client) is not None and client.is_connected:
                    return client
                # nats-py has noticed a loss and has not told us yet; when it is back, it will.
                self._up.clear()

    @contextlib.asynccontextmanager
    async def while_up(self) -> AsyncGenerator[None]:
        """What is done inside ends with TimeoutError as soon as the connection is lost."""
        async with asyncio.timeout(None) as watch:
            self._watches.add(watch)
            try:
                yield
            finally:
                self._watches.discard(watch)

    async def close(self) -> None:
        """Close the connection, within about _CLOSE_TIMEOUT_S."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])

    async def _keep_up(self) -> None:
        failures = 0
        while True:
            closed = asyncio.Event()
            try:
                self._client = await connect(
                    self._settings,
                    name="relay-producer",
                    on_disconnected=self._lost,
                    on_reconnected=self._up.set,
                    on_closed=closed.set,
                )
            except BrokerUnavailable as error:
                failures += 1
                self.trouble = f"no NATS connection to {', '.join(error.servers)}: {error.cause}"
            else:
                failures = 1
                self._up.set()
                await self._until_closed(self._client, closed)
            await asyncio.sleep(_BACKOFF.delay_s(failures))

    async def _until_closed(self, client: Client, closed: asyncio.Event) -> None:
        try:
            await closed.wait()
            self._lost()
            self.trouble = f"the server ended the connection: {self.complaint}"
        finally:
            await _close(client)

    def _lost(self) -> None:
        self._up.clear()
        self.trouble = "the connection to NATS was lost"
        watches, self._watches = self._watches, set()
        for watch in watches:
            watch.reschedule(asyncio.get_running_loop().time())


async def _close(client: Client) -> None:
    # Unlike the relay's own `close` this asks the server nothing: whoever waits for PubAcks has nothing unsent that
    # counts, and need not be allowed to ask.
    try:
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await end_reconnect(client)
            await client.close()
    except (nats.errors.Error, TimeoutError, OSError, RuntimeError) as error:
        # RuntimeError: how uvloop refuses what nats-py still wants to write to a socket that is gone.
        _log.warning("the NATS connection of a publisher did not close in order", error=repr(error))
