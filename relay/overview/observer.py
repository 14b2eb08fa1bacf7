"""Looking at the relay over NATS alone: streams, lanes, leases, dead letters, and what its workers report."""

import asyncio
import contextlib
import datetime as dt
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from relay.contract.errors import BrokerUnavailable, JetStreamError, NotProvisioned, UnsuitableServer
from relay.contract.report import Report
from relay.contract.subjects import (
    ADVISORY_STREAM,
    DLQ_STREAM,
    LEASE_STREAM,
    REPORT_SUBJECT,
    REQUEST_STREAM,
    STATUS_STREAM,
    api_consumer_info,
    api_stream_info,
    lane_consumer,
    lane_filter,
    lanes_of_transform,
)
from relay.contract.text import describe
from relay.dead_letters.reasons import SUBJECTS_TO_COUNT, ReasonCounter, ReasonCounts
from relay.leases.leases import Leases, View
from relay.nats.connection import api_request
from relay.nats.err_codes import CONSUMER_NOT_FOUND, STREAM_NOT_FOUND
from relay.nats.messages import find_message
from relay.nats.permission import Need, refused
from relay.overview.snapshot import LaneState, Overview, StreamState

_NS_PER_S: Final = 1_000_000_000
_ANSWER_TIMEOUT_S: Final = 3.0
_REPORT_TIMEOUT_S: Final = 1.0
"""How long to wait for workers that are announced and do not answer."""
_STREAMS: Final = (STATUS_STREAM, DLQ_STREAM, ADVISORY_STREAM, REQUEST_STREAM, LEASE_STREAM)
_NOBODY: Final = "503"


@dataclass(frozen=True, slots=True)
class _Clock:
    """How the clock of NATS stands to ours."""

    ahead_s: float
    error_s: float

    def age_s(self, stored_at_s: float) -> float:
        return max(0.0, time.time() + self.ahead_s - stored_at_s)


@dataclass(frozen=True, slots=True)
class _May:
    """What a NATS user may do beyond reading: count dead letters by reason, ask the workers for their reports."""

    count: bool
    ask: bool


class Observer:
    """Takes one look after another through `client`; what of the dead letters it has counted, it remembers."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._leases = Leases(client, "", 3 * _ANSWER_TIMEOUT_S)
        self._reasons = ReasonCounter(client)
        self._may: _May | None = None

    async def find_out(self) -> None:
        """Find out what this NATS user may look at, with nobody else on the connection; else the first look does it.

        Raises BrokerUnavailable.
        """
        self._may = await self._find_out()

    async def look(self) -> Overview:
        """Everything as it is now, as far as this NATS user may see it: reasons and reports may be missing.

        Raises NotProvisioned if a stream is missing, BrokerUnavailable, UnsuitableServer and JetStreamError as
        `api_request` does.
        """
        may = self._may = self._may or await self._find_out()
        status, clock = await self._clocked_info()
        others = await asyncio.gather(*map(self._info, _STREAMS[1:]))
        streams = {name: _stream_state(name, info) for name, info in zip(_STREAMS, (status, *others), strict=True)}
        lanes = lanes_of_transform(status["config"].get("subject_transform"))
        if lanes is None:
            raise NotProvisioned([f"stream {STATUS_STREAM} has no lanes"])
        view = await self._leases.view()
        letters = await self._letters(streams[DLQ_STREAM].messages, may_count=may.count)
        states, reports = await asyncio.gather(
            asyncio.gather(*(self._lane(lane, view, clock) for lane in range(lanes))),
            gather_reports(self._client, len(view.workers) if may.ask else 0),
        )
        return Overview(
            taken_s=time.monotonic(),
            server_ahead_s=clock.ahead_s,
            clock_error_s=clock.error_s,
            lanes=tuple(states),
            streams=streams,
            workers=view.workers,
            reports=reports,
            asked=may.ask,
            letters=letters,
            advisories=streams[ADVISORY_STREAM].messages,
            published=streams[STATUS_STREAM].last_sequence,
        )

    async def _letters(self, total: int, *, may_count: bool) -> ReasonCounts:
        if may_count:
            with contextlib.suppress(UnsuitableServer):  # in this account nobody answers that
                return await self._reasons.count()
        return ReasonCounts(total)

    async def _find_out(self) -> _May:
        count, ask = [Need(subject) for subject in SUBJECTS_TO_COUNT], Need(REPORT_SUBJECT)
        try:
            missing = await refused(self._client, [*count, ask])
        except (nats.errors.Error, OSError) as error:
            raise BrokerUnavailable(["NATS"], describe(error)) from error
        return _May(count=not any(need in missing for need in count), ask=ask not in missing)

    async def _clocked_info(self) -> tuple[Mapping[str, Any], _Clock]:
        asked_s, began_s = time.time(), time.monotonic()
        info = await self._info(STATUS_STREAM)
        took_s = time.monotonic() - began_s
        answered_s = dt.datetime.fromisoformat(info["ts"]).timestamp()
        return info, _Clock(answered_s - (asked_s + took_s / 2), took_s / 2)

    async def _info(self, stream: str) -> dict[str, Any]:
        try:
            return await api_request(self._client, api_stream_info(stream), timeout_s=_ANSWER_TIMEOUT_S)
        except JetStreamError as error:
            if error.err_code == STREAM_NOT_FOUND:
                raise NotProvisioned([f"stream {stream} is missing"]) from error
            raise

    async def _lane(self, lane: int, view: View, clock: _Clock) -> LaneState:
        owner, consumer = view.owners.get(lane), lane_consumer(lane)
        request = api_consumer_info(STATUS_STREAM, consumer)
        try:
            info = await api_request(self._client, request, timeout_s=_ANSWER_TIMEOUT_S)
        except JetStreamError as error:
            if error.err_code != CONSUMER_NOT_FOUND:
                raise
            return LaneState(lane, owner, trouble=f"consumer {consumer} is missing: run `relay provision`")
        waiting, delivered = info["num_pending"], info["num_ack_pending"]
        oldest_s = None
        if waiting or delivered:
            oldest_s = await self._oldest_s(lane, info["ack_floor"]["stream_seq"], clock)
        return LaneState(lane, owner, waiting, delivered, info["delivered"]["consumer_seq"], oldest_s)

    async def _oldest_s(self, lane: int, ack_floor: int, clock: _Clock) -> float | None:
        """The age of the lane's first update above its ack floor: everything up to there is settled."""
        request = {"seq": ack_floor + 1, "next_by_subj": lane_filter(lane)}
        oldest = await find_message(self._client, STATUS_STREAM, request, timeout_s=_ANSWER_TIMEOUT_S)
        return None if oldest is None else clock.age_s(oldest.stored_at_s)  # None: settled meanwhile, and purged


