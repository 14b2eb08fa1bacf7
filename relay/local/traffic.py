"""Publishes the updates of many jobs at a steady rate, the updates of each job in order."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Final

from relay.contract.errors import PublishUnconfirmed
from relay.local.jobs import StatusMessage
from relay.nats.frames import FrameClient
from relay.nats.jetstream import PubAck
from relay.producer import publish_body

_AGAIN_AFTER_S: Final = 0.1
_CONFIRM_TIMEOUT_S: Final = 2.0
_Job = deque[StatusMessage]


@dataclass(frozen=True, slots=True)
class Published:
    """A message that JetStream has stored.

    sequence: its sequence in the stream; if `duplicate`, that of the earlier message. due_s: when it was due at the
    chosen rate, in seconds on the monotonic clock. sent_s: when it was first sent; much later than `due_s` means
    overload.
    """

    message: StatusMessage
    sequence: int
    duplicate: bool
    due_s: float
    sent_s: float


class TrafficSource:
    """Publishes jobs in an open loop: at `rate_per_s` updates a second, no matter how long each PubAck takes.

    A job's next update is sent after the PubAck of the one before. `interleaved` jobs are published at a time, and the
    job of the next update is chosen at random. If all of them wait for a PubAck, the source falls behind, and catches
    up later.

    Args:
        jobs: each job's messages in order. Jobs are taken one by one, so there may be infinitely many.
        patience_s: how long to repeat a publish that gets no PubAck, for instance because the server is away.
    """

    def __init__(
        self,
        client: FrameClient,
        jobs: Iterable[Iterable[StatusMessage]],
        *,
        rate_per_s: float,
        rng: Random,
        interleaved: int = 50,
        patience_s: float = 30.0,
    ) -> None:
        self._client = client
        self._waiting: Iterator[Iterable[StatusMessage]] = iter(jobs)
        self._rate_per_s = rate_per_s
        self._rng = rng
        self._interleaved = interleaved
        self._patience_s = patience_s
        self._idle: list[_Job] = []
        self._unconfirmed = 0
        self._changed = asyncio.Event()

    async def run(self, on_published: Callable[[Published], None]) -> None:
        """Publish all. `on_published` is called for each update when its PubAck comes, in order within each job.

        Raises an ExceptionGroup: of PublishUnconfirmed when `patience_s` is over, of JetStreamError if the server
        refuses a message. What was published stays published, also if this is cancelled.
        """
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in count():
                due_s = began_s + number / self._rate_per_s
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                job = await self._next_job()
                if job is None:
                    return
                self._unconfirmed += 1
                group.create_task(self._publish(job, due_s, on_published))

    async def _next_job(self) -> _Job | None:
        """A job that does not wait for a PubAck; None if all jobs are done."""
        while True:
            while len(self._idle) + self._unconfirmed < self._interleaved:
                job = next(self._waiting, None)
                if job is None:
                    break
                if messages := deque(job):
                    self._idle.append(messages)
            if self._idle:
                at = self._rng.randrange(len(self._idle))
                self._idle[at], self._idle[-1] = self._idle[-1], self._idle[at]
                return self._idle.pop()
            if not self._unconfirmed:
                return None
            self._changed.clear()
            await self._changed.wait()

    async def _publish(self, job: _Job, due_s: float, on_published: Callable[[Published], None]) -> None:
        message = job.popleft()
        sent_s = time.monotonic()
        ack = await self._confirmed(message, sent_s + self._patience_s)
        on_published(Published(message, ack.sequence, ack.duplicate, due_s, sent_s))
        self._unconfirmed -= 1
        if job:
            self._idle.append(job)
        self._changed.set()

    async def _confirmed(self, message: StatusMessage, until_s: float) -> PubAck:
        while True:
            try:
                return await publish_body(
                    self._client,
                    message.uuid,
                    message.body,
                    message_id=message.message_id,
                    timeout_s=_CONFIRM_TIMEOUT_S,
                )
            except PublishUnconfirmed:
                if time.monotonic() >= until_s:
                    raise
            await asyncio.sleep(_AGAIN_AFTER_S)
