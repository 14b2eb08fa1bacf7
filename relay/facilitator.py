"""The WebSocket to the Facilitator: a thin shell that connects, reads, writes and asks the session what it means."""

import asyncio
import contextlib
from collections import deque
from typing import Final, Generic, Protocol, TypeVar

import websockets
from websockets.asyncio.client import ClientConnection, connect
from websockets.frames import Close, CloseCode

from relay.core.backoff import Backoff
from relay.core.session import Answered, Broken, Lost, Opened, Pushed, Refused, Session
from relay.logs import get_logger
from relay.metrics import Metrics

T = TypeVar("T")
_log = get_logger(__name__)

_OPEN_TIMEOUT_S: Final = 10.0
_CLOSE_TIMEOUT_S: Final = 2.0
_PING_INTERVAL_S: Final = 20.0
_MAX_FRAME_BYTES: Final = 64 * 1024 * 1024
"""What we accept: an error reply echoes the whole update that it complains of, escaped once more."""
_GIVING_UP: Final = CloseCode.PROTOCOL_ERROR
"""The code with which we close a connection whose replies cannot be paired any more."""
_CANCELLED: Final = Close(CloseCode.GOING_AWAY, "")
"""Stands for a close frame when it is us who stop."""


class SessionOwner(Protocol[T]):
    """Who gives updates to the session and learns what became of them."""

    async def on_opened(self, event: Opened[T]) -> None: ...
    async def on_answered(self, event: Answered[T]) -> None: ...
    async def on_pushed(self, event: Pushed) -> None: ...
    def on_lost(self, event: Lost[T]) -> None: ...


