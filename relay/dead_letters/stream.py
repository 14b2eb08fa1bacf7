"""Reading JOB_DLQ in stream order, in constant memory, and removing dead letters from it.

Every function raises NotProvisioned if there is no such stream, and RelayError. Cancelling a read is safe; after the
cancellation of a removal, it may or may not be done.

Reading uses an ephemeral consumer without acknowledgements, batch by batch. A new consumer is made, which begins where
the last batch ended, if the consumer is gone (the reader paused for long), or if a message was lost on the way (a gap
in the consumer's own count).
"""

import asyncio
import contextlib
import datetime as dt
import uuid
from collections.abc import AsyncGenerator, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec
import nats.errors

from relay.contract.errors import BrokerUnavailable, JetStreamError, NotProvisioned
from relay.contract.subjects import (
    DLQ_STREAM,
    DLQ_SUBJECTS,
    REASON_HEADER,
    api_consumer_create,
    api_consumer_delete,
    api_pull,
    api_stream_info,
    api_stream_purge,
    is_marker,
)
from relay.contract.text import describe
from relay.dead_letters.moments import moment_of_ns
from relay.dead_letters.selection import Selection
from relay.dead_letters.stored import StoredDeadLetter
from relay.nats.ack_subject import parse_ack_subject
from relay.nats.err_codes import STREAM_NOT_FOUND
from relay.nats.frames import FrameClient
from relay.nats.headers import parse_headers
from relay.nats.jetstream import Requester, api_request
from relay.nats.messages import delete_message, get_message
from relay.timing.waiting import set_within

_MIN_BATCH_BYTES: Final = 8 * 1024 * 1024
_ANSWER_TIMEOUT_S: Final = 5.0
_PURGE_TIMEOUT_S: Final = 60.0
_MAX_FRUITLESS: Final = 3
"""Reading is given up after this many consumers in a row that delivered nothing."""
_INACTIVE_NS: Final = 60 * 1_000_000_000


async def info(client: Requester) -> dict[str, Any]:
    """The stream as JetStream's API describes it: when it was `created`, its `state`, ..."""
    return await _request(client, api_stream_info(DLQ_STREAM))


async def state(client: Requester) -> dict[str, Any]:
    """The stream's state as JetStream's API gives it: `messages`, `last_seq`, ..."""
    return (await info(client))["state"]


async def last_sequence(client: Requester) -> int:
    """The sequence of the newest dead letter, removed or not. Reading up to it ends, even if more are written."""
    return (await state(client))["last_seq"]


async def count(client: FrameClient, selection: Selection) -> int:
    """How many dead letters are selected, without reading them. An upper bound if a reason is selected."""
    if selection.sequences:
        return len(selection.sequences)
    reading = _Reading(selection.subject, 0, since=selection.since)
    async with _consumer(client, reading):
        return reading.pending if selection.limit is None else min(reading.pending, selection.limit)


async def find(client: Requester, sequence: int) -> StoredDeadLetter | None:
    """The dead letter with this sequence, or None if it does not exist."""
    with _as_not_provisioned():
        message = await get_message(client, DLQ_STREAM, sequence)
    return None if message is None else StoredDeadLetter.of(message)


async def read(
    client: FrameClient, selection: Selection, up_to: int, *, batch_size: int = 500, silence_s: float = 5.0
) -> AsyncGenerator[StoredDeadLetter]:
    """The selected dead letters, oldest first. If no sequences are selected, none above `up_to`.

    After `silence_s` seconds without a message, the rest is requested again. Close the generator if you leave it early.
    """
    taken = 0
    if selection.sequences:
        candidates = _find_each(client, selection.sequences)
    else:
        candidates = _read(
            client,
            _Reading(selection.subject, up_to, since=selection.since, batch_size=batch_size, silence_s=silence_s),
        )
    async with contextlib.aclosing(candidates) as letters:
        async for letter in letters:
            if not selection.takes(letter):
                continue
            yield letter
            taken += 1
            if taken == selection.limit:
                return


