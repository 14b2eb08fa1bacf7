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
from relay.doctor.findings import Level

SHAPES: Final = {Level.OK: "check_circle", Level.WARN: "warning", Level.FAIL: "dangerous"}
"""The level as a shape: with the word and the colour, so that nobody needs the colour."""
WORDS: Final = {Level.OK: "ok", Level.WARN: "look", Level.FAIL: "broken"}
_LINKS: Final = (("Overview", "/"), ("Jobs", "/jobs"), ("Dead letters", "/dead-letters"))
_DARK: Final = "dark"
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
    shown: list[Level] = []

    def show_state() -> None:
        level = watching.verdict.level
        if shown != [level]:
            shown[:] = [level]
            state.clear()
            with state:
                badge(level, watching.verdict.headline, on_bar=True)

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


def fields(pairs: list[tuple[str, str]]) -> None:
    """Names and values, one pair on each line. Values are shown as they are, never as HTML."""
    with ui.element("div").classes("fields"):
        for name, value in pairs:
            ui.label(name).classes("name")
            ui.label(value).classes("value")


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
