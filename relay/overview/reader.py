"""Reads a snapshot of the relay, only over NATS: streams, lanes, leases, dead letters and the workers' reports."""

import asyncio
import datetime as dt
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import nats.errors

from relay.contract.errors import (
    BrokerUnavailable,
    JetStreamError,
    NotPermitted,
    NotProvisioned,
    Unanswered,
    UnsuitableServer,
)
from relay.contract.report import Report
from relay.contract.subjects import (
    ADVISORY_STREAM,
    CANARY_SUBJECT,
    DLQ_STREAM,
    LEASE_STREAM,
    REPORT_SUBJECT,
    REQUEST_STREAM,
    STATUS_STREAM,
    api_stream_info,
    lane_consumer,
    lanes_of_transform,
)
from relay.contract.text import describe
from relay.dead_letters.reasons import SUBJECTS_TO_COUNT, ReasonCounter, ReasonCounts
from relay.leases.leases import Leases
from relay.nats.err_codes import STREAM_NOT_FOUND
from relay.nats.frames import FrameClient
from relay.nats.jetstream import api_request
from relay.nats.permissions import Permission, missing_permissions
from relay.overview.reports import gather_reports
from relay.overview.snapshot import LaneSnapshot, Snapshot, StreamSnapshot
from relay.topology.consumer_state import OldestUpdates, find_consumer_state
from relay.topology.copies import copies_of
from relay.topology.intake import idle_s

_NS_PER_S: Final = 1_000_000_000
_TIMEOUT_S: Final = 3.0
_MAY_NOT_COUNT: Final = "this NATS user may not count them by reason"
_STREAMS: Final = (STATUS_STREAM, DLQ_STREAM, ADVISORY_STREAM, REQUEST_STREAM, LEASE_STREAM)


@dataclass(frozen=True, slots=True)
class _Permissions:
    """What this NATS user may do in addition to reading JetStream's state."""

    count_reasons: bool
    """Whether it may make a consumer, to count the dead letters by reason."""
    ask_workers: bool
    """Whether it may ask the workers for their reports."""


