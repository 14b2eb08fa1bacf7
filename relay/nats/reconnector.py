"""A connection to NATS that is made when it is first needed, and made again after each loss."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Final

from relay.contract.errors import BrokerUnavailable, ConfigurationError
from relay.core.backoff import Backoff
from relay.nats.connection import close, connect
from relay.nats.frames import FrameClient
from relay.nats.pipeline import Pipeline, pipelined

if TYPE_CHECKING:  # see relay/producer/__init__.py
    from relay.contract.settings import NatsSettings

_BACKOFF: Final = Backoff(initial_s=0.1, max_s=2.0, random=random.random)
_CLOSE_TIMEOUT_S: Final = 2.5
"""For each of the two steps of closing. Longer than the client of `connect` waits for a socket to close."""


class Reconnector:
    """The connection of one publisher or client. It belongs to the event loop in which it is first used.

    The client reconnects by itself after a loss. This class makes the first connection, however long NATS is away.
    """

    def __init__(self, settings: "NatsSettings", *, name: str) -> None:
        self._problem = "there is no connection to NATS yet"
        self._settings = settings
        self._name = name
        self._client: FrameClient | None = None
        self._pipeline: Pipeline | None = None
        self._changed = asyncio.Event()
        """Set when the client is connected, and when the task that connects has ended."""
        self._timeouts: set[asyncio.Timeout] = set()
        self._connecting: asyncio.Task[None] | None = None
        self._close_timeout_s = _CLOSE_TIMEOUT_S

    @property
    def pipeline(self) -> Pipeline:
        """For many requests at a time. Valid after `connected`, until `close`."""
        assert self._pipeline is not None
        return self._pipeline

    @property
    def problem(self) -> str:
        """Why there is no connection, for error texts. Not valid while there is one."""
        failures = self._client.failures.values() if self._client is not None else ()
        return "; ".join(dict.fromkeys((self._problem, *failures)))

    @property
    def server_error(self) -> str | None:
        """The last error that the server reported on the present connection, such as a missing permission."""
        error = self._client.last_error if self._client is not None else None
        return str(error).removeprefix("nats: ") if error else None

    async def connected(self, deadline_s: float | None = None) -> FrameClient:
        """Wait for a connected client, until `deadline_s` on the event loop's clock; None: as long as it takes.

        Raises TimeoutError, and ConfigurationError for credentials or certificates that cannot be used. Cancelling the
        wait is safe.
        """
        if (client := self._client) is not None and client.is_connected:
            return client
        if self._connecting is None or self._connecting.done():
            self._changed.clear()
            self._connecting = asyncio.create_task(self._stay_connected())
            self._connecting.add_done_callback(lambda _: self._changed.set())
        connecting = self._connecting
        async with asyncio.timeout_at(deadline_s):
            while True:
                await self._changed.wait()
                if connecting.done():
                    connecting.result()
                if (client := self._client) is not None and client.is_connected:
                    return client
                # nats-py has lost the connection and not reported it yet. It will report the reconnect.
                self._changed.clear()

    @contextlib.asynccontextmanager
    async def until_lost(self) -> AsyncGenerator[None]:
        """Cancel the block and raise TimeoutError as soon as the connection is lost."""
        async with asyncio.timeout(None) as timeout:
            self._timeouts.add(timeout)
            try:
                yield
            finally:
                self._timeouts.discard(timeout)

    async def close(self, timeout_s: float = _CLOSE_TIMEOUT_S) -> None:
        """Close the connection, within about twice `timeout_s`. If this is cancelled, closing goes on."""
        self._close_timeout_s = timeout_s
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])

    async def _stay_connected(self) -> None:
        client = await self._connect()
        try:
            async with pipelined(client) as self._pipeline:
                self._client = client
                self._changed.set()
                await asyncio.Event().wait()  # until `close` cancels it
        finally:
            await close(client, timeout_s=self._close_timeout_s)

    async def _connect(self) -> FrameClient:
        failures = 0
        while True:
            try:
                return await connect(
                    self._settings,
                    name=self._name,
                    on_disconnected=self._on_lost,
                    on_reconnected=self._changed.set,
                )
            except BrokerUnavailable as error:
                why = "; ".join(filter(None, (error.cause, error.remedy)))
                self._problem = f"no NATS connection to {', '.join(error.servers)}: {why}"
            except ConfigurationError as error:
                if not failures:
                    raise
                self._problem = str(error)  # a file may be just about to be renewed
            failures += 1
            await asyncio.sleep(_BACKOFF.delay_s(failures))

    def _on_lost(self) -> None:
        self._changed.clear()
        self._problem = "the connection to NATS was lost"
        timeouts, self._timeouts = self._timeouts, set()
        for timeout in timeouts:
            timeout.reschedule(asyncio.get_running_loop().time())
