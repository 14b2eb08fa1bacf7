"""`relay demo`."""

import asyncio
import contextlib
import dataclasses
import json
import shutil
import signal
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from relay import logs
from relay.cli.console import complain, run
from relay.identity import Signer
from relay.local.demo import Demo, Plan, make_hotkey, open_demo
from relay.local.display import directions, jobs_by_status, live, summary
from relay.local.tally import Result

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
    plan = Plan(jobs, rate, seed)
    console = Console(quiet=as_json, highlight=False, soft_wrap=True)
    with _folder() as log, log.open("w") as log_file:
        with contextlib.redirect_stderr(log_file):  # what `configure` takes for standard error, it keeps
            logs.configure("info", "console")
        signer = make_hotkey(log.parent)
        console.print(f"Relaying {jobs} jobs at {rate:g} updates a second ...")

        def report(under_way: Demo, result: Result) -> None:
            if as_json:
                typer.echo(json.dumps(dataclasses.asdict(result)))
            else:
                _print_summary(console, under_way, result, log, keep=keep)

        try:
            result = run(_demonstrate(signer, plan, console, report, keep=keep))
        except asyncio.CancelledError:
            raise typer.Exit(_EXIT_AT_SIGTERM) from None
        if not result.kept_the_promise:
            raise typer.Exit(1)


async def _demonstrate(
    signer: Signer, plan: Plan, console: Console, report: Callable[[Demo, Result], None], *, keep: bool
) -> Result:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None, "a coroutine runs in a task"
    loop.add_signal_handler(signal.SIGTERM, task.cancel)  # so that the servers are ended, too
    async with open_demo(signer) as under_way:
        async with live(console, under_way.tally):
            result = await under_way.relay_all(plan)
        stop = asyncio.Event()
        if keep:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop.set)
        else:
            stop.set()
        report(under_way, result)
        await stop.wait()
    return result


def _print_summary(console: Console, under_way: Demo, result: Result, log: Path, *, keep: bool) -> None:
    console.print(jobs_by_status(under_way.tally), summary(result, under_way.tally.repeated), sep="\n")
    if keep:
        console.print(f"Up until Ctrl-C; the relay's log is {log}. To look further, in another terminal:")
    else:
        console.print("To look further, run `relay demo --keep`; with the addresses that it prints:")
    console.print(directions(under_way.nats_url, under_way.http_port))


@contextlib.contextmanager
def _folder() -> Generator[Path]:
    """The log file in a new folder, which goes away, unless something went wrong that the log may explain."""
    folder = Path(tempfile.mkdtemp(prefix="relay-demo-"))
    log = folder / "relay.log"
    try:
        yield log
    except Exception:
        complain(f"the log of the demo's relay is in {log}")
        raise
    except BaseException:
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)
