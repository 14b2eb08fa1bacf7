"""The connection to the Facilitator: it connects, reads and writes; the session in core/ decides."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from websockets.frames import Close, CloseCode

from relay.contract.text import redact_url
from relay.core.connect_pace import ConnectPace
from relay.core.ports import PushQueue
from relay.core.session import (
    AT_ONCE_BYTES,
    Answered,
    Broken,
    Event,
    Lost,
    Opened,
    Pushed,
    Session,
    SignInRefused,
    Suspicion,
    Unpaired,
)
from relay.core.update import Update
from relay.facilitator.sign_in import remedy
from relay.facilitator.websocket import CannotConnect, ConnectionClosed, WebSocket, connect
from relay.network.dialer import Dialer
from relay.observability.logs import get_logger
from relay.observability.metrics import Metrics
from relay.timing.clock import monotonic

_log = get_logger(__name__)

_OPEN_TIMEOUT_S: Final = 10.0
_CLOSE_TIMEOUT_S: Final = 2.0
_MAX_FRAME_BYTES: Final = 64 * 1024 * 1024
"""The largest message that we accept: an error reply contains the whole update that it refuses, escaped once more."""
_GIVING_UP: Final = CloseCode.PROTOCOL_ERROR
"""The code with which we close a connection whose replies cannot be paired any more."""
_LOGGED_DROPS: Final = 10
"""While the Facilitator drops every connection at the first update, this many are logged, and the others as debug."""
_CANCELLED: Final = ConnectionClosed(Close(CloseCode.GOING_AWAY, ""), ours=True)
"""Stands for the end of the connection when we are cancelled: a drop would be blamed on an update."""


class UpdateSupply(Protocol):
    """Where a connection gets what it sends; see core/turns.py."""

    def take(self, room: int, room_bytes: int, now_s: float) -> Sequence[Update]:
        """Up to `room` updates, until they have `room_bytes` or more.

        The caller must send them now: they are OUT (core/update.py) when this returns.
        """
        ...


class AnswerSink(Protocol):
    """Where a connection passes on what it learns about updates; see path/settlement.py."""

    def opened(self) -> None:
        """The session may be used."""
        ...

    def suspected(self, suspicion: Suspicion[Update]) -> bool:
        """Returns whether to send the suspect, alone; if not, the session forgets it."""
        ...

    def answered(self, answers: Sequence[Answered[Update]]) -> None:
        """The Facilitator answered these, in this order; at least one."""
        ...

    def lost(self, event: Lost[Update]) -> None:
        """The session is over."""
        ...


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to connect: `ws://` or `wss://`, with the path, and names and values of further HTTP headers."""

    url: str = field(repr=False)
    headers: Sequence[tuple[str, str]] = field(default=(), repr=False)
    proxy: str | None = field(default=None, repr=False)
    """The HTTP proxy to go through."""