async def read_headers(
    client: FrameClient, start: int, up_to: int, *, consumer_prefix: str, subject: str = DLQ_SUBJECTS
) -> AsyncGenerator[StoredDeadLetter]:
    """The dead letters on `subject` from one sequence to another, oldest first, without their bodies."""
    reading = _Reading(subject, up_to, start, consumer_prefix=consumer_prefix, headers_only=True, silence_s=1.0)
    async with contextlib.aclosing(_read(client, reading)) as letters:
        async for letter in letters:
            yield letter


async def remove(client: Requester, sequence: int) -> bool:
    """Remove one dead letter; False if it did not exist."""
    with _as_not_provisioned():
        return await delete_message(client, DLQ_STREAM, sequence)


async def remove_all(client: Requester, subject: str, up_to: int) -> int:
    """Remove every dead letter on `subject` up to a sequence, in one request. Returns how many were removed."""
    request = {"filter": subject, "seq": up_to + 1}
    return (await _request(client, api_stream_purge(DLQ_STREAM), request, timeout_s=_PURGE_TIMEOUT_S))["purged"]


class _Message(NamedTuple):
    sequence: int
    stored_ns: int
    headers: bytes
    body: bytes


@dataclass(slots=True)
class _Reading:
    """How far reading is, and the batch that is being received."""

    subject: str
    up_to: int
    next_sequence: int = 1
    """The stream sequence to go on from."""
    since: dt.datetime | None = None
    consumer_prefix: str = "relay-dlq-"
    headers_only: bool = False
    batch_size: int = 500
    silence_s: float = 5.0
    pending: int = 0
    """How many messages the consumer still has to deliver, as far as is known."""
    consumer: str = ""
    inbox: str = ""
    stuck: bool = False
    """Whether this consumer must be replaced by a new one."""
    _count: int = 0
    _wanted: int = 0
    _messages: list[_Message] = field(default_factory=list[_Message])
    _ended: asyncio.Event = field(default_factory=asyncio.Event)
    _heard: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def done(self) -> bool:
        return not self.pending or self.next_sequence > self.up_to

    def config(self) -> dict[str, Any]:
        """The consumer that delivers the rest."""
        start: dict[str, Any] = {"deliver_policy": "by_start_sequence", "opt_start_seq": self.next_sequence}
        if self.next_sequence == 1 and self.since is not None:
            start = {"deliver_policy": "by_start_time", "opt_start_time": self.since.isoformat()}
        return start | {
            "name": self.consumer,
            "filter_subject": self.subject,
            "ack_policy": "none",
            "headers_only": self.headers_only,
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": _INACTIVE_NS,
        }

    def begin(self, pending: int, inbox: str) -> None:
        """Go on with a new consumer."""
        self.pending, self.inbox = pending, inbox
        self.stuck, self._count = False, 0

    def expect(self) -> int:
        """Begin a batch. Returns how many messages to ask for."""
        self._wanted, self._messages = min(self.batch_size, self.pending), []
        self._ended.clear()
        return self._wanted

    def take(self, _subject: bytes, reply: bytes, headers: bytes, body: bytes) -> None:
        """Add a message to the batch. A status message, which has no reply subject, ends the batch."""
        if self._ended.is_set():
            return
        if not reply:
            self._ended.set()  # with any status, no more messages come for this request
        else:
            self._add(reply, headers, body)
        self._heard.set()

    async def batch(self) -> list[_Message]:
        """Wait for the end of the batch, or until nothing came for `silence_s`. Returns what has come."""
        while not self._ended.is_set():
            self._heard.clear()
            if not await set_within(self._heard, self.silence_s):
                break
        self._ended.set()
        self.stuck = self.stuck or not self._messages
        return self._messages

    def _add(self, reply: bytes, headers: bytes, body: bytes) -> None:
        told = parse_ack_subject(reply)
        if told.consumer_sequence != self._count + 1:
            self.stuck = True  # a message before this one was lost
            self._ended.set()
            return
        self._count, self.pending, self.next_sequence = told.consumer_sequence, told.pending, told.sequence + 1
        self._messages.append(_Message(told.sequence, told.stored_ns, headers, body))
        if len(self._messages) == self._wanted:
            self._ended.set()


