"""Receipts of settled updates on `job.relayed.<uuid>`. They are only for watching: no update depends on them."""

import asyncio
import time
from collections import deque
from typing import Final

import msgspec
import nats.errors

from relay.contract.subjects import receipt_subject
from relay.core.receipt import Receipt
from relay.core.server_clock import ServerClock
from relay.core.trace import trace_headers_of
from relay.core.update import Settled
from relay.nats.frames import FrameClient, publication
from relay.observability.metrics import Metrics
from relay.timing.clock import monotonic

_QUEUE_SIZE: Final = 10_000
_BATCH: Final = 64
"""How many are published before other work in the event loop gets its turn."""
_MOST_BUFFERED_BYTES: Final = 1024 * 1024
"""With more than this waiting to be sent, receipts are dropped: the connection is slow, and must serve acks first."""


class Receipts:
    """Publishes receipts while the connection keeps up; drops and counts them while it does not.

    `clock` knows how far the clock of NATS, which stored the updates, is from this machine's.
    """

    def __init__(self, client: FrameClient, metrics: Metrics, clock: ServerClock) -> None:
        self._client = client
        self._clock = clock
        self._metrics = metrics
        self._queue: deque[tuple[str, bytes, dict[str, str] | None]] = deque()
        self._filled = asyncio.Event()

    def settled(self, settled: Settled) -> None:
        """Queue the receipt of an update that was just settled; never waits, never raises."""
        if len(self._queue) >= _QUEUE_SIZE:
            self._metrics.receipt_dropped()
            return
        age_s = self._clock.age_s(settled.stored_at_s, settled.delivered_s, time.time(), monotonic())
        receipt = Receipt(
            uuid=settled.job,
            status=settled.status,
            sequence=settled.sequence,
            outcome=settled.outcome,
            reason=settled.reason,
            attempts=settled.attempts,
            relayed_ms=round(1e3 * age_s, 3),
        )
        headers = trace_headers_of(settled.headers) or None
        self._queue.append((receipt_subject(settled.job), msgspec.json.encode(receipt), headers))
        self._filled.set()

    async def run(self) -> None:
        """Publish until cancelled; the receipts in the queue are lost then."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._queue:
                for _ in range(min(_BATCH, len(self._queue))):
                    self._publish(*self._queue.popleft())
                await asyncio.sleep(0)

    def _publish(self, subject: str, receipt: bytes, headers: dict[str, str] | None) -> None:
        # While disconnected the client would keep receipts, and send them late.
        if not self._client.is_connected or self._client.pending_data_size > _MOST_BUFFERED_BYTES:
            self._metrics.receipt_dropped()
            return
        try:
            self._client.write(publication(subject.encode(), receipt, headers=headers))
        except nats.errors.Error:
            self._metrics.receipt_dropped()