async def gather_reports(client: Client, expected: int) -> dict[str, Report]:
    """What the workers say of themselves, by worker: all that answer within a second, or the first `expected`.

    If none is expected nobody is asked. A worker of a version whose report cannot be read is left out. Raises
    BrokerUnavailable if there is no connection.
    """
    answers = _Answers(expected)
    if not expected:
        return answers.reports
    inbox = client.new_inbox()
    try:
        subscription: Subscription = await client.subscribe(inbox, cb=answers.receive)  # pyright: ignore[reportUnknownMemberType] - a bare Future
        try:
            await client.publish(REPORT_SUBJECT, b"", reply=inbox)
            with contextlib.suppress(TimeoutError):  # who has not answered by then is shown as such
                async with asyncio.timeout(_REPORT_TIMEOUT_S):
                    await answers.complete.wait()
        finally:
            if not client.is_closed:
                await subscription.unsubscribe()
    except (nats.errors.Error, OSError) as error:
        raise BrokerUnavailable(["NATS"], f"{REPORT_SUBJECT}: {describe(error)}") from error
    return answers.reports


class _Answers:
    """The reports that have come in."""

    def __init__(self, expected: int) -> None:
        self.reports: dict[str, Report] = {}
        self.complete = asyncio.Event()
        self._left = expected

    async def receive(self, message: Msg) -> None:
        nobody = (message.headers or {}).get("Status") == _NOBODY
        if not nobody:
            with contextlib.suppress(msgspec.DecodeError):
                report = msgspec.json.decode(message.data, type=Report)
                self.reports[report.worker] = report
            self._left -= 1
        if nobody or self._left <= 0:
            self.complete.set()


def _stream_state(name: str, info: Mapping[str, Any]) -> StreamState:
    config, state = info["config"], info["state"]
    cluster: dict[str, Any] = info.get("cluster") or {}
    copies: list[dict[str, Any]] = cluster.get("replicas") or []
    return StreamState(
        name=name,
        messages=state["messages"],
        bytes=state["bytes"],
        last_sequence=state["last_seq"],
        max_messages=config["max_msgs"],
        max_bytes=config["max_bytes"],
        max_age_s=config["max_age"] / _NS_PER_S,
        copies=config["num_replicas"],
        behind=tuple(copy["name"] for copy in copies if copy.get("offline") or not copy.get("current")),
    )
