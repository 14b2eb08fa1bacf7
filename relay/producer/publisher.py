"""The publisher for asyncio programs."""

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self, Unpack

from relay.contract.model import JobStatusUpdate
from relay.nats.connection import PubAck
from relay.observability.logs import get_logger
from relay.producer.errors import PublisherClosed
from relay.producer.options import DEFAULT_LIMITS, DEFAULT_SERVER, Credentials, Limits, from_environment, nats_settings
from relay.producer.outbox import PendingUpdate
from relay.producer.publish_queue import PublishQueue
from relay.producer.tracing import trace_headers

_log = get_logger(__name__, guest=True)


class StatusPublisher:
    """Publishes updates over one connection to NATS, for asyncio programs.

        async with StatusPublisher("nats://127.0.0.1:4222") as publisher:
            pub_ack = await publisher.publish(JobStatusUpdate(uuid=job, status=JobStatus.ACCEPTED))

    Updates of one job are published one after another, in the order of the calls; jobs do not wait for each other.
    An update is published again until it has a PubAck or its time is over, with the same `Nats-Msg-Id`, so that it is
    stored once. If an update cannot be published, the updates of its job that wait behind it fail as well, so that none
    of them overtakes it. Updates of later calls are published as usual.

    The first publish makes the connection; after a loss it is made again. A publisher is used in one event loop at a
    time; after that loop is closed, it can be used in another one. It is not thread-safe, and must not be used on both
    sides of a fork: see SyncStatusPublisher.

    Args:
        servers: addresses of one NATS cluster, `nats://` or `tls://`: a sequence, or one string with commas between.
        limits: how long a publish may take, and how many updates may wait.
        credentials: see Credentials.

    Raises ConfigurationError for an argument that is not allowed.
    """

    def __init__(
        self,
        servers: str | Sequence[str] = DEFAULT_SERVER,
        *,
        limits: Limits = DEFAULT_LIMITS,
        **credentials: Unpack[Credentials],
    ) -> None:
        self._settings = nats_settings(servers, credentials)
        self._limits = limits
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: PublishQueue | None = None
        self._closed = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, *, limits: Limits = DEFAULT_LIMITS) -> Self:
        """A publisher for the NATS of the RELAY_NATS_* variables, which are read as the relay reads them.

        `environ` replaces the process's environment. Raises ConfigurationError for the first of these variables that is
        not allowed.
        """
        servers, credentials = from_environment(environ)
        return cls(servers, limits=limits, **credentials)

    async def publish(
        self, update: JobStatusUpdate, *, timeout_s: float | None = None, traceparent: str | None = None
    ) -> PubAck:
        """Publish an update and wait for its PubAck, which has its sequence and says whether it was stored before.

        `timeout_s`, in seconds, replaces that of the limits. `traceparent` is sent with the update; if it is None, that
        of the active OpenTelemetry trace is sent.

        Cancelling ends only the wait: the update is still published in its turn, and a failure is logged. It may have
        been sent already, and the job's later updates must not overtake it.

        Raises PublishTimedOut, PublishRefused, PublishHeldBack, and ConfigurationError for credentials or certificates
        that cannot be used. Raises UpdateTooLarge, PublisherFull and PublisherClosed at once.
        """
        pending = self._add(update, timeout_s, traceparent)
        pending.awaited = True
        return await pending.pub_ack

    def submit(
        self, update: JobStatusUpdate, *, timeout_s: float | None = None, traceparent: str | None = None
    ) -> asyncio.Future[PubAck]:
        """As `publish`, without waiting. The future gets the PubAck or the error; an error is logged as well.

        Raises UpdateTooLarge, PublisherFull and PublisherClosed at once.
        """
        return self._add(update, timeout_s, traceparent).pub_ack

    async def close(self) -> None:
        """Publish the updates that wait, within `close_timeout_s`, and close the connection, within 5 seconds more.

        Raises PublisherClosed, which names what was not published. It may be called again, also after a cancellation.
        """
        self._closed = True
        if self._loop is None or self._loop.is_closed():
            return
        if unpublished := await self._queue_of_this_loop().close(self._limits.close_timeout_s):
            raise PublisherClosed(unpublished)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.close()
        except PublisherClosed as unpublished:
            if error is None:
                raise
            _log.error(str(unpublished))  # the error from inside the block is raised instead

    def _add(self, update: JobStatusUpdate, timeout_s: float | None, traceparent: str | None) -> PendingUpdate:
        if self._closed:
            raise PublisherClosed
        time_s = self._limits.timeout_s if timeout_s is None else timeout_s
        return self._queue_of_this_loop().add(update, trace_headers(traceparent), time_s)

    def _queue_of_this_loop(self) -> PublishQueue:
        loop = asyncio.get_running_loop()
        if self._queue is None or self._loop is None or self._loop.is_closed():
            self._loop, self._queue = loop, PublishQueue(self._settings, self._limits)
        if self._loop is not loop:
            raise RuntimeError("this StatusPublisher is in use in another event loop: make one for each")
        return self._queue
