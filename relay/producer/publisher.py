"""The publisher for asyncio programs."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from relay.nats.jetstream import PubAck
from relay.observability.logs import get_logger
from relay.producer.errors import NotInEventLoop, PublisherClosed
from relay.producer.options import (
    DEFAULT_CHECK_S,
    DEFAULT_LIMITS,
    DEFAULT_SERVER,
    Credentials,
    Limits,
    OnError,
    OnTooLarge,
    PublisherOptions,
    close_time,
    time_of_call,
)
from relay.producer.publish_queue import PublishQueue
from relay.producer.threaded_queue import ThreadedQueue
from relay.producer.tracing import trace_headers

if TYPE_CHECKING:  # see __init__.py
    from relay.contract.model import JobStatusUpdate

R = TypeVar("R")
_log = get_logger(__name__, guest=True)


class StatusPublisher:
    """Publishes updates over one connection to NATS, for asyncio programs.

        async with StatusPublisher("nats://127.0.0.1:4222") as publisher:
            pub_ack = await publisher.publish(JobStatusUpdate(uuid=job, status=JobStatus.ACCEPTED))

    Updates of one job are published one after another, in the order of the calls; jobs do not wait for each other.
    An update is published again until it has a PubAck or its time is over, with the same `Nats-Msg-Id`, so that it is
    stored once. If an update cannot be published, the updates of its job that wait behind it fail as well, so that none
    of them overtakes it. Updates of later calls are published as usual.

    The first publish makes the connection; after a loss it is made again. It may be used in any number of event loops
    and threads, and on both sides of a fork: in the event loop in which it was made it works in that loop; for all
    others, and if it was made outside of a loop, it works in a thread of its own, over a connection of its own.

    Args:
        servers: addresses of one NATS cluster, `nats://` or `tls://`: a sequence, or one string with commas between.
        limits: how long a publish may take, and how many updates may wait.
        on_error: called with an update and its error if it is not published and nobody waits for it, in the event loop
            or thread that publishes: it must not block. Without it, the error is logged.
        on_too_large: "error" raises UpdateTooLarge for an update that NATS or the Facilitator would not take;
            "truncate" shortens outputs, and at last artifacts, so that the status gets through.
        credentials: see Credentials.

    Raises ConfigurationError for an argument that is not allowed.
    """

    def __init__(
        self,
        servers: str | Sequence[str] = DEFAULT_SERVER,
        *,
        limits: Limits = DEFAULT_LIMITS,
        on_error: OnError | None = None,
        on_too_large: OnTooLarge = "error",
        **credentials: Unpack[Credentials],
    ) -> None:
        self._options = PublisherOptions.of(servers, credentials, limits, on_error, on_too_large)
        self._home = _running_loop()
        self._queue = PublishQueue(self._options)
        self._elsewhere = ThreadedQueue(self._options)
        self._closed = False

    @classmethod
    def from_environment(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        limits: Limits = DEFAULT_LIMITS,
        on_error: OnError | None = None,
        on_too_large: OnTooLarge = "error",
    ) -> Self:
        """A publisher for the NATS of the RELAY_NATS_* variables, which are read as the relay reads them.

        `environ` replaces the process's environment. Raises ConfigurationError for the first of these variables that is
        not allowed.
        """
        from relay.producer.sign_in import from_environment  # noqa: PLC0415 - see __init__.py

        servers, credentials = from_environment(environ)
        return cls(servers, limits=limits, on_error=on_error, on_too_large=on_too_large, **credentials)

    async def publish(
        self, update: "JobStatusUpdate", *, timeout_s: float | None = None, traceparent: str | None = None
    ) -> PubAck:
        """Publish an update and wait for its PubAck, which has its sequence and says whether it was stored before.

        If too many updates wait, it waits for room first. `timeout_s`, in seconds, replaces that of the limits.
        `traceparent` is sent with the update; if it is None, that of the active OpenTelemetry trace is sent.

        Cancelling ends only the wait: the update is still published in its turn, and a failure is told to `on_error` or
        logged. It may have been sent already, and the job's later updates must not overtake it. Only if it still waits
        for room, in this publisher's own event loop, it is not published.

        Raises PublishTimedOut, PublishRefused, PublishHeldBack, PublisherFull if there was no room in time, and
        ConfigurationError for credentials or certificates that cannot be used. Raises InvalidUpdate, UpdateTooLarge and
        PublisherClosed, mostly at once.
        """
        time_s = time_of_call(timeout_s, self._options.limits.timeout_s)
        if self._is_at_home():
            return await self._queue.add(update, trace_headers(traceparent), time_s, awaited=True).pub_ack
        return await asyncio.wrap_future(self._elsewhere.publish(update, time_s, traceparent))

    def submit(
        self, update: "JobStatusUpdate", *, timeout_s: float | None = None, traceparent: str | None = None
    ) -> asyncio.Future[PubAck]:
        """As `publish`, without waiting. The future gets the PubAck or the error; `on_error` or the log as well.

        Raises InvalidUpdate, UpdateTooLarge, PublisherFull and PublisherClosed at once; outside of an event loop
        NotInEventLoop.
        """
        time_s = time_of_call(timeout_s, self._options.limits.timeout_s)
        if self._is_at_home():
            return self._queue.add(update, trace_headers(traceparent), time_s, awaited=False).pub_ack
        if _running_loop() is None:
            raise NotInEventLoop
        return asyncio.wrap_future(self._elsewhere.submit(update, time_s, traceparent))

    async def flush(self, timeout_s: float | None = None) -> None:
        """Wait until each update of earlier calls in this event loop has its PubAck, or has failed.

        Raises FlushIncomplete after `timeout_s` seconds (that of the limits if it is None), and if updates have failed.
        Cancelling it is safe.
        """
        time_s = time_of_call(timeout_s, self._options.limits.timeout_s)
        await self._run(lambda queue: queue.flush(time_s))

    async def check(self, timeout_s: float = DEFAULT_CHECK_S) -> None:
        """Ask whether NATS would store an update now: connection, credentials, permission, stream. Stores nothing.

        It does not tell whether the stream is full. Raises NotReady within `timeout_s` seconds. Cancelling it is safe.
        """
        time_s = time_of_call(timeout_s, DEFAULT_CHECK_S)
        await self._run(lambda queue: queue.check(time_s))

    async def close(self, timeout_s: float | None = None) -> None:
        """Publish the updates that wait, within `timeout_s` seconds (`close_timeout_s` of the limits if it is None).

        Then close the connection, within 5 seconds more, if NATS is away at once. Raises PublisherClosed, which names
        what was not published. It may be called again, also after a cancellation.
        """
        time_s = close_time(timeout_s, self._options.limits)
        self._closed = True
        elsewhere = asyncio.create_task(asyncio.to_thread(self._elsewhere.close, time_s))
        unpublished: list[str] = []
        if self._home is not None and not self._home.is_closed():
            unpublished = await self._in_home(lambda: self._queue.close(time_s))
        unpublished += await elsewhere
        if unpublished:
            raise PublisherClosed(unpublished)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.close(close_time(None, self._options.limits, error))
        except PublisherClosed as unpublished:
            if error is None:
                raise
            _log.error(str(unpublished))  # the error from inside the block is raised instead

    def _is_at_home(self) -> bool:
        if self._closed:
            raise PublisherClosed
        return self._home is not None and self._home is _running_loop()

    async def _run(self, make: Callable[[PublishQueue], Coroutine[Any, Any, R]]) -> R:
        if self._is_at_home():
            return await make(self._queue)
        return await asyncio.wrap_future(self._elsewhere.run(make))

    async def _in_home(self, make: Callable[[], Coroutine[Any, Any, R]]) -> R:
        if self._home is None or self._home is _running_loop():
            return await make()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(make(), self._home))


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
