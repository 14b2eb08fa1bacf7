"""Counting dead letters by reason, from their headers alone."""

import contextlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from relay.contract.subjects import (
    DLQ_STREAM,
    DLQ_SUBJECTS,
    api_consumer_create,
    api_consumer_delete,
    api_pull,
)
from relay.dead_letters import stream
from relay.nats.frames import FrameClient

NEWEST: Final = 10_000
"""At most this many dead letters are counted: the newest."""
_REMOVED: Final = f"only the newest {NEWEST:,} are counted by reason, and these were removed"
_MINUTE_S: Final = 60
_CONSUMER_PREFIX: Final = "relay-count-"
SUBJECTS_TO_COUNT: Final = (
    api_consumer_create(DLQ_STREAM, f"{_CONSUMER_PREFIX}x", DLQ_SUBJECTS),
    api_consumer_delete(DLQ_STREAM, f"{_CONSUMER_PREFIX}x"),
    api_pull(DLQ_STREAM, f"{_CONSUMER_PREFIX}x"),
)
"""The subjects that a user must be allowed to publish on, with an example of the consumer's name."""


@dataclass(frozen=True, slots=True)
class ReasonCounts:
    """How many dead letters there are, and how many of each reason among the newest `counted` of them."""

    total: int = 0
    counted: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict[str, int])
    per_minute: Mapping[tuple[int, str], int] = field(default_factory=dict[tuple[int, str], int], compare=False)
    """Of the same ones: how many were stored in each minute of Unix time, by reason."""
    uncounted: str = ""
    """Why none of them was counted by reason, as a part of a sentence; empty if some were, or there are none."""


@dataclass(frozen=True, slots=True)
class _StreamState:
    made_at: str
    messages: int
    last_sequence: int


class ReasonCounter:
    """Counts dead letters by reason. Dead letters that were counted before are not read again."""

    def __init__(self, client: FrameClient) -> None:
        self._client = client
        self._counted = _StreamState("", 0, 0)
        self._minutes: Counter[tuple[int, str]] = Counter()

    async def count(self) -> ReasonCounts:
        """The counts now. Raises NotProvisioned without a dead-letter stream, and RelayError. Cancelling is safe."""
        now = await self._state()
        if now != self._counted:
            before = self._counted
            # Both figures grow by the same number unless dead letters were removed; the stream does not say which.
            grown = now.messages - before.messages == now.last_sequence - before.last_sequence
            if now.messages > NEWEST:
                self._minutes = await self._read(now.last_sequence - NEWEST + 1, now.last_sequence)
            elif grown and now.made_at == before.made_at:
                self._minutes += await self._read(before.last_sequence + 1, now.last_sequence)
            else:
                self._minutes = await self._read(1, now.last_sequence)
        self._counted = now
        reasons: Counter[str] = Counter()
        for (_, reason), count in self._minutes.items():
            reasons[reason] += count
        uncounted = _REMOVED if now.messages and not reasons else ""
        return ReasonCounts(now.messages, reasons.total(), dict(reasons.most_common()), dict(self._minutes), uncounted)

    async def _state(self) -> _StreamState:
        info = await stream.info(self._client)
        return _StreamState(info["created"], info["state"]["messages"], info["state"]["last_seq"])

    async def _read(self, start: int, end: int) -> Counter[tuple[int, str]]:
        minutes: Counter[tuple[int, str]] = Counter()
        letters = stream.read_headers(self._client, start, end, consumer_prefix=_CONSUMER_PREFIX)
        async with contextlib.aclosing(letters):
            async for letter in letters:
                minutes[int(letter.stored_at.timestamp() // _MINUTE_S), letter.reason] += 1
        return minutes
