"""How many dead letters there are of each reason, from their headers alone."""

import asyncio
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from relay.contract.errors import BrokerUnavailable, JetStreamError, NotProvisioned
from relay.contract.subjects import (
    DLQ_STREAM,
    DLQ_SUBJECTS,
    REASON_HEADER,
    api_consumer_create,
    api_consumer_delete,
    api_pull,
    api_stream_info,
)
from relay.contract.text import describe
from relay.nats.connection import api_request
from relay.nats.err_codes import STREAM_NOT_FOUND

NEWEST: Final = 10_000
"""Of a stream of so many dead letters all are looked at, of a longer one the newest."""
_CONSUMER_PREFIX: Final = "relay-count-"
SUBJECTS_TO_COUNT: Final = (
    api_consumer_create(DLQ_STREAM, f"{_CONSUMER_PREFIX}x", DLQ_SUBJECTS),
    api_consumer_delete(DLQ_STREAM, f"{_CONSUMER_PREFIX}x"),
    api_pull(DLQ_STREAM, f"{_CONSUMER_PREFIX}x"),
)
"""What a user must be allowed to publish on, with an example for the name of the consumer."""
_SILENCE_S: Final = 3.0
_INACTIVE_NS: Final = 30 * 1_000_000_000


@dataclass(frozen=True, slots=True)
class ReasonCounts:
    """The dead letters: how many there are, and of the newest `counted` of them, how many of each reason."""

    total: int = 0
    counted: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class _Extent:
    """What a stream holds; two dead letters more and none less show as such in it."""

    messages: int
    last_sequence: int


class ReasonCounter:
    """The dead letters by reason. Those that were counted at the last look are not read again."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._seen = _Extent(0, 0)
        self._reasons: Counter[str] = Counter()

    async def count(self) -> ReasonCounts:
        """What there is now. Raises NotProvisioned if there is no such stream, and RelayError."""
        now = await self._extent()
        if now != self._seen:
            # Anything else than growth means that some were removed, and nobody says which.
            grown = now.messages - self._seen.messages == now.last_sequence - self._seen.last_sequence
            if grown and now.messages <= NEWEST:
                self._reasons += await self._read(self._seen.last_sequence + 1, now.last_sequence)
            else:
                self._reasons = await self._read(max(1, now.last_sequence - NEWEST + 1), now.last_sequence)
        self._seen = now
        return ReasonCounts(now.messages, self._reasons.total(), dict(self._reasons.most_common()))

    async def _extent(self) -> _Extent:
        try:
            state = (await api_request(self._client, api_stream_info(DLQ_STREAM), timeout_s=_SILENCE_S))["state"]
        except JetStreamError as error:
            if error.err_code == STREAM_NOT_FOUND:
                raise NotProvisioned([f"stream {DLQ_STREAM} is missing"]) from error
            raise
        return _Extent(state["messages"], state["last_seq"])

    async def _read(self, start: int, end: int) -> Counter[str]:
        """The reasons from one sequence to another, by a consumer that goes away afterwards."""
        name = f"{_CONSUMER_PREFIX}{uuid.uuid4().hex[:12]}"
        config = {
            "name": name,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": start,
            "filter_subject": DLQ_SUBJECTS,
            "ack_policy": "none",
            "headers_only": True,
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": _INACTIVE_NS,
        }
        request = {"stream_name": DLQ_STREAM, "config": config, "action": "create"}
        made = await api_request(
            self._client, api_consumer_create(DLQ_STREAM, name, DLQ_SUBJECTS), request, timeout_s=_SILENCE_S
        )
        try:
            return await self._pull(name, _Reading(made["num_pending"], end))
        finally:
            if self._client.is_connected:
                await api_request(self._client, api_consumer_delete(DLQ_STREAM, name), timeout_s=_SILENCE_S)

    async def _pull(self, name: str, reading: "_Reading") -> Counter[str]:
        if not reading.left:
            return reading.reasons
        inbox = self._client.new_inbox()
        try:
            # No pending limits: beyond them the client drops messages, and NEWEST bounds what can come.
            subscription: Subscription = await self._client.subscribe(  # pyright: ignore[reportUnknownMemberType] - a bare Future
                inbox, cb=reading.receive, pending_msgs_limit=0, pending_bytes_limit=0
            )
            try:
                pull = msgspec.json.encode({"batch": reading.left, "no_wait": True})
                await self._client.publish(api_pull(DLQ_STREAM, name), pull, reply=inbox)
                await reading.done()
            finally:
                if not self._client.is_closed:
                    await subscription.unsubscribe()
        except (nats.errors.Error, OSError, TimeoutError) as error:
            cause = f"the dead letters stopped coming ({describe(error)})"
            raise BrokerUnavailable(["NATS"], cause) from error
        return reading.reasons


class _Reading:
    """The batch that is coming in."""

    def __init__(self, expected: int, end: int) -> None:
        self.reasons: Counter[str] = Counter()
        self.left = expected
        self._end = end
        self._heard = asyncio.Event()

    async def receive(self, message: Msg) -> None:
        if message.reply:
            self.left -= 1
            if message.metadata.sequence.stream <= self._end:  # what is newer is for the next look
                self.reasons[(message.headers or {}).get(REASON_HEADER, "")] += 1
        else:
            self.left = 0  # whatever the status says, no more will come
        self._heard.set()

    async def done(self) -> None:
        """Wait for the last. Raises TimeoutError when it has been silent for too long."""
        while self.left > 0:
            self._heard.clear()
            async with asyncio.timeout(_SILENCE_S):
                await self._heard.wait()
