"""`relay demo`."""

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, TextIO, cast

import typer
from rich.console import Console

from relay.cli.common import complain, run
from relay.cli.console import ADDRESS_PREFIX, require_console
from relay.cli.output import Output
from relay.contract.errors import LocalServerError
from relay.facilitator.identity import Signer
from relay.local.demo import DEMO_DELIVERY, Demo, Load, make_hotkey, open_demo
from relay.local.display import directions, jobs_by_status, live, summary
from relay.local.tally import Result
from relay.observability import logs
from relay.service.children import die_with_parent

_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)
"""SIGHUP comes when the terminal is closed."""
_EXIT_AT_SIGTERM: Final = 128 + signal.SIGTERM


def demo(
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the servers running after the summary.")] = False,
    console: Annotated[bool, typer.Option("--console", help="With --keep: serve the page of `relay console`.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Number of jobs to simulate.")] = 350,
    rate: Annotated[float, typer.Option(min=0.1, help="Updates published per second.")] = 200.0,
    seed: Annotated[int, typer.Option(help="The same seed makes the same jobs.")] = 1,
) -> None:
    """Relay a few hundred simulated jobs from an embedded nats-server to a simulated Facilitator.

    Some updates are made to fail. At the end the demo compares what was published with what the Facilitator stored
    and with the dead letters. Exit code 1 if anything was lost or reordered. It needs no settings and reads none.
    """
    if console and not keep:
        raise typer.BadParameter("--console goes with --keep")
    if console:
        require_console()
    terminal = Console(quiet=as_json, highlight=False, soft_wrap=True)
    try:
        with _folder() as folder:
            display = _Display(terminal, folder / "relay.log", as_json=as_json, keep=keep, with_page=console)
            if not _relay(Load(jobs, rate, seed), display).kept_the_promise:
                raise typer.Exit(1)
    except asyncio.CancelledError:
        raise typer.Exit(_EXIT_AT_SIGTERM) from None


@dataclass(frozen=True, slots=True)
class _Display:
    """Prints the result. `keep` says whether the servers stay up after it, `with_page` whether the console runs."""

    console: Console
    log: Path
    as_json: bool
    keep: bool
    with_page: bool

    def report(self, running: Demo, result: Result, page: str) -> None:
        """Print the result, on standard output. `page` is the address of the console, empty without one."""
        if self.as_json:
            typer.echo(json.dumps(dataclasses.asdict(result)))
            return
        self.console.print(jobs_by_status(running.tally), summary(result, running.tally.repeated), sep="\n")
        if self.keep:
            if page:
                self.console.print(f"The page of `relay console`: {page}")
            self.console.print(f"Up until Ctrl-C; the relay's log is {self.log}. To look further, in another terminal:")
        else:
            self.console.print("To look further, run `relay demo --keep --console`; with the addresses that it prints:")
        self.console.print(directions(running.nats_url, running.http_port))


def _relay(load: Load, display: _Display) -> Result:
    with display.log.open("w") as log:
        with contextlib.redirect_stderr(
            cast("TextIO", Output(log, raises=False))
        ):  # `configure` keeps the standard error that it finds
            logs.configure("info", "console")
        signer = make_hotkey(display.log.parent)
        return run(_run_demo(signer, load, display))


async def _run_demo(signer: Signer, load: Load, display: _Display) -> Result:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None, "a coroutine runs in a task"
    # Under nohup, for example, SIGHUP is ignored: keep it so.
    stop_signals = [each for each in _STOP_SIGNALS if signal.getsignal(each) is signal.SIG_DFL]
    for number in stop_signals:
        loop.add_signal_handler(number, task.cancel)  # the servers are then stopped, too
    display.console.print(f"Relaying {load.jobs} jobs at {load.rate_per_s:g} updates a second ...")
    delivery = DEMO_DELIVERY.model_copy(update={"receipts": display.with_page})
    async with open_demo(signer, delivery) as running, _page(running, display) as page:
        if page:
            display.console.print(f"Watch it: {page}")
        async with live(display.console, running.tally):
            result = await running.relay_all(load)
        stop = asyncio.Event()
        if display.keep:
            for number in (signal.SIGINT, *stop_signals):
                loop.add_signal_handler(number, stop.set)
        else:
            stop.set()
        display.report(running, result, page)
        await stop.wait()
    return result


@contextlib.asynccontextmanager
async def _page(running: Demo, display: _Display) -> AsyncGenerator[str]:
    """The address of a console that watches the demo, in a process of its own; empty if none is wanted."""
    if not display.with_page:
        yield ""
        return
    environment = {"PATH": os.environ.get("PATH", ""), "RELAY_NATS_URL": running.nats_url, "RELAY_CONSOLE_PORT": "0"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay", "console"),
        cwd=display.log.parent,  # where there is no `.env` file
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        preexec_fn=die_with_parent(),
    )
    try:
        assert process.stdout is not None, "it is a pipe"
        line = (await process.stdout.readline()).decode()
        if not line:
            display.console.print("The page of `relay console` did not start: standard error says why")
        yield line.removeprefix(ADDRESS_PREFIX).strip()
    finally:
        with contextlib.suppress(ProcessLookupError):  # Ctrl-C may have ended it
            process.terminate()
        await process.wait()


@contextlib.contextmanager
def _folder() -> Generator[Path]:
    """A new folder, removed at the end unless an error occurred, which the log in it may explain."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="relay-demo-"))
    except OSError as error:
        raise LocalServerError(f"the demo needs a folder for temporary files (TMPDIR): {error}") from error
    try:
        yield folder
    except Exception:
        complain(f"the log of the demo's relay is in {folder}")
        raise
    except BaseException:
        _remove(folder)
        raise
    _remove(folder)


def _remove(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # somebody has tidied up
        shutil.rmtree(folder)
