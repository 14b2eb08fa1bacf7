"""Jobs: finding one by its UUID, and updates of all jobs as they come."""
# pyright: reportUnknownMemberType=false
# The types of NiceGUI are partly unknown.

from collections import deque
from typing import Any, Final

from nicegui import ui
from nicegui.events import KeyEventArguments

from relay.console.frame import card, connected, frame, problem
from relay.console.tail import DEAD_LETTERED, Filter, Heard, Tail
from relay.console.watching import Watching
from relay.contract.model import JobStatus
from relay.contract.subjects import is_job_uuid

_SHOWN: Final = 100
_EVERY_S: Final = 0.5
_PAUSE_KEY: Final = "p"
_MARKS: Final = {
    "published": "arrow_upward",
    "acknowledged": "check",
    "duplicate": "done_all",
    DEAD_LETTERED: "dangerous",
}


def show_jobs(watching: Watching, tail: Tail, wanted: str) -> None:
    """Build the page. `wanted`: what was looked for and is no UUID."""
    with frame(watching, "Jobs", "/jobs"):
        with card("Find a job"):
            _search(wanted)
        with card("Updates as they come"):
            if connected(watching) is not None:
                _live(watching, tail)


def _search(wanted: str) -> None:
    with ui.element("div").classes("form"):
        field = ui.input("UUID", value=wanted, placeholder="123e4567-e89b-42d3-a456-426614174000").classes("uuid")

        def find() -> None:
            job = (field.value or "").strip().lower()
            if is_job_uuid(job):
                ui.navigate.to(f"/jobs/{job}")
            else:
                ui.notify("This is not a UUID with hyphens.", type="warning")

        field.on("keydown.enter", find)
        ui.button("Find", icon="search", on_click=find).props("no-caps unelevated")
    if wanted:
        problem(f"{wanted[:80]!a} is not a UUID with hyphens.")


def _live(watching: Watching, tail: Tail) -> None:
    if not tail.may_hear:
        problem("The NATS user of this console may not subscribe to updates.")
        return
    with ui.element("div").classes("form"):
        statuses = {"": "any status"} | {status.value: status.value for status in JobStatus}
        status = ui.select(statuses, value="", label="Status")
        job = ui.input("Job (UUID)").props("clearable").classes("uuid")
        dead = ui.checkbox("Dead letters only")
        pause = ui.switch(f"Paused (key {_PAUSE_KEY})")
    table = _table()
    rows: deque[dict[str, Any]] = deque(maxlen=_SHOWN)
    seen = tail.number
    prefix = watching.settings.console.path_prefix

    def clear() -> None:
        rows.clear()
        table.rows = []

    def look() -> None:
        nonlocal seen
        if pause.value:
            return
        wanted = Filter((job.value or "").strip().lower(), status.value or "", bool(dead.value))
        news = list(tail.since(seen, wanted))
        seen = tail.number
        if news:
            rows.extendleft(_row(heard, prefix) for heard in news[-_SHOWN:])
            table.rows = list(rows)

    def press(event: KeyEventArguments) -> None:
        if event.action.keydown and not event.action.repeat and event.key == _PAUSE_KEY:
            pause.value = not pause.value

    for field in (status, job, dead):
        field.on_value_change(clear)
    ui.keyboard(on_key=press)
    ui.timer(_EVERY_S, look)

    client = ui.context.client

    async def begin() -> None:
        await tail.watch(client.id)
        table.props('no-data-label="Nothing has come yet."')

    client.on_connect(begin)
    client.on_delete(lambda: tail.leave(client.id))


def _table() -> ui.table:
    left = {"align": "left"}
    columns = [
        {"name": "at", "label": "at (UTC)", "field": "at", **left},
        {"name": "what", "label": "what", "field": "what", **left},
        {"name": "status", "label": "status", "field": "status", **left},
        {"name": "job", "label": "job", "field": "job", **left},
        {"name": "detail", "label": "", "field": "detail", **left},
    ]
    table = ui.table(rows=[], columns=columns, row_key="id", pagination=0).classes("tail")
    table.props('flat dense :grid="Quasar.Screen.lt.sm" hide-pagination no-data-label="Not listening yet."')
    table.add_slot(
        "body-cell-what",
        '<q-td :props="props"><span class="level" :class="props.row.level">'
        '<q-icon :name="props.row.mark" aria-hidden="true" /> {{ props.value }}</span></q-td>',
    )
    table.add_slot(
        "body-cell-job",
        '<q-td :props="props"><a v-if="props.row.href" :href="props.row.href">{{ props.value }}</a>'
        "<span v-else>{{ props.value }}</span></q-td>",
    )
    return table


def _row(heard: Heard, prefix: str) -> dict[str, Any]:
    return {
        "id": heard.number,
        "at": heard.at.strftime("%H:%M:%S.%f")[:-3],
        "what": heard.what,
        "mark": _MARKS.get(heard.what, "more_horiz"),
        "level": "fail" if heard.what == DEAD_LETTERED else "",
        "status": heard.status or "unreadable",
        "job": heard.job,
        "href": f"{prefix}/jobs/{heard.job}" if is_job_uuid(heard.job) else "",
        "detail": heard.detail,
    }
