"""The worker's end of JetStream: the source of a lane, as relay/broker/consumer.py is one, and what it delivers.

It asks, tops up, drains and starts over by the same rules, and leaves out how they are written on the wire.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

from relay.core.continuity import ConsumerState
from relay.core.ports import DeliveryLike
from relay.core.pull import PullWindow, Signal
from relay.errors import BrokerUnavailable, RelayError
from simulation.jetstream import ACK, GONE, IN_PROGRESS, NAK, TERM, JetStream, Stored
from simulation.network import Link

_RETRY_S = 1.0
_RESTART_S = 0.1
_STATE_TIMEOUT_S = 1.0
_CONFIRM_TIMEOUT_S = 2.0
_DRAIN_TIMEOUT_S = 10.0

Hear = Callable[..., None]
"""How a lane's consumer hears of a delivery: by its sequence, a word and a delay."""


class Delivery:
    """One delivery of an update; its words go over the link that is there when they are said."""

    headers: Mapping[str, str] = {}

    def __init__(self, link: Link, hear: Hear, stored: Stored, consumer_sequence: int, deliveries: int) -> None:
        self.subject, self.body, self.sequence = stored.subject, stored.body, stored.sequence
        self.stored_at_s = stored.stored_at_s
        self.consumer_sequence = consumer_sequence
        self.deliveries = deliveries
        self._link = link
        self._hear = hear

    async def ack(self) -> None:
        self._link.acknowledge(self._hear, self.sequence, ACK)

    async def nak(self, delay_s: float = 0.0) -> None:
        self._link.acknowledge(self._hear, self.sequence, NAK, delay_s)

    async def in_progress(self) -> None:
        if self._link.is_connected:
            self._link.acknowledge(self._hear, self.sequence, IN_PROGRESS)

    async def term(self, reason: str) -> None:
        assert reason, "the server wants to know why"
        self._link.acknowledge(self._hear, self.sequence, TERM)


class _Inbox:
    """A subscription: what the server sends comes here, and is taken in by one task, one after another."""

    def __init__(self, link: Link, hear: Hear) -> None:
        self.owner = link.process.name
        self.wire = link.wire
        self.gone = False
        self.arrived: deque[Delivery | tuple[int, int]] = deque()
        self.news = asyncio.Event()
        self.idle = asyncio.Event()
        self._link = link
        self._hear = hear

    def deliver(self, stored: Stored, consumer_sequence: int, deliveries: int) -> None:
        delivery = Delivery(self._link, self._hear, stored, consumer_sequence, deliveries)
        if deliveries == 1:
            self._link.deliver(self.wire, self._arrive, delivery)
        else:  # a redelivery gets lost with its connection only: the relay's patience with gaps has an end
            self._send(delivery)

    def status(self, code: int, pending: int) -> None:
        self._send((code, pending))

    def unsubscribe(self) -> None:
        self.gone = True

    def _send(self, message: Delivery | tuple[int, int]) -> None:
        self.wire.deliveries.send(self._link.process.post, self._arrive, message)

    def _arrive(self, message: Delivery | tuple[int, int]) -> None:
        self.arrived.append(message)
        self.idle.clear()
        self.news.set()


