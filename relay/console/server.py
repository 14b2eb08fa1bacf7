"""`relay console` as a running server: the pages behind the guard, and the one look at NATS for all of them."""

import asyncio
import contextlib
import datetime as dt
import signal
import socket
from collections.abc import Callable
from typing import Final

import uvicorn
from fastapi import FastAPI
from nicegui import ui
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from relay.console.actions import Actions
from relay.console.frame import STYLE, style
from relay.console.guard import Guard
from relay.console.job_page import show_job
from relay.console.jobs_page import show_jobs
from relay.console.letter_page import show_letter
from relay.console.letters_page import LettersQuery, show_letters
from relay.console.nicegui_app import TITLE, mount_pages
from relay.console.overview_page import show_overview
from relay.console.watching import Watching
from relay.contract.console_settings import ConsoleSettings
from relay.contract.errors import RelayError
from relay.contract.settings import Settings
from relay.contract.subjects import is_job_uuid
from relay.dead_letters.stored import number_of
from relay.network.listener import listen
from relay.observability.logs import get_logger

_STOP_S: Final = 1
_BUILD_S: Final = 60.0
"""How long a page may take: a search among very many dead letters, or a slow NATS. Without NATS it says so earlier."""
_log = get_logger(__name__)


async def serve(settings: Settings, on_listening: Callable[[str], None]) -> None:
    """Serve the pages until SIGTERM or Ctrl-C. `on_listening` is called with their address.

    Raises ConfigurationError if it cannot listen there, and for credentials of NATS that cannot be used.
    """
    with contextlib.ExitStack() as closing:
        listeners = listen(settings.console.host, settings.console.port, prefix="RELAY_CONSOLE")
        for each in listeners:
            closing.enter_context(each)
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
        on_listening(_address(listeners[0], settings.console))
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(watching.run())
            try:
                await server.serve(sockets=listeners)
            finally:
                watch.cancel()


def _add_pages(app: FastAPI, watching: Watching) -> None:
    actions, tail = Actions(watching), watching.tail
    style(watching.settings.console.path_prefix)
    app.get("/console.css")(lambda: FileResponse(STYLE))
    app.router.routes.append(Route("/export/{name}", _Exports(actions)))

    @ui.page("/jobs")
    def _(uuid: str = "") -> None:
        show_jobs(watching, tail, uuid)

    @ui.page("/jobs/{uuid}")
    def _(uuid: str) -> None:
        if is_job_uuid(job := uuid.lower()):
            show_job(watching, tail, job)
        else:
            show_jobs(watching, tail, uuid)

    @ui.page("/dead-letters", response_timeout=_BUILD_S)
    async def _(job: str = "", reason: str = "", since: str = "", below: str = "") -> None:
        await show_letters(watching, actions, LettersQuery(job, reason, since, number_of(below)))

    @ui.page("/dead-letters/{sequence}", response_timeout=_BUILD_S)
    async def _(sequence: str) -> None:
        await show_letter(watching, actions, sequence)

    ui.page("/")(lambda: show_overview(watching))


class _Exports:
    """Gives exports as files. An ASGI application."""

    def __init__(self, actions: Actions) -> None:
        self._actions = actions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        export = self._actions.export_named(scope["path_params"]["name"])
        if export is None:
            await Response("this export is not known any more", 404)(scope, receive, send)
            return
        file = f'attachment; filename="dead-letters-{dt.datetime.now(dt.UTC):%Y%m%d-%H%M%S}.jsonl"'
        try:
            async with contextlib.aclosing(self._actions.export(export)) as lines:
                response = StreamingResponse(
                    lines, media_type="application/jsonl", headers={"Content-Disposition": file}
                )
                await response(scope, receive, send)
        except RelayError as error:  # without its end, the browser does not take the file for whole
            _log.warning("an export was broken off", error=str(error))


def _address(listening: socket.socket, settings: ConsoleSettings) -> str:
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}{settings.path_prefix}/"
