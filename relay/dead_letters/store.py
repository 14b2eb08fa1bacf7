"""The dead-letter stream for those who look after it: reading in stream order with flat memory, and removing.

Reading goes by an ephemeral consumer without acknowledgements, batch by batch. The consumer is made anew where the
last batch ended if it is gone (somebody paused for long over a page of output) or if anything was lost on the way,
which the gap in its own count shows.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec
import nats.errors

from relay.contract.errors import BrokerUnavailable, JetStreamError, NotProvisioned
from relay.contract.subjects import (
    DLQ_STREAM,
    api_consumer_create,
    api_consumer_delete,
    api_pull,
    api_stream_info,
    api_stream_purge,
)
from relay.dead_letters.stored import Selection, StoredDeadLetter, moment_of
from relay.nats.ack_subject import parse_ack_subject
from relay.nats.connection import Requester, api_request
from relay.nats.err_codes import STREAM_NOT_FOUND
from relay.nats.frames import FrameClient
from relay.nats.headers import parse_headers
from relay.nats.messages import delete_message

_BATCH: Final = 500
_MIN_BATCH_BYTES: Final = 8 * 1024 * 1024
_ANSWER_TIMEOUT_S: Final = 5.0
_PURGE_TIMEOUT_S: Final = 60.0
_SILENCE_S: Final = 5.0
"""How long a batch may pause before it is asked for anew."""
_MAX_FRUITLESS: Final = 3
"""After so many consumers in a row that delivered nothing, reading is given up."""
_INACTIVE_NS: Final = 60 * 1_000_000_000


class DeadLetterStore:
    """What JOB_DLQ holds. Every method raises NotProvisioned if there is no such stream, and RelayError."""

    def __init__(self, client: FrameClient) -> None:
        self._client = client

    async def last_sequence(self) -> int:
        """The sequence of the newest dead letter there has been: what to read up to, so that reading ends."""
        return (await self._request(api_stream_info(DLQ_STREAM)))["state"]["last_seq"]

    async def count(self, selection: Selection) -> int:
        """How many dead letters a selection is about, or at most if it asks for a reason; without reading them."""
        if selection.sequences:
            return len(selection.sequences)
        reading = _Reading(selection, 1, 0)
        async with self._consumer(reading):
            return reading.pending if selection.limit is None else min(reading.pending, selection.limit)

    async def read(self, selection: Selection, up_to: int) -> AsyncGenerator[StoredDeadLetter]:
        """The dead letters that `selection` takes, oldest first, none with a sequence above `up_to`."""
        taken = 0
        starts = sorted(set(selection.sequences)) or [1]
        for start in starts:
            end = start if selection.sequences else up_to
            async with contextlib.aclosing(self._from(selection, start, end)) as letters:
                async for letter in letters:
                    if not selection.takes(letter):
                        continue
                    yield letter
                    taken += 1
                    if taken == selection.limit:
                        return

    async def get(self, sequence: int) -> StoredDeadLetter | None:
        """One dead letter, or None if it is not there."""
        async with contextlib.aclosing(self.read(Selection(sequences=(sequence,)), sequence)) as letters:
            return await anext(letters, None)

    async def remove(self, sequence: int, over: Requester | None = None) -> bool:
        """Remove one dead letter, `over` a pipeline if it is given; False if it was not there any more."""
        with _as_not_provisioned():
            return await delete_message(over or self._client, DLQ_STREAM, sequence)

    async def remove_all(self, subject: str, up_to: int) -> int:
        """Remove every dead letter on `subject` up to a sequence, in one request; returns how many those were."""
        request = {"filter": subject, "seq": up_to + 1}
        return (await self._request(api_stream_purge(DLQ_STREAM), request, timeout_s=_PURGE_TIMEOUT_S))["purged"]

    async def _from(self, selection: Selection, start: int, up_to: int) -> AsyncGenerator[StoredDeadLetter]:
        reading = _Reading(selection, start, up_to)
        fruitless = 0
        while fruitless < _MAX_FRUITLESS:
            fruitless += 1
            async with self._consumer(reading), contextlib.aclosing(self._batches(reading)) as letters:
                async for letter in letters:
                    fruitless = 0
                    yield letter
            if reading.done:
                return
        raise self._unavailable(f"the dead letters stopped coming at sequence {reading.next_sequence}")

    async def _batches(self, reading: "_Reading") -> AsyncGenerator[StoredDeadLetter]:
        while not reading.done:
            for letter in await self._pull(reading):
                if letter.sequence > reading.up_to:
                    return
                yield letter
            if reading.stuck:
                return

    @contextlib.asynccontextmanager
    async def _consumer(self, reading: "_Reading") -> AsyncGenerator[None]:
        """A consumer that begins where `reading` has got to, with an inbox of its own."""
        name = f"relay-dlq-{uuid.uuid4().hex[:12]}"
        request = api_consumer_create(DLQ_STREAM, name, reading.selection.subject)
        config = {"stream_name": DLQ_STREAM, "config": reading.config(name), "action": "create"}
        made = await self._request(request, config)
        reading.begin(name, made["num_pending"], self._client.new_inbox())
        subscription = await self._client.listen(reading.inbox, reading.take)
        try:
            yield
        finally:
            if self._client.is_connected:
                await subscription.unsubscribe()
                with contextlib.suppress(JetStreamError):  # it is gone already
                    await self._request(api_consumer_delete(DLQ_STREAM, name))

    async def _pull(self, reading: "_Reading") -> list[StoredDeadLetter]:
        """The next batch; the consumer has to be made anew if `reading` is stuck then."""
        count = min(_BATCH, reading.pending)
        reading.expect(count)
        limit = max(_MIN_BATCH_BYTES, 2 * self._client.max_payload)
        request = {"batch": count, "max_bytes": limit, "no_wait": True}
        try:
            await self._client.publish(
                api_pull(DLQ_STREAM, reading.consumer), msgspec.json.encode(request), reply=reading.inbox
            )
        except nats.errors.Error as error:
            raise self._unavailable(repr(error)) from error
        return [
            StoredDeadLetter(sequence, moment_of(stored_ns), parse_headers(headers), body)
            for sequence, stored_ns, headers, body in await reading.batch()
        ]

    def _unavailable(self, cause: str) -> BrokerUnavailable:
        url = self._client.connected_url
        return BrokerUnavailable([f"{url.hostname}:{url.port}"] if url else ["no server"], cause)

    async def _request(
        self, subject: str, body: dict[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> dict[str, Any]:
        with _as_not_provisioned():
            return await api_request(self._client, subject, body, timeout_s=timeout_s or _ANSWER_TIMEOUT_S)


@contextlib.contextmanager
def _as_not_provisioned() -> Generator[None]:
    """Says what to do about a stream that is missing."""
    try:
        yield
    except JetStreamError as error:
        if error.err_code == STREAM_NOT_FOUND:
            raise NotProvisioned([f"stream {DLQ_STREAM} is missing"]) from error
        raise


class _Message(NamedTuple):
    sequence: int
    stored_ns: int
    headers: bytes
    body: bytes


@dataclass(slots=True)
class _Reading:
    """How far reading has got, and the batch that is coming in."""

    selection: Selection
    next_sequence: int
    """Of the stream: where to go on."""
    up_to: int
    pending: int = 0
    """How many messages the consumer has yet to deliver, as far as is known."""
    consumer: str = ""
    inbox: str = ""
    stuck: bool = False
    """Nothing more is to be had from this consumer."""
    _count: int = 0
    _wanted: int = 0
    _messages: list[_Message] = field(default_factory=list[_Message])
    _ended: asyncio.Event = field(default_factory=asyncio.Event)
    _heard: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def done(self) -> bool:
        return not self.pending or self.next_sequence > self.up_to

    def config(self, name: str) -> dict[str, Any]:
        """The consumer that delivers the rest."""
        start: dict[str, Any] = {"deliver_policy": "by_start_sequence", "opt_start_seq": self.next_sequence}
        if self.next_sequence == 1 and self.selection.since is not None:
            start = {"deliver_policy": "by_start_time", "opt_start_time": self.selection.since.isoformat()}
        return start | {
            "name": name,
            "filter_subject": self.selection.subject,
            "ack_policy": "none",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": _INACTIVE_NS,
        }

    def begin(self, consumer: str, pending: int, inbox: str) -> None:
        self.consumer, self.pending, self.inbox = consumer, pending, inbox
        self.stuck, self._count = False, 0

    def expect(self, count: int) -> None:
        self._wanted, self._messages = count, []
        self._ended.clear()

    def take(self, _subject: bytes, reply: bytes, headers: bytes, body: bytes) -> None:
        if self._ended.is_set():
            return
        if not reply:
            self._ended.set()  # whatever the status says, no more will come for this request
        else:
            self._add(reply, headers, body)
        self._heard.set()

    async def batch(self) -> list[_Message]:
        """What has come when nothing more will, or when it has been silent for too long."""
        with contextlib.suppress(TimeoutError):
            while not self._ended.is_set():
                self._heard.clear()
                async with asyncio.timeout(_SILENCE_S):
                    await self._heard.wait()
        self._ended.set()
        self.stuck = self.stuck or not self._messages
        return self._messages

    def _add(self, reply: bytes, headers: bytes, body: bytes) -> None:
        told = parse_ack_subject(reply)
        if told.consumer_sequence != self._count + 1:
            self.stuck = True  # something got lost in between
            self._ended.set()
            return
        self._count, self.pending, self.next_sequence = told.consumer_sequence, told.pending, told.sequence + 1
        self._messages.append(_Message(told.sequence, told.stored_ns, headers, body))
        if len(self._messages) == self._wanted:
            self._ended.set()