class FacilitatorConnection:
    """One connection to the Facilitator, which reconnects whenever it is lost.

    Args:
        session: the conversation; it decides, this class only moves bytes.
        pace: the waits between attempts to connect.
        ping_interval_s: how often to ping, so that a dead connection is noticed while nothing is sent.
        ping_timeout_s: how long the Facilitator may leave a ping unanswered. It reads nothing, pings included, while
            33 updates wait for it, so this must not be shorter than the reply timeout.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        session: Session[Update],
        pace: ConnectPace,
        metrics: Metrics,
        *,
        ping_interval_s: float,
        ping_timeout_s: float,
    ) -> None:
        self.trouble: str | None = "not connected to the Facilitator yet"
        """Why nothing can be sent, in words for an operator; None while the session is open."""
        self._endpoint = endpoint
        self._shown_url = redact_url(endpoint.url)
        self._dialer = Dialer()
        self._session = session
        self._pace = pace
        self._metrics = metrics
        self._ping_interval_s = ping_interval_s
        self._ping_timeout_s = ping_timeout_s
        self._supply: UpdateSupply | None = None
        self._socket: WebSocket | None = None
        self._drops_in_a_row = 0
        """How many connections in a row were lost at an update, and none was answered since."""
        self._refused = False
        """Whether the Facilitator has refused the sign-in on the present connection."""
        self._given_up: str | None = None
        """Why we close the present connection; None if we do not."""

    @property
    def unanswered(self) -> int:
        """How many updates wait for their answer."""
        return self._session.unanswered

    def waiting_s(self, now_s: float) -> float:
        """How long the first unanswered update has waited at `now_s`, on the monotonic clock; 0 without one."""
        return self._session.waiting_s(now_s)

    @property
    def unanswered_bytes(self) -> int:
        """How many bytes they have."""
        return self._session.unanswered_bytes

    def send(self) -> None:
        """Write what the supply has, as far as the session and the network have room for it.

        The supply is asked at the last moment: what it gives is written before anything else can happen.
        """
        socket, supply = self._socket, self._supply
        while socket is not None and supply is not None and socket.writable:
            now_s = monotonic()
            updates = self._session.fill(supply.take, now_s)
            if not updates:
                return
            texts: list[bytes] = []
            held_bytes = 0
            for update in updates:
                texts.append(update.text)
                held_bytes += update.held_bytes
                if update.sent_s is None:
                    update.sent_s = now_s
            socket.send(*texts)
            if held_bytes < AT_ONCE_BYTES:
                return  # there was no more to take

    async def run(self, supply: UpdateSupply, answers: AnswerSink, pushes: PushQueue) -> None:
        """Connect, send and receive, and connect again, until cancelled.

        Cancelling it is safe at any time: what was not answered is passed to `answers.lost`.
        """
        self._supply = supply
        while True:
            try:
                await self._connect_and_converse(answers, pushes)
            except CannotConnect as error:
                self._session.failed_to_open()
                self._metrics.connection_refused()
                self._complain(f"cannot connect to the Facilitator at {self._shown_url}: {error}")
            await asyncio.sleep(self._pace.wait_s(time.time()))

    async def _connect_and_converse(self, answers: AnswerSink, pushes: PushQueue) -> None:
        socket = await connect(
            self._endpoint.url,
            proxy=self._endpoint.proxy,
            headers=self._endpoint.headers,
            max_size=_MAX_FRAME_BYTES,
            open_timeout_s=_OPEN_TIMEOUT_S,
            close_timeout_s=_CLOSE_TIMEOUT_S,
            on_writable=self.send,
            dialer=self._dialer,
        )
        ended = _CANCELLED
        self._socket = socket
        self._refused, self._given_up = False, None
        try:
            ended = await self._converse(socket, answers, pushes)
        finally:
            self._socket = None
            # Also if cancelled: what was not answered must go back to its lanes.
            lost = self._session.closed(ended.close.code if ended.close else None)
            self._drops_in_a_row += lost.suspect is not None
            answers.lost(lost)
            if lost.dropped_alone:
                self._pace.dropped_at_suspect()
            await socket.close()
        self._note_lost(ended)

    async def _converse(self, socket: WebSocket, answers: AnswerSink, pushes: PushQueue) -> ConnectionClosed:
        """Send and receive until either side closes; returns how the connection ended."""
        async with asyncio.TaskGroup() as group:
            watching = [
                group.create_task(self._watch(socket)),
                group.create_task(socket.keep_alive(self._ping_interval_s, self._ping_timeout_s)),
            ]
            try:
                socket.send(self._session.opened(monotonic()).encode())
                while True:
                    await self._take_in(await socket.receive(), socket, answers, pushes)
            except ConnectionClosed as closed:
                return closed
            finally:
                for task in watching:
                    task.cancel()

    async def _take_in(
        self, messages: Sequence[bytes], socket: WebSocket, answers: AnswerSink, pushes: PushQueue
    ) -> None:
        """Act on what was read together, in its order: answers that follow each other are passed on together."""
        now_s = monotonic()
        answered: list[Answered[Update]] = []
        for message in messages:
            event = self._session.received(message, now_s)
            if isinstance(event, Answered):
                self._drops_in_a_row = 0
                answered.append(event)
                continue
            if answered:
                answers.answered(answered)
                answered = []
            await self._act_on(event, socket, answers, pushes)
        if answered:
            answers.answered(answered)

    async def _act_on(self, event: Event[Update], socket: WebSocket, answers: AnswerSink, pushes: PushQueue) -> None:
        match event:
            case Pushed() as pushed:
                await pushes.put(pushed)  # waits while the queue is full, and nothing is read meanwhile
            case Opened() as opened:
                self._signed_in(opened, socket, answers)
            case Suspicion() as suspicion:
                self._send_suspect(suspicion, socket, answers)
                self.send()
            case SignInRefused(error):
                self._pace.refused()
                self._refused = True
                self._complain(f"the Facilitator refuses this validator: {error}; {remedy(error)}")
                await socket.close()
            case Broken() as broken:
                await self._break(socket, broken)
            case Answered() | Unpaired():
                pass  # the update of an unpaired message is sent again on the next connection

    def _signed_in(self, opened: Opened[Update], socket: WebSocket, answers: AnswerSink) -> None:
        self.trouble = None
        self._pace.signed_in()
        self._metrics.connection_opened()
        (_log.info if self._drops_in_a_row <= _LOGGED_DROPS else _log.debug)(
            "connected to the Facilitator", url=self._shown_url
        )
        answers.opened()
        if opened.control is not None:
            socket.send(opened.control)
        elif opened.suspicion is not None:
            self._send_suspect(opened.suspicion, socket, answers)
        self._beat(socket)
        self.send()

    def _send_suspect(self, suspicion: Suspicion[Update], socket: WebSocket, answers: AnswerSink) -> None:
        """Send the suspect again, by itself, if it may go; if not, the session forgets it."""
        if answers.suspected(suspicion):
            self._session.probe(monotonic())
            socket.send(suspicion.suspect.text)
        else:
            self._session.clear_suspect()

    async def _watch(self, socket: WebSocket) -> None:
        """Send heartbeats when they are due, and break the connection when an answer is overdue."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                await asyncio.sleep(self._session.deadline(monotonic()) - monotonic())
                if (broken := self._session.overdue(monotonic())) is not None:
                    await self._break(socket, broken)
                    return
                self._beat(socket)

    def _beat(self, socket: WebSocket) -> None:
        if (heartbeat := self._session.heartbeat(monotonic())) is not None:
            socket.send(heartbeat.encode())

    async def _break(self, socket: WebSocket, broken: Broken) -> None:
        self._given_up = broken.why
        _log.warning("the connection to the Facilitator must be made anew", why=broken.why)
        await socket.close(_GIVING_UP)

    def _complain(self, trouble: str, *, quietly: bool = False) -> None:
        if trouble != self.trouble:
            (_log.debug if quietly else _log.error)(trouble)
        self.trouble = trouble

    def _note_lost(self, ended: ConnectionClosed) -> None:
        how = str(ended) if self._given_up is None else f"given up: {self._given_up}"
        quietly = self._drops_in_a_row > _LOGGED_DROPS
        if self.trouble is None:
            self._metrics.connection_lost()
            self._complain(f"the connection to the Facilitator was {how}", quietly=quietly)
            return
        self._metrics.connection_refused()
        if not self._refused:  # which was told
            self._complain(f"the connection to the Facilitator ended at the sign-in: it was {how}", quietly=quietly)
