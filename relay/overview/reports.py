"""Asking the workers over NATS for their reports."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
import nats.errors
from nats.aio.msg import Msg

from relay.contract.errors import BrokerUnavailable, JetStreamError
from relay.contract.report import Report
from relay.contract.subjects import REPORT_SUBJECT
from relay.contract.text import describe
from relay.leases.leases import Leases
from relay.nats.frames import FrameClient
from relay.timing.waiting import set_within

REPORT_TIMEOUT_S: Final = 1.0
_NO_RESPONDERS: Final = "503"


async def gather_all_reports(client: FrameClient) -> dict[str, Report]:
    """The reports of all workers that the lease bucket names. None without a bucket. Raises and cancels likewise."""
    try:
        table = await Leases(client, "", 3 * REPORT_TIMEOUT_S).read()
    except JetStreamError:
        return {}
    return await gather_reports(client, len(table.workers))


async def gather_reports(client: FrameClient, expected: int, timeout_s: float = REPORT_TIMEOUT_S) -> dict[str, Report]:
    """The reports, by worker: the first `expected`, or those that arrive within `timeout_s`.

    If `expected` is 0, nothing is sent. Reports of another version that cannot be decoded are left out.
    Safe to cancel. Raises BrokerUnavailable if there is no connection.
    """
    collector = _ReportCollector(expected)
    if not expected:
        return collector.reports
    inbox = client.new_inbox()
    try:
        subscription = await client.subscribe(inbox, cb=collector.receive)
        try:
            await client.publish(REPORT_SUBJECT, b"", reply=inbox)
            await set_within(collector.complete, timeout_s)  # workers that have not answered are missing in the result
        finally:
            if not client.is_closed:
                await subscription.unsubscribe()
    except (nats.errors.Error, OSError) as error:
        raise BrokerUnavailable([], f"{REPORT_SUBJECT}: {describe(error)}") from error
    return collector.reports


def find_disagreements(ours: Mapping[str, float], reports: Iterable[Report]) -> list[str]:
    """A text for each setting in which workers that run differ from `ours`, both by variable."""
    others: dict[tuple[str, float], list[str]] = defaultdict(list)
    for report in reports:
        for variable, value in report.settings.items():
            if ours.get(variable, value) != value:
                others[variable, value].append(report.worker)
    return [
        f"{variable} is {ours[variable]:g} here, and {value:g} where {', '.join(sorted(workers))} runs"
        for (variable, value), workers in sorted(others.items())
    ]


class _ReportCollector:
    """Collects the answers to one question."""

    def __init__(self, expected: int) -> None:
        self.reports: dict[str, Report] = {}
        self.complete = asyncio.Event()
        self._left = expected

    async def receive(self, message: Msg) -> None:
        nobody_listens = (message.headers or {}).get("Status") == _NO_RESPONDERS
        if not nobody_listens:
            with contextlib.suppress(ValueError, RecursionError):
                report = msgspec.json.decode(message.data, type=Report)
                self.reports[report.worker] = report
            self._left -= 1
        if nobody_listens or self._left <= 0:
            self.complete.set()