async def _find_each(client: Requester, sequences: Iterable[int]) -> AsyncGenerator[StoredDeadLetter]:
    for sequence in sorted(set(sequences)):
        if (letter := await find(client, sequence)) is not None:
            yield letter


async def _read(client: FrameClient, reading: _Reading) -> AsyncGenerator[StoredDeadLetter]:
    fruitless = 0
    while fruitless < _MAX_FRUITLESS:
        fruitless += 1
        async with _consumer(client, reading), contextlib.aclosing(_batches(client, reading)) as letters:
            async for letter in letters:
                fruitless = 0
                yield letter
        if reading.done:
            return
    raise _unavailable(client, f"the dead letters stopped coming at sequence {reading.next_sequence}")


async def _batches(client: FrameClient, reading: _Reading) -> AsyncGenerator[StoredDeadLetter]:
    """What one consumer delivers. If `reading` is stuck at the end, another consumer must be made."""
    while not reading.done:
        await _pull(client, reading)
        for sequence, stored_ns, headers, body in await reading.batch():
            if sequence > reading.up_to:
                return
            parsed = parse_headers(headers)
            if REASON_HEADER in parsed or not is_marker(parsed, body):
                yield StoredDeadLetter(sequence, moment_of_ns(stored_ns), parsed, body)
        if reading.stuck:
            return


async def _pull(client: FrameClient, reading: _Reading) -> None:
    """Ask for the next batch."""
    limit = max(_MIN_BATCH_BYTES, 2 * client.max_payload)
    request = msgspec.json.encode({"batch": reading.expect(), "max_bytes": limit, "no_wait": True})
    try:
        await client.publish(api_pull(DLQ_STREAM, reading.consumer), request, reply=reading.inbox)
    except nats.errors.Error as error:
        raise _unavailable(client, describe(error)) from error


@contextlib.asynccontextmanager
async def _consumer(client: FrameClient, reading: _Reading) -> AsyncGenerator[None]:
    """A consumer that begins at `reading.next_sequence`, with an inbox of its own."""
    name = reading.consumer = f"{reading.consumer_prefix}{uuid.uuid4().hex[:12]}"
    config = {"stream_name": DLQ_STREAM, "config": reading.config(), "action": "create"}
    made = await _request(client, api_consumer_create(DLQ_STREAM, name, reading.subject), config)
    # A server can limit the requests of all consumers, and refuses what asks for more.
    reading.batch_size = min(reading.batch_size, made["config"].get("max_batch") or reading.batch_size)
    reading.begin(made["num_pending"], client.new_inbox())
    subscription = await client.listen(reading.inbox, reading.take)
    try:
        yield
    finally:
        if client.is_connected:
            await subscription.unsubscribe()
            with contextlib.suppress(JetStreamError):  # it is gone already
                await _request(client, api_consumer_delete(DLQ_STREAM, name))


def _unavailable(client: FrameClient, cause: str) -> BrokerUnavailable:
    url = client.connected_url
    return BrokerUnavailable([f"{url.hostname}:{url.port}"] if url else [], cause)


async def _request(
    client: Requester, subject: str, body: dict[str, Any] | None = None, *, timeout_s: float | None = None
) -> dict[str, Any]:
    with _as_not_provisioned():
        return await api_request(client, subject, body, timeout_s=timeout_s or _ANSWER_TIMEOUT_S)


@contextlib.contextmanager
def _as_not_provisioned() -> Generator[None]:
    """Turns the error of a missing stream into NotProvisioned, which says what to do about it."""
    try:
        yield
    except JetStreamError as error:
        if error.err_code == STREAM_NOT_FOUND:
            raise NotProvisioned([f"stream {DLQ_STREAM} is missing"]) from error
        raise
