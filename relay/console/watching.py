"""Looks at the relay over NATS, once for all pages that are open."""

import asyncio
import contextlib
import datetime as dt
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, TypeVar

from relay.console.recent import Recent
from relay.console.rights import Rights, find_rights
from relay.console.tail import Tail
from relay.console.verdict import Standing
from relay.contract.errors import ConfigurationError, RelayError
from relay.contract.settings import Settings
from relay.doctor.checks import check_broker
from relay.nats.connection import close, connect
from relay.nats.frames import FrameClient
from relay.overview.reader import SnapshotReader
from relay.overview.watch import View, watch
from relay.timing.waiting import set_within

T = TypeVar("T")
EVERY_S: Final = 2.0
_BROKER_CHECKS_EVERY_S: Final = 30.0
_ASK_AGAIN_S: Final = 1.0
_CLOSE_TIMEOUT_S: Final = 1.0


class Watching:
    """What is known of the relay, and the connection to NATS that it is known by. Pages only read it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.client: FrameClient | None = None
        """None before the first connection, and until `rights` are known."""
        self.rights = Rights()
        self.tail = Tail()
        self.standing = Standing(View(dt.datetime.now(dt.UTC), None, None), settings.delivery.followed)
        self.recent = Recent(EVERY_S)
        self.number = 0
        """Grows with each view."""
        self._back = asyncio.Event()
        """Set when the connection is there again."""

    @property
    def view(self) -> View:
        """The latest one."""
        return self.standing.view

    async def run(self) -> None:
        """Watch until cancelled. Raises ConfigurationError for credentials that cannot be used."""
        async with self._connected() as client:
            reader = SnapshotReader(client)
            # Before anything else uses the connection, as both want it.
            self.rights = await self._insist(lambda: find_rights(client))
            await self._insist(reader.check_permissions)
            await self.tail.start(client, self.rights)
            self.client = client
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch(reader))
                group.create_task(self._check_broker(client))

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncGenerator[FrameClient]:
        """A connection, as soon as NATS is there."""
        client = await self._insist(
            lambda: connect(self.settings.nats, name="relay-console", on_reconnected=self._back.set)
        )
        try:
            yield client
        finally:
            await close(client, _CLOSE_TIMEOUT_S)

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask until NATS answers; meanwhile the pages say why it does not."""
        began_s, first = time.monotonic(), True
        while True:
            try:
                return await ask()
            except RelayError as error:
                if isinstance(error, ConfigurationError) and first:
                    raise  # later a file may be just about to be renewed
                trouble = f"for {time.monotonic() - began_s:.0f} s now: {error}"
                self._take(View(dt.datetime.now(dt.UTC), None, None, trouble, error))
            first = False
            await asyncio.sleep(_ASK_AGAIN_S)

    async def _watch(self, reader: SnapshotReader) -> None:
        async with contextlib.aclosing(watch(reader, EVERY_S)) as views:
            async for view in views:
                self._take(view)

    def _take(self, view: View) -> None:
        self.standing.take(view, connected=self.client is not None and self.client.is_connected)
        self.recent.add(view)
        self.number += 1

    async def _check_broker(self, client: FrameClient) -> None:
        while True:
            self._back.clear()
            if client.is_connected:
                self.standing.take_broker(await check_broker(client, self.settings))
            await set_within(self._back, _BROKER_CHECKS_EVERY_S)
