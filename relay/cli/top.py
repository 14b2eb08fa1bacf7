"""`relay top`."""

import asyncio
import contextlib
import json
import math
import signal
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.live import Live

from relay.cli.common import read_settings, run
from relay.cli.top_display import render
from relay.cli.top_view import TopView, document
from relay.contract.settings import NatsSettings
from relay.contract.text import redact_url
from relay.nats.connection import close, connect
from relay.nats.frames import FrameClient
from relay.observability import logs
from relay.overview.reader import SnapshotReader
from relay.overview.watch import watch

_CLOSE_TIMEOUT_S: Final = 1.0


def top(
    *,
    interval: Annotated[float, typer.Option(min=0.2, max=3600, help="Seconds between two views.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one view, after one interval, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per interval.")] = False,
) -> None:
    """Watch the relays at work: lanes and their owners, lag, rates, latencies, dead letters, the Facilitator.

    Needs only NATS, so it runs on any machine that reaches NATS. Rates and latencies are those of the last interval.
    If NATS goes away, the command says so, and goes on when NATS is back. Ctrl-C ends it.
    """
    if math.isnan(interval):  # which is neither below nor above the limits
        raise typer.BadParameter("--interval is not a number")
    run(_watch(read_settings().nats, _Display(interval, once=once, as_json=as_json)))


@dataclass(slots=True)
class _Display:
    """Shows views on a live screen, or prints them one after another."""

    every_s: float
    once: bool
    as_json: bool
    live: Live | None = None
    latest: TopView | None = None

    @property
    def needs_rates(self) -> bool:
        """Whether views without rates are left out; the first view has none."""
        return self.once or self.as_json

    @contextlib.contextmanager
    def opened(self) -> Generator[None]:
        """Take the screen of the terminal for as long as the block lasts; do nothing if there is no terminal."""
        console = Console(highlight=False)
        if self.once or self.as_json or not console.is_terminal:
            yield
            return
        with Live(console=console, screen=True, auto_refresh=False) as self.live:
            yield

    def show(self, view: TopView) -> None:
        self.latest = view
        if self.as_json:
            typer.echo(json.dumps(document(view)))
        elif self.live is None:
            Console(highlight=False).print(render(view, None))
        else:
            self.redraw()

    def redraw(self) -> None:
        """Show the latest view again, fitted to the terminal's current size."""
        if self.live is not None and self.latest is not None:
            self.live.update(render(self.latest, self.live.console.height), refresh=True)


@contextlib.asynccontextmanager
async def _connected(settings: NatsSettings) -> AsyncGenerator[FrameClient]:
    logs.configure("error", "console")  # the view says when NATS is away; a log line would disturb the screen
    client = await connect(settings, name="relay-top")
    try:
        yield client
    finally:
        await close(client, _CLOSE_TIMEOUT_S)


async def _watch(settings: NatsSettings, display: _Display) -> None:
    servers = ", ".join(map(redact_url, settings.servers))
    async with _connected(settings) as client:
        with display.opened():
            watching = asyncio.create_task(_show_views(SnapshotReader(client), display, servers))
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, watching.cancel)
            loop.add_signal_handler(signal.SIGWINCH, display.redraw)
            with contextlib.suppress(asyncio.CancelledError):
                await watching


async def _show_views(reader: SnapshotReader, display: _Display, servers: str) -> None:
    """Show one view after another; until cancelled, or once."""
    async with contextlib.aclosing(watch(reader, display.every_s)) as views:
        async for view in views:
            if display.once and view.error is not None:
                raise view.error
            if view.interval is not None or view.trouble is not None or not display.needs_rates:
                shown = TopView(servers, view.at, display.every_s, view.snapshot, view.interval, view.trouble)
                display.show(shown)
            if display.once and view.interval is not None:
                return
