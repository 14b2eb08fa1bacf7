"""The lanes and workers of a snapshot, as people look at them: one row for each."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from relay.contract.report import ConnectionReport, LaneReport, Report
from relay.contract.text import format_duration, how_many
from relay.overview.snapshot import Interval, LaneSnapshot, Snapshot

OLD_S: Final = 60.0
"""From this age on, an update that waits is worth a look."""
TOO_OLD_S: Final = 600.0
UNANSWERED_S: Final = 10.0
"""From this time on, an update that the Facilitator does not answer is worth a look; from three times of it, broken."""


class Urgency(StrEnum):
    """How a row should be shown."""

    NONE = "ok"
    LOOK = "warn"
    BROKEN = "fail"


_LEVELS: Final = list(Urgency)


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
    reported = {(report.worker, lane.lane): lane for report in snapshot.reports.values() for lane in report.lanes}
    rows: list[LaneRow] = []
    for lane in snapshot.lanes:
        owner, urgency = _driven(snapshot, lane, reported.get((lane.owner or "", lane.lane)))
        rate = interval.deliveries.get(lane.lane) if interval else None
        rows.append(LaneRow(lane, owner, rate, max(urgency, _by_age(lane), key=_LEVELS.index)))
    return rows


def worker_rows(snapshot: Snapshot, interval: Interval | None) -> Iterator[WorkerRow]:
    """A row for each connection to the Facilitator, and for each worker without any."""
    for worker in sorted(snapshot.workers | snapshot.reports.keys()):
        report = snapshot.reports.get(worker)
        if report is None:
            state = "does not answer" if snapshot.may_ask_workers else "may not be asked"
            yield WorkerRow(worker, None, None, None, None, state, Urgency.LOOK)
        else:
            yield from _connection_rows(report, interval.settled_by.get(worker) if interval else None)


def _driven(snapshot: Snapshot, lane: LaneSnapshot, reported: LaneReport | None) -> tuple[str, Urgency]:
    """Who drives the lane, or what is wrong with it, in words; as bad as the checks of the doctor find it."""
    if lane.trouble is not None or lane.owner is None:
        return lane.trouble or "nobody", Urgency.BROKEN
    state, urgency = "", Urgency.NONE
    if reported is not None and reported.trouble is not None:
        state, urgency = reported.trouble, Urgency.BROKEN
    elif reported is not None and reported.unexplained:
        updates = how_many(reported.unexplained, "update")
        state, urgency = f"the Facilitator says that it has {updates} that cannot have reached it", Urgency.BROKEN
    elif lane.owner not in snapshot.workers:
        state, urgency = "is stopping, or dead", Urgency.LOOK
    elif lane.owner not in snapshot.reports and snapshot.may_ask_workers:
        state, urgency = "does not answer", Urgency.LOOK
    elif reported is not None and reported.held:
        state = "waits for what an earlier owner had"
    elif reported is not None and reported.full:
        state = "its memory is full"
    return f"{lane.owner} ({state})" if state else lane.owner, urgency


def _by_age(lane: LaneSnapshot) -> Urgency:
    age_s = lane.oldest_s or 0.0
    if age_s >= TOO_OLD_S:
        return Urgency.BROKEN
    return Urgency.LOOK if age_s >= OLD_S else Urgency.NONE


def _connection_rows(report: Report, settled_per_s: float | None) -> Iterator[WorkerRow]:
    troubles = {each.trouble for each in report.connections}
    missing = "; ".join(each for each in report.missing if each not in troubles)
    if not report.connections:
        yield WorkerRow(
            report.worker, report, settled_per_s, None, None, missing or "not connected yet", Urgency.BROKEN
        )
    for number, each in enumerate(report.connections):
        state, urgency = _connection(each)
        if missing and number == 0:
            state, urgency = f"{state}; missing: {missing}", Urgency.BROKEN
        yield WorkerRow(
            report.worker, report, settled_per_s, each.unanswered, each.window, state, urgency, is_first=number == 0
        )


def _connection(each: ConnectionReport) -> tuple[str, Urgency]:
    if each.trouble is not None:
        return each.trouble, Urgency.BROKEN
    if each.waiting_s >= UNANSWERED_S:
        urgency = Urgency.BROKEN if each.waiting_s >= 3 * UNANSWERED_S else Urgency.LOOK
        return f"has not answered for {format_duration(each.waiting_s)}", urgency
    return "signed in", Urgency.NONE
