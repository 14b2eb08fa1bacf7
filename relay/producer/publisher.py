"""The two publishers: one for asyncio, one for threads."""

import asyncio
import concurrent.futures
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self, Unpack

from relay.contract.model import JobStatusUpdate
from relay.contract.settings import NatsSettings
from relay.nats.connection import PubAck
from relay.observability.logs import get_logger
from relay.producer.background import Background, lock
from relay.producer.confirmed import Parcel, pack
from relay.producer.errors import PublisherClosed, PublishTimedOut
from relay.producer.options import Credentials, Limits, from_environment, nats_settings
from relay.producer.outbox import Outbox
from relay.producer.publish_queue import PublishQueue, Sending
from relay.producer.reconnector import Reconnector
from relay.producer.tracing import trace_headers

_LOCAL: Final = "nats://127.0.0.1:4222"
_USUAL: Final = Limits()
_GRACE_S: Final = 1.0
_log = get_logger(__name__, guest=True)


class StatusPublisher:
    """Publishes updates over one connection to NATS, for asyncio programs.

        async with StatusPublisher("nats://127.0.0.1:4222") as publisher:
            ack = await publisher.publish(JobStatusUpdate(uuid=job, status=JobStatus.ACCEPTED))

    Updates of one job are published one after another, in the order of the calls; jobs do not wait for each other.
    An update that gets no PubAck is published again with the same `Nats-Msg-Id`, so that it is stored once, until it
    has one or its time is over. When one cannot be published, those of its job that wait behind it fail as well, so
    that none overtakes it; what is called for afterwards is published. The connection is made by the first publish,
    and again whenever it is lost. Each publisher is used in one event loop; it works in a new one when that is closed.

    Args:
        servers: addresses of one NATS cluster, `nats://` or `tls://`; as a sequence, or with commas between them.
        limits: how long a publish may take, and how much may wait.
        credentials: see Credentials.

    Raises ConfigurationError for an argument that is not allowed.
    """

    def __init__(
        self, servers: str | Sequence[str] = _LOCAL, *, limits: Limits = _USUAL, **credentials: Unpack[Credentials]
    ) -> None:
        self._settings = nats_settings(servers, credentials)
        self._limits = limits
        self._loop: asyncio.AbstractEventLoop | None = None
        self._courier: PublishQueue | None = None
        self._closed = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, *, limits: Limits = _USUAL) -> Self:
        """A publisher for the NATS of the RELAY_NATS_* variables, as the relay itself reads them.

        Raises ConfigurationError for the first variable that is not allowed.
        """
        servers, credentials = from_environment(environ)
        return cls(servers, limits=limits, **credentials)

    async def publish(
        self, update: JobStatusUpdate, *, timeout_s: float | None = None, traceparent: str | None = None
    ) -> PubAck:
        """Publish an update and wait for its PubAck: which sequence it has, and whether it was stored before.

        `timeout_s` takes the place of that of the limits. `traceparent` is sent along; if it is None, that of the
        active OpenTelemetry trace.

        If the wait is cancelled, the update is published in its turn nevertheless, and a failure is logged: it could
        not be taken back for certain, and later ones must not overtake it.

        Raises PublishTimedOut, PublishRefused, PublishHeldBack, ConfigurationError for credentials or certificates that
        cannot be used; PublisherFull and PublisherClosed at once.
        """
        sending = self._take(update, timeout_s, traceparent)
        sending.heeded = True
        return await sending.stored

    def submit(
        self, update: JobStatusUpdate, *, timeout_s: float | None = None, traceparent: str | None = None
    ) -> asyncio.Future[PubAck]:
        """As `publish`, without waiting: the PubAck, or the error, is in the future. An error is logged as well."""
        return self._take(update, timeout_s, traceparent).stored

    async def close(self) -> None:
        """Publish what waits, as long as the limits allow, and end; closing the connection may take 5 seconds more.

        Raises PublisherClosed if something was not published; it names what. It is all right to close twice.
        """
        self._closed = True
        if self._loop is None or self._loop.is_closed():
            return
        if unpublished := await self._courier_of_this_loop().close(self._limits.close_timeout_s):
            raise PublisherClosed(unpublished)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.close()
        except PublisherClosed as unpublished:
            _raise_or_log(unpublished, error)

    def _take(self, update: JobStatusUpdate, timeout_s: float | None, traceparent: str | None) -> Sending:
        if self._closed:
            raise PublisherClosed
        parcel = pack(update, trace_headers(traceparent))
        return self._courier_of_this_loop().take(parcel, self._limits.timeout_s if timeout_s is None else timeout_s)

    def _courier_of_this_loop(self) -> PublishQueue:
        loop = asyncio.get_running_loop()
        if self._courier is None or self._loop is None or self._loop.is_closed():
            self._loop, self._courier = loop, _courier(self._settings, self._limits)
        if self._loop is not loop:
            raise RuntimeError("this StatusPublisher is in use in another event loop: make one for each")
        return self._courier


