"""A PublishQueue for any number of threads and event loops, and for both sides of a fork."""

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

from relay.contract.subjects import status_subject
from relay.nats.jetstream import PubAck
from relay.producer.confirmed import name_of
from relay.producer.errors import NotReady, PublisherClosed, PublishTimedOut
from relay.producer.options import PublisherOptions
from relay.producer.outbox import PendingUpdate
from relay.producer.publish_queue import PublishQueue
from relay.producer.publisher_thread import PublisherThread, fork_lock
from relay.producer.tracing import trace_headers

if TYPE_CHECKING:  # see __init__.py
    from relay.contract.model import JobStatusUpdate

R = TypeVar("R")

_GRACE_S: Final = 1.0
"""How much longer than its own time a call waits for the publisher's thread."""
_NOT_RUNNING: Final = "the publisher's thread does not run (some application servers do not allow threads)"


class ThreadedQueue:
    """Publishes in a thread of its own, which the first update starts in each process."""

    def __init__(self, options: PublisherOptions) -> None:
        self._options = options
        self._thread: PublisherThread[PublishQueue] | None = None
        self._closed = False

    def publish(
        self, update: "JobStatusUpdate", timeout_s: float, traceparent: str | None
    ) -> concurrent.futures.Future[PubAck]:
        """Publish an update, after a wait for room if there is none. The future gets the PubAck or the error.

        It cannot be cancelled. Raises PublisherClosed.
        """
        return self._add(update, timeout_s, traceparent, awaited=True)[1]

    def submit(
        self, update: "JobStatusUpdate", timeout_s: float, traceparent: str | None
    ) -> concurrent.futures.Future[PubAck]:
        """The same without a wait for room. Blocks until the thread has taken the update.

        Raises as PublishQueue.add.
        """
        taken, pub_ack = self._add(update, timeout_s, traceparent, awaited=False)
        try:
            taken.result(timeout_s + _GRACE_S)
        except TimeoutError:
            raise not_running(update, timeout_s) from None
        return pub_ack

    def run(self, make: Callable[[PublishQueue], Coroutine[Any, Any, R]]) -> concurrent.futures.Future[R]:
        """Let the thread run a coroutine of its queue. Raises PublisherClosed."""
        with fork_lock:
            thread = self._thread_of_this_process()
            return thread.run(lambda: make(thread.queue))

    def close(self, timeout_s: float) -> list[str]:
        """Go on publishing for at most `timeout_s`, and end the thread. Blocks. Returns what was not published.

        In the child of a fork it closes only what the child itself has used. It may be called again.
        """
        with fork_lock:
            self._closed = True
            thread, self._thread = self._thread, None
        return [] if thread is None or thread.is_of_parent else thread.close(timeout_s)

    def _add(
        self, update: "JobStatusUpdate", timeout_s: float, traceparent: str | None, *, awaited: bool
    ) -> tuple[concurrent.futures.Future[None], concurrent.futures.Future[PubAck]]:
        headers = trace_headers(traceparent)
        pub_ack: concurrent.futures.Future[PubAck] = concurrent.futures.Future()
        pub_ack.set_running_or_notify_cancel()  # now it can no longer be cancelled

        def add() -> None:
            try:
                pending: PendingUpdate = queue.add(update, headers, timeout_s, awaited=awaited)
            except Exception as error:
                pub_ack.set_exception(error)
                raise
            pending.pub_ack.add_done_callback(lambda done: _pass_on(done, pub_ack))

        with fork_lock:
            thread = self._thread_of_this_process()
            queue = thread.queue
            return thread.call_soon(add), pub_ack

    def _thread_of_this_process(self) -> PublisherThread[PublishQueue]:
        if self._closed:
            raise PublisherClosed
        if self._thread is None or self._thread.is_of_parent:
            self._thread = PublisherThread(PublishQueue(self._options))
        return self._thread


def result_of(pub_ack: concurrent.futures.Future[PubAck], update: "JobStatusUpdate", timeout_s: float) -> PubAck:
    """The PubAck of `ThreadedQueue.publish`; blocks. Raises PublishTimedOut also if the thread does not run."""
    try:
        return pub_ack.result(timeout_s + _GRACE_S)
    except TimeoutError:
        raise not_running(update, timeout_s) from None


def outcome_of(outcome: concurrent.futures.Future[R], timeout_s: float) -> R:
    """What `ThreadedQueue.run` gives; blocks. Raises NotReady if the thread does not run."""
    try:
        return outcome.result(timeout_s + _GRACE_S)
    except TimeoutError:
        raise NotReady(_NOT_RUNNING) from None


def not_running(update: "JobStatusUpdate", timeout_s: float) -> PublishTimedOut:
    """The error for an update that the thread did not end in time."""
    return PublishTimedOut(
        status_subject(update.uuid),
        _NOT_RUNNING,
        update=name_of(update),
        timeout_s=timeout_s + _GRACE_S,
        maybe_stored=True,
    )


def _pass_on(done: asyncio.Future[PubAck], pub_ack: concurrent.futures.Future[PubAck]) -> None:
    if (error := done.exception()) is not None:
        pub_ack.set_exception(error)
    else:
        pub_ack.set_result(done.result())
