"""Publishes updates until each has its PubAck: each job's updates in order, different jobs side by side."""

import asyncio
import random
from collections.abc import Iterable, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any, Final, cast

from nats.errors import NoRespondersError

from relay.contract.errors import ConfigurationError, JetStreamError, PublishUnconfirmed, RelayError
from relay.contract.sizes import MAX_FRAME_BYTES
from relay.contract.subjects import MSG_ID_HEADER, status_subject
from relay.contract.text import describe
from relay.core.backoff import Backoff
from relay.nats.err_codes import NO_LEADER, TOO_LARGE, WRONG_STREAM
from relay.nats.jetstream import PubAck, headers_size, publish_confirmed
from relay.nats.reconnector import Reconnector
from relay.observability.logs import get_logger
from relay.producer.confirmed import message_id, name_of
from relay.producer.errors import (
    FlushIncomplete,
    InvalidUpdate,
    NotReady,
    PublisherClosed,
    PublisherFull,
    PublishHeldBack,
    PublishRefused,
    PublishTimedOut,
    UpdateTooLarge,
)
from relay.producer.options import PublisherOptions
from relay.producer.outbox import Outbox, PendingUpdate
from relay.producer.shortening import largest_parts, shortened

if TYPE_CHECKING:  # see __init__.py
    from relay.contract.model import JobStatusUpdate

_TRY_TIMEOUT_S: Final = 5.0
"""How long one try waits for its PubAck while the connection is up."""
_LEFT_CLOSE_S: Final = 0.25
"""For each of the two steps of closing, if updates are left unpublished: then NATS is away, or does not answer."""
_BACKOFF: Final = Backoff(initial_s=0.05, max_s=1.0, random=random.random)
_NIL_JOB: Final = "00000000-0000-0000-0000-000000000000"
_log = get_logger(__name__, guest=True)