class SyncStatusPublisher:
    """Publishes updates over one connection to NATS, for programs without an event loop: Celery, Django, threads.

        with SyncStatusPublisher("nats://127.0.0.1:4222") as publisher:
            ack = publisher.publish(JobStatusUpdate(uuid=job, status=JobStatus.ACCEPTED))

    As StatusPublisher, and: any number of threads may call it, and one made before a fork works in the parent and in
    the child, each with a connection of its own. Make one for each process and keep it. It works in a daemon thread,
    started by the first publish. `publish` and `close` block their thread: in an event loop's, use StatusPublisher.

    What waits when the program ends without `close` is published for a second more; a warning in the log names what
    is lost then. (Only what was submitted and not waited for can be. A process that ends by `os._exit`, as children of
    `multiprocessing` and Celery do, has not even that.)
    """

    def __init__(
        self, servers: str | Sequence[str] = _LOCAL, *, limits: Limits = _USUAL, **credentials: Unpack[Credentials]
    ) -> None:
        self._settings = nats_settings(servers, credentials)
        self._limits = limits
        self._background: Background | None = None
        self._closed = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, *, limits: Limits = _USUAL) -> Self:
        """As StatusPublisher.from_environment."""
        servers, credentials = from_environment(environ)
        return cls(servers, limits=limits, **credentials)

    def publish(
        self, update: JobStatusUpdate, *, timeout_s: float | None = None, traceparent: str | None = None
    ) -> PubAck:
        """As StatusPublisher.publish; blocks until the PubAck is here or the time is over."""
        return self._take(update, timeout_s, traceparent, heeded=True).result()

    def submit(
        self, update: JobStatusUpdate, *, timeout_s: float | None = None, traceparent: str | None = None
    ) -> concurrent.futures.Future[PubAck]:
        """As StatusPublisher.submit; blocks only until the publisher's thread has taken the update over."""
        return self._take(update, timeout_s, traceparent, heeded=False)

    def close(self) -> None:
        """As StatusPublisher.close. In the child of a fork it closes what the child has used, and nothing else."""
        with lock:
            self._closed = True
            background, self._background = self._background, None
        if background is None or background.is_parents:
            return
        if unpublished := background.close(self._limits.close_timeout_s):
            raise PublisherClosed(unpublished)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except PublisherClosed as unpublished:
            _raise_or_log(unpublished, error)

    def _take(
        self, update: JobStatusUpdate, timeout_s: float | None, traceparent: str | None, *, heeded: bool
    ) -> concurrent.futures.Future[PubAck]:
        parcel = pack(update, trace_headers(traceparent))
        time_s = self._limits.timeout_s if timeout_s is None else timeout_s
        stored: concurrent.futures.Future[PubAck] = concurrent.futures.Future()
        stored.set_running_or_notify_cancel()  # from here on it cannot be taken back
        with lock:
            background = self._background_of_this_process()
            taken = background.post(lambda: _hand_over(background.courier, parcel, time_s, stored, heeded=heeded))
        try:
            taken.result(time_s + _GRACE_S)
        except TimeoutError:
            cause = "the publisher's thread does not run (some servers of applications forbid threads)"
            raise PublishTimedOut(
                parcel.subject, cause, update=parcel.name, timeout_s=time_s + _GRACE_S, maybe_stored=True
            ) from None
        return stored

    def _background_of_this_process(self) -> Background:
        if self._closed:
            raise PublisherClosed
        if self._background is None or self._background.is_parents:
            self._background = Background(lambda: _courier(self._settings, self._limits))
        return self._background


def _courier(settings: NatsSettings, limits: Limits) -> PublishQueue:
    return PublishQueue(Reconnector(settings), Outbox(limits.max_updates, limits.max_bytes))


def _hand_over(
    courier: PublishQueue, parcel: Parcel, timeout_s: float, stored: concurrent.futures.Future[PubAck], *, heeded: bool
) -> None:
    sending = courier.take(parcel, timeout_s)
    sending.heeded = heeded

    def pass_on(done: asyncio.Future[PubAck]) -> None:
        if (error := done.exception()) is not None:
            stored.set_exception(error)
        else:
            stored.set_result(done.result())

    sending.stored.add_done_callback(pass_on)


def _raise_or_log(unpublished: PublisherClosed, error: BaseException | None) -> None:
    # An error that is on its way already says more than this one would.
    if error is None:
        raise unpublished
    _log.error(str(unpublished))
