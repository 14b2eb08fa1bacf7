"""Connections: what is sent arrives in order, a little later; or much later; or, if the connection breaks, never."""

import asyncio
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from simulation.clock import Clock, Process

_SPIKE = 0.03
"""How often something is held up on its way."""
SPIKE_S = 0.4
_NOTICE_S = 1.0
"""How long a server may go on serving a client that is gone."""

SILENCE = object()
"""What a server that is away answers."""


@dataclass(frozen=True, slots=True)
class Late:
    """What a server answers that takes its time."""

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
        """`arrive` is called when it has come through."""
        delay_s = self._rng.expovariate(self._rate)
        if self._rng.random() < _SPIKE:
            delay_s += self._rng.random() * SPIKE_S
        self._free_s = max(self._free_s, self._clock.now + delay_s)
        self._clock.at(self._free_s, self._arrive, arrive, args)

    def stall(self, for_s: float) -> None:
        """Nothing that is sent from now on arrives earlier than `for_s` from now."""
        self._free_s = max(self._free_s, self._clock.now + for_s)

    def cut(self, after_s: float = 0.0) -> None:
        """What has not arrived `after_s` from now is lost, and so is whatever is sent later."""
        self._ends_s = min(self._ends_s, self._clock.now + after_s)

    def _arrive(self, arrive: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self._clock.now < self._ends_s:
            arrive(*args)


class Wire:
    """One connection to nats-server.

    The server works on acknowledgements, requests, deliveries and answers side by side, so each keeps its own order
    only: an answer may overtake a delivery.
    """

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self.words, self.requests, self.deliveries, self.answers = (Pipe(clock, rng, 0.001) for _ in range(4))
        self.pipes = (self.words, self.requests, self.deliveries, self.answers)
        self.served = True
        """What the server believes: whether anybody listens at the other end."""

    def forget(self) -> None:
        self.served = False


class Inbox:
    """A subject that a process listens on, as the server knows it: on which connections, while it believes in them."""

    def __init__(self, link: "Link", subject: str, arrive: Callable[..., None]) -> None:
        self.owner = link.process.name
        self.subject = subject
        self.is_wanted = True
        """What comes is for somebody, and the next connection has to hear of it."""
        self._link = link
        self._arrive = arrive
        self._wires: list[Wire] = []

    @property
    def is_heard(self) -> bool:
        """Whether somebody listens, as far as the server knows."""
        return any(wire.served for wire in self._wires)

    def open(self, wire: Wire) -> None:
        self._wires.append(wire)

    def close(self, wire: Wire) -> None:
        self._wires.remove(wire)

    def send(self, *message: Any, may_get_lost: bool = False) -> None:
        """Send what makes a message: its subject, the subject to reply to, the block of headers, and the body."""
        for wire in self._wires:
            if wire.served and not (may_get_lost and self._link.loses(self._link.lost_deliveries)):
                wire.deliveries.send(self._link.process.post, self._arrive, *message)

    def send_status(self, code: int, description: str, more: Mapping[str, str] = MappingProxyType({})) -> None:
        lines = [f"NATS/1.0 {code} {description}", *(f"{name}: {value}" for name, value in more.items())]
        self.send(self.subject, "", "".join(f"{line}\r\n" for line in [*lines, ""]).encode(), b"")


class Link:
    """A process's connection to nats-server, made anew when it was lost, as the client library does it."""

    def __init__(self, clock: Clock, rng: random.Random, process: Process, reconnected: Callable[[], None]) -> None:
        self.process = process
        self.is_connected = True
        self.lost_words = 0.0
        """The share of acknowledgements that get lost."""
        self.lost_deliveries = 0.0
        self.wire = Wire(clock, rng)
        self._clock = clock
        self._rng = rng
        self._reconnected = reconnected
        self._inboxes: list[Inbox] = []
        self._unsent: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def tell(self, hear: Callable[..., None], *args: Any) -> None:
        """Send without waiting for an answer. While disconnected it is kept, and sent after the reconnect."""
        if self.is_connected:
            self.wire.words.send(hear, *args)
        else:
            self._unsent.append((hear, args))

    def acknowledge(self, hear: Callable[..., None], *args: Any) -> None:
        """Like `tell`, but it may get lost."""
        if not self.loses(self.lost_words):
            self.tell(hear, *args)

    def loses(self, share: float) -> bool:
        """Whether it is the turn of the next one to get lost."""
        return bool(share) and self._rng.random() < share

    def listen(self, inbox: Inbox) -> None:
        """Tell the server of a subscription, now if it is there, and on each later connection."""
        self._inboxes.append(inbox)
        if self.is_connected:
            self.wire.words.send(inbox.open, self.wire)

    def hush(self, inbox: Inbox) -> None:
        """Tell the server that nobody listens any more, if it is there."""
        if self.is_connected:
            self.wire.words.send(inbox.close, self.wire)

    def ping(self) -> asyncio.Future[None]:
        """Done when all is here that the server had sent when it heard of everything that was told before."""
        heard = self.process.loop.create_future()
        wire = self.wire
        wire.words.send(wire.deliveries.send, self.process.post, _resolve, heard, None)
        return heard

    def ask(self, answer: Callable[[], Any], *, after_words: bool = False) -> asyncio.Future[Any]:
        """What `answer()` returns at the server, which may never come to be known.

        `after_words`: the server answers when it has heard all that was told before.
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
        """The connection breaks, and is there again `for_s` later."""
        if self.is_connected:
            self.is_connected = False
            self._break()
            self._clock.after(for_s, self._reconnect)

    def close(self) -> None:
        """The process is gone: some of what it sent last may arrive still."""
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
