"""The only place that replaces parts of relay/: its clock, its loggers, and the socket to the Facilitator."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from unittest import mock

from websockets.frames import Close, CloseCode

import relay.facilitator.connection
import relay.leases.ownership
import relay.path.consumer
import relay.path.dead_letter_worker
import relay.path.delivery
import relay.path.lane_run
import relay.path.lanes
import relay.path.outlet_worker
import relay.path.settlement
from relay.facilitator.websocket import CannotConnect, ConnectionClosed
from simulation.book import Log
from simulation.clock import Clock, Process
from simulation.facilitator import Connection, Facilitator
from simulation.network import Pipe

_TIMED = (
    relay.facilitator.connection,
    relay.leases.ownership,
    relay.path.lane_run,
    relay.path.lanes,
    relay.path.outlet_worker,
    relay.path.settlement,
)
_LOGGING = (
    relay.facilitator.connection,
    relay.leases.ownership,
    relay.path.consumer,
    relay.path.dead_letter_worker,
    relay.path.delivery,
    relay.path.lane_run,
    relay.path.outlet_worker,
    relay.path.settlement,
)
_CONNECT_S = 0.005


class Socket:
    """The part of facilitator/websocket.py that facilitator/connection.py uses."""

    def __init__(self, process: Process) -> None:
        self.connection: Connection | None = None
        self._process = process
        self._messages: list[bytes] = []
        self._news = asyncio.Event()
        self._sent: Close | None = None
        self._end: ConnectionClosed | None = None

    def send(self, *texts: bytes) -> None:
        if self._end is not None or self._sent is not None:
            raise self._end or ConnectionClosed(self._sent)
        assert self.connection is not None
        for text in texts:
            self.connection.send(text.decode())

    @property
    def writable(self) -> bool:
        return self._end is None and self._sent is None

    async def receive(self) -> list[bytes]:
        while not self._messages:
            if self._end is not None:
                raise self._end
            self._news.clear()
            await self._news.wait()
        messages, self._messages = self._messages, []
        return messages

    async def keep_alive(self, interval_s: float, timeout_s: float) -> None:
        """Return at once: pings are always answered here."""

    async def close(self, code: int = CloseCode.NORMAL_CLOSURE) -> None:
        if self._end is None and self._sent is None:
            self._sent = Close(code, "")
            assert self.connection is not None
            self.connection.hang_up(code)
        while self._end is None:
            self._news.clear()
            await self._news.wait()

    # Input from outside.

    def arrived(self, message: str) -> None:
        self._process.post(self._take, message.encode())

    def closed(self, code: int | None) -> None:
        self._process.post(self._finish, code)

    def _take(self, message: bytes) -> None:
        self._messages.append(message)
        self._news.set()

    def _finish(self, code: int | None) -> None:
        self._end = ConnectionClosed(self._sent if code is None else Close(code, ""))
        self._news.set()


def connector(
    clock: Clock, facilitator: Facilitator, process_of: Callable[[], Process], rng: random.Random
) -> Callable[..., Awaitable[Socket]]:
    """The replacement for `connect` of facilitator/websocket.py."""

    async def connect(url: str, **_: Any) -> Socket:
        process = process_of()
        facilitator.tried_s.append(clock.now)
        await asyncio.sleep(rng.expovariate(1 / _CONNECT_S))
        socket = Socket(process)
        pipes = Pipe(clock, rng, 0.001), Pipe(clock, rng, 0.001)
        socket.connection = facilitator.connect(process.name, url, pipes, socket)
        if socket.connection is None:
            raise CannotConnect("nobody listens")
        return socket

    return connect


@contextlib.contextmanager
def installed(clock: Clock, log: Log, connect: Callable[..., Any]) -> Iterator[None]:
    """Let the modules under test run in the simulation during the block."""
    with contextlib.ExitStack() as stack:
        for module in _TIMED:
            stack.enter_context(mock.patch.object(module, "monotonic", clock.monotonic))
            if hasattr(module, "time"):
                stack.enter_context(mock.patch.object(module, "time", clock))
        for module in _LOGGING:
            stack.enter_context(mock.patch.object(module, "_log", log))
        stack.enter_context(mock.patch.object(relay.facilitator.connection, "connect", connect))
        yield