class PullSource:
    """A lane's deliveries, for as long as it runs."""

    def __init__(
        self,
        link: Link,
        jetstream: JetStream,
        lane: int,
        *,
        window: PullWindow,
        room: Callable[[], int],
        on_delivery: Callable[[DeliveryLike], Awaitable[None]],
        on_start: Callable[[ConsumerState], None],
    ) -> None:
        self.trouble: str | None = None
        self._link = link
        self._jetstream = jetstream
        self._lane = lane
        self._window = window
        self._delivered_count = 0
        self._room = room
        self._on_delivery = on_delivery
        self._on_start = on_start
        self._wake = asyncio.Event()
        self._draining = asyncio.Event()
        self._over = False
        self._made_at_s: float | None = None
        self._replaced = False
        self._heard_s = 0.0
        self._failure: Exception | None = None

    def top_up(self) -> None:
        if self._window.wanted(self._room()):
            self._wake.set()

    def restart(self) -> None:
        self._over = True
        self._wake.set()

    def drain(self) -> None:
        self._draining.set()
        self._wake.set()

    async def state(self) -> ConsumerState:
        if not self._link.is_connected:
            raise BrokerUnavailable(["nats"], "not connected")
        try:
            state: ConsumerState = await self._link.ask(lambda: self._jetstream.info(self._lane), _STATE_TIMEOUT_S)
        except TimeoutError as error:
            raise BrokerUnavailable(["nats"], "no answer") from error
        if self._made_at_s is None:
            self._made_at_s = state.made_at_s
        self._replaced = state.made_at_s != self._made_at_s
        return state

    async def confirm(self) -> None:
        with contextlib.suppress(TimeoutError):
            await self._link.ask(lambda: None, _CONFIRM_TIMEOUT_S, after_words=True)

    async def run(self) -> None:
        while not self._draining.is_set() and not self._replaced:
            try:
                await self._pull(await self.state())
                await self._pause(_RESTART_S)
            except RelayError:
                await self._pause(_RETRY_S)

    async def _pull(self, state: ConsumerState) -> None:
        """Take in what comes to one inbox, until it has to be another one."""
        if self._replaced:
            return
        self._window.reset()
        self._delivered_count = state.delivered_count
        self._over = False
        inbox = _Inbox(self._link, partial(self._jetstream.hear, self._lane))
        taking_in = asyncio.create_task(self._take_in(inbox))
        try:
            self._on_start(state)
            while not self._over and not self._draining.is_set() and not self._replaced:
                self._wake.clear()
                self._request(inbox)
                if not await self._woken():
                    break
                if self._failure is not None:
                    raise self._failure
            await self._close(inbox)
        finally:
            taking_in.cancel()
            self._link.tell(inbox.unsubscribe)

    def _request(self, inbox: _Inbox) -> None:
        count = self._window.wanted(self._room())
        if not count or not self._link.is_connected:
            return
        if not self._window.outstanding:
            self._heard_s = asyncio.get_running_loop().time()
        self._window.requested(count)
        consumer = self._jetstream.consumers[self._lane]
        times = (self._window.expires_s, self._window.idle_heartbeat_s)
        self._link.tell(consumer.pull, inbox, count, *times)

    async def _woken(self) -> bool:
        """Wait for something to do; False if requests are under way and nobody serves them."""
        loop = asyncio.get_running_loop()
        while True:
            dead_at_s = self._heard_s + self._window.dead_after_s if self._window.outstanding else None
            try:
                async with asyncio.timeout_at(dead_at_s):
                    return await self._wake.wait()
            except TimeoutError:
                if loop.time() >= self._heard_s + self._window.dead_after_s:
                    return False

    async def _take_in(self, inbox: _Inbox) -> None:
        while True:
            inbox.idle.set()
            await inbox.news.wait()
            inbox.news.clear()
            while inbox.arrived:
                await self._receive(inbox.arrived.popleft())

    async def _receive(self, message: Delivery | tuple[int, int]) -> None:
        self._heard_s = asyncio.get_running_loop().time()
        if isinstance(message, tuple):
            self._over = self._over or message[0] == GONE
            if self._window.status(message[0], "", message[1]) is not Signal.ALIVE:
                self._wake.set()
            return
        self._window.delivered(max(1, message.consumer_sequence - self._delivered_count))
        self._delivered_count = message.consumer_sequence
        try:
            await self._on_delivery(message)
        except Exception as error:  # noqa: BLE001 - raised again by `_pull`
            self._failure = error
            self._wake.set()
        if self._window.outstanding <= self._window.batch // 2:
            self._wake.set()

    async def _close(self, inbox: _Inbox) -> None:
        """Take in what is on its way, if this is the end; otherwise it comes again."""
        if self._draining.is_set() and self._link.is_connected and inbox.wire is self._link.wire:
            flushed = asyncio.get_running_loop().create_future()
            self._link.tell(self._unsubscribe_and_flush, inbox, flushed)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DRAIN_TIMEOUT_S):
                    await flushed
                    await inbox.idle.wait()

    def _unsubscribe_and_flush(self, inbox: _Inbox, flushed: asyncio.Future[None]) -> None:
        inbox.unsubscribe()
        inbox.wire.deliveries.send(self._link.process.post, _flush, flushed)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._draining.wait()


class Client:
    """As much of a NATS client as the dead letters take: requests."""

    max_payload = 1 << 20
    connected_url = None
    last_error = None

    def __init__(self, link: Link, jetstream: JetStream) -> None:
        self._link = link
        self._jetstream = jetstream

    @property
    def is_connected(self) -> bool:
        return self._link.is_connected

    async def request(
        self,
        subject: str,
        payload: bytes,
        *,
        timeout: float,  # noqa: ASYNC109 - the client's own name for it
        headers: dict[str, Any] | None = None,
    ) -> SimpleNamespace:
        data = await self._link.ask(lambda: self._jetstream.request(subject, payload, headers or {}), timeout)
        return SimpleNamespace(data=data)


def _flush(flushed: asyncio.Future[None]) -> None:
    if not flushed.done():
        flushed.set_result(None)
