"""What `relay top` shows: a view fitted to a terminal, and the same as a JSON document."""

import datetime as dt
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from relay.contract.report import Report
from relay.contract.text import escape, format_counts, format_duration
from relay.doctor.state import OLD_S, TOO_OLD_S
from relay.overview.snapshot import OUTCOMES, TIMINGS, Interval, LaneState, Overview

_OTHER_LINES: Final = 14
"""Of a view: all but the rows of lanes and workers."""
_LATENCY_LINES: Final = 4
"""Of these; the first to go where there is no room."""
_LEAST_ROWS: Final = 2
_TIMING_NAMES: Final = ("received to sent", "stored to acknowledged", "sent to answered")
_UNKNOWN: Final = "-"


@dataclass(frozen=True, slots=True)
class View:
    """What there is to show at one moment; without a look so far `seen` is None, without two `passed` is."""

    where: str
    at: dt.datetime
    interval_s: float
    seen: Overview | None
    passed: Interval | None
    trouble: str | None
    """Why `seen` is not of now, in words."""


def screen(view: View, height: int | None) -> RenderableType:
    """The view for a terminal of so many lines; without a height, all of it. It takes the columns that there are."""
    parts: list[RenderableType] = [_heading(view)]
    if view.trouble is not None:
        parts.append(_line(f"No news {view.trouble}", "bold red"))
    if view.seen is not None:
        rows = math.inf if height is None else height - _OTHER_LINES - (view.trouble is not None)
        parts += _body(view.seen, view.passed, rows)
    return Group(*parts)


def document(view: View) -> dict[str, Any]:
    """The view as JSON: durations in seconds, rates per second; `trouble` alone if there is nothing newer to tell."""
    told: dict[str, Any] = {"at": view.at.isoformat(timespec="milliseconds"), "nats": view.where}
    if view.seen is None or view.trouble is not None:
        return told | {"trouble": view.trouble}
    seen, passed = view.seen, view.passed
    return told | {
        "trouble": None,
        "lanes": [
            asdict(lane)
            | {"oldest_s": _rounded(lane.oldest_s)}
            | {"deliveries_per_s": _rounded(passed and passed.deliveries.get(lane.lane))}
            for lane in seen.lanes
        ],
        "workers": [_worker_document(worker, seen, passed) for worker in sorted(seen.workers | seen.reports.keys())],
        "published_per_s": _rounded(passed and passed.published),
        "settled_per_s": {name: _rounded(passed and passed.settled.get(name)) for name in OUTCOMES},
        "retries_per_s": _rounded(passed and passed.retries),
        "latencies": {name: _latency_document(passed, name) for name in TIMINGS},
        "dead_letters": asdict(seen.letters),
        "advisories": seen.advisories,
        "interval_s": _rounded(passed and passed.seconds),
    }


def _worker_document(worker: str, seen: Overview, passed: Interval | None) -> dict[str, Any]:
    told: dict[str, Any] = {"worker": worker, "announced": worker in seen.workers}
    report = seen.reports.get(worker)
    if report is None:
        return told | {"reported": False}
    return told | {
        "reported": True,
        "version": report.version,
        "uptime_s": _rounded(report.uptime_s),
        "missing": report.missing,
        "lanes": [lane.lane for lane in report.lanes],
        "held": [lane.lane for lane in report.lanes if lane.held],
        "at_hand": sum(lane.at_hand for lane in report.lanes),
        "settled_per_s": _rounded(passed and passed.settled_by.get(worker)),
        "connections": [
            {"window": each.window, "unanswered": each.unanswered, "trouble": each.trouble}
            for each in report.connections
        ],
    }


def _latency_document(passed: Interval | None, name: str) -> dict[str, Any] | None:
    found = passed.latencies.get(name) if passed else None
    if found is None:
        return None
    # JSON has no infinity: above the last bound of the histogram nothing is known.
    p50, p99 = (None if math.isinf(value) else round(value, 6) for value in (found.p50_s, found.p99_s))
    return {"count": found.count, "p50_s": p50, "p99_s": p99}


def _body(seen: Overview, passed: Interval | None, rows: float) -> list[RenderableType]:
    latencies: list[RenderableType] = [_latencies(passed), Text()]
    if rows < 2 * _LEAST_ROWS:
        latencies, rows = [], rows + _LATENCY_LINES
    workers = list(_worker_rows(seen, passed))
    for_workers = max(_LEAST_ROWS, rows - max(_LEAST_ROWS, len(seen.lanes)))
    shown = min(len(workers), for_workers)
    return [
        _rates(seen, passed),
        Text(),
        *latencies,
        _lanes(seen, passed, rows - shown),
        Text(),
        _workers(workers, shown),
        Text(),
        _line(_dead_letters(seen), "yellow" if seen.letters.total or seen.advisories else ""),
    ]


def _heading(view: View) -> Text:
    at = view.at.strftime("%Y-%m-%d %H:%M:%S UTC")
    return _line(f"relay top  {view.where}  {at}  every {view.interval_s:g} s", "bold")


def _line(text: str, style: str = "") -> Text:
    return Text(escape(text), style, no_wrap=True, overflow="ellipsis")


