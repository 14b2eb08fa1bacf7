"""The first page: is the promise being kept, what flows, who does it, and what to do."""

from typing import Any, Final, cast

from nicegui import ui

from relay.console.frame import SHAPES, WORDS, badge, card, follow, frame
from relay.console.recent import SHOWN_S, figures, rate, series
from relay.console.watching import Watching
from relay.contract.text import format_duration
from relay.doctor.findings import Finding, Level
from relay.overview.rows import LaneRow, Urgency, WorkerRow, lane_rows, worker_rows

_MS: Final = 1000
_LEAST_SHOWN_S: Final = 60.0
"""What the charts span at the least, while not much is known yet."""
_GREY: Final = "#8a949e"
_RATES: Final = (
    ("published", "published", "#6b7785", "dashed", "circle"),
    ("acknowledged", "acknowledged", "#0072b2", "solid", "rect"),
    ("dead_lettered", "dead-lettered", "#d55e00", "solid", "triangle"),
)
_TIMINGS: Final = (
    ("end_to_end", "stored to acknowledged", "#0072b2", "solid", "rect"),
    ("round_trip", "sent to answered", "#009e73", "dashed", "circle"),
    ("hot_path", "received to sent", "#cc79a7", "dotted", "diamond"),
)
_Lines = tuple[tuple[str, str, str, str, str], ...]
"""Of each line of a chart: the name of its figures, what it is called, its colour, its dashes, its symbol."""
_LEFT: Final = {"align": "left"}


def show_overview(watching: Watching) -> None:
    """Build the page; it moves by itself."""
    with frame(watching, "Overview", "/"):
        _banner(watching)
        _figures(watching)
        with ui.element("div").classes("two"):
            _chart(watching, "Updates per second (UTC)", _RATES, {"type": "value", "min": 0})
            _chart(watching, "Milliseconds, 99 of 100 are faster (UTC)", _TIMINGS, {"type": "log"})
        _findings(watching)
        with ui.element("div").classes("two"):
            _lanes(watching)
            _workers(watching)


def _banner(watching: Watching) -> None:
    box = ui.element("section").classes("banner").props('aria-live="polite"')
    with box:
        icon = ui.icon("pending").props('aria-hidden="true"')
        headline = ui.label().classes("headline")
        reason = ui.label().classes("reason")

    def show() -> None:
        found = watching.standing.verdict
        box.classes(replace=f"banner {found.level}")
        icon.name = SHAPES[found.level]
        headline.text, reason.text = found.headline, found.reason

    follow(watching, show)


def _figures(watching: Watching) -> None:
    labels: dict[str, ui.label] = {}
    with ui.element("section").classes("figures"):
        for name in figures(watching.view):
            with ui.column().classes("figure"):
                labels[name] = ui.label().classes("value")
                ui.label(name).classes("name")

    def show() -> None:
        for name, text in figures(watching.view).items():
            labels[name].text = text

    follow(watching, show)


def _chart(watching: Watching, title: str, lines: _Lines, axis: dict[str, Any]) -> None:
    with card(title):
        chart = ui.echart(_options(lines, axis), renderer="svg").classes("chart")
        options = cast("dict[str, Any]", chart.options)  # pyright: ignore[reportUnknownMemberType] - a copy

    def show() -> None:
        points = watching.recent.points
        for line, (name, *_) in zip(options["series"], lines, strict=True):
            line["data"] = series(points, name)
        end = watching.view.at.timestamp()
        begin = points[0].at.timestamp() if points else end
        options["xAxis"]["min"] = max(end - SHOWN_S, min(begin, end - _LEAST_SHOWN_S)) * _MS
        options["xAxis"]["max"] = end * _MS
        chart.update()

    follow(watching, show)


def _options(lines: _Lines, axis: dict[str, Any]) -> dict[str, Any]:
    return {
        "animation": False,
        "useUTC": True,
        "textStyle": {"color": _GREY},
        "legend": {"bottom": 0, "textStyle": {"color": _GREY}, "itemWidth": 30},
        "grid": {"left": 8, "right": 12, "top": 12, "bottom": 34, "containLabel": True},
        "tooltip": {"trigger": "axis", "renderMode": "richText"},
        "xAxis": {"type": "time", "axisLabel": {"color": _GREY, "hideOverlap": True}},
        "yAxis": {
            **axis,
            "axisLabel": {"color": _GREY},
            "splitLine": {"lineStyle": {"opacity": 0.2}},
        },
        "series": [
            {
                "name": name,
                "type": "line",
                "showSymbol": False,
                "symbol": symbol,
                "lineStyle": {"width": 2.5, "type": style, "color": color},
                "itemStyle": {"color": color},
                "data": [],
            }
            for _, name, color, style, symbol in lines
        ],
    }


