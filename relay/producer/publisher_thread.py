"""A thread with an event loop for a publisher or client, and how it ends: in a fork, and at the end of the program."""

import asyncio
import atexit
import os
import selectors
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Final, Generic, Protocol, TypeVar

from relay.observability.logs import get_logger
from relay.producer.errors import PublisherClosed

R = TypeVar("R")
S = TypeVar("S", bound="Served")
Select = Callable[[float | None], list[tuple[selectors.SelectorKey, int]]]

_FLUSH_AT_EXIT_S: Final = 1.0
_CLOSE_AT_EXIT_S: Final = 1.0
"""How much longer the end of the program waits for the thread, which blocks while it looks up a name."""
_NAMED: Final = 100
"""How many updates a log line names at the end of the program."""
_SHARED: Final = tuple(
    kind for name in ("EpollSelector", "KqueueSelector", "DevpollSelector") if (kind := getattr(selectors, name, None))
)
"""Selectors with a descriptor of their own, which a fork shares. Others, as that of gevent, have none."""
_log = get_logger(__name__, guest=True)

fork_lock: Final = threading.RLock()
"""Held during a fork, and while a thread is started, given work or ended. So a fork happens in none of these."""
_running: Final[set["PublisherThread[Any]"]] = set()
_of_parent: Final[list["PublisherThread[Any]"]] = []


class Served(Protocol):
    """What works in the thread's event loop: a PublishQueue, or a client."""

    async def close(self, timeout_s: float) -> list[str]:
        """End it within `timeout_s` and a little more. Returns the names of updates that were not published."""
        ...

    def waiting(self) -> list[str]:
        """The names of the updates that are not published yet. Called from another thread while this one hangs."""
        ...


class PublisherThread(Generic[S]):
    """Runs a PublishQueue or a client in an event loop, in a daemon thread. It belongs to the process that made it.

    The event loop is asyncio's own and not uvloop's, because its selector can be detached in the child of a fork.
    """

    def __init__(self, queue: S) -> None:
        self.queue = queue
        self.is_of_parent = False
        """True in the child of a fork. There the thread does not exist, and only the parent may use this object."""
        self._ended = False
        self._selector = selectors.DefaultSelector()
        setattr(self._selector, "select", self._unless_of_parent(self._selector.select))  # noqa: B010 - it is a method
        self._loop = asyncio.SelectorEventLoop(self._selector)
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay-producer", daemon=True)
        self._thread.start()
        _running.add(self)

    def call_soon(self, function: Callable[[], R]) -> Future[R]:
        """Let the event loop call `function`, in the order of these calls. The future gets its result or exception.

        The caller must hold `fork_lock`. Raises PublisherClosed.
        """
        if self._ended:
            raise PublisherClosed
        outcome: Future[R] = Future()

        def call() -> None:
            try:
                outcome.set_result(function())
            except Exception as error:  # noqa: BLE001 - it is raised where the outcome is awaited
                outcome.set_exception(error)

        self._loop.call_soon_threadsafe(call)
        return outcome

    def run(self, make: Callable[[], Coroutine[Any, Any, R]]) -> Future[R]:
        """Let the event loop run a coroutine. The caller must hold `fork_lock`. Raises PublisherClosed."""
        if self._ended:
            raise PublisherClosed
        return asyncio.run_coroutine_threadsafe(make(), self._loop)

    def close(self, timeout_s: float, *, at_most_s: float | None = None) -> list[str]:
        """Go on publishing for at most `timeout_s`, then end the thread. Blocks. Returns what was not published.

        If this is interrupted, as by Ctrl-C, the thread ends later, by itself. A thread that hangs is given up after
        `at_most_s`.
        """
        with fork_lock:
            if self._ended:
                return []
            self._ended = True
            _running.discard(self)
        closed = asyncio.run_coroutine_threadsafe(self.queue.close(timeout_s), self._loop)
        hangs = False
        try:
            return closed.result(at_most_s)
        except TimeoutError:
            hangs = True
            return self.queue.waiting()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            if not hangs:
                self._thread.join()
                self._loop.close()

    def detach_in_child(self) -> None:
        """In the child of a fork: detach from the parent's sockets without sending anything.

        The child does not have the thread, but it has copies of the descriptors, and its selector shares its state with
        the parent's. Unregistering a socket here would stop events for the parent. So each descriptor is redirected to
        the null device instead, and the objects are kept for ever, so that no destructor unregisters anything.
        """
        self.is_of_parent = True
        keys = list(self._selector.get_map().values())
        descriptors = [key.fd for key in keys]
        if isinstance(self._selector, _SHARED):
            descriptors.append(self._selector.fileno())
        else:  # it shares nothing with the parent's, so the child must be told not to wait for these
            for key in keys:
                self._selector.unregister(key.fileobj)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in descriptors:
            os.dup2(null, descriptor, inheritable=False)
        os.close(null)

    def _unless_of_parent(self, select: Select) -> Select:
        """`select`, which stops the thread in the child of a fork: under gevent it is a greenlet, and exists there.

        It does not end: an event loop that ends says that none runs, and under gevent the child's own loop runs in the
        same thread of the system.
        """

        def select_or_stop(timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            events = select(timeout)
            if self.is_of_parent:
                threading.Event().wait()
            return events

        return select_or_stop


def _after_fork_in_child() -> None:
    try:
        for thread in _running:
            thread.detach_in_child()
        _of_parent.extend(_running)
        _running.clear()
    finally:
        fork_lock.release()


def _close_at_exit() -> None:
    for thread in list(_running):
        if unpublished := thread.close(_FLUSH_AT_EXIT_S, at_most_s=_FLUSH_AT_EXIT_S + _CLOSE_AT_EXIT_S):
            _log.warning(
                f"the program ended with {len(unpublished)} updates unpublished: close the publisher before",
                updates=unpublished[:_NAMED],
            )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=fork_lock.acquire, after_in_parent=fork_lock.release, after_in_child=_after_fork_in_child
    )
atexit.register(_close_at_exit)
