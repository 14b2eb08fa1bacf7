"""What the commands share: printing a problem, running a coroutine, connecting to NATS."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, Final, TypeVar

import typer

from relay.cli.output import OutputLost
from relay.contract.environment import load_settings
from relay.contract.settings import NatsSettings, Settings
from relay.nats.connection import close, connect
from relay.nats.frames import FrameClient
from relay.observability import logs
from relay.service.surroundings import require_files

try:
    from uvloop import new_event_loop
except ImportError:  # on Windows and PyPy
    new_event_loop = None

R = TypeVar("R")
_FILES: Final = 16
"""How many files an event loop and a few connections open."""


def complain(problem: str) -> None:
    """Print one line on standard error."""
    typer.echo(f"relay: {problem}", err=True)


def tell(text: str) -> bool:
    """Print one line on standard output, for commands that go on if nobody reads it. False if it cannot be written."""
    try:
        typer.echo(text)
    except OutputLost as lost:
        if not lost.nobody_reads:
            complain(str(lost))
        return lost.nobody_reads
    return True


def read_settings() -> Settings:
    """The settings of one command; what was taken otherwise than it was written is printed on standard error."""
    return load_settings(notice=complain)


def run(work: Coroutine[Any, Any, R]) -> R:
    """Run `work` to its end, on uvloop if it is installed. Ctrl-C cancels it, and raises KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see relay.service.surroundings
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        require_files(_FILES)
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(work)
    finally:
        work.close()  # if the event loop could not be made; otherwise it has ended


@contextlib.asynccontextmanager
async def nats_client(settings: NatsSettings) -> AsyncGenerator[FrameClient]:
    """A connection for one command. Raises BrokerUnavailable and ConfigurationError as `connect` does."""
    logs.configure("warning", "console")  # results go to standard output; the log is only for trouble
    client = await connect(settings, name="relay-cli")
    try:
        yield client
    finally:
        await close(client)
