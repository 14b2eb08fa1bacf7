"""`relay demo`."""

import asyncio
import contextlib
import dataclasses
import json
import shutil
import signal
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from relay.cli.console import complain, run
from relay.facilitator.identity import Signer
from relay.local.demo import Demo, Plan, make_hotkey, open_demo
from relay.local.display import directions, jobs_by_status, live, summary
from relay.local.tally import Result
from relay.observability import logs

_ENDINGS: Final = (signal.SIGTERM, signal.SIGHUP)
"""Told to end, or the terminal was closed."""
_EXIT_AT_SIGTERM: Final = 128 + signal.SIGTERM


def demo(
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Stay up after the summary, for a closer look.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="How many jobs to relay the updates of.")] = 350,
    rate: Annotated[float, typer.Option(min=0.1, help="Updates to publish per second.")] = 200.0,
    seed: Annotated[int, typer.Option(help="The same seed makes the same jobs.")] = 1,
) -> None:
    """Relay a few hundred simulated jobs from an embedded nats-server to a simulated Facilitator.

    Some of the updates must fail. At the end, what was published is compared with what the Facilitator stored and with
    the dead letters: exit 1 if anything was lost or reordered. Needs no settings and reads none.
    """
    console = Console(quiet=as_json, highlight=False, soft_wrap=True)
    try:
        with _folder() as folder:
            output = _Output(console, folder / "relay.log", as_json=as_json, keep=keep)
            if not _relay(Plan(jobs, rate, seed), output).kept_the_promise:
                raise typer.Exit(1)
    except asyncio.CancelledError:
        raise typer.Exit(_EXIT_AT_SIGTERM) from None


@dataclass(frozen=True, slots=True)
class _Output:
    """Where the demo tells its story, and whether it stays up after the end."""

    console: Console
    log: Path
    as_json: bool
    keep: bool

    def report(self, under_way: Demo, result: Result) -> None:
        """Print the result, on standard output."""
        if self.as_json:
            typer.echo(json.dumps(dataclasses.asdict(result)))
            return
        self.console.print(jobs_by_status(under_way.tally), summary(result, under_way.tally.repeated), sep="\n")
        if self.keep:
            self.console.print(f"Up until Ctrl-C; the relay's log is {self.log}. To look further, in another terminal:")
        else:
            self.console.print("To look further, run `relay demo --keep`; with the addresses that it prints:")
        self.console.print(directions(under_way.nats_url, under_way.http_port))


def _relay(plan: Plan, output: _Output) -> Result:
    with output.log.open("w") as log:
        with contextlib.redirect_stderr(log):  # what `configure` takes for standard error, it keeps
            logs.configure("info", "console")
        signer = make_hotkey(output.log.parent)
        return run(_demonstrate(signer, plan, output))


async def _demonstrate(signer: Signer, plan: Plan, output: _Output) -> Result:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None, "a coroutine runs in a task"
    endings = [each for each in _ENDINGS if signal.getsignal(each) is signal.SIG_DFL]  # nohup, for one, ignores SIGHUP
    for number in endings:
        loop.add_signal_handler(number, task.cancel)  # so that the servers are ended, too
    output.console.print(f"Relaying {plan.jobs} jobs at {plan.rate_per_s:g} updates a second ...")
    async with open_demo(signer) as under_way:
        async with live(output.console, under_way.tally):
            result = await under_way.relay_all(plan)
        stop = asyncio.Event()
        if output.keep:
            for number in (signal.SIGINT, *endings):
                loop.add_signal_handler(number, stop.set)
        else:
            stop.set()
        output.report(under_way, result)
        await stop.wait()
    return result


@contextlib.contextmanager
def _folder() -> Generator[Path]:
    """A new folder that goes away, unless something went wrong that the log in it may explain."""
    folder = Path(tempfile.mkdtemp(prefix="relay-demo-"))
    try:
        yield folder
    except Exception:
        complain(f"the log of the demo's relay is in {folder}")
        raise
    except BaseException:
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)
