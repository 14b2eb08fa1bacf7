"""A worker's NATS client: the subscriptions and messages of nats-py itself, on a link that delays, loses and breaks.

It takes and gives what is on the wire, subjects, headers and bytes, so the relay's pull loop, deliveries and requests
are the real ones.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import nats.errors
from nats.aio.client import DEFAULT_FLUSH_TIMEOUT
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from simulation.jetstream import JetStream
from simulation.network import Inbox, Link

_WORDS = "$JS.ACK."
"""What the subjects begin with on which deliveries are settled."""


class Client:
    """As much of a NATS client as pulls and dead letters take. It is never closed: its process ends before."""

    max_payload = 1 << 20
    connected_url = last_error = None
    is_closed = is_draining = False

    def __init__(self, link: Link, jetstream: JetStream, swallowed: Callable[[Exception], None]) -> None:
        """`swallowed` is called with what a subscription's callback raised: nobody else will hear of it."""
        self._link = link
        self._jetstream = jetstream
        self._swallowed = swallowed
        self._serials = itertools.count(1)
        self._inboxes: dict[int, Inbox] = {}

    @property
    def is_connected(self) -> bool:
        return self._link.is_connected

    @property
    def is_reconnecting(self) -> bool:
        return not self._link.is_connected

    def new_inbox(self) -> str:
        return f"_INBOX.{self._link.process.name}.{next(self._serials)}"

    async def subscribe(self, subject: str, *, cb: Callable[[Msg], Awaitable[None]], **limits: int) -> Subscription:
        number = next(self._serials)
        subscription = Subscription(self, number, subject, cb=cb, **limits)
        subscription._start(self._failed)

        def arrive(*message: Any) -> None:
            if inbox.is_wanted:
                subscription._pending_queue.put_nowait(Msg(self, *message))  # type: ignore[arg-type]

        inbox = self._inboxes[number] = Inbox(self._link, subject, arrive)
        self._link.listen(inbox)
        return subscription

    async def publish(self, subject: str, payload: bytes = b"", reply: str = "") -> None:
        tell = self._link.acknowledge if subject.startswith(_WORDS) else self._link.tell
        inbox = next((each for each in self._inboxes.values() if each.subject == reply), None)
        tell(self._jetstream.hear, subject, payload, inbox)

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        *,
        timeout: float,  # noqa: ASYNC109 - the client's own name for it
        headers: dict[str, str] | None = None,
    ) -> Msg:
        in_turn = subject.startswith(_WORDS)
        answer = self._link.ask(lambda: self._jetstream.request(subject, payload, headers or {}), after_words=in_turn)
        return Msg(self, data=await _within(timeout, answer))  # type: ignore[arg-type]

    # What nats-py's subscriptions ask of their client.

    async def flush(self) -> None:
        await _within(DEFAULT_FLUSH_TIMEOUT, self._link.ping())

    async def _send_unsubscribe(self, number: int, limit: int = 0) -> None:
        assert limit == 0, "that is not modelled"
        self._link.hush(self._inboxes[number])

    def _remove_sub(self, number: int) -> None:
        self._inboxes[number].is_wanted = False

    async def _failed(self, error: Exception) -> None:
        self._swallowed(error)


async def _within(timeout_s: float, answer: asyncio.Future[Any]) -> Any:
    try:
        # Not asyncio.timeout: nats-py waits in `wait_for`, and what that does with a cancellation is part of the story.
        return await asyncio.wait_for(answer, timeout_s)
    except TimeoutError:
        raise nats.errors.TimeoutError from None
