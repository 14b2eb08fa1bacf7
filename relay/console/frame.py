"""What every page has: the bar with its links, the state of the relay in one word, the look."""
# pyright: reportUnknownMemberType=false
# The types of NiceGUI are partly unknown.

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nicegui import app, ui
from nicegui.client import Client

from relay.console.watching import Watching
from relay.contract.errors import BrokerUnavailable, NotPermitted, RelayError
from relay.contract.subjects import is_job_uuid
from relay.contract.text import escape, how_many
from relay.dead_letters.description import pretty_body
from relay.doctor.findings import Level
from relay.nats.frames import FrameClient

SHAPES: Final = {Level.OK: "check_circle", Level.WARN: "warning", Level.FAIL: "dangerous"}
"""The level as a shape: with the word and the colour, so that nobody needs the colour."""
WORDS: Final = {Level.OK: "ok", Level.WARN: "look", Level.FAIL: "broken"}
_LINKS: Final = (("Overview", "/"), ("Jobs", "/jobs"), ("Dead letters", "/dead-letters"))
_DARK: Final = "dark"
_SHOWN_CHARS: Final = 100_000
STYLE: Final = Path(__file__).with_name("console.css")


def style(prefix: str) -> None:
    """Give all pages their look, which is served as `console.css`. Call it once."""
    ui.add_head_html(f'<link rel="stylesheet" href="{prefix}/console.css">', shared=True)


@contextmanager
def frame(watching: Watching, title: str, here: str) -> Generator[None]:
    """The page around its content. `here` is the path of the link that the page belongs to."""
    ui.page_title(f"{title} - relay console")
    ui.colors(primary="#0b5cad")
    dark = ui.dark_mode(value=None)
    ui.link("Skip to the content", "#content").classes("skip")
    with ui.header().classes("bar row items-center").props("bordered"):
        ui.link("relay console", "/").classes("brand")
        for name, target in _LINKS:
            ui.link(name, target).classes("here" if target == here else "")
        state = ui.row().classes("level").props('role="status"')
        ui.space()
        if (url := watching.settings.console.dashboard_url) is not None:
            ui.link("Dashboard", url).props('rel="noopener noreferrer"')
        _dark_button(dark)
        if watching.settings.console.password is not None:
            _sign_out(watching.settings.console.path_prefix)
    shown: list[str] = []

    def show_state() -> None:
        found = watching.standing.verdict
        if shown != [found.headline]:
            shown[:] = [found.headline]
            state.clear()
            with state:
                badge(found.level, found.headline, on_bar=True)

    follow(watching, show_state)
    ui.element("div").props('id="content" tabindex="-1"')
    yield


def follow(watching: Watching, show: Callable[[], None]) -> None:
    """Call `show` now, and again whenever there is a new view, as long as the page is open."""
    show()
    seen = watching.number

    def look() -> None:
        nonlocal seen
        if seen != watching.number:
            seen = watching.number
            show()

    ui.timer(0.5, look)


@contextmanager
def card(title: str) -> Generator[None]:
    """A part of the page with a heading."""
    with ui.element("section").classes("card"):
        heading(title)
        yield


def heading(text: str, level: int = 2) -> ui.label:
    """A heading, shown as it is."""
    return ui.label(text).props(f'role="heading" aria-level="{level}"').classes("heading")


def badge(level: Level, text: str, *, on_bar: bool = False) -> None:
    """A level as shape, word and colour."""
    with ui.row().classes("level" if on_bar else f"level {level}"):
        ui.icon(SHAPES[level]).props('aria-hidden="true"')
        ui.label(text)


def fields(pairs: list[tuple[str, str]], job: str = "") -> None:
    """Names and values, one pair on each line. Values are shown as they are, never as HTML; that of `job` is a link."""
    with ui.element("div").classes("fields"):
        for name, value in pairs:
            ui.label(name).classes("name")
            if value == job and is_job_uuid(job):
                ui.link(value, f"/jobs/{job}").classes("value")
            else:
                ui.label(escape(value)).classes("value")


def _dark_button(dark: ui.dark_mode) -> None:
    def apply() -> None:
        dark.value = app.storage.tab.get(_DARK)

    def change() -> None:
        following = {None: True, True: False, False: None}
        dark.value = app.storage.tab[_DARK] = following[dark.value]
        names = {None: "as the system", True: "dark", False: "light"}
        ui.notify(f"Colours: {names[dark.value]}")

    ui.button(icon="contrast", on_click=change).props('flat dense color="white" aria-label="Dark or light"')
    client: Client = ui.context.client
    client.on_connect(apply)


def _sign_out(prefix: str) -> None:
    with ui.element("form").props(f'method="post" action="{prefix}/logout"'):
        ui.button("Sign out").props('type="submit" flat dense no-caps color="white"')


def problem(text: str) -> None:
    """Say what is wrong."""
    with ui.row().classes("level fail").props('role="alert"'):
        ui.icon(SHAPES[Level.FAIL]).props('aria-hidden="true"')
        ui.label(text).classes("told")


def connected(watching: Watching) -> FrameClient | None:
    """The connection to NATS. Without one the page says so, and loads itself again when there is one."""
    if watching.client is None:
        problem("There is no connection to NATS.")
        _load_again(Comeback(watching))
    return watching.client


def failed(watching: Watching, error: RelayError) -> None:
    """Say what is wrong; if NATS is away, the page loads itself again when it is back."""
    problem(str(error))
    if isinstance(error, BrokerUnavailable) and not isinstance(error, NotPermitted):
        ui.button("Try again", icon="refresh", on_click=ui.navigate.reload).props("no-caps outline")
        _load_again(Comeback(watching))


class Comeback:
    """Whether NATS is back after it was away. If it was not, only this page failed, and would fail again and again."""

    def __init__(self, watching: Watching) -> None:
        self._watching = watching
        self._seen = watching.number
        self._was_away = False

    def look(self) -> bool:
        """Call it again and again; True when NATS is back."""
        watching = self._watching
        is_away = watching.client is None or watching.view.trouble is not None
        self._was_away = self._was_away or is_away
        return self._was_away and not is_away and watching.number > self._seen


def _load_again(comeback: Comeback) -> None:
    comeback.look()

    def look() -> None:
        if comeback.look():
            ui.navigate.reload()

    ui.timer(0.5, look)


def body_text(body: bytes) -> None:
    """The body of an update as text: indented if it is JSON. Whatever it contains, it is text."""
    text = pretty_body(body)[0]
    lines = (escape(line) for line in text[:_SHOWN_CHARS].split("\n"))
    ui.label("\n".join(lines)).classes("mono")
    if len(text) > _SHOWN_CHARS:
        more = len(text) - _SHOWN_CHARS
        ui.label(f"... and {how_many(f'{more:,}', 'character')} more")
