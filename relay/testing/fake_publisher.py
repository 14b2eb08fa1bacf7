"""Stand-ins for publishers: they record what is published, and fail when told to."""

import asyncio
import concurrent.futures
from collections import deque
from typing import Any, Final, Protocol, Self, TypeVar

from relay.contract.errors import JetStreamError, RelayError
from relay.contract.model import JobStatusUpdate
from relay.contract.subjects import STATUS_STREAM, status_subject
from relay.nats.err_codes import STREAM_FULL
from relay.nats.jetstream import PubAck
from relay.producer.confirmed import message_id, name_of
from relay.producer.errors import (
    InvalidUpdate,
    PublisherClosed,
    PublisherFull,
    PublishRefused,
    PublishTimedOut,
    UpdateTooLarge,
)

_AT_ONCE: Final = (InvalidUpdate, UpdateTooLarge, PublisherFull, PublisherClosed)
"""What `submit` raises itself; other errors are in its future."""


class _Future(Protocol):
    def set_result(self, result: PubAck, /) -> None: ...
    def set_exception(self, exception: Any, /) -> None: ...
    def exception(self) -> BaseException | None: ...


F = TypeVar("F", bound=_Future)


class _Recorder:
    """What both stand-ins do: store an update at most once by its message id, or fail as planned."""

    def __init__(self) -> None:
        self.published: list[JobStatusUpdate] = []
        self.closed = False
        self._plan: deque[str | RelayError] = deque()
        self._sequences: dict[str, int] = {}

    def refuse_next(self) -> None:
        self._plan.append("refuse")

    def time_out_next(self) -> None:
        self._plan.append("time_out")

    def fail_next(self, error: RelayError) -> None:
        self._plan.append(error)

    def submit(self, update: JobStatusUpdate, future: F) -> F:
        try:
            future.set_result(self.publish(update))
        except _AT_ONCE:
            raise
        except RelayError as error:
            future.set_exception(error)
            future.exception()  # marks it as retrieved; otherwise asyncio would log it
        return future

    def publish(self, update: JobStatusUpdate) -> PubAck:
        if self.closed:
            raise PublisherClosed
        if not isinstance(update, JobStatusUpdate):  # pyright: ignore[reportUnnecessaryIsInstance] - as the real one
            raise InvalidUpdate(f"this is a {type(update).__name__}, not a JobStatusUpdate of relay.producer")
        outcome = self._plan.popleft() if self._plan else None
        if isinstance(outcome, RelayError):
            raise outcome
        if outcome == "refuse":
            raise PublishRefused(
                name_of(update), JetStreamError("publish", 503, STREAM_FULL, "maximum messages exceeded")
            )
        if outcome == "time_out":
            subject = status_subject(update.uuid)
            raise PublishTimedOut(subject, "no PubAck", update=name_of(update), timeout_s=30, maybe_stored=True)
        known = self._sequences.get(identity := message_id(update))
        if known is None:
            self.published.append(update)
            self._sequences[identity] = len(self.published)
        return PubAck(STATUS_STREAM, known or len(self.published), duplicate=known is not None)


class FakeStatusPublisher:
    """Stands in for a StatusPublisher in tests without NATS.

    Attributes:
        published: the updates that were published, in order; one that is published again is there once.
        refuse_next, time_out_next: functions that let one more publish raise PublishRefused or PublishTimedOut. These
            calls add up, and take effect in their order.
        fail_next: the same with an error of your own: `fail_next(error)`.
    """

    def __init__(self) -> None:
        self._recorder = _Recorder()
        self.published = self._recorder.published
        self.refuse_next = self._recorder.refuse_next
        self.time_out_next = self._recorder.time_out_next
        self.fail_next = self._recorder.fail_next

    async def publish(
        self, update: JobStatusUpdate, *, timeout_s: float | None = None, traceparent: str | None = None
    ) -> PubAck:
        """As StatusPublisher.publish."""
        del timeout_s, traceparent
        return self._recorder.publish(update)

    def submit(
        self, update: JobStatusUpdate, *, timeout_s: float | None = None, traceparent: str | None = None
    ) -> asyncio.Future[PubAck]:
        """As StatusPublisher.submit; planned failures are in the future."""
        del timeout_s, traceparent
        future: asyncio.Future[PubAck] = asyncio.get_running_loop().create_future()
        return self._recorder.submit(update, future)

    async def flush(self, timeout_s: float | None = None) -> None:
        """As StatusPublisher.flush; nothing ever waits."""

    async def check(self, timeout_s: float = 5.0) -> None:
        """As StatusPublisher.check; always ready."""

    async def close(self, timeout_s: float | None = None) -> None:
        """As StatusPublisher.close."""
        del timeout_s
        self._recorder.closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


class FakeSyncStatusPublisher:
    """Stands in for a SyncStatusPublisher in tests without NATS; otherwise as FakeStatusPublisher."""

    def __init__(self) -> None:
        self._recorder = _Recorder()
        self.published = self._recorder.published
        self.refuse_next = self._recorder.refuse_next
        self.time_out_next = self._recorder.time_out_next
        self.fail_next = self._recorder.fail_next

    def publish(
        self, update: JobStatusUpdate, *, timeout_s: float | None = None, traceparent: str | None = None
    ) -> PubAck:
        """As SyncStatusPublisher.publish."""
        del timeout_s, traceparent
        return self._recorder.publish(update)

    def submit(
        self, update: JobStatusUpdate, *, timeout_s: float | None = None, traceparent: str | None = None
    ) -> concurrent.futures.Future[PubAck]:
        """As SyncStatusPublisher.submit; planned failures are in the future."""
        del timeout_s, traceparent
        future: concurrent.futures.Future[PubAck] = concurrent.futures.Future()
        return self._recorder.submit(update, future)

    def flush(self, timeout_s: float | None = None) -> None:
        """As SyncStatusPublisher.flush; nothing ever waits."""

    def check(self, timeout_s: float = 5.0) -> None:
        """As SyncStatusPublisher.check; always ready."""

    def close(self, timeout_s: float | None = None) -> None:
        """As SyncStatusPublisher.close."""
        del timeout_s
        self._recorder.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
