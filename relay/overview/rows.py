"""The lanes and workers of a snapshot, as people look at them: one row for each."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from relay.contract.report import LaneReport, Report
from relay.overview.snapshot import Interval, LaneSnapshot, Snapshot

OLD_S: Final = 60.0
"""From this age on, an update that waits is worth a look."""
TOO_OLD_S: Final = 600.0


class Urgency(StrEnum):
    """How a row should be shown."""

    NONE = "ok"
    LOOK = "warn"
    BROKEN = "fail"


@dataclass(frozen=True, slots=True)
class LaneRow:
    """One lane; what is unknown is None."""

    lane: LaneSnapshot
    owner: str
    """Who drives it, or what is wrong with it, in words."""
    deliveries_per_s: float | None
    urgency: Urgency


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One connection of a worker to the Facilitator; or the worker, if it has none or gives no report."""

    worker: str
    report: Report | None
    """None if the worker gave none."""
    settled_per_s: float | None
    unanswered: int | None
    window: int | None
    state: str
    """The state of the connection to the Facilitator, in words."""
    urgency: Urgency
    is_first: bool = True
    """Whether it is the worker's first row."""


def lane_rows(snapshot: Snapshot, interval: Interval | None) -> list[LaneRow]:
    """A row for each lane, in their order."""
    reported = {lane.lane: lane for report in snapshot.reports.values() for lane in report.lanes}
    return [
        LaneRow(
            lane,
            lane.trouble or (lane.owner or "nobody") + _state(reported.get(lane.lane)),
            interval.deliveries.get(lane.lane) if interval else None,
            _lane_urgency(lane),
        )
        for lane in snapshot.lanes
    ]


def worker_rows(snapshot: Snapshot, interval: Interval | None) -> Iterator[WorkerRow]:
    """A row for each connection to the Facilitator, and for each worker without any."""
    for worker in sorted(snapshot.workers | snapshot.reports.keys()):
        report = snapshot.reports.get(worker)
        if report is None:
            state = "does not answer" if snapshot.may_ask_workers else "may not be asked"
            yield WorkerRow(worker, None, None, None, None, state, Urgency.LOOK)
        else:
            yield from _connection_rows(report, interval.settled_by.get(worker) if interval else None)


def _state(reported: LaneReport | None) -> str:
    if reported is not None and reported.held:
        return " (waits for what an earlier owner had)"
    return " (its memory is full)" if reported is not None and reported.full else ""


def _lane_urgency(lane: LaneSnapshot) -> Urgency:
    age_s = lane.oldest_s or 0.0
    if lane.owner is None or lane.trouble is not None or age_s >= TOO_OLD_S:
        return Urgency.BROKEN
    return Urgency.LOOK if age_s >= OLD_S else Urgency.NONE


def _connection_rows(report: Report, settled_per_s: float | None) -> Iterator[WorkerRow]:
    if not report.connections:
        state = "; ".join(report.missing) or "not connected yet"
        yield WorkerRow(report.worker, report, settled_per_s, None, None, state, Urgency.BROKEN)
    for number, each in enumerate(report.connections):
        urgency = Urgency.BROKEN if each.trouble else Urgency.NONE
        state = each.trouble or "signed in"
        yield WorkerRow(
            report.worker, report, settled_per_s, each.unanswered, each.window, state, urgency, is_first=number == 0
        )
