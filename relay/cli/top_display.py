"""A view of `relay top` as text, fitted to a terminal."""

import math
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from relay.cli.top_view import TopView
from relay.contract.text import escape, format_counts, format_duration
from relay.overview.rows import LaneRow, Urgency, WorkerRow, lane_rows, worker_rows
from relay.overview.snapshot import OUTCOMES, TIMINGS, Interval, Snapshot

_OTHER_LINES: Final = 14
"""How many lines a view has besides the rows of lanes and workers."""
_LATENCY_LINES: Final = 4
"""How many of them show latencies, which are left out first if there is no room."""
_MIN_ROWS: Final = 2
_TIMING_NAMES: Final = ("received to sent", "stored to acknowledged", "sent to answered")
_UNKNOWN: Final = "-"
_STYLES: Final = {Urgency.NONE: "", Urgency.LOOK: "yellow", Urgency.BROKEN: "red"}


class _Row(NamedTuple):
    cells: tuple[str, ...]
    style: str = ""


def render(view: TopView, height: int | None) -> RenderableType:
    """The view for a terminal of `height` lines; all of it if that is None. It fits itself to the terminal's width."""
    at = view.at.strftime("%Y-%m-%d %H:%M:%S UTC")
    parts: list[RenderableType] = [_line(f"relay top  {view.servers}  {at}  every {view.every_s:g} s", "bold")]
    if view.trouble is not None:
        parts.append(_line(f"No news {view.trouble}", "bold red"))
    if view.snapshot is not None:
        rows = math.inf if height is None else height - _OTHER_LINES - (view.trouble is not None)
        parts += _body(view.snapshot, view.interval, rows)
    return Group(*parts)


def _body(snapshot: Snapshot, interval: Interval | None, rows: float) -> list[RenderableType]:
    latencies: list[RenderableType] = [_latencies(interval), Text()]
    if rows < 2 * _MIN_ROWS:
        latencies, rows = [], rows + _LATENCY_LINES
    workers = [*map(_worker_row, worker_rows(snapshot, interval))] or [_Row(("none",), "red")]
    worker_lines = min(len(workers), max(_MIN_ROWS, rows - max(_MIN_ROWS, len(snapshot.lanes))))
    return [
        _rates(snapshot, interval),
        Text(),
        *latencies,
        _lanes(snapshot, interval, rows - worker_lines),
        Text(),
        _workers(workers, worker_lines),
        Text(),
        _line(_dead_letters(snapshot), "yellow" if snapshot.dead_letters.total or snapshot.advisories else ""),
    ]


def _line(text: str, style: str = "") -> Text:
    return Text(escape(text), style, no_wrap=True, overflow="ellipsis")


def _table(columns: Iterable[str], rows: Iterable[_Row], left: Collection[str] = ()) -> Table:
    """A table whose columns are right-aligned, except for those that `left` names."""
    table = Table(box=None, pad_edge=False, expand=False, header_style="bold")
    *others, last = columns
    for column in (*others, last):
        # The last column, which may hold a sentence, is cut first if there is no room.
        min_width = None if column == last else len(column)
        justify = "left" if column in left else "right"
        table.add_column(column, justify=justify, no_wrap=True, overflow="ellipsis", min_width=min_width)
    for row in rows:
        # As Text, because rich would read square brackets in a string as markup.
        table.add_row(*(Text(escape(cell)) for cell in row.cells), style=row.style)
    return table


def _rates(snapshot: Snapshot, interval: Interval | None) -> Table:
    outcomes = (f"{name.replace('_', '-')}/s" for name in OUTCOMES)
    connections = [each for report in snapshot.reports.values() for each in report.connections]
    in_flight = f"{sum(each.unanswered for each in connections)}/{sum(each.window for each in connections)}"
    settled = (_rate(interval and interval.settled.get(name)) for name in OUTCOMES)
    cells = (_rate(interval and interval.published), *settled, _rate(interval and interval.retries), in_flight)
    return _table(("published/s", *outcomes, "retries/s", "in flight"), [_Row(cells)])


def _latencies(interval: Interval | None) -> Table:
    found = [interval and interval.latencies.get(name) for name in TIMINGS]
    p50 = ("p50", *(_milliseconds(each and each.p50_s) for each in found))
    p99 = ("p99", *(_milliseconds(each and each.p99_s) for each in found))
    return _table(("ms", *_TIMING_NAMES), [_Row(p50), _Row(p99)], left=("ms",))


def _lanes(snapshot: Snapshot, interval: Interval | None, max_rows: float) -> Table:
    shown = lane_rows(snapshot, interval)
    if len(shown) > max_rows:
        most_urgent = sorted(shown, key=_urgency, reverse=True)[: max(1, int(max_rows) - 1)]
        shown = sorted(most_urgent, key=lambda row: row.lane.lane)
    rows = [_lane_row(row) for row in shown]
    if left_out := len(snapshot.lanes) - len(shown):
        rows.append(_Row(("", f"and {left_out} more lanes, none more urgent"), "dim"))
    return _table(("lane", "owner", "waiting", "delivered", "deliveries/s", "oldest"), rows, left=("owner",))


def _urgency(row: LaneRow) -> tuple[int, float, int]:
    lane = row.lane
    return list(Urgency).index(row.urgency), lane.oldest_s or 0.0, lane.unsettled


def _lane_row(row: LaneRow) -> _Row:
    lane, rate = row.lane, _rate(row.deliveries_per_s)
    oldest = "" if lane.oldest_s is None else format_duration(lane.oldest_s)
    counts = (_UNKNOWN, _UNKNOWN) if lane.trouble else (str(lane.waiting), str(lane.delivered))
    cells = (str(lane.lane), row.owner, *counts, rate, oldest)
    return _Row(cells, _STYLES[row.urgency])


def _workers(rows: list[_Row], max_rows: float) -> Table:
    shown = rows if len(rows) <= max_rows else rows[: max(1, int(max_rows) - 1)]
    more = [_Row((f"and {len(rows) - len(shown)} more",), "dim")] if len(shown) < len(rows) else []
    columns = ("worker", "lanes", "up", "settled/s", "in flight", "Facilitator")
    return _table(columns, [*shown, *more], left=("worker", "lanes", "Facilitator"))


def _worker_row(row: WorkerRow) -> _Row:
    if row.report is None:
        return _Row((row.worker, "", "", "", "", row.state), _STYLES[row.urgency])
    lanes = ",".join(str(lane.lane) for lane in row.report.lanes)
    first = (row.worker, lanes, format_duration(row.report.uptime_s), _rate(row.settled_per_s))
    in_flight = "" if row.window is None else f"{row.unanswered}/{row.window}"
    shown = first if row.is_first else ("",) * len(first)
    return _Row((*shown, in_flight, row.state), _STYLES[row.urgency])


def _dead_letters(snapshot: Snapshot) -> str:
    counts = snapshot.dead_letters
    text = f"dead letters {counts.total}"
    if counts.reasons:
        newest = f" (of the newest {counts.counted})" if counts.counted < counts.total else ""
        text += f"{newest}: {format_counts(counts.reasons)}"
    return f"{text}; {snapshot.advisories} advisories wait" if snapshot.advisories else text


def _rate(per_s: float | None) -> str:
    return _UNKNOWN if per_s is None else f"{per_s:.1f}"


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return _UNKNOWN
    return "> 60 s" if math.isinf(seconds) else f"{seconds * 1000:.2f}"
