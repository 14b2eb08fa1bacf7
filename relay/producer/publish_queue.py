"""Publishes what it is given until it has the PubAcks: each job's updates in order, the jobs side by side."""

import asyncio
import random
from dataclasses import dataclass
from itertools import count
from typing import Final

from nats.errors import NoRespondersError

from relay.contract.errors import JetStreamError, PublishUnconfirmed, RelayError
from relay.core.backoff import Backoff
from relay.nats.connection import PubAck, publish_confirmed
from relay.nats.err_codes import NO_LEADER
from relay.observability.logs import get_logger
from relay.producer.confirmed import Parcel
from relay.producer.errors import (
    PublisherClosed,
    PublisherFull,
    PublishHeldBack,
    PublishRefused,
    PublishTimedOut,
)
from relay.producer.outbox import Outbox
from relay.producer.reconnector import Reconnector

_TRY_TIMEOUT_S: Final = 5.0
"""How long one try waits for its PubAck, as long as the connection stands."""
_BACKOFF: Final = Backoff(initial_s=0.05, max_s=1.0, random=random.random)
"""The err_code of the one refusal that passes by itself: the cluster elects a leader."""
_log = get_logger(__name__, guest=True)


@dataclass(slots=True, eq=False)
class Sending:
    """A parcel on its way. `stored` is done with its PubAck, or with why there is none; whoever waits may cancel it.

    deadline_s: on the loop's clock. heeded: whether somebody waits for `stored`; if not, a failure is logged.
    """

    parcel: Parcel
    timeout_s: float
    deadline_s: float
    stored: asyncio.Future[PubAck]
    heeded: bool = False

    @property
    def job(self) -> str:
        return self.parcel.job

    @property
    def size(self) -> int:
        return self.parcel.size


class PublishQueue:
    """Carries parcels over one link, in the event loop that it is first used in.

    Each job with parcels waiting has a task, which publishes them one after another.
    """

    def __init__(self, link: Reconnector, outbox: Outbox[Sending]) -> None:
        self._link = link
        self._outbox = outbox
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def take(self, parcel: Parcel, timeout_s: float) -> Sending:
        """Take a parcel over; from here on it is published in its turn, whoever waits for it or no longer does.

        Raises PublisherFull, PublisherClosed.
        """
        if self._closed:
            raise PublisherClosed
        outbox, loop = self._outbox, asyncio.get_running_loop()
        if not outbox.has_room(parcel.size):
            raise PublisherFull(parcel.name, len(outbox), outbox.bytes, outbox.max_parcels, outbox.max_bytes)
        sending = Sending(parcel, timeout_s, loop.time() + timeout_s, loop.create_future())
        if outbox.add(sending):
            task = loop.create_task(self._carry(sending))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return sending

    async def close(self, timeout_s: float) -> list[str]:
        """Take nothing more, publish what waits for at most `timeout_s`, and end; returns what was not published."""
        self._closed = True
        unpublished: list[str] = []
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout_s)
            unpublished = [sending.parcel.name for sending in self._outbox.parcels()]
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._link.close()
        return unpublished

    async def _carry(self, head: Sending | None) -> None:
        while head is not None:
            try:
                ack = await self._confirm(head)
            except asyncio.CancelledError:  # by `close`, or because the event loop ends
                self._fail(head, PublisherClosed([head.parcel.name]))
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to whoever waits for the PubAck
                self._fail(head, error)
                return
            if not head.stored.done():  # by a cancellation: who waited does not wait any more
                head.stored.set_result(ack)
            head = self._outbox.done(head.job)

    def _fail(self, head: Sending, error: Exception) -> None:
        _end(head, error)
        for later in self._outbox.failed(head.job):
            _end(later, PublishHeldBack(later.parcel.name, head.parcel.name, str(error)))

    async def _confirm(self, sending: Sending) -> PubAck:
        """Publish until there is a PubAck. Raises PublishTimedOut, PublishRefused, ConfigurationError."""
        parcel, loop = sending.parcel, asyncio.get_running_loop()
        maybe_stored, cause = False, "the job's earlier updates took all the time"
        for tries in count(1):
            if loop.time() >= sending.deadline_s:
                break
            try:
                return await self._try(sending)
            except TimeoutError:  # there was no connection until the deadline
                cause = self._link.trouble
            except PublishUnconfirmed as error:
                maybe_stored |= not isinstance(error.__cause__, NoRespondersError)
                cause = error.cause
            except JetStreamError as error:
                if error.err_code != NO_LEADER:
                    raise PublishRefused(parcel.name, error) from None
                cause = error.description
            await asyncio.sleep(min(_BACKOFF.delay_s(tries), max(0.0, sending.deadline_s - loop.time())))
        if (complaint := self._link.complaint) and complaint != cause:
            cause = f"{cause} (the server complained of {complaint})"
        raise PublishTimedOut(
            parcel.subject, cause, update=parcel.name, timeout_s=sending.timeout_s, maybe_stored=maybe_stored
        )

    async def _try(self, sending: Sending) -> PubAck:
        parcel = sending.parcel
        client = await self._link.up(sending.deadline_s)
        left_s = sending.deadline_s - asyncio.get_running_loop().time()
        try:
            async with self._link.while_up():
                return await publish_confirmed(
                    client, parcel.subject, parcel.body, parcel.headers, timeout_s=min(_TRY_TIMEOUT_S, left_s)
                )
        except TimeoutError as error:
            raise PublishUnconfirmed(parcel.subject, "the connection was lost before the PubAck came") from error


def _end(sending: Sending, error: Exception) -> None:
    if not sending.heeded or sending.stored.cancelled():
        known = str(error) if isinstance(error, RelayError) else repr(error)
        _log.error("an update was not published, and nobody waits for it", update=sending.parcel.name, error=known)
    if not sending.stored.done():
        sending.stored.set_exception(error)
        sending.stored.exception()  # asyncio would report it once more, as never retrieved
