"""Connections: messages arrive in order and a little later, sometimes much later, or never if the connection breaks."""

import asyncio
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from simulation.clock import Clock, Process

_SPIKE = 0.03
"""The share of messages that are delayed for long."""
SPIKE_S = 0.4
_NOTICE_S = 1.0
"""The longest time for which a server goes on serving a client whose connection is lost."""

SILENCE = object()
"""The answer of a server that cannot be reached."""


@dataclass(frozen=True, slots=True)
class Late:
    """An answer that takes its time."""

    answer: Any
    by_s: float


class Pipe:
    """One direction of a connection: first in, first out."""

    def __init__(self, clock: Clock, rng: random.Random, delay_s: float) -> None:
        self._clock = clock
        self._rng = rng
        self._rate = 1 / delay_s
        self._free_s = 0.0
        self._ends_s = math.inf

    def send(self, arrive: Callable[..., None], *args: Any) -> None:
        """`arrive` is called when the message has come through."""
        delay_s = self._rng.expovariate(self._rate)
        if self._rng.random() < _SPIKE:
            delay_s += self._rng.random() * SPIKE_S
        self._free_s = max(self._free_s, self._clock.now + delay_s)
        self._clock.at(self._free_s, self._arrive, arrive, args)

    def stall(self, for_s: float) -> None:
        """Let nothing that is sent from now on arrive before `for_s` from now."""
        self._free_s = max(self._free_s, self._clock.now + for_s)

    def cut(self, after_s: float = 0.0) -> None:
        """Lose what has not arrived `after_s` from now, and all that is sent later."""
        self._ends_s = min(self._ends_s, self._clock.now + after_s)

    def _arrive(self, arrive: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self._clock.now < self._ends_s:
            arrive(*args)


class Wire:
    """One connection to nats-server.

    The server handles acknowledgements, requests, deliveries and answers concurrently, so only each kind keeps its
    order: an answer may overtake a delivery.
    """

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self.words, self.requests, self.deliveries, self.answers = (Pipe(clock, rng, 0.001) for _ in range(4))
        self.pipes = (self.words, self.requests, self.deliveries, self.answers)
        self.served = True
        """Whether the server believes that the client is connected."""

    def forget(self) -> None:
        self.served = False


class Inbox:
    """A subject that a process subscribes to, and the connections on which the server believes that it does."""

    def __init__(self, link: "Link", subject: str, arrive: Callable[..., None]) -> None:
        self.owner = link.process.name
        self.subject = subject
        self.is_wanted = True
        """The process still wants messages, so its next connection has to subscribe again."""
        self._link = link
        self._arrive = arrive
        self._wires: list[Wire] = []

    @property
    def is_heard(self) -> bool:
        """Whether there is a subscriber, as far as the server knows."""
        return any(wire.served for wire in self._wires)

    def open(self, wire: Wire) -> None:
        self._wires.append(wire)

    def close(self, wire: Wire) -> None:
        self._wires.remove(wire)

    def send(self, *message: Any, may_get_lost: bool = False) -> None:
        """Send the parts of a message: subject, reply subject, header block and body."""
        for wire in self._wires:
            if wire.served and not (may_get_lost and self._link.loses(self._link.lost_deliveries)):
                wire.deliveries.send(self._link.process.post, self._arrive, *message)

    def send_status(self, code: int, description: str, more: Mapping[str, str] = MappingProxyType({})) -> None:
        lines = [f"NATS/1.0 {code} {description}", *(f"{name}: {value}" for name, value in more.items())]
        self.send(self.subject, "", "".join(f"{line}\r\n" for line in [*lines, ""]).encode(), b"")


class Link:
    """A process's connection to nats-server; it reconnects as the client library does."""

    def __init__(self, clock: Clock, rng: random.Random, process: Process, reconnected: Callable[[], None]) -> None:
        self.process = process
        self.is_connected = True
        self.lost_words = 0.0
        """The share of acknowledgements that are lost."""
        self.lost_deliveries = 0.0
        self.wire = Wire(clock, rng)
        self._clock = clock
        self._rng = rng
        self._reconnected = reconnected
        self._inboxes: list[Inbox] = []
        self._unsent: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def tell(self, hear: Callable[..., None], *args: Any) -> None:
        """Send without waiting for an answer. While disconnected, keep it and send it after the reconnect."""
        if self.is_connected:
            self.wire.words.send(hear, *args)
        else:
            self._unsent.append((hear, args))

    def acknowledge(self, hear: Callable[..., None], *args: Any) -> None:
        """Like `tell`, but some are lost."""
        if not self.loses(self.lost_words):
            self.tell(hear, *args)

    def loses(self, share: float) -> bool:
        """Whether the next message is lost, at random."""
        return bool(share) and self._rng.random() < share

    def listen(self, inbox: Inbox) -> None:
        """Subscribe, now if connected, and on each later connection."""
        self._inboxes.append(inbox)
        if self.is_connected:
            self.wire.words.send(inbox.open, self.wire)

    def hush(self, inbox: Inbox) -> None:
        """Unsubscribe, if connected."""
        if self.is_connected:
            self.wire.words.send(inbox.close, self.wire)

    def ping(self) -> asyncio.Future[None]:
        """Done when everything has arrived that the server had sent when it received all that was told before."""
        heard = self.process.loop.create_future()
        wire = self.wire
        wire.words.send(wire.deliveries.send, self.process.post, _resolve, heard, None)
        return heard

    def ask(self, answer: Callable[[], Any], *, after_words: bool = False) -> asyncio.Future[Any]:
        """What `answer()` returns at the server; it may never arrive.

        `after_words`: the server answers after it has received all that was told before.
        """
        asked = self.process.loop.create_future()
        if after_words:
            self.tell(self._answer, answer, asked)
        else:
            self.wire.requests.send(self._answer, answer, asked)
        return asked

    def _answer(self, answer: Callable[[], Any], asked: asyncio.Future[Any]) -> None:
        result = answer()
        if isinstance(result, Late):
            self._clock.after(result.by_s, self._answer, lambda: result.answer, asked)
        elif result is not SILENCE:
            self.wire.answers.send(self.process.post, _resolve, asked, result)

    def cut(self, for_s: float) -> None:
        """Break the connection; it is restored after `for_s`."""
        if self.is_connected:
            self.is_connected = False
            self._break()
            self._clock.after(for_s, self._reconnect)

    def close(self) -> None:
        """The process has died: some of what it sent last may still arrive."""
        self.is_connected = False
        self._break(self._rng.choice((0.0, 0.001, SPIKE_S)))

    def _break(self, after_s: float = 0.0) -> None:
        for pipe in self.wire.pipes:
            pipe.cut(after_s)
        self._clock.after(self._rng.random() * _NOTICE_S, self.wire.forget)

    def _reconnect(self) -> None:
        if not self.process.alive:
            return
        self.wire = Wire(self._clock, self._rng)
        self.is_connected = True
        self._inboxes = [inbox for inbox in self._inboxes if inbox.is_wanted]
        for inbox in self._inboxes:
            self.wire.words.send(inbox.open, self.wire)
        unsent, self._unsent = self._unsent, []
        for hear, args in unsent:
            self.wire.words.send(hear, *args)
        self.process.post(self._reconnected)


def _resolve(asked: asyncio.Future[Any], result: Any) -> None:
    if not asked.done():
        asked.set_result(result)