class PublishQueue:
    """Publishes over one connection. It belongs to the event loop in which it is first used.

    Each job with pending updates has one task, which publishes them one after another.
    """

    def __init__(self, options: PublisherOptions) -> None:
        self._options = options
        self._connection = Reconnector(options.settings, name="relay-producer")
        self._outbox = Outbox(options.limits.max_updates, options.limits.max_bytes)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def add(
        self, update: "JobStatusUpdate", headers: Mapping[str, str], timeout_s: float, *, awaited: bool
    ) -> PendingUpdate:
        """Take an update. It is published in its turn, whether or not a caller waits for its PubAck.

        If there is no room, it waits in line for it if it is `awaited`.

        Raises InvalidUpdate, UpdateTooLarge, PublisherClosed; unless it is awaited, PublisherFull.
        """
        if self._closed:
            raise PublisherClosed
        outbox, pending = self._outbox, self._pending(update, headers, timeout_s, awaited=awaited)
        if outbox.has_room(pending.size):
            self._begin(pending)
        elif awaited:
            outbox.wait_in_line(pending)
            timer = asyncio.get_running_loop().call_at(pending.deadline_s, self._no_room, pending)
            pending.pub_ack.add_done_callback(lambda _: self._had_to_wait(pending, timer))
        else:
            raise self._full(pending)
        return pending

    async def flush(self, timeout_s: float) -> None:
        """Wait until each update that was taken before has its PubAck or has failed. Cancelling is safe.

        Raises FlushIncomplete.
        """
        waiting = {pending.pub_ack: pending.name for pending in self._outbox}
        if not waiting:
            return
        done, late = await asyncio.wait(waiting, timeout=timeout_s)
        failed = {each for each in done if not each.cancelled() and each.exception() is not None}
        if unpublished := [name for each, name in waiting.items() if each in late or each in failed]:
            raise FlushIncomplete(unpublished, timeout_s)

    async def check(self, timeout_s: float) -> None:
        """Ask whether NATS would store an update now, without storing any. Cancelling is safe. Raises NotReady.

        The server answers a publish that expects another stream with an error that tells it is there.
        """
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        try:
            client = await self._connection.connected(deadline_s)
            headers = {"Nats-Expected-Stream": "check"}
            left_s = max(0.01, deadline_s - asyncio.get_running_loop().time())
            await publish_confirmed(client, status_subject(_NIL_JOB), b"", headers, timeout_s=left_s)
        except TimeoutError:
            raise NotReady(self._connection.problem) from None
        except JetStreamError as error:
            if error.err_code != WRONG_STREAM:
                raise NotReady(f"the server answers with {error.description!r} (err_code {error.err_code})") from None
        except PublishUnconfirmed as error:
            raise NotReady(error.cause) from None
        except ConfigurationError as error:
            raise NotReady(str(error)) from None

    async def close(self, timeout_s: float) -> list[str]:
        """Take no more updates, go on publishing for at most `timeout_s`, and close the connection.

        Returns the names of the updates that were not published, job by job. If this is cancelled, call it again.
        """
        self._closed = True
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while self._tasks and (left_s := deadline_s - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(self._tasks, timeout=left_s)  # their end may let others begin
        unpublished = self.waiting()
        late = list(self._tasks)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        await (self._connection.close(_LEFT_CLOSE_S) if unpublished else self._connection.close())
        return unpublished

    def waiting(self) -> list[str]:
        """The names of the updates that have no PubAck yet, job by job."""
        return [pending.name for pending in self._outbox]

    def _pending(
        self, update: "JobStatusUpdate", headers: Mapping[str, str], timeout_s: float, *, awaited: bool
    ) -> PendingUpdate:
        loop = asyncio.get_running_loop()
        body, identity = _written(update)
        pending = PendingUpdate(
            update=update,
            name=name_of(update),
            job=update.uuid,
            subject=status_subject(update.uuid),
            body=body,
            headers={MSG_ID_HEADER: identity, **headers},
            timeout_s=timeout_s,
            deadline_s=loop.time() + timeout_s,
            pub_ack=loop.create_future(),
            awaited=awaited,
        )
        self._fit(pending, "max_bytes of this publisher", self._outbox.max_bytes)
        self._fit(pending, "what the Facilitator takes", MAX_FRAME_BYTES)
        pending.size = len(pending.body)
        return pending

    def _fit(self, pending: PendingUpdate, limit: str, max_bytes: int) -> None:
        """Shorten a larger body to `max_bytes`, if that is wanted and enough; else raises UpdateTooLarge."""
        if len(pending.body) <= max_bytes:
            return
        body = shortened(pending.update, max_bytes) if self._options.on_too_large == "truncate" else None
        if body is None:
            parts = largest_parts(pending.update)
            raise UpdateTooLarge(pending.name, len(pending.body), limit, max_bytes, parts)
        _log.warning("an update was shortened", update=pending.name, limit=limit, max_bytes=max_bytes)
        pending.body = body

    def _begin(self, pending: PendingUpdate) -> None:
        if self._outbox.add(pending):
            task = asyncio.get_running_loop().create_task(self._publish_job(pending))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _let_in(self) -> None:
        while (pending := self._outbox.next_in_line()) is not None:
            self._begin(pending)

    async def _publish_job(self, head: PendingUpdate | None) -> None:
        while head is not None:
            try:
                pub_ack = await self._confirm(head)
            except asyncio.CancelledError:  # by `close`, or because the event loop ends
                self._fail(head, PublisherClosed([head.name]))
                raise
            except RelayError as error:
                self._fail(head, error)
                return
            except Exception as error:  # noqa: BLE001 - it is raised where the PubAck is awaited
                self._fail(head, PublishUnconfirmed(head.subject, describe(error)))
                return
            if not head.pub_ack.done():  # it is done if the caller cancelled it
                head.pub_ack.set_result(pub_ack)
            head = self._outbox.published(head.job)
            self._let_in()

    def _fail(self, head: PendingUpdate, error: RelayError) -> None:
        self._end(head, error)
        self._hold_back(self._outbox.failed(head.job), head, error)
        self._let_in()

    def _no_room(self, pending: PendingUpdate) -> None:
        """The time of an update is over that had to wait in line."""
        if self._outbox.leave_line(pending):
            error = self._full(pending)
            self._end(pending, error)
            self._hold_back(self._outbox.leave_line_too(pending.job), pending, error)

    def _had_to_wait(self, pending: PendingUpdate, timer: asyncio.TimerHandle) -> None:
        """An update that had to wait in line has ended, or its caller was cancelled: then it is not published."""
        timer.cancel()
        if self._outbox.leave_line(pending):
            self._let_in()

    def _hold_back(self, updates: Iterable[PendingUpdate], head: PendingUpdate, error: RelayError) -> None:
        for later in updates:
            self._end(later, PublishHeldBack(later.name, head.name, str(error)))

    def _full(self, pending: PendingUpdate) -> PublisherFull:
        outbox = self._outbox
        return PublisherFull(pending.name, len(outbox), outbox.bytes, outbox.max_updates, outbox.max_bytes)

    def _end(self, pending: PendingUpdate, error: RelayError) -> None:
        pub_ack = pending.pub_ack
        if not pending.awaited or pub_ack.cancelled():
            self._tell(pending, error)
        if not pub_ack.done():
            pub_ack.set_exception(error)
            pub_ack.exception()  # marks it as retrieved; otherwise asyncio would log it again

    def _tell(self, pending: PendingUpdate, error: RelayError) -> None:
        """Nobody waits for the update, so its failure is told."""
        if (on_error := self._options.on_error) is not None:
            try:
                on_error(pending.update, error)
            except Exception as of_callback:  # noqa: BLE001 - it must not end the publisher
                _log.error("on_error has failed", update=pending.name, error=describe(of_callback))
        elif not self._closed:  # what `close` does not publish, it names itself
            _log.error("an update was not published, and nobody waits for it", update=pending.name, error=str(error))

    async def _confirm(self, pending: PendingUpdate) -> PubAck:
        """Publish until there is a PubAck. Raises PublishTimedOut, PublishRefused, UpdateTooLarge."""
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
                if error.err_code == TOO_LARGE and self._shorten_more(pending):
                    continue
                if error.err_code != NO_LEADER:  # only this refusal is temporary
                    raise PublishRefused(pending.name, error) from None
                cause = error.description
            await asyncio.sleep(min(_BACKOFF.delay_s(tries), max(0.0, pending.deadline_s - loop.time())))
        if (reported := self._connection.server_error) and reported != cause:
            cause = f"{cause} (the server reported: {reported})"
        raise PublishTimedOut(
            pending.subject, cause, update=pending.name, timeout_s=pending.timeout_s, maybe_stored=maybe_stored
        )

    def _shorten_more(self, pending: PendingUpdate) -> bool:
        """The stream has a limit of its own, which is not known here. Returns whether a shorter body can be tried."""
        if self._options.on_too_large == "error":
            return False
        body = shortened(pending.update, len(pending.body) // 2)
        if body is not None:
            _log.warning("an update was shortened", update=pending.name, limit="of the stream", max_bytes=len(body))
            pending.body = body
        return body is not None

    async def _try(self, pending: PendingUpdate) -> PubAck:
        """Publish once. Raises as publish_confirmed, and TimeoutError if there is no connection until the deadline."""
        client = await self._connection.connected(pending.deadline_s)
        self._fit(pending, "the max_payload of nats-server", client.max_payload - headers_size(pending.headers))
        left_s = pending.deadline_s - asyncio.get_running_loop().time()
        try:
            async with self._connection.until_lost():
                return await publish_confirmed(
                    self._connection.pipeline,
                    pending.subject,
                    pending.body,
                    pending.headers,
                    timeout_s=min(_TRY_TIMEOUT_S, left_s),
                )
        except TimeoutError as error:
            raise PublishUnconfirmed(pending.subject, "the connection was lost before the PubAck came") from error


def _written(update: "JobStatusUpdate") -> tuple[bytes, str]:
    """The update as JSON, and its message id. Raises InvalidUpdate for anything that is no update, or not JSON."""
    from relay.contract.model import JobStatusUpdate  # noqa: PLC0415 - see __init__.py

    if not isinstance(cast("Any", update), JobStatusUpdate):
        problem = f"this is a {type(update).__name__}, not a JobStatusUpdate of relay.producer"
        raise InvalidUpdate(f"{problem}: make one of it with `update_of`, or `JobStatusUpdate(uuid=..., status=...)`")
    try:
        return update.to_json(), message_id(update)
    except (TypeError, ValueError) as error:
        problem = describe(error)
        raise InvalidUpdate(f"{name_of(update)} cannot be written as JSON: {problem}; correct its metadata") from None
