"""What a worker says of itself to others: of its lanes on `relay.lane.<n>`, of all on `relay.report`."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

import msgspec
import nats.errors
from nats.aio.msg import Msg

from relay.contract.report import Report
from relay.contract.subjects import REPORT_SUBJECT, standing_subject
from relay.core.progress import LaneProgress
from relay.nats.frames import FrameClient
from relay.query.progress_sources import Question


class Driver(Protocol):
    """Who takes a lane's updates to the Facilitator; see worker/dispatcher.py."""

    async def drive(self, number: int, ours_until_s: float, leaving: asyncio.Event) -> None: ...
    def extend(self, number: int, ours_until_s: float) -> None: ...
    def standing(self, number: int, job: str) -> LaneProgress | None: ...


class ReportingDriver:
    """A driver that answers on `relay.lane.<n>` for as long as it drives the lane."""

    def __init__(self, client: FrameClient, driver: Driver) -> None:
        self._client = client
        self._driver = driver

    async def drive(self, number: int, ours_until_s: float, leaving: asyncio.Event) -> None:
        def answer(question: bytes) -> LaneProgress | None:
            return self._driver.standing(number, msgspec.json.decode(question, type=Question).job)

        async with _answering(self._client, standing_subject(number), answer):
            await self._driver.drive(number, ours_until_s, leaving)

    def extend(self, number: int, ours_until_s: float) -> None:
        self._driver.extend(number, ours_until_s)


async def serve_reports(client: FrameClient, report: Callable[[], Report]) -> None:
    """Answer on `relay.report` until cancelled."""
    async with _answering(client, REPORT_SUBJECT, lambda _: report()):
        await asyncio.Event().wait()


@asynccontextmanager
async def _answering(client: FrameClient, subject: str, answer: Callable[[bytes], Any]) -> AsyncGenerator[None]:
    async def respond(message: Msg) -> None:
        if not message.reply:
            return
        # A question that cannot be read is not for us; and whoever cannot be answered asks elsewhere.
        with suppress(msgspec.DecodeError, RecursionError, nats.errors.Error):
            await client.publish(message.reply, msgspec.json.encode(answer(message.data)))

    subscription = await client.subscribe(subject, cb=respond)
    try:
        yield
    finally:
        if not client.is_closed:
            await subscription.unsubscribe()
