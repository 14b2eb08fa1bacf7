"""A snapshot of a healthy relay, for tests that change one thing at a time."""

from dataclasses import replace
from typing import Any

import msgspec

from relay.contract.report import ConnectionReport, LaneReport, Report
from relay.contract.subjects import ADVISORY_STREAM, DLQ_STREAM, LEASE_STREAM, STATUS_STREAM
from relay.dead_letters.reasons import ReasonCounts
from relay.overview.snapshot import LaneSnapshot, Snapshot, StreamSnapshot

WORKER = "host-1-abcdef"
LANES = [LaneReport(lane, at_hand=1, out=1, held=False, oldest_at_hand_s=0.1, trouble=None) for lane in range(4)]
_REPORT = Report(WORKER, "1.0", 300.0, [], LANES, [ConnectionReport(32, 3, None)], {}, {}, 0, {})
_STREAMS = {
    name: StreamSnapshot(name, messages, 4096, 10, -1, -1, 7 * 86_400, replicas=3)
    for name, messages in ((STATUS_STREAM, 10), (DLQ_STREAM, 0), (ADVISORY_STREAM, 0))
} | {LEASE_STREAM: StreamSnapshot(LEASE_STREAM, 5, 1024, 10, -1, -1, 6.0, replicas=3)}
_SNAPSHOT = Snapshot(
    taken_s=0.0,
    server_ahead_s=0.002,
    clock_error_s=0.001,
    lanes=tuple(LaneSnapshot(lane, WORKER) for lane in range(4)),
    streams=_STREAMS,
    workers=frozenset({WORKER}),
    reports={WORKER: _REPORT},
    silent_s={WORKER: 1.0},
    may_ask_workers=True,
    dead_letters=ReasonCounts(),
)


def report(worker: str = WORKER, **changes: Any) -> Report:
    """The report of a worker that drives four lanes over one connection, with changes."""
    return msgspec.structs.replace(_REPORT, worker=worker, **changes)


def snapshot(*reports: Report, stream: dict[str, Any] | None = None, advisories: int = 0, **changes: Any) -> Snapshot:
    """A snapshot of a healthy relay, with other `reports`, or with JOB_STATUS changed by `stream`."""
    if reports:
        changes["reports"] = {each.worker: each for each in reports}
    streams = _STREAMS | {
        STATUS_STREAM: replace(_STREAMS[STATUS_STREAM], **stream or {}),
        ADVISORY_STREAM: replace(_STREAMS[ADVISORY_STREAM], messages=advisories),
    }
    return replace(_SNAPSHOT, streams=streams, **changes)
