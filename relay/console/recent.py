"""The figures of now, and those of the last 15 minutes, which the charts show. Without I/O."""

import datetime as dt
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from relay.contract.text import format_duration
from relay.overview.snapshot import OUTCOMES, TIMINGS, Interval
from relay.overview.watch import View

SHOWN_S: Final = 15 * 60.0
RATES: Final = ("published", *OUTCOMES)
_LONGEST_MS: Final = 60_000.0
"""What stands for a duration above the histogram's last bound."""


@dataclass(frozen=True, slots=True)
class Point:
    """The figures of one interval; None is a gap in the chart."""

    at: dt.datetime
    per_s: dict[str, float | None]
    """By name of RATES."""
    p99_ms: dict[str, float | None]
    """By name of TIMINGS."""


class Recent:
    """Remembers the points of the last SHOWN_S seconds, of views that are `every_s` apart."""

    def __init__(self, every_s: float) -> None:
        self.points: deque[Point] = deque(maxlen=math.ceil(SHOWN_S / every_s))

    def add(self, view: View) -> None:
        """A view without an interval is a gap."""
        interval = view.interval
        latencies = {name: _p99_ms(interval, name) for name in TIMINGS}
        self.points.append(Point(view.at, {name: _per_s(interval, name) for name in RATES}, latencies))


def _per_s(interval: Interval | None, name: str) -> float | None:
    if interval is None:
        return None
    per_s = interval.published if name == "published" else interval.settled.get(name)
    return None if per_s is None else round(per_s, 1)


def _p99_ms(interval: Interval | None, name: str) -> float | None:
    found = interval.latencies.get(name) if interval else None
    return None if found is None else round(min(found.p99_s * 1000, _LONGEST_MS), 2)


def series(points: Iterable[Point], name: str) -> list[tuple[str, float | None]]:
    """The pairs of time and value that a chart draws; the name is one of RATES or of TIMINGS."""
    return [(each.at.isoformat(timespec="seconds"), (each.per_s | each.p99_ms)[name]) for each in points]


def figures(view: View) -> dict[str, str]:
    """What a view knows in figures, by name; `-` for what it does not know."""
    interval, snapshot = view.interval, view.snapshot if view.trouble is None else None
    # Of a lane with a trouble nobody knows how much waits there.
    lanes = None if snapshot is None or any(lane.trouble for lane in snapshot.lanes) else snapshot.lanes
    return {
        "published/s": rate(interval and interval.published),
        "acknowledged/s": rate(interval and interval.settled.get("acknowledged")),
        "dead-lettered/s": rate(interval and interval.settled.get("dead_lettered")),
        "not settled": "-" if lanes is None else f"{sum(lane.unsettled for lane in lanes):,}",
        "oldest": "-" if lanes is None else format_duration(max((lane.oldest_s or 0.0 for lane in lanes), default=0.0)),
        "dead letters": "-" if snapshot is None else f"{snapshot.dead_letters.total:,}",
    }


def rate(per_s: float | None) -> str:
    """A rate with one decimal; `-` if it is not known."""
    return "-" if per_s is None else f"{per_s:.1f}"
