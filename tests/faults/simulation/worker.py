"""One relay process, put together as relay/service/app.py does it, on the models of what is outside."""

import asyncio
import functools
import random
from dataclasses import dataclass
from typing import Any, Final

from relay.core.backoff import Backoff
from relay.core.connect_pace import ConnectPace, Place
from relay.core.lane import Lane
from relay.core.memory import Memory
from relay.core.pull import expiry_s
from relay.core.session import Pushed
from relay.core.verdict import RetryPolicy
from relay.facilitator.connection import Endpoint
from relay.leases.ownership import Ownership
from relay.observability.metrics import Metrics
from relay.path.lanes import Lanes
from relay.path.limits import LaneLimits
from relay.service.lifecycle import background
from relay.service.line import Line, LineSettings, for_lane
from simulation.book import Book
from simulation.client import Client
from simulation.clock import Clock, Process
from simulation.facilitator import AUTHENTICATION, Facilitator
from simulation.jetstream import JetStream
from simulation.leases import Bucket, WorkerLeases
from simulation.network import Link
from simulation.schedule import Schedule

MAX_ATTEMPTS: Final = 3
REPLY_TIMEOUT_S: Final = 4.0
DRAIN_S: Final = 3.0
_BACKOFF_S: Final = (0.1, 1.0)

_metrics = functools.cache(Metrics)  # creating a registry takes longer than many a run, and nothing reads it


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all workers share."""

    clock: Clock
    book: Book
    jetstream: JetStream
    bucket: Bucket
    facilitator: Facilitator
    schedule: Schedule


class _Pushes:
    """Receives pushes and drops them."""

    async def put(self, pushed: Pushed) -> None:
        pass


class Worker:
    """A worker that runs until it is killed or told to stop."""

    def __init__(self, around: Surroundings, name: str, rng: random.Random) -> None:
        self.process = Process(around.clock, name, self._ended)
        self.link = Link(around.clock, rng, self.process, self._reconnected)
        self.leaving = False
        self._around = around
        self._rng = rng
        self._leave = asyncio.Event()
        self._held_bytes: dict[Lane, int] = {}
        """The most that each lane had at hand while it was held: that it takes in whatever its share is."""
        self._memory = Memory(around.schedule.memory_bytes, around.schedule.ack_wait_s, around.schedule.lanes)
        self._client: Any = Client(self.link, around.jetstream, self._swallowed)
        self._lines = [self._make_line(number) for number in range(self._connections)]
        leases = WorkerLeases(around.clock, around.bucket, self.link, name, around.schedule.lease_ttl_s)
        self._ownership = Ownership(
            leases,  # type: ignore[arg-type]
            around.schedule.lanes,
            self._driver_of,
            drain_s=DRAIN_S,
            metrics=_metrics(around.schedule.lanes),
        )
        around.book.note(name, "starts")
        self.process.start(self._run())

    @property
    def alive(self) -> bool:
        return self.process.alive

    def leave(self) -> None:
        """Tell it to stop."""
        self.leaving = True
        self._around.book.note(self.process.name, "is told to stop")
        self.process.post(self._leave.set)

    def kill(self) -> None:
        if self.alive:
            self._around.book.note(self.process.name, "is killed")
            self.process.kill()
            self._vanish()

    def stop(self) -> None:
        if self.alive:
            self._around.book.note(self.process.name, "stands still")
            self.process.stop()

    def resume(self) -> None:
        if self.alive:
            self._around.book.note(self.process.name, "goes on")
            self.process.resume()

    def bytes_at_hand(self) -> tuple[int, int]:
        """The bytes of all bodies at hand, and how many of them may be there because their lanes were held."""
        at_hand = excused = 0
        for line in self._lines:
            for lane in line.lanes._runs:
                size_bytes = sum(len(update.delivery.body) for update in lane.at_hand())
                at_hand += size_bytes
                if lane.held:
                    self._held_bytes[lane] = max(self._held_bytes.get(lane, 0), size_bytes)
                excused += self._held_bytes.get(lane, 0)
        return at_hand, excused

    async def _run(self) -> None:
        """The same as Relay._relay does."""
        async with background(*(line.run() for line in self._lines)):
            await self._ownership.run(self._leave)

    @property
    def _connections(self) -> int:
        return min(self._around.schedule.connections, self._around.schedule.lanes)

    def _make_line(self, number: int) -> Line:
        schedule = self._around.schedule
        backoff = Backoff(*_BACKOFF_S, self._rng.random)
        settings = LineSettings(
            endpoint=Endpoint(f"ws://facilitator/{number}"),
            authentication=AUTHENTICATION,
            window=schedule.window,
            reply_timeout_s=REPLY_TIMEOUT_S,
            pace=ConnectPace(lambda: self._ownership.place or Place(0, 1), number, self._connections, backoff),
            policy=RetryPolicy(MAX_ATTEMPTS, backoff),
            lanes=LaneLimits(schedule.capacity, schedule.ack_wait_s, self._memory),
            pull_batch=schedule.capacity // 2,
            pull_expires_s=expiry_s(schedule.lease_ttl_s, schedule.ack_wait_s),
        )
        return Line(self._client, settings, _Pushes(), _metrics(schedule.lanes), watch_advisories=_no_advisories)

    def _driver_of(self, lane: int) -> Lanes:
        return for_lane(self._lines, lane)

    def _reconnected(self) -> None:
        for line in self._lines:
            line.lanes.broker_reconnected()

    def _swallowed(self, error: Exception) -> None:
        self._around.book.complain(f"nobody hears that {self.process.name} met {error!r}")

    def _ended(self, error: BaseException | None) -> None:
        if error is not None:
            self._around.book.complain(f"{self.process.name} ended with {_causes(error)}")
        self._around.book.note(self.process.name, "has ended")
        self._vanish()

    def _vanish(self) -> None:
        self.link.close()
        after_s = self._rng.choice((0.0, 0.001, 0.1))
        for connection in list(self._around.facilitator.connections):
            if connection.owner == self.process.name:
                connection.vanish(after_s)


async def _no_advisories(*_: Any) -> None:
    await asyncio.Event().wait()


def _causes(error: BaseException) -> str:
    """The exceptions in a group, as text."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(map(_causes, error.exceptions))
    return repr(error)
