"""The WebSocket to the Facilitator: a thin shell that connects, reads, writes and asks the session what it means."""

import asyncio
import contextlib
import time
from typing import Final, Protocol

from websockets import InvalidHandshake
from websockets.frames import Close, CloseCode

from relay.contract.text import describe, redact_url
from relay.core.backoff import Backoff
from relay.core.ports import InFlight
from relay.core.session import Answered, Broken, Lost, Opened, Pushed, Refused, Session, Unpaired
from relay.facilitator.websocket import ConnectionClosed, WebSocket, connect
from relay.observability.logs import get_logger
from relay.observability.metrics import Metrics

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


class SessionOwner(Protocol):
    """Who has the updates, and learns what became of them."""

    def next(self) -> InFlight | None:
        """The update to send now, or None if there is none. It is on its way when this returns."""
        ...

    def on_opened(self, event: Opened[InFlight]) -> bool:
        """The session stands. With a suspect: whether to send it, alone; if not, the session is rid of it."""
        ...

    def on_answered(self, event: Answered[InFlight]) -> None: ...
    async def on_pushed(self, event: Pushed) -> None: ...
    def on_lost(self, event: Lost[InFlight]) -> None: ...


class Facilitator:
    """One connection to the Facilitator, made again whenever it is lost.

    Args:
        url: `ws://` or `wss://`, with the path.
        session: the conversation; it decides, this class only moves bytes.
        backoff: the waits between attempts to connect.
        ping_timeout_s: how long the Facilitator may leave a ping unanswered. It reads nothing while 33 updates
            wait for it, so this must not be shorter than the reply timeout.
    """

    def __init__(
        self, url: str, session: Session[InFlight], backoff: Backoff, metrics: Metrics, *, ping_timeout_s: float
    ) -> None:
        self.trouble: str | None = "not connected to the Facilitator yet"
        """Why nothing can be sent, in words for an operator; None while the session is open."""
        self._url = url
        self._shown_url = redact_url(url)
        self._session = session
        self._backoff = backoff
        self._metrics = metrics
        self._ping_timeout_s = ping_timeout_s
        self._owner: SessionOwner | None = None
        self._socket: WebSocket | None = None
        self._failures = 0
        self._opened_s = 0.0

    @property
    def unanswered(self) -> int:
        """How many updates wait for their answer."""
        return self._session.unanswered

    def wake(self) -> None:
        """There may be something to send. Whatever may be sent is written before this returns.

        The owner is asked at the last moment: what it gives out is written before anything else can happen.
        """
        if self._socket is None or self._owner is None or not self._session.room:
            return
        now = time.monotonic()
        while self._session.room and self._socket.writable and (ticket := self._owner.next()) is not None:
            self._session.sent(ticket, now)
            _send(self._socket, ticket)
            if ticket.received_s is not None:
                self._metrics.sent(now - ticket.received_s)
                ticket.received_s = None
        self._socket.flush()

    async def run(self, owner: SessionOwner) -> None:
        """Connect, converse, and connect again, until cancelled."""
        self._owner = owner
        while True:
            try:
                await self._connect_and_converse(owner)
            except (OSError, TimeoutError, InvalidHandshake) as error:
                self._session.failed_to_open()
                self._metrics.connection_refused()
                self._complain(f"cannot connect to the Facilitator at {self._shown_url}: {describe(error)}")
            self._failures += 1
            await asyncio.sleep(self._backoff.delay_s(self._failures))

    async def _connect_and_converse(self, owner: SessionOwner) -> None:
        socket = await connect(
            self._url,
            max_size=_MAX_FRAME_BYTES,
            open_timeout_s=_OPEN_TIMEOUT_S,
            close_timeout_s=_CLOSE_TIMEOUT_S,
            on_writable=self.wake,
        )
        closing: Close | None = _CANCELLED
        self._socket = socket
        try:
            closing = await self._converse(socket, owner)
        finally:
            self._socket = None
            # Cancelled or not: the owner must find what was not answered where it belongs.
            owner.on_lost(self._session.closed(closing.code if closing else None))
            await socket.close()
        self._note_lost(closing)

    async def _converse(self, socket: WebSocket, owner: SessionOwner) -> Close | None:
        """Until either side closes; returns the close frame that did it, None if the connection just went away."""
        self._opened_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            helpers = [
                group.create_task(self._watch(socket)),
                group.create_task(socket.keep_alive(_PING_INTERVAL_S, self._ping_timeout_s)),
            ]
            try:
                socket.send(self._session.opened(self._opened_s).encode())
                socket.flush()
                while True:
                    for message in await socket.receive():
                        await self._receive(message, socket, owner)
                    self.wake()
            except ConnectionClosed as closed:
                return closed.close
            finally:
                for helper in helpers:
                    helper.cancel()

    async def _receive(self, message: bytes, socket: WebSocket, owner: SessionOwner) -> None:
        match self._session.received(message, time.monotonic()):
            case Answered() as answered:
                self._failures = 0
                owner.on_answered(answered)
            case Pushed() as pushed:
                await owner.on_pushed(pushed)
            case Opened() as opened:
                self._let_in(opened, socket, owner)
            case Refused(error):
                self._complain(f"the Facilitator refuses this validator: {error}; check RELAY_FACILITATOR_HOTKEY_FILE")
                await socket.close()
            case Broken() as broken:
                await self._break(socket, broken)
            case Unpaired():
                pass  # its update is sent again on the next connection

    def _let_in(self, opened: Opened[InFlight], socket: WebSocket, owner: SessionOwner) -> None:
        self.trouble = None
        self._metrics.connection_opened()
        _log.info("connected to the Facilitator", url=self._shown_url)
        probe = owner.on_opened(opened)
        if opened.suspect is not None and probe:
            self._session.probe(time.monotonic())
            _send(socket, opened.suspect)
        elif opened.suspect is not None:
            self._session.absolve()
        socket.flush()
        self._beat(socket)

    async def _watch(self, socket: WebSocket) -> None:
        """Send heartbeats when they are due, and break the connection when an answer is overdue."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                await asyncio.sleep(self._session.deadline(time.monotonic()) - time.monotonic())
                if (broken := self._session.overdue(time.monotonic())) is not None:
                    await self._break(socket, broken)
                    return
                self._beat(socket)

    def _beat(self, socket: WebSocket) -> None:
        if (heartbeat := self._session.heartbeat(time.monotonic())) is not None:
            socket.send(heartbeat.encode())
            socket.flush()

    async def _break(self, socket: WebSocket, broken: Broken) -> None:
        _log.warning("the connection to the Facilitator must be made anew", why=broken.why)
        await socket.close(_GIVING_UP)

    def _complain(self, trouble: str) -> None:
        if trouble != self.trouble:
            _log.error(trouble)
        self.trouble = trouble

    def _note_lost(self, closing: Close | None) -> None:
        if time.monotonic() - self._opened_s > self._backoff.max_s:
            self._failures = 0
        how = f"closed with {closing.code} {closing.reason}".rstrip() if closing else "dropped without a close frame"
        if self.trouble is not None:  # we were never let in
            self._metrics.connection_refused()
        else:
            self._metrics.connection_lost()
            self._complain(f"the connection to the Facilitator was {how}")


def _send(socket: WebSocket, update: InFlight) -> None:
    assert update.frame is not None, "what cannot be sent is doomed, and not given out"
    socket.send(update.frame.text)
