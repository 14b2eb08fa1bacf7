"""An event loop in a thread of its own, for programs that have none; what becomes of it over a fork and at the end."""

import asyncio
import atexit
import os
import selectors
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

from relay.observability.logs import get_logger
from relay.producer.errors import PublisherClosed
from relay.producer.publish_queue import PublishQueue

R = TypeVar("R")

_FLUSH_AT_EXIT_S: Final = 1.0
_log = get_logger(__name__, guest=True)

lock: Final = threading.RLock()
"""Held while a background is started, given work or told to end, and by a fork: a child never sees half of that."""
_running: Final[set["Background"]] = set()
_left_to_the_parent: Final[list["Background"]] = []


class Background:
    """A courier in an event loop, run by a daemon thread. It belongs to the process that made it.

    asyncio's own loop and not uvloop, because its selector can be taken out of a child's reach.
    """

    def __init__(self, make_courier: Callable[[], PublishQueue]) -> None:
        self.is_parents = False
        """True in the child of a fork: it is the parent's, and not to be touched."""
        self._ended = False
        self._selector = selectors.DefaultSelector()
        self._loop = asyncio.SelectorEventLoop(self._selector)
        self.courier = make_courier()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay-producer", daemon=True)
        self._thread.start()
        _running.add(self)

    def post(self, function: Callable[[], R]) -> Future[R]:
        """Have the loop call `function`, after all that was posted before. Hold `lock`. Raises PublisherClosed."""
        if self._ended:
            raise PublisherClosed
        answer: Future[R] = Future()

        def call() -> None:
            try:
                answer.set_result(function())
            except Exception as error:  # noqa: BLE001 - it belongs to whoever waits for the answer
                answer.set_exception(error)

        self._loop.call_soon_threadsafe(call)
        return answer

    def close(self, timeout_s: float) -> list[str]:
        """Publish what waits for at most `timeout_s` and end; returns what was not published."""
        with lock:
            if self._ended:
                return []
            self._ended = True
            _running.discard(self)
        try:
            return asyncio.run_coroutine_threadsafe(self.courier.close(timeout_s), self._loop).result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def leave_to_parent(self) -> None:
        """In the child of a fork: let go of the parent's sockets, without a word to anybody.

        The child has no such thread, but copies of its descriptors, and a selector that is shared with the parent: a
        socket that were taken out of it here would be deaf there. So each descriptor is pointed elsewhere, and the
        objects are kept for ever, so that no destructor tidies up.
        """
        self.is_parents = True
        nowhere = os.open(os.devnull, os.O_RDWR)
        descriptors = [key.fd for key in self._selector.get_map().values()]
        for descriptor in (*descriptors, self._selector.fileno()):
            os.dup2(nowhere, descriptor, inheritable=False)
        os.close(nowhere)


def _after_fork_in_child() -> None:
    try:
        for background in _running:
            background.leave_to_parent()
        _left_to_the_parent.extend(_running)
        _running.clear()
    finally:
        lock.release()


def _close_forgotten() -> None:
    for background in list(_running):
        if unpublished := background.close(_FLUSH_AT_EXIT_S):
            _log.warning(
                f"the program ended with {len(unpublished)} updates unpublished: close a SyncStatusPublisher before",
                updates=unpublished[:3],
            )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=_after_fork_in_child)
atexit.register(_close_forgotten)
