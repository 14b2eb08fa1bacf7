"""`relay top`."""

import asyncio
import contextlib
import datetime as dt
import json
import signal
import time
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from typing import Annotated, Final

import typer
from nats.aio.client import Client
from rich.console import Console
from rich.live import Live

from relay.cli.console import run
from relay.cli.top_display import View, document, screen
from relay.contract.environment import load_settings
from relay.contract.errors import RelayError
from relay.contract.settings import NatsSettings
from relay.contract.text import redact_url
from relay.nats.connection import close, connect
from relay.observability import logs
from relay.overview.observer import Observer
from relay.overview.snapshot import Overview, between

_CLOSE_TIMEOUT_S: Final = 1.0


def top(
    *,
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one view, after one interval, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per interval.")] = False,
) -> None:
    """Watch the relays at work: lanes and their owners, lag, rates, latencies, dead letters, the Facilitator.

    Needs nothing but NATS, so it runs on any machine that reaches it. Rates and latencies are those of the last
    interval. Ctrl-C ends it. If NATS goes away, it says so and goes on when NATS is back.
    """
    run(_watch(load_settings().nats, _Output(interval, once=once, as_json=as_json)))


@dataclass(slots=True)
class _Output:
    """Where the views go: to a live screen, or printed one after another."""

    interval_s: float
    once: bool
    as_json: bool
    live: Live | None = None
    latest: View | None = None

    @property
    def waits_for_rates(self) -> bool:
        """Whether the first look, which has nothing to be compared with, is not shown."""
        return self.once or self.as_json

    @contextlib.contextmanager
    def opened(self) -> Generator[None]:
        """A screen of its own on a terminal, for as long as the block lasts."""
        console = Console(highlight=False)
        if self.once or self.as_json or not console.is_terminal:
            yield
            return
        with Live(console=console, screen=True, auto_refresh=False) as self.live:
            yield

    def show(self, view: View) -> None:
        self.latest = view
        if self.as_json:
            typer.echo(json.dumps(document(view)))
        elif self.live is None:
            Console(highlight=False).print(screen(view, None))
        else:
            self.redraw()

    def redraw(self) -> None:
        """Show the latest view again, in the size that the terminal has now."""
        if self.live is not None and self.latest is not None:
            self.live.update(screen(self.latest, self.live.console.height), refresh=True)


@contextlib.asynccontextmanager
async def _connected(settings: NatsSettings) -> AsyncGenerator[Client]:
    logs.configure("error", "console")  # the view says when NATS is away; a log line would only break it
    client = await connect(settings, name="relay-top")
    try:
        yield client
    finally:
        await close(client, _CLOSE_TIMEOUT_S)


async def _watch(settings: NatsSettings, output: _Output) -> None:
    where = ", ".join(map(redact_url, settings.urls))
    async with _connected(settings) as client:
        with output.opened():
            stop, loop = asyncio.Event(), asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop.set)
            loop.add_signal_handler(signal.SIGWINCH, output.redraw)
            watching = asyncio.create_task(_show_views(Observer(client), output, where))
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
            for task in (watching, stopping):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching


async def _show_views(observer: Observer, output: _Output, where: str) -> None:
    """Look, compare with the look before, show; until cancelled, or once."""
    before: Overview | None = None
    latest: Overview | None = None
    well_s = time.monotonic()
    while True:
        passed, trouble = None, None
        try:
            seen = await observer.look()
        except RelayError as error:
            if output.once:
                raise
            trouble = f"for {time.monotonic() - well_s:.0f} s now: {error}"
            before = None  # compared with it, the next look would tell of the trouble, and not of the last interval
        else:
            passed = between(before, seen) if before is not None else None
            before = latest = seen
            well_s = time.monotonic()
        if passed is not None or trouble is not None or not output.waits_for_rates:
            output.show(View(where, dt.datetime.now(dt.UTC), output.interval_s, latest, passed, trouble))
        if output.once and passed is not None:
            return
        await asyncio.sleep(output.interval_s)
