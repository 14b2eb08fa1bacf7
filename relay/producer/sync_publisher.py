"""The publisher for programs without an event loop."""

import concurrent.futures
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

from relay.nats.jetstream import PubAck
from relay.observability.logs import get_logger
from relay.producer.errors import PublisherClosed
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
from relay.producer.threaded_queue import ThreadedQueue, outcome_of, result_of

if TYPE_CHECKING:  # see __init__.py
    from relay.contract.model import JobStatusUpdate

_log = get_logger(__name__, guest=True)


class SyncStatusPublisher:
    """Publishes updates over one connection to NATS, for programs without an event loop: Celery, Django, threads.

        with SyncStatusPublisher("nats://127.0.0.1:4222") as publisher:
            pub_ack = publisher.publish(JobStatusUpdate(uuid=job, status=JobStatus.ACCEPTED))

    Order, repeated tries, arguments and errors are those of StatusPublisher. Make one per process and keep it.

    Threads: any number of threads may use it. The work is done in a daemon thread, which the first publish starts.
    Every method blocks the calling thread; in an event loop, use StatusPublisher.

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
        on_error: OnError | None = None,
        on_too_large: OnTooLarge = "error",
        **credentials: Unpack[Credentials],
    ) -> None:
        self._options = PublisherOptions.of(servers, credentials, limits, on_error, on_too_large)
        self._queue = ThreadedQueue(self._options)

    @classmethod
    def from_environment(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        limits: Limits = DEFAULT_LIMITS,
        on_error: OnError | None = None,
        on_too_large: OnTooLarge = "error",
    ) -> Self:
        """As StatusPublisher.from_environment."""
        from relay.producer.sign_in import from_environment  # noqa: PLC0415 - see __init__.py

        servers, credentials = from_environment(environ)
        return cls(servers, limits=limits, on_error=on_error, on_too_large=on_too_large, **credentials)

    def publish(
        self, update: "JobStatusUpdate", *, timeout_s: float | None = None, traceparent: str | None = None
    ) -> PubAck:
        """As StatusPublisher.publish; blocks until there is a PubAck or an error."""
        time_s = time_of_call(timeout_s, self._options.limits.timeout_s)
        return result_of(self._queue.publish(update, time_s, traceparent), update, time_s)

    def submit(
        self, update: "JobStatusUpdate", *, timeout_s: float | None = None, traceparent: str | None = None
    ) -> concurrent.futures.Future[PubAck]:
        """As StatusPublisher.submit; blocks only until the publisher's thread has taken the update.

        The future cannot be cancelled.
        """
        return self._queue.submit(update, time_of_call(timeout_s, self._options.limits.timeout_s), traceparent)

    def flush(self, timeout_s: float | None = None) -> None:
        """As StatusPublisher.flush; blocks."""
        time_s = time_of_call(timeout_s, self._options.limits.timeout_s)
        outcome_of(self._queue.run(lambda queue: queue.flush(time_s)), time_s)

    def check(self, timeout_s: float = DEFAULT_CHECK_S) -> None:
        """As StatusPublisher.check; blocks."""
        time_s = time_of_call(timeout_s, DEFAULT_CHECK_S)
        outcome_of(self._queue.run(lambda queue: queue.check(time_s)), time_s)

    def close(self, timeout_s: float | None = None) -> None:
        """As StatusPublisher.close; blocks. In the child of a fork it closes only what the child itself has used."""
        if unpublished := self._queue.close(close_time(timeout_s, self._options.limits)):
            raise PublisherClosed(unpublished)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close(close_time(None, self._options.limits, error))
        except PublisherClosed as unpublished:
            if error is None:
                raise
            _log.error(str(unpublished))  # the error from inside the block is raised instead
