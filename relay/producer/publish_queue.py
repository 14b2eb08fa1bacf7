"""Publishes updates until each has its PubAck: each job's updates in order, different jobs side by side."""

import asyncio
import random
from collections.abc import Mapping
from itertools import count
from typing import Final

from nats.errors import NoRespondersError

from relay.contract.errors import JetStreamError, PublishUnconfirmed, RelayError
from relay.contract.model import JobStatusUpdate
from relay.contract.settings import NatsSettings
from relay.contract.subjects import MSG_ID_HEADER, status_subject
from relay.core.backoff import Backoff
from relay.nats.connection import PubAck, publish_confirmed
from relay.nats.err_codes import NO_LEADER
from relay.nats.reconnector import Reconnector
from relay.observability.logs import get_logger
from relay.producer.confirmed import message_id, name_of
from relay.producer.errors import (
    PublisherClosed,
    PublisherFull,
    PublishHeldBack,
    PublishRefused,
    PublishTimedOut,
    UpdateTooLarge,
)
from relay.producer.options import Limits
from relay.producer.outbox import Outbox, PendingUpdate

_TRY_TIMEOUT_S: Final = 5.0
"""How long one try waits for its PubAck while the connection is up."""
_BACKOFF: Final = Backoff(initial_s=0.05, max_s=1.0, random=random.random)
_log = get_logger(__name__, guest=True)


class PublishQueue:
    """Publishes over one connection. It belongs to the event loop in which it is first used.

    Each job with pending updates has one task, which publishes them one after another.
    """

    def __init__(self, settings: NatsSettings, limits: Limits) -> None:
        self._connection = Reconnector(settings, name="relay-producer")
        self._outbox = Outbox(limits.max_updates, limits.max_bytes)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def add(self, update: JobStatusUpdate, headers: Mapping[str, str], timeout_s: float) -> PendingUpdate:
        """Take an update. It is published in its turn, whether or not a caller waits for its PubAck.

        Raises UpdateTooLarge, PublisherFull, PublisherClosed.
        """
        if self._closed:
            raise PublisherClosed
        outbox, loop = self._outbox, asyncio.get_running_loop()
        pending = PendingUpdate(
            name=name_of(update),
            job=update.uuid,
            subject=status_subject(update.uuid),
            body=update.to_json(),
            headers={MSG_ID_HEADER: message_id(update), **headers},
            timeout_s=timeout_s,
            deadline_s=loop.time() + timeout_s,
            pub_ack=loop.create_future(),
        )
        if pending.size > outbox.max_bytes:
            raise UpdateTooLarge(pending.name, pending.size, outbox.max_bytes)
        if not outbox.has_room(pending.size):
            raise PublisherFull(pending.name, len(outbox), outbox.bytes, outbox.max_updates, outbox.max_bytes)
        if outbox.add(pending):
            task = loop.create_task(self._publish_job(pending))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return pending

    async def close(self, timeout_s: float) -> list[str]:
        """Take no more updates, go on publishing for at most `timeout_s`, and close the connection.

        Returns the names of the updates that were not published, job by job. If this is cancelled, call it again.
        """
        self._closed = True
        unpublished: list[str] = []
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout_s)
            unpublished = [pending.name for pending in self._outbox]
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._connection.close()
        return unpublished

    async def _publish_job(self, head: PendingUpdate | None) -> None:
        while head is not None:
            try:
                pub_ack = await self._confirm(head)
            except asyncio.CancelledError:  # by `close`, or because the event loop ends
                self._fail(head, PublisherClosed([head.name]))
                raise
            except Exception as error:  # noqa: BLE001 - it is raised where the PubAck is awaited
                self._fail(head, error)
                return
            if not head.pub_ack.done():  # it is done if the caller cancelled it
                head.pub_ack.set_result(pub_ack)
            head = self._outbox.published(head.job)

    def _fail(self, head: PendingUpdate, error: Exception) -> None:
        _end(head, error)
        for later in self._outbox.failed(head.job):
            _end(later, PublishHeldBack(later.name, head.name, str(error)))

    async def _confirm(self, pending: PendingUpdate) -> PubAck:
        """Publish until there is a PubAck. Raises PublishTimedOut, PublishRefused, ConfigurationError."""
        loop = asyncio.get_running_loop()
        maybe_stored, cause = False, "the job's earlier updates took all the time"
        for tries in count(1):
            if loop.time() >= pending.deadline_s:
                break
            try:
                return await self._try(pending)
            except TimeoutError:  # there was no connection until the deadline
                cause = self._connection.problem
            except PublishUnconfirmed as error:
                maybe_stored |= not isinstance(error.__cause__, NoRespondersError)
                cause = error.cause
            except JetStreamError as error:
                if error.err_code != NO_LEADER:  # only this refusal is temporary
                    raise PublishRefused(pending.name, error) from None
                cause = error.description
            await asyncio.sleep(min(_BACKOFF.delay_s(tries), max(0.0, pending.deadline_s - loop.time())))
        if (reported := self._connection.server_error) and reported != cause:
            cause = f"{cause} (the server reported: {reported})"
        raise PublishTimedOut(
            pending.subject, cause, update=pending.name, timeout_s=pending.timeout_s, maybe_stored=maybe_stored
        )

    async def _try(self, pending: PendingUpdate) -> PubAck:
        """Publish once. Raises as publish_confirmed, and TimeoutError if there is no connection until the deadline."""
        client = await self._connection.connected(pending.deadline_s)
        left_s = pending.deadline_s - asyncio.get_running_loop().time()
        try:
            async with self._connection.until_lost():
                return await publish_confirmed(
                    client, pending.subject, pending.body, pending.headers, timeout_s=min(_TRY_TIMEOUT_S, left_s)
                )
        except TimeoutError as error:
            raise PublishUnconfirmed(pending.subject, "the connection was lost before the PubAck came") from error


def _end(pending: PendingUpdate, error: Exception) -> None:
    if not pending.awaited or pending.pub_ack.cancelled():
        known = str(error) if isinstance(error, RelayError) else repr(error)
        _log.error("an update was not published, and nobody waits for it", update=pending.name, error=known)
    if not pending.pub_ack.done():
        pending.pub_ack.set_exception(error)
        pending.pub_ack.exception()  # marks it as retrieved; otherwise asyncio would log it again