class Facilitator(Generic[T]):
    """One connection to the Facilitator, made again whenever it is lost.

    Args:
        url: `ws://` or `wss://`, with the path.
        session: the conversation; it decides, this class only moves bytes.
        backoff: the waits between attempts to connect.
        ping_timeout_s: how long the Facilitator may leave a ping unanswered. It reads nothing while 33 updates
            wait for it, so this must not be shorter than the reply timeout.
    """

    def __init__(
        self, url: str, session: Session[T], backoff: Backoff, metrics: Metrics, *, ping_timeout_s: float
    ) -> None:
        self.session = session
        self.trouble: str | None = "not connected to the Facilitator yet"
        """Why nothing can be sent, in words for an operator; None while the session is open."""
        self._url = url
        self._backoff = backoff
        self._metrics = metrics
        self._ping_timeout_s = ping_timeout_s
        self._outbox: deque[tuple[str | bytes, float | None]] = deque()  # bounded by the session's window
        self._wake = asyncio.Event()
        self._failures = 0
        self._opened_s = 0.0

    def send(self, ticket: T, frame: bytes, received_s: float) -> None:
        """Send one update that came to hand at `received_s`. Call only while the session has room; never blocks."""
        self.session.sent(ticket, self._now())
        self._write(frame, received_s)

    def probe(self, frame: bytes) -> None:
        """Send the session's suspect, alone."""
        self.session.probe(self._now())
        self._write(frame)

    async def run(self, owner: SessionOwner[T]) -> None:
        """Connect, converse, and connect again, until cancelled."""
        while True:
            try:
                await self._connect_and_converse(owner)
            except (OSError, TimeoutError, websockets.InvalidHandshake) as error:
                self.session.failed_to_open()
                self._metrics.connection_refused()
                self._complain(f"cannot connect to the Facilitator at {self._url}: {error or type(error).__name__}")
            self._failures += 1
            await asyncio.sleep(self._backoff.delay_s(self._failures))

    async def _connect_and_converse(self, owner: SessionOwner[T]) -> None:
        async with connect(
            self._url,
            compression=None,  # inside a cluster the network is quicker than deflate
            max_size=_MAX_FRAME_BYTES,
            open_timeout=_OPEN_TIMEOUT_S,
            close_timeout=_CLOSE_TIMEOUT_S,
            ping_interval=_PING_INTERVAL_S,
            ping_timeout=self._ping_timeout_s,
            proxy=None,
        ) as socket:
            closing: Close | None = _CANCELLED
            try:
                closing = await self._converse(socket, owner)
            finally:
                # Cancelled or not: the owner must find what was not answered where it belongs.
                self._outbox.clear()
                owner.on_lost(self.session.closed(closing.code if closing else None))
        self._note_lost(closing)

    async def _converse(self, socket: ClientConnection, owner: SessionOwner[T]) -> Close | None:
        """Until either side closes; returns the close frame that did it, None if the connection just went away."""
        self._opened_s = self._now()
        opening = self.session.opened(self._opened_s)
        if isinstance(opening, Opened):
            await self._let_in(opening, owner)
        else:
            self._write(opening)
        async with asyncio.TaskGroup() as group:
            helpers = [group.create_task(self._write_all(socket)), group.create_task(self._watch(socket))]
            try:
                while True:
                    await self._receive(await socket.recv(), socket, owner)
            except websockets.ConnectionClosed as closed:
                return closed.rcvd or closed.sent
            finally:
                for helper in helpers:
                    helper.cancel()

    async def _receive(self, message: str | bytes, socket: ClientConnection, owner: SessionOwner[T]) -> None:
        match self.session.received(message, self._now()):
            case Answered() as answered:
                self._failures = 0
                await owner.on_answered(answered)
            case Pushed() as pushed:
                await owner.on_pushed(pushed)
            case Opened() as opened:
                await self._let_in(opened, owner)
            case Refused(error):
                self._complain(f"the Facilitator refuses this validator: {error}; check RELAY_FACILITATOR_HOTKEY_FILE")
                await socket.close()
            case Broken() as broken:
                await self._break(socket, broken)

    async def _let_in(self, opened: Opened[T], owner: SessionOwner[T]) -> None:
        self.trouble = None
        self._metrics.connection_opened()
        _log.info("connected to the Facilitator", url=self._url)
        self._wake.set()
        await owner.on_opened(opened)

    async def _write_all(self, socket: ClientConnection) -> None:
        with contextlib.suppress(websockets.ConnectionClosed):  # the reader sees it too, and says what it means
            while True:
                await self._wake.wait()
                self._wake.clear()
                if (heartbeat := self.session.heartbeat(self._now())) is not None:
                    await socket.send(heartbeat)
                while self._outbox:
                    frame, received_s = self._outbox.popleft()
                    await socket.send(frame, text=True)
                    if received_s is not None:
                        self._metrics.sent(self._now() - received_s)

    async def _watch(self, socket: ClientConnection) -> None:
        """Wake the writer when a heartbeat is due, and break the connection when an answer is overdue."""
        while True:
            await asyncio.sleep(self.session.deadline(self._now()) - self._now())
            if (broken := self.session.overdue(self._now())) is not None:
                await self._break(socket, broken)
                return
            self._wake.set()

    async def _break(self, socket: ClientConnection, broken: Broken) -> None:
        _log.warning("the connection to the Facilitator must be made anew", why=broken.why)
        await socket.close(_GIVING_UP)

    def _write(self, frame: str | bytes, received_s: float | None = None) -> None:
        self._outbox.append((frame, received_s))
        self._wake.set()

    def _complain(self, trouble: str) -> None:
        if trouble != self.trouble:
            _log.error(trouble)
        self.trouble = trouble

    def _note_lost(self, closing: Close | None) -> None:
        self._metrics.connection_lost()
        if self._now() - self._opened_s > self._backoff.max_s:
            self._failures = 0
        how = f"closed with {closing.code} {closing.reason}".rstrip() if closing else "dropped without a close frame"
        if self.trouble is None:  # otherwise it is known already, and the close only follows from it
            self._complain(f"the connection to the Facilitator was {how}")

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
