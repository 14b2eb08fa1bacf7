"""`relay console` as a running server: the pages behind the guard, and the one look at NATS for all of them."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable
from typing import Final

import uvicorn
from fastapi import FastAPI
from nicegui import ui
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse

from relay.console.frame import STYLE, style
from relay.console.guard import Guard
from relay.console.nicegui_app import TITLE, mount_pages
from relay.console.overview_page import show_overview
from relay.console.watching import Watching
from relay.contract.errors import RelayError
from relay.contract.settings import ConsoleSettings, Settings

_STOP_S: Final = 1


class CannotListen(RelayError):  # noqa: N818 - named for what happened
    """The address is taken, or is not one of this machine."""


async def serve(settings: Settings, on_listening: Callable[[str], None]) -> None:
    """Serve the pages until SIGTERM or Ctrl-C. `on_listening` is called with their address.

    Raises CannotListen, and ConfigurationError for credentials of NATS that cannot be used.
    """
    with _listen(settings.console) as listening:
        watching = Watching(settings)
        app = FastAPI(title=TITLE, docs_url=None, redoc_url=None, openapi_url=None)
        _add_pages(app, watching)
        mount_pages(app)
        server = uvicorn.Server(
            uvicorn.Config(
                GZipMiddleware(Guard(app, settings.console), minimum_size=1000),
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=_STOP_S,
                ws="websockets-sansio",
                lifespan="on",
            )
        )
        # Its own handlers would send the signal again at the end, which would be another exit code than 0.
        server.capture_signals = contextlib.nullcontext  # pyright: ignore[reportAttributeAccessIssue]
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, setattr, server, "should_exit", True)  # noqa: FBT003 - of setattr
        on_listening(_address(listening, settings.console))
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(watching.run())
            try:
                await server.serve(sockets=[listening])
            finally:
                watch.cancel()


def _add_pages(app: FastAPI, watching: Watching) -> None:
    style(watching.settings.console.path_prefix)
    app.get("/console.css")(lambda: FileResponse(STYLE))
    ui.page("/")(lambda: show_overview(watching))


def _listen(settings: ConsoleSettings) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        raise CannotListen(
            f"cannot listen on {where}: {error.strerror or error}; RELAY_CONSOLE_PORT says where"
        ) from error


def _address(listening: socket.socket, settings: ConsoleSettings) -> str:
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}{settings.path_prefix}/"