def _findings(watching: Watching) -> None:
    with card("What the doctor finds"):
        box = ui.column().classes("findings")
    shown: list[Finding] = []

    def show() -> None:
        found = sorted(watching.standing.findings, key=lambda finding: -list(Level).index(finding.level))
        if found == shown:
            return
        shown[:] = found
        box.clear()
        with box:
            for finding in found:
                _finding(finding)

    follow(watching, show)


def _finding(finding: Finding) -> None:
    with ui.element("div").classes("finding"):
        badge(finding.level, WORDS[finding.level])
        ui.label(f"{finding.check}: {finding.found}")
        if finding.remedy:
            ui.label(f"To do: {finding.remedy}").classes("todo")


def _lanes(watching: Watching) -> None:
    columns = [
        {"name": "lane", "label": "lane", "field": "lane"},
        {"name": "state", "label": "state", "field": "state", **_LEFT},
        {"name": "owner", "label": "owner", "field": "owner", **_LEFT},
        {"name": "waiting", "label": "waiting", "field": "waiting"},
        {"name": "delivered", "label": "delivered", "field": "delivered"},
        {"name": "rate", "label": "deliveries/s", "field": "rate"},
        {"name": "oldest", "label": "oldest", "field": "oldest"},
    ]
    table = _table("Lanes", columns)

    def show() -> None:
        view = watching.view
        rows = lane_rows(view.snapshot, view.interval) if view.snapshot else []
        table.rows = [_lane(row, view.trouble) for row in rows]

    follow(watching, show)


def _lane(row: LaneRow, trouble: str | None) -> dict[str, Any]:
    lane = row.lane
    return {
        "id": lane.lane,
        "lane": lane.lane,
        **_state(row.urgency, trouble),
        "owner": row.owner,
        "waiting": "-" if lane.trouble else lane.waiting,
        "delivered": "-" if lane.trouble else lane.delivered,
        "rate": rate(row.deliveries_per_s),
        "oldest": "" if lane.oldest_s is None else format_duration(lane.oldest_s),
    }


def _workers(watching: Watching) -> None:
    columns = [
        {"name": "worker", "label": "worker", "field": "worker", **_LEFT},
        {"name": "state", "label": "state", "field": "state", **_LEFT},
        {"name": "facilitator", "label": "Facilitator", "field": "facilitator", **_LEFT},
        {"name": "window", "label": "in flight", "field": "window"},
        {"name": "rate", "label": "settled/s", "field": "rate"},
        {"name": "lanes", "label": "lanes", "field": "lanes", **_LEFT},
        {"name": "version", "label": "version", "field": "version", **_LEFT},
        {"name": "up", "label": "up", "field": "up"},
    ]
    table = _table("Workers", columns)

    def show() -> None:
        view = watching.view
        rows = worker_rows(view.snapshot, view.interval) if view.snapshot else ()
        table.rows = [_worker(number, row, view.trouble) for number, row in enumerate(rows)]

    follow(watching, show)


def _worker(number: int, row: WorkerRow, trouble: str | None) -> dict[str, Any]:
    report = row.report
    return {
        "id": number,
        "worker": row.worker,
        **_state(row.urgency, trouble),
        "facilitator": row.state,
        "window": "" if row.window is None else f"{row.unanswered}/{row.window}",
        "rate": rate(row.settled_per_s),
        "lanes": "" if report is None else ", ".join(str(lane.lane) for lane in report.lanes),
        "version": "" if report is None else report.version,
        "up": "" if report is None else format_duration(report.uptime_s),
    }


def _state(urgency: Urgency, trouble: str | None) -> dict[str, Any]:
    """How a row is: in words, a colour and a shape. It is outdated while there is a trouble."""
    level = Level(urgency.value)
    if trouble is not None:
        return {"state": "outdated", "level": "", "shape": "history"}
    return {"state": WORDS[level], "level": level.value, "shape": SHAPES[level]}


def _table(title: str, columns: list[dict[str, Any]]) -> ui.table:
    with card(title):
        table = ui.table(rows=[], columns=columns, row_key="id", pagination=0)
        table.props('flat dense :grid="Quasar.Screen.lt.sm" hide-pagination no-data-label="none"')
        table.add_slot(
            "body-cell-state",
            '<q-td :props="props"><span class="level" :class="props.row.level">'
            '<q-icon :name="props.row.shape" aria-hidden="true" /> {{ props.value }}</span></q-td>',
        )
    return table
