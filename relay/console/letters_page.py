"""Dead letters: how many of each reason and when, a page of them, and what can be done to them."""
# pyright: reportUnknownMemberType=false
# The types of NiceGUI are partly unknown.

import datetime as dt
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import urlencode

from nicegui import ui

from relay.console.acting import Choose, act_on, action_card
from relay.console.actions import Actions
from relay.console.frame import card, connected, failed, follow, frame, problem
from relay.console.watching import Watching
from relay.contract.errors import RelayError
from relay.contract.subjects import Reason, is_job_uuid
from relay.dead_letters.pages import LetterPage, Row, newest_first
from relay.dead_letters.reasons import ReasonCounts
from relay.dead_letters.selection import Selection, parse_selection

_GREY: Final = "#8a949e"
_TEXT_CHARS: Final = 100
_MOST_BARS: Final = 60
_MINUTE_MS: Final = 60_000
_STEPS_MIN: Final = (1, 5, 15, 60, 360, 1440)
# Each reason keeps its colour; the pattern tells neighbours apart without it.
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8f6bd0", "#7a5230", "#6b7785")
_PATTERNS: Final = ("none", "rect", "triangle", "circle", "diamond")


@dataclass(frozen=True, slots=True)
class LettersQuery:
    """What the address of the page asks for."""

    job: str = ""
    reason: str = ""
    since: str = ""
    below: int | None = None

    def address(self, **changes: Any) -> str:
        """The address that asks for this, with changes."""
        asked = {"job": self.job, "reason": self.reason, "since": self.since, "below": self.below} | changes
        kept = {name: value for name, value in asked.items() if value}
        return "/dead-letters" + (f"?{urlencode(kept)}" if kept else "")

    def selection(self) -> Selection:
        """Raises ValueError, which says what is not allowed."""
        return parse_selection(self.job, self.reason, self.since, dt.datetime.now(dt.UTC))


async def show_letters(watching: Watching, actions: Actions, query: LettersQuery) -> None:
    """Build the page."""
    with frame(watching, "Dead letters", "/dead-letters"):
        action_card(actions)
        _counts(watching)
        with card("Dead letters, the newest first"):
            asked = _form(query)
            try:
                selection = query.selection()
            except ValueError as error:
                problem(str(error))
                return
            if (table := await _list(watching, query, selection)) is not None:
                _act(watching, actions, table, lambda: _unchanged(selection, query, asked()))


async def _list(watching: Watching, query: LettersQuery, selection: Selection) -> ui.table | None:
    """A page of them; None if it cannot be read, which is told."""
    if (client := connected(watching)) is None:
        return None
    try:
        page = await newest_first(client, selection, query.below, scan=watching.rights.scan)
    except RelayError as error:
        failed(watching, error)
        return None
    table = _table(watching, page)
    with ui.row().classes("items-center"):
        if query.below is not None:
            ui.link("Newest", query.address(below=None))
        if page.below is not None:
            ui.link("Older", query.address(below=page.below))
    return table


def _act(watching: Watching, actions: Actions, table: ui.table, all_that_match: Choose) -> None:
    if watching.rights.act:
        with ui.row():
            act_on(actions, lambda: _selected(table), "selected")
            act_on(actions, all_that_match, "all that match")
    else:
        ui.label("The NATS user of this console may look at dead letters, and not act on them.").classes("dim")


def _unchanged(selection: Selection, query: LettersQuery, asked: LettersQuery) -> Selection:
    """What the page shows, unless the fields above it ask for something else by now: people act on what they see."""
    if asked.address() != query.address(below=None):
        raise ValueError("The filters were changed. Press Show first, and look at what matches.")
    return selection


def _selected(table: ui.table) -> Selection:
    rows = cast("list[dict[str, Any]]", table.selected)
    if not rows:
        raise ValueError("Select some first.")
    return Selection(sequences=tuple(row["seq"] for row in rows))


def _form(query: LettersQuery) -> Callable[[], LettersQuery]:
    """The filters. Returns what they ask for, whenever it is called."""
    with ui.element("div").classes("form"):
        reasons = {"": "any reason"} | {reason.value: reason.value for reason in Reason}
        reason = ui.select(reasons, value=query.reason if query.reason in reasons else "", label="Reason")
        job = ui.input("Job (UUID)", value=query.job).props("clearable").classes("uuid")
        since = ui.input("Since", value=query.since, placeholder="15m, 2h, 3d").props("clearable")

        def asked() -> LettersQuery:
            return LettersQuery((job.value or "").strip(), reason.value or "", (since.value or "").strip())

        def apply() -> None:
            ui.navigate.to(asked().address())

        for field in (job, since):
            field.on("keydown.enter", apply)
        ui.button("Show", on_click=apply).props("no-caps unelevated")
    return asked


