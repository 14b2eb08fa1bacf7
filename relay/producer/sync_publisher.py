"""The publisher for programs without an event loop."""

import asyncio
import concurrent.futures
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self, Unpack

from relay.contract.model import JobStatusUpdate
from relay.contract.subjects import status_subject
from relay.nats.connection import PubAck
from relay.observability.logs import get_logger
from relay.producer.confirmed import name_of
from relay.producer.errors import PublisherClosed, PublishTimedOut
from relay.producer.options import DEFAULT_LIMITS, DEFAULT_SERVER, Credentials, Limits, from_environment, nats_settings
from relay.producer.publish_queue import PublishQueue
from relay.producer.publisher_thread import PublisherThread, fork_lock
from relay.producer.tracing import trace_headers

_GRACE_S: Final = 1.0
"""How much longer than the update's own time a call waits for the publisher's thread to take the update."""
_log = get_logger(__name__, guest=True)


class SyncStatusPublisher:
    """Publishes updates over one connection to NATS, for programs without an event loop: Celery, Django, threads.

        with SyncStatusPublisher("nats://127.0.0.1:4222") as publisher:
            pub_ack = publisher.publish(JobStatusUpdate(uuid=job, status=JobStatus.ACCEPTED))

    Order, repeated tries, arguments and errors are those of StatusPublisher. Make one per process and keep it.

    Threads: any number of threads may use it. The work is done in a daemon thread, which the first publish starts.
    `publish` and `close` block the calling thread; in a thread that runs an event loop, use StatusPublisher.

    Forks: a publisher made before a fork works in the parent and in the child, each with its own connection. Updates
    that wait in the parent are published only by the parent.

    End of the program: without `close`, updates that were submitted are published for one more second, and a log line
    names those that are lost. A process that ends with `os._exit`, as children of `multiprocessing` and Celery do,
    publishes nothing more.
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
        self._thread: PublisherThread | None = None
        self._closed = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, *, limits: Limits = DEFAULT_LIMITS) -> Self:
        """As StatusPublisher.from_environment."""
        servers, credentials = from_environment(environ)
        return cls(servers, limits=limits, **credentials)

    def publish(
        self, update: JobStatusUpdate, *, timeout_s: float | None = None, traceparent: str | None = None
    ) -> PubAck:
        """As StatusPublisher.publish; blocks until there is a PubAck or an error."""
        return self._add(update, timeout_s, traceparent, awaited=True).result()

    def submit(
        self, update: JobStatusUpdate, *, timeout_s: float | None = None, traceparent: str | None = None
    ) -> concurrent.futures.Future[PubAck]:
        """As StatusPublisher.submit; blocks only until the publisher's thread has taken the update.

        The future cannot be cancelled.
        """
        return self._add(update, timeout_s, traceparent, awaited=False)

    def close(self) -> None:
        """As StatusPublisher.close; blocks. In the child of a fork it closes only what the child itself has used."""
        with fork_lock:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is None or thread.is_of_parent:
            return
        if unpublished := thread.close(self._limits.close_timeout_s):
            raise PublisherClosed(unpublished)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except PublisherClosed as unpublished:
            if error is None:
                raise
            _log.error(str(unpublished))  # the error from inside the block is raised instead

    def _add(
        self, update: JobStatusUpdate, timeout_s: float | None, traceparent: str | None, *, awaited: bool
    ) -> concurrent.futures.Future[PubAck]:
        headers = trace_headers(traceparent)
        time_s = self._limits.timeout_s if timeout_s is None else timeout_s
        pub_ack: concurrent.futures.Future[PubAck] = concurrent.futures.Future()
        pub_ack.set_running_or_notify_cancel()  # now it can no longer be cancelled

        def add() -> None:
            pending = queue.add(update, headers, time_s)
            pending.awaited = awaited
            pending.pub_ack.add_done_callback(lambda done: _pass_on(done, pub_ack))

        with fork_lock:
            thread = self._thread_of_this_process()
            queue = thread.queue
            added = thread.call_soon(add)
        try:
            added.result(time_s + _GRACE_S)
        except TimeoutError:
            raise PublishTimedOut(
                status_subject(update.uuid),
                "the publisher's thread does not run (some application servers do not allow threads)",
                update=name_of(update),
                timeout_s=time_s + _GRACE_S,
                maybe_stored=True,
            ) from None
        return pub_ack

    def _thread_of_this_process(self) -> PublisherThread:
        if self._closed:
            raise PublisherClosed
        if self._thread is None or self._thread.is_of_parent:
            self._thread = PublisherThread(PublishQueue(self._settings, self._limits))
        return self._thread


def _pass_on(done: asyncio.Future[PubAck], pub_ack: concurrent.futures.Future[PubAck]) -> None:
    if (error := done.exception()) is not None:
        pub_ack.set_exception(error)
    else:
        pub_ack.set_result(done.result())