def _table(*columns: str, left: Iterable[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, expand=False, header_style="bold")
    names = set(left)
    for column in columns:
        justify = "left" if column in names else "right"
        # The last, which may hold a sentence, gives way first.
        min_width = None if column == columns[-1] else len(column)
        table.add_column(column, justify=justify, no_wrap=True, overflow="ellipsis", min_width=min_width)
    return table


def _add(table: Table, cells: Iterable[str], style: str = "") -> None:
    # Text, because rich takes square brackets in a string for markup; and what is in them is others' to choose.
    table.add_row(*(Text(escape(cell)) for cell in cells), style=style)


def _rates(seen: Overview, passed: Interval | None) -> Table:
    outcomes = (f"{name.replace('_', '-')}/s" for name in OUTCOMES)
    table = _table("published/s", *outcomes, "retries/s", "in flight")
    connections = [each for report in seen.reports.values() for each in report.connections]
    in_flight = f"{sum(each.unanswered for each in connections)}/{sum(each.window for each in connections)}"
    settled = (_rate(passed and passed.settled.get(name)) for name in OUTCOMES)
    _add(table, (_rate(passed and passed.published), *settled, _rate(passed and passed.retries), in_flight))
    return table


def _latencies(passed: Interval | None) -> Table:
    table = _table("ms", *_TIMING_NAMES, left=("ms",))
    found = [passed.latencies.get(name) if passed else None for name in TIMINGS]
    _add(table, ("p50", *(_milliseconds(each and each.p50_s) for each in found)))
    _add(table, ("p99", *(_milliseconds(each and each.p99_s) for each in found)))
    return table


def _lanes(seen: Overview, passed: Interval | None, rows: float) -> Table:
    table = _table("lane", "owner", "waiting", "delivered", "deliveries/s", "oldest", left=("owner",))
    held = {lane.lane for report in seen.reports.values() for lane in report.lanes if lane.held}
    shown = list(seen.lanes)
    if len(shown) > rows:
        worst = sorted(shown, key=_urgency, reverse=True)[: max(1, int(rows) - 1)]
        shown = sorted(worst, key=lambda lane: lane.lane)
    for lane in shown:
        rate = _rate(passed and passed.deliveries.get(lane.lane))
        oldest = "" if lane.oldest_s is None else format_duration(lane.oldest_s)
        cells = str(lane.lane), _owner(lane, held), str(lane.waiting), str(lane.delivered), rate, oldest
        _add(table, cells, _style(lane))
    if left := len(seen.lanes) - len(shown):
        _add(table, ("", f"and {left} more lanes, none older"), "dim")
    return table


def _urgency(lane: LaneState) -> tuple[bool, float, int]:
    return lane.owner is None or lane.trouble is not None, lane.oldest_s or 0.0, lane.unsettled


def _owner(lane: LaneState, held: set[int]) -> str:
    if lane.trouble is not None:
        return lane.trouble
    waits = " (waits for what an earlier owner had)" if lane.lane in held else ""
    return (lane.owner or "nobody") + waits


def _style(lane: LaneState) -> str:
    age_s = lane.oldest_s or 0.0
    if lane.owner is None or lane.trouble is not None or age_s >= TOO_OLD_S:
        return "red"
    return "yellow" if age_s >= OLD_S else ""


def _worker_rows(seen: Overview, passed: Interval | None) -> Iterator[tuple[tuple[str, ...], str]]:
    """The cells of each row and its style: one row for each connection to the Facilitator."""
    for worker in sorted(seen.workers | seen.reports.keys()):
        report = seen.reports.get(worker)
        if report is None:
            yield (worker, "", "", "", "", "does not answer" if seen.asked else "may not be asked"), "yellow"
            continue
        settled = _rate(passed and passed.settled_by.get(worker))
        first = worker, ",".join(str(lane.lane) for lane in report.lanes), format_duration(report.uptime_s), settled
        yield from _connection_rows(first, report)


def _connection_rows(first: tuple[str, ...], report: Report) -> Iterator[tuple[tuple[str, ...], str]]:
    if not report.connections:
        yield (*first, "", "; ".join(report.missing) or "not connected yet"), "red"
    for connection in report.connections:
        state = connection.trouble or "signed in"
        yield (*first, f"{connection.unanswered}/{connection.window}", state), "red" if connection.trouble else ""
        first = ("", "", "", "")


def _workers(rows: list[tuple[tuple[str, ...], str]], shown: float) -> Table:
    table = _table(
        "worker", "lanes", "up", "settled/s", "in flight", "Facilitator", left=("worker", "lanes", "Facilitator")
    )
    fitting = rows if len(rows) <= shown else rows[: max(1, int(shown) - 1)]
    for cells, style in fitting:
        _add(table, cells, style)
    if not rows:
        _add(table, ("none",), "red")
    if more := len(rows) - len(fitting):
        _add(table, (f"and {more} more",), "dim")
    return table


def _dead_letters(seen: Overview) -> str:
    letters = seen.letters
    text = f"dead letters {letters.total}"
    if letters.reasons:
        newest = f" (of the newest {letters.counted})" if letters.counted < letters.total else ""
        text += f"{newest}: {format_counts(letters.reasons)}"
    return f"{text}; {seen.advisories} advisories wait" if seen.advisories else text


def _rate(per_s: float | None) -> str:
    return _UNKNOWN if per_s is None else f"{per_s:.1f}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return _UNKNOWN
    return "> 60 s" if math.isinf(seconds) else f"{seconds * 1000:.2f}"