def _table(watching: Watching, page: LetterPage) -> ui.table:
    left = {"align": "left"}
    columns = [
        {"name": "seq", "label": "seq", "field": "seq"},
        {"name": "failed", "label": "failed at (UTC)", "field": "failed", **left},
        {"name": "reason", "label": "reason", "field": "reason", **left},
        {"name": "job", "label": "job", "field": "job", **left},
        {"name": "status", "label": "status", "field": "status", **left},
        {"name": "error", "label": "error", "field": "error", **left},
    ]
    prefix = watching.settings.console.path_prefix
    table = ui.table(
        rows=[_row(row, prefix) for row in page.rows],
        columns=columns,
        row_key="seq",
        selection="multiple" if watching.rights.act else None,
        pagination=0,
    )
    none = "No dead letter matches."
    if page.below is not None:
        none = f"None among those looked at; there may be older ones, below {page.below}."
    table.props(f'flat dense wrap-cells :grid="Quasar.Screen.lt.sm" hide-pagination no-data-label="{none}"')
    table.add_slot("body-cell-seq", _link("letter"))
    table.add_slot("body-cell-job", _link("jobs"))
    return table


def _link(target: str) -> str:
    return (
        f'<q-td :props="props"><a v-if="props.row.{target}" :href="props.row.{target}">{{{{ props.value }}}}</a>'
        "<span v-else>{{ props.value }}</span></q-td>"
    )


def _row(row: Row, prefix: str) -> dict[str, Any]:
    letter = row.letter
    return {
        "seq": letter.sequence,
        "letter": f"{prefix}/dead-letters/{letter.sequence}",
        "failed": letter.failed_at[:19].replace("T", " "),
        "reason": _short(letter.reason),
        "job": _short(letter.job),
        "jobs": f"{prefix}/jobs/{letter.job}" if is_job_uuid(letter.job) else "",
        "status": _short(row.status),
        "error": _short(letter.error),
    }


def _short(text: str) -> str:
    return text if len(text) <= _TEXT_CHARS else f"{text[:_TEXT_CHARS]} ..."


def _counts(watching: Watching) -> None:
    with card("How many, and when (UTC)"):
        text = ui.label()
        chart = ui.echart(_options(), renderer="svg").classes("chart")
        options = cast("dict[str, Any]", chart.options)
    shown: list[tuple[ReasonCounts, bool]] = []

    def show() -> None:
        view = watching.view
        if view.snapshot is None or shown == [now := (view.snapshot.dead_letters, view.trouble is not None)]:
            return
        shown[:] = [now]
        counts, is_outdated = now
        text.text = ("Outdated, there is no news: " if is_outdated else "") + _sentence(counts)
        chart.set_visibility(bool(counts.per_minute))
        options["series"] = bars(counts.per_minute)
        chart.update()

    follow(watching, show)


def _sentence(counts: ReasonCounts) -> str:
    if counts.total and counts.uncounted:
        return f"{counts.total:,} in all; {counts.uncounted}."
    if counts.counted < counts.total:
        return f"{counts.total:,} in all; the chart shows the newest {counts.counted:,}."
    return f"{counts.total:,} in all."


def bars(per_minute: Mapping[tuple[int, str], int]) -> list[dict[str, Any]]:
    """The stacked bars of a chart: for each reason how many there were in each step of time."""
    if not per_minute:
        return []
    minutes = [minute for minute, _ in per_minute]
    span = max(minutes) - min(minutes)
    step = next((each for each in _STEPS_MIN if span / each < _MOST_BARS), _STEPS_MIN[-1])
    sums: Counter[tuple[str, int]] = Counter()
    for (minute, reason), count in per_minute.items():
        sums[reason, minute // step * step] += count
    known = [reason.value for reason in Reason]
    found = sorted({reason for reason, _ in sums})
    steps = sorted({minute for _, minute in sums})
    return [
        {
            "name": reason or "none",
            "type": "bar",
            "stack": "all",
            "barMaxWidth": 26,
            "itemStyle": {
                "color": _COLOURS[(known.index(reason) if reason in known else -1) % len(_COLOURS)],
                "decal": {"symbol": _PATTERNS[number % len(_PATTERNS)]},
            },
            # Also where there are none: bars are stacked by their places in these lists.
            "data": [[minute * _MINUTE_MS, sums[reason, minute]] for minute in steps],
        }
        for number, reason in enumerate(found)
    ]


def _options() -> dict[str, Any]:
    return {
        "animation": False,
        "useUTC": True,
        "textStyle": {"color": _GREY},
        "legend": {"bottom": 0, "type": "scroll", "textStyle": {"color": _GREY}},
        "grid": {"left": 8, "right": 12, "top": 12, "bottom": 40, "containLabel": True},
        "tooltip": {"trigger": "item", "renderMode": "richText"},
        "xAxis": {"type": "time", "axisLabel": {"color": _GREY, "hideOverlap": True}},
        "yAxis": {
            "type": "value",
            "minInterval": 1,
            "axisLabel": {"color": _GREY},
            "splitLine": {"lineStyle": {"opacity": 0.2}},
        },
        "series": [],
    }
