"""The client for programs without an event loop that ask for the status of jobs."""

import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence
from functools import partial
from typing import Any, Self, TypeVar, Unpack
from uuid import UUID

from relay.client.errors import ClientClosed
from relay.client.status_client import DEFAULT_TIMEOUT_S, StatusClient
from relay.contract.model import JobStatus
from relay.core.receipt import Receipt
from relay.producer.options import DEFAULT_SERVER, Credentials
from relay.producer.publisher_thread import PublisherThread, fork_lock
from relay.producer.sign_in import from_environment
from relay.query.replies import UpdateReply

R = TypeVar("R")


class _Served:
    """A StatusClient in a thread."""

    def __init__(self, client: StatusClient) -> None:
        self.client = client

    async def close(self, timeout_s: float) -> list[str]:  # noqa: ARG002 - see Served
        await self.client.close()
        return []

    def waiting(self) -> list[str]:
        return []


class SyncStatusClient:
    """Asks the relays for the status of jobs, for programs without an event loop: Celery, Django, threads.

        with SyncStatusClient("nats://127.0.0.1:4222") as client:
            update = client.status(job)

    Arguments, answers and errors are those of StatusClient; every method blocks the calling thread. Any number of
    threads may use it. The work is done in a daemon thread, which the first call starts. A client that was made before
    a fork works in the parent and in the child, each with its own connection.
    """

    def __init__(
        self,
        servers: str | Sequence[str] = DEFAULT_SERVER,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        **credentials: Unpack[Credentials],
    ) -> None:
        self._make = partial(StatusClient, servers, timeout_s=timeout_s, **credentials)
        self._make()  # raises if an argument is not allowed
        self._thread: PublisherThread[_Served] | None = None
        self._closed = False

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str] | None = None, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Self:
        """As StatusClient.from_environment."""
        servers, credentials = from_environment(environ)
        return cls(servers, timeout_s=timeout_s, **credentials)

    def status(self, uuid: UUID | str, *, body: bool = False, timeout_s: float | None = None) -> UpdateReply:
        """As StatusClient.status."""
        return self._run(lambda client: client.status(uuid, body=body, timeout_s=timeout_s))

    def history(
        self, uuid: UUID | str, *, after: int = 0, body: bool = False, timeout_s: float | None = None
    ) -> Generator[UpdateReply]:
        """As StatusClient.history."""
        return self._each(lambda client: client.history(uuid, after=after, body=body, timeout_s=timeout_s))

    def follow(self, uuid: UUID | str) -> Generator[UpdateReply]:
        """As StatusClient.follow."""
        return self._each(lambda client: client.follow(uuid))

    def wait_until(
        self,
        uuid: UUID | str,
        *,
        relayed: JobStatus | str | None = None,
        terminal: bool = False,
        timeout_s: float,
    ) -> UpdateReply:
        """As StatusClient.wait_until."""
        return self._run(
            lambda client: client.wait_until(uuid, relayed=relayed, terminal=terminal, timeout_s=timeout_s)
        )

    def receipts(self, uuid: UUID | str | None = None) -> Generator[Receipt]:
        """As StatusClient.receipts. It subscribes when the first receipt is waited for."""
        return self._each(lambda client: client.receipts(uuid))

    def close(self) -> None:
        """Close the connection, within about 5 seconds, and end the thread. It may be called again."""
        with fork_lock:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is not None and not thread.is_of_parent:
            thread.close(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _run(self, ask: Callable[[StatusClient], Coroutine[Any, Any, R]]) -> R:
        with fork_lock:
            thread = self._thread_of_this_process()
            outcome = thread.run(lambda: ask(thread.queue.client))
        try:
            return outcome.result()
        except BaseException:
            outcome.cancel()  # as Ctrl-C has ended the wait
            raise

    def _each(self, ask: Callable[[StatusClient], AsyncGenerator[R]]) -> Generator[R]:
        made: list[AsyncGenerator[R]] = []

        async def next_of(client: StatusClient) -> tuple[R] | None:
            if not made:
                made.append(ask(client))
            async for each in made[0]:
                return (each,)
            return None

        async def end(_: StatusClient) -> None:
            await made[0].aclose()

        try:
            while (each := self._run(next_of)) is not None:
                yield each[0]
        finally:
            if made:
                with contextlib.suppress(ClientClosed):
                    self._run(end)

    def _thread_of_this_process(self) -> PublisherThread[_Served]:
        if self._closed:
            raise ClientClosed
        if self._thread is None or self._thread.is_of_parent:
            self._thread = PublisherThread(_Served(self._make()))
        return self._thread
