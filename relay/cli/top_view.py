"""One view of `relay top`, and the same as a JSON document."""

import datetime as dt
import math
from dataclasses import asdict, dataclass
from typing import Any

from relay.overview.snapshot import OUTCOMES, TIMINGS, Interval, Quantiles, Snapshot


@dataclass(frozen=True, slots=True)
class TopView:
    """What `relay top` shows at one moment."""

    servers: str
    """The addresses of NATS."""
    at: dt.datetime
    every_s: float
    """How often a snapshot is taken."""
    snapshot: Snapshot | None
    """The last one; None if there was none so far."""
    interval: Interval | None
    """What happened since the snapshot before; None if there are not two yet."""
    trouble: str | None
    """Why `snapshot` is outdated, in words; None if it is not."""


def document(view: TopView) -> dict[str, Any]:
    """The view as JSON: durations in seconds, rates per second. If there is trouble, it says nothing else."""
    head: dict[str, Any] = {"at": view.at.isoformat(timespec="milliseconds"), "nats": view.servers}
    snapshot, interval = view.snapshot, view.interval
    if snapshot is None or view.trouble is not None:
        return head | {"trouble": view.trouble}
    return head | {
        "trouble": None,
        "lanes": [
            asdict(lane)
            | {"oldest_s": _rounded(lane.oldest_s)}
            | {"deliveries_per_s": _rounded(interval and interval.deliveries.get(lane.lane))}
            for lane in snapshot.lanes
        ],
        "workers": [
            _worker(worker, snapshot, interval) for worker in sorted(snapshot.workers | snapshot.reports.keys())
        ],
        "published_per_s": _rounded(interval and interval.published),
        "settled_per_s": {name: _rounded(interval and interval.settled.get(name)) for name in OUTCOMES},
        "retries_per_s": _rounded(interval and interval.retries),
        "latencies": {name: _quantiles(interval and interval.latencies.get(name)) for name in TIMINGS},
        "dead_letters": {
            "total": snapshot.dead_letters.total,
            "counted": snapshot.dead_letters.counted,
            "reasons": dict(snapshot.dead_letters.reasons),
        },
        "advisories": snapshot.advisories,
        "interval_s": _rounded(interval and interval.seconds),
    }


def _worker(worker: str, snapshot: Snapshot, interval: Interval | None) -> dict[str, Any]:
    head: dict[str, Any] = {"worker": worker, "announced": worker in snapshot.workers}
    report = snapshot.reports.get(worker)
    if report is None:
        return head | {"reported": False}
    return head | {
        "reported": True,
        "version": report.version,
        "uptime_s": _rounded(report.uptime_s),
        "missing": report.missing,
        "lanes": [lane.lane for lane in report.lanes],
        "held": [lane.lane for lane in report.lanes if lane.held],
        "full": [lane.lane for lane in report.lanes if lane.full],
        "at_hand": sum(lane.at_hand for lane in report.lanes),
        "settled_per_s": _rounded(interval and interval.settled_by.get(worker)),
        "connections": [
            {"window": each.window, "unanswered": each.unanswered, "trouble": each.trouble}
            for each in report.connections
        ],
    }


def _quantiles(quantiles: Quantiles | None) -> dict[str, Any] | None:
    if quantiles is None:
        return None
    # JSON has no infinity, which stands for a duration above the histogram's last bound.
    p50_s, p99_s = (None if math.isinf(value) else round(value, 6) for value in (quantiles.p50_s, quantiles.p99_s))
    return {"count": quantiles.count, "p50_s": p50_s, "p99_s": p99_s}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
