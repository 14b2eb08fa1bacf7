"""Looks at the relay over NATS, once for all pages that are open."""

import asyncio
import contextlib
import datetime as dt
import time
from collections.abc import AsyncGenerator
from typing import Final

from relay.console.recent import Recent
from relay.console.rights import Rights, find_rights
from relay.console.tail import Tail
from relay.console.verdict import Verdict, verdict
from relay.contract.errors import BrokerUnavailable, RelayError
from relay.contract.settings import Settings
from relay.contract.text import redact_url
from relay.doctor.checks import check_broker
from relay.doctor.findings import Finding, Level
from relay.doctor.state_checks import check_state
from relay.nats.connection import close, connect
from relay.nats.frames import FrameClient
from relay.overview.reader import SnapshotReader
from relay.overview.watch import View, watch

EVERY_S: Final = 2.0
_BROKER_CHECKS_EVERY_S: Final = 30.0
_CONNECT_AGAIN_S: Final = 1.0
_CLOSE_TIMEOUT_S: Final = 1.0


class Watching:
    """What is known of the relay, and the connection to NATS that it is known by. Pages only read it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.servers = ", ".join(map(redact_url, settings.nats.servers))
        self.client: FrameClient | None = None
        """None before the first connection, and until `rights` are known."""
        self.rights = Rights()
        self.tail = Tail()
        self.view = View(dt.datetime.now(dt.UTC), None, None)
        self.recent = Recent(EVERY_S)
        self.number = 0
        """Grows with each view."""
        self.requests = 0
        """How many snapshots were read from NATS."""
        self._reader: SnapshotReader | None = None
        self._broker: list[Finding] = []
        self._state: list[Finding] = []
        self._state_before: list[Finding] = []

    @property
    def findings(self) -> list[Finding]:
        """Those of the doctor that need NATS alone."""
        return [*self._broker, *self._state]

    @property
    def verdict(self) -> Verdict:
        """The milder one of the last two views: a worker that connects again at once is no alarm."""
        both = [verdict([*self._broker, *state], self.view.trouble) for state in (self._state, self._state_before)]
        return min(both, key=lambda each: list(Level).index(each.level))

    async def run(self) -> None:
        """Watch until cancelled. Raises ConfigurationError for credentials that cannot be used."""
        async with self._connected() as client:
            self._reader = SnapshotReader(client)
            async with asyncio.TaskGroup() as group:
                # Before anything else uses the connection, as both want it.
                with contextlib.suppress(RelayError):
                    self.rights = await find_rights(client)
                    await self._reader.check_permissions()
                    await self.tail.start(client, self.rights)
                self.client = client
                group.create_task(self._watch(self._reader))
                group.create_task(self._check_broker(client))

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncGenerator[FrameClient]:
        client = await self._connect()
        try:
            yield client
        finally:
            await close(client, _CLOSE_TIMEOUT_S)

    async def _connect(self) -> FrameClient:
        """A connection, as soon as NATS is there."""
        began_s = time.monotonic()
        while True:
            try:
                return await connect(self.settings.nats, name="relay-console")
            except BrokerUnavailable as error:
                trouble = f"for {time.monotonic() - began_s:.0f} s now: {error}"
                self._take(View(dt.datetime.now(dt.UTC), None, None, trouble, error))
            await asyncio.sleep(_CONNECT_AGAIN_S)

    async def _watch(self, reader: SnapshotReader) -> None:
        async with contextlib.aclosing(watch(reader, EVERY_S)) as views:
            async for view in views:
                self.requests += 1
                self._take(view)

    def _take(self, view: View) -> None:
        if view.trouble is None and view.snapshot is not None:
            now = check_state(view.snapshot)
            self._state, self._state_before = now, self._state or now
        self.view = view
        self.recent.add(view)
        self.number += 1

    async def _check_broker(self, client: FrameClient) -> None:
        while True:
            if client.is_connected:
                self._broker = await check_broker(client, self.settings)
            await asyncio.sleep(_BROKER_CHECKS_EVERY_S)
