"""What a worker answers to other processes: on `relay.lane.<n>` about its lanes, on `relay.report` about itself."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import nats.errors
from nats.aio.msg import Msg

from relay.contract.report import Report
from relay.contract.subjects import REPORT_SUBJECT, lane_progress_subject
from relay.core.progress import LaneProgress
from relay.leases.ownership import LaneDriver
from relay.nats.frames import FrameClient
from relay.query.progress_sources import ProgressRequest


class ReportingDriver:
    """A lane driver that also answers on `relay.lane.<n>` while it drives the lane.

    Args:
        driver: drives the lane.
        progress: returns what the driver knows about a job in a lane; None if it does not drive the lane.
    """

    def __init__(
        self, client: FrameClient, driver: LaneDriver, progress: Callable[[int, str], LaneProgress | None]
    ) -> None:
        self._client = client
        self._driver = driver
        self._progress = progress

    async def drive(self, number: int, ours_until_s: float, leaving: asyncio.Event) -> None:
        def answer(request: bytes) -> LaneProgress | None:
            return self._progress(number, msgspec.json.decode(request, type=ProgressRequest).job)

        async with _answering(self._client, lane_progress_subject(number), answer):
            await self._driver.drive(number, ours_until_s, leaving)

    def extend(self, number: int, ours_until_s: float) -> None:
        self._driver.extend(number, ours_until_s)


async def serve_reports(client: FrameClient, report: Callable[[], Report]) -> None:
    """Answer on `relay.report` with what `report` returns, until cancelled."""
    async with _answering(client, REPORT_SUBJECT, lambda _: report()):
        await asyncio.Event().wait()


@asynccontextmanager
async def _answering(client: FrameClient, subject: str, answer: Callable[[bytes], Any]) -> AsyncGenerator[None]:
    async def respond(message: Msg) -> None:
        if not message.reply:
            return
        # A worker that gets no reply asks the NATS server instead.
        with suppress(ValueError, RecursionError, nats.errors.Error):
            await client.publish(message.reply, msgspec.json.encode(answer(message.data)))

    subscription = await client.subscribe(subject, cb=respond)
    try:
        yield
    finally:
        if not client.is_closed:
            await subscription.unsubscribe()