class SnapshotReader:
    """Reads snapshots through `client`. Dead letters that were counted for one snapshot are not read for the next."""

    def __init__(self, client: FrameClient) -> None:
        self._client = client
        self._leases = Leases(client, "", 3 * _TIMEOUT_S)
        self._reasons = ReasonCounter(client)
        self._oldest = OldestUpdates(client, timeout_s=_TIMEOUT_S)
        self._permissions: _Permissions | None = None

    async def check_permissions(self) -> None:
        """Find out what this NATS user may read. If this is not called, the first `read` does it.

        Nothing else may use the connection meanwhile. Raises BrokerUnavailable.
        """
        self._permissions = await self._find_permissions()

    async def read(self) -> Snapshot:
        """The state now. Counts by reason and reports are left out if this NATS user may not read them.

        Safe to cancel. Raises NotProvisioned if a stream is missing, BrokerUnavailable, UnsuitableServer and
        JetStreamError as `api_request` does.
        """
        permissions = self._permissions = self._permissions or await self._find_permissions()
        asked_s, began_s = time.time(), time.monotonic()
        status = await self._stream_info(STATUS_STREAM, {"subjects_filter": CANARY_SUBJECT})
        half_s = (time.monotonic() - began_s) / 2
        others = await asyncio.gather(*map(self._stream_info, _STREAMS[1:]))
        streams = {name: _stream(name, info) for name, info in zip(_STREAMS, (status, *others), strict=True)}
        lane_count = _lane_count(status)
        leases = await self._leases.read()
        dead_letters = await self._count_dead_letters(streams[DLQ_STREAM].messages, permissions)
        lanes, reports = await asyncio.gather(
            asyncio.gather(*(self._lane(lane, leases.owners.get(lane)) for lane in range(lane_count))),
            # Without any announced worker, too: they cannot announce themselves while the leases cannot be stored.
            gather_reports(self._client, max(1, len(leases.workers)) if permissions.ask_workers else 0),
        )
        return Snapshot(
            taken_s=time.monotonic(),
            server_ahead_s=dt.datetime.fromisoformat(status["ts"]).timestamp() - (asked_s + half_s),
            clock_error_s=half_s,
            lanes=tuple(_aged(lane, reports) for lane in lanes),
            streams=streams,
            workers=leases.workers,
            reports=reports,
            silent_s=leases.silent_s,
            may_ask_workers=permissions.ask_workers,
            dead_letters=dead_letters,
        )

    async def _find_permissions(self) -> _Permissions:
        count, ask = [Permission(subject) for subject in SUBJECTS_TO_COUNT], Permission(REPORT_SUBJECT)
        try:
            missing = await missing_permissions(self._client, [*count, ask])
        except (nats.errors.Error, OSError) as error:
            kind = Unanswered if isinstance(error, TimeoutError) and self._client.is_connected else BrokerUnavailable
            raise kind([], describe(error)) from error
        return _Permissions(not any(permission in missing for permission in count), ask not in missing)

    async def _stream_info(self, stream: str, request: Mapping[str, Any] | None = None) -> dict[str, Any]:
        try:
            return await api_request(self._client, api_stream_info(stream), request, timeout_s=_TIMEOUT_S)
        except JetStreamError as error:
            if error.err_code == STREAM_NOT_FOUND:
                raise NotProvisioned([f"stream {stream} is missing"]) from error
            raise

    async def _count_dead_letters(self, total: int, permissions: _Permissions) -> ReasonCounts:
        if not permissions.count_reasons:
            return ReasonCounts(total, uncounted=_MAY_NOT_COUNT)
        try:
            return await self._reasons.count()
        except (NotPermitted, UnsuitableServer):  # this account may not make consumers
            return ReasonCounts(total, uncounted=_MAY_NOT_COUNT)
        except (BrokerUnavailable, JetStreamError) as error:  # a limit of the account or the server, for example
            return ReasonCounts(total, uncounted=f"they cannot be counted by reason: {error}")

    async def _lane(self, lane: int, owner: str | None) -> LaneSnapshot:
        state = await find_consumer_state(self._client, lane, timeout_s=_TIMEOUT_S)
        if state is None:
            return LaneSnapshot(lane, owner, trouble=f"consumer {lane_consumer(lane)} is missing")
        oldest_s = await self._oldest.age_s(lane, state)
        return LaneSnapshot(lane, owner, state.waiting, state.pending, state.delivered_count, oldest_s)


def _aged(lane: LaneSnapshot, reports: Mapping[str, Report]) -> LaneSnapshot:
    """The lane, whose oldest update is at least as old as its owner says: the server's clock may have been set back."""
    report = reports.get(lane.owner or "")
    if lane.oldest_s is None or report is None:
        return lane
    at_hand_s = [each.oldest_at_hand_s for each in report.lanes if each.lane == lane.lane]
    return replace(lane, oldest_s=max([lane.oldest_s, *at_hand_s]))


def _lane_count(status_info: Mapping[str, Any]) -> int:
    lanes = lanes_of_transform(status_info["config"].get("subject_transform"))
    if lanes is None:
        raise NotProvisioned([f"stream {STATUS_STREAM} has no lanes"])
    return lanes


def _stream(name: str, info: Mapping[str, Any]) -> StreamSnapshot:
    config, state = info["config"], info["state"]
    counts: dict[str, int] = state.get("subjects") or {}
    copies = copies_of(info)
    return StreamSnapshot(
        name=name,
        messages=state["messages"],
        bytes=state["bytes"],
        last_sequence=state["last_seq"],
        canaries=counts.get(CANARY_SUBJECT, 0),
        idle_s=idle_s(info),
        max_messages=config["max_msgs"],
        max_bytes=config["max_bytes"],
        max_age_s=config["max_age"] / _NS_PER_S,
        replicas=config["num_replicas"],
        behind=copies.behind,
        copies=copies.kept,
    )
