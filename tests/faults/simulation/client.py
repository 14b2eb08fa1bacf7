"""A worker's NATS client: nats-py's own subscriptions, over a link with delays, losses and breaks.

It takes and returns what is on the wire (subjects, headers and bytes), so that the relay's pull loop, deliveries and
requests are the real ones.
"""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import nats.errors
from nats.aio.client import DEFAULT_FLUSH_TIMEOUT
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from relay.nats.frames import Take, TakeBatch
from relay.nats.nats_py import cancellable
from simulation.jetstream import JetStream
from simulation.network import Inbox, Link

_WORDS = "$JS.ACK."
"""The prefix of the subjects on which deliveries are settled."""


class Client:
    """The parts of a NATS client that pulls and dead letters use. It is never closed: its process ends first."""

    max_payload = 1 << 20
    connected_url = None
    is_closed = is_draining = False
    arriving_bytes_per_s = None

    def __init__(self, link: Link, jetstream: JetStream, swallowed: Callable[[Exception], None]) -> None:
        """`swallowed` is called with what a callback for messages raised, because nobody else would see it."""
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

    def on_wire(self, subject: str) -> str:
        return subject

    def new_inbox(self) -> str:
        return f"_INBOX.{self._link.process.name}.{next(self._serials)}"

    async def listen_in_batches(self, subject: str, take: TakeBatch) -> Subscription:
        """Call `take` with all messages that arrived since the process last ran, as if they were read together."""
        read: list[tuple[bytes, bytes, bytes, bytes]] = []

        def give() -> None:
            messages = read[:]
            read.clear()
            self._guard(take, messages)

        def gather(*message: bytes) -> None:
            read.append(message)
            if len(read) == 1:
                self._link.process.post(give)

        return await self.listen(subject, gather)

    async def listen(self, subject: str, take: Take) -> Subscription:
        number = next(self._serials)

        def arrive(subject: str, reply: str, headers: bytes, body: bytes) -> None:
            if inbox.is_wanted:
                self._guard(take, subject.encode(), reply.encode(), headers, body)

        inbox = self._inboxes[number] = Inbox(self._link, subject, arrive)
        self._link.listen(inbox)
        return Subscription(self, number, subject)

    def _guard(self, take: Callable[..., None], *given: Any) -> None:
        try:
            take(*given)
        except Exception as error:  # noqa: BLE001 - a bug of any kind
            self._swallowed(error)

    def write(self, lines: bytes) -> None:
        while lines:
            head, _, rest = lines.partition(b"\r\n")
            _, subject, *reply, size = head.decode().split(" ")
            payload, lines = rest[: int(size)], rest[int(size) + 2 :]
            tell = self._link.acknowledge if subject.startswith(_WORDS) else self._link.tell
            inbox = next((each for each in self._inboxes.values() if [each.subject] == reply), None)
            tell(self._jetstream.hear, subject, payload, inbox)

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        *,
        timeout: float,  # noqa: ASYNC109 - this is its name in the client
        headers: dict[str, str] | None = None,
    ) -> Msg:
        in_turn = subject.startswith(_WORDS)
        answer = self._link.ask(lambda: self._jetstream.request(subject, payload, headers or {}), after_words=in_turn)
        with cancellable():
            return Msg(self, data=await _within(timeout, answer))  # type: ignore[arg-type]

    # The methods that nats-py's subscriptions call on their client.

    async def flush(self) -> None:
        with cancellable():
            await _within(DEFAULT_FLUSH_TIMEOUT, self._link.ping())

    async def _send_unsubscribe(self, number: int, limit: int = 0) -> None:
        assert limit == 0, "that is not modelled"
        self._link.hush(self._inboxes[number])

    def _remove_sub(self, number: int) -> None:
        self._inboxes[number].is_wanted = False


async def _within(timeout_s: float, answer: asyncio.Future[Any]) -> Any:
    try:
        # Not asyncio.timeout: nats-py uses `wait_for`, and the test must cover how that treats a cancellation.
        return await asyncio.wait_for(answer, timeout_s)
    except TimeoutError:
        raise nats.errors.TimeoutError from None
