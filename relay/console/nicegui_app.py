"""NiceGUI as the console uses it: without files of its own, without its API pages, by WebSocket alone."""

import os
from typing import Final

# Before the import: NiceGUI looks for stored values there. The console stores none.
os.environ["NICEGUI_STORAGE_PATH"] = f"{os.devnull}/nothing"

from fastapi import FastAPI
from jinja2 import BaseLoader, FunctionLoader
from nicegui import client, core, ui

from relay.console.guard import NONCE

TITLE: Final = "relay console"
_RECONNECT_S: Final = 20.0
"""How long the state of a page is kept while its browser is away."""
_FAVICON: Final = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" fill="#0b5cad"/>'
    '<path d="M6 10h11M6 16h15M6 22h11M20 9l7 7-7 7" fill="none" stroke="#fff" stroke-width="3"/></svg>'
)


def mount_pages(app: FastAPI) -> None:
    """Serve all pages that are registered by `ui.page` as part of `app`. Call it once in a process."""
    ui.run_with(  # pyright: ignore[reportUnknownMemberType]
        app,
        title=TITLE,
        favicon=_FAVICON,
        dark=None,
        language="en-US",
        reconnect_timeout=_RECONNECT_S,
        tailwind=False,
        gzip_middleware_factory=None,
        show_welcome_message=False,
        binding_refresh_interval=None,
    )
    core.app.config.socket_io_js_transports = ["websocket"]
    _mark_scripts()


def _mark_scripts() -> None:
    """Mark the scripts of the library's page, and no other, for the guard: it puts the nonce there."""
    env = client.templates.env
    loader = env.loader
    assert isinstance(loader, BaseLoader), "Jinja2Templates makes one"

    def marked(name: str) -> str:
        return loader.get_source(env, name)[0].replace("<script", f'<script nonce="{NONCE}"')

    env.loader = FunctionLoader(marked)
