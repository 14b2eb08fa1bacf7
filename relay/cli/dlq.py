"""`relay dlq`."""

import contextlib
import datetime as dt
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import typer

from relay.cli.common import complain, nats_client, read_settings, run, tell
from relay.cli.dlq_display import count_line, details, heading, json_row, row
from relay.cli.dlq_purge import plan_purge
from relay.cli.dlq_replay import ReplayOptions, replay_selected
from relay.contract.settings import NatsSettings
from relay.contract.subjects import DLQ_STREAM, Reason
from relay.dead_letters import stream
from relay.dead_letters.purge import PurgePlan, remove
from relay.dead_letters.selection import Selection, parse_selection

dlq = typer.Typer(name="dlq", help="List dead letters, publish them again, or remove them.", no_args_is_help=True)

_WIDTH_UNKNOWN: Final = (120, 24)

Sequences = Annotated[
    list[int] | None, typer.Argument(metavar="[SEQ]...", help="Their sequences in JOB_DLQ, which `list` shows.")
]
Job = Annotated[str | None, typer.Option(help="Only those of one job: its UUID.")]
ForReason = Annotated[Reason | None, typer.Option(help="Only those with this reason.")]
Since = Annotated[
    str | None, typer.Option(help="Only those of the last 90s, 15m, 2h or 3d, or since an ISO 8601 time.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="At most this many, the oldest first.")]
All = Annotated[bool, typer.Option("--all", help="All dead letters.")]


@dlq.command("list")
def list_letters(
    *,
    job: Job = None,
    reason: ForReason = None,
    since: Since = None,
    limit: Limit = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Print dead letters, oldest first, and how many there are of each reason.

    On a terminal they are a table. With --json, or if the output is not a terminal, they are one JSON object per line,
    and the counts go to standard error.
    """
    selection = _selection(job=job, reason=reason, since=since, limit=limit)
    run(_list(selection, as_json=as_json or not sys.stdout.isatty()))


@dlq.command()
def show(
    sequence: Annotated[int, typer.Argument(metavar="SEQ", min=1, help="Its sequence in JOB_DLQ, which `list` shows.")],
    *,
    full: Annotated[bool, typer.Option("--full", help="Print the whole body.")] = False,
) -> None:
    """Print everything about one dead letter: why it is there, what to do, its headers and its body."""
    run(_show(sequence, full=full))


@dlq.command()
def replay(
    sequences: Sequences = None,
    *,
    job: Job = None,
    reason: ForReason = None,
    since: Since = None,
    limit: Limit = None,
    everything: All = False,
    from_file: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="All in a file that `purge --export` wrote.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; print what would be done.")] = False,
    rate: Annotated[float | None, typer.Option(min=0.01, help="Publish at most this many per second.")] = None,
) -> None:
    """Publish dead letters again, unchanged and in their order, and remove each after its PubAck.

    If it is interrupted, run it again: no update is lost or sent twice. Exit code 1 if any that you selected is left.
    """
    selected = _selection(sequences, job=job, reason=reason, since=since, limit=limit)
    if from_file is not None:
        if everything or selected != Selection():
            raise typer.BadParameter("--from FILE replays all that is in the file: give no other selection")
    else:
        _require_choice(selected, everything=everything)
    options = ReplayOptions(selected, from_file, dry_run=dry_run, rate_per_s=rate)
    if not run(_replay(options)):
        raise typer.Exit(1)


@dlq.command()
def purge(
    sequences: Sequences = None,
    *,
    job: Job = None,
    reason: ForReason = None,
    since: Since = None,
    limit: Limit = None,
    everything: All = False,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="First write them to a new file, as JSON lines.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove dead letters and their updates for good, after asking.

    `replay --from` publishes what --export wrote. The file is on disk before anything is removed.
    """
    selected = _selection(sequences, job=job, reason=reason, since=since, limit=limit)
    _require_choice(selected, everything=everything)
    if not yes and not sys.stdin.isatty():
        raise typer.BadParameter("there is no terminal to ask at: give --yes")
    nats = read_settings().nats
    plan = run(_plan(nats, selected, export))
    if export is not None:
        tell(f"exported {plan.reasons.total()} to {export}")
    if selected.sequences:
        _require_all_found(selected, plan)
    if not plan.reasons:
        typer.echo("nothing to remove")
        return
    # Ask between two connections: the server would close one that answers no pings while the operator thinks.
    if not yes:
        typer.echo(count_line(plan.reasons, limited=False))
        typer.confirm("Remove them for good?", abort=True)
    typer.echo(f"removed {run(_remove(nats, selected, plan))}")


def _require_all_found(selection: Selection, plan: PurgePlan) -> None:
    if missing := len(set(selection.sequences)) - plan.reasons.total():
        complain(f"of the sequences given, {missing} are not in {DLQ_STREAM}; nothing was removed")
        raise typer.Exit(1)


def _selection(
    sequences: list[int] | None = None,
    *,
    job: str | None,
    reason: Reason | None,
    since: str | None,
    limit: int | None,
) -> Selection:
    if sequences and (job or reason or since or limit):
        raise typer.BadParameter("give sequences or a selection, not both")
    if any(sequence < 1 for sequence in sequences or ()):
        raise typer.BadParameter("a sequence is a whole number from 1")
    try:
        selected = parse_selection(job or "", reason or "", since or "", dt.datetime.now(dt.UTC))
    except ValueError as error:
        raise typer.BadParameter(f"--{error}") from None
    return replace(selected, sequences=tuple(sequences or ()), limit=limit)


def _require_choice(selection: Selection, *, everything: bool) -> None:
    # A command without a condition must not take all of them, and --all with a condition is a mistake.
    if everything == (selection != Selection()):
        raise typer.BadParameter("say which: SEQ..., or any of --job, --reason, --since and --limit, or --all alone")


async def _list(selection: Selection, *, as_json: bool) -> None:
    reasons: Counter[str] = Counter()
    width = shutil.get_terminal_size(_WIDTH_UNKNOWN).columns
    async with nats_client(read_settings().nats) as client:
        up_to = await stream.last_sequence(client)
        async with contextlib.aclosing(stream.read(client, selection, up_to)) as letters:
            async for letter in letters:
                if not reasons and not as_json:
                    typer.echo(heading(width))
                reasons[letter.reason] += 1
                # Not by `echo`, which flushes each line: there may be a million.
                sys.stdout.write((json_row(letter) if as_json else row(letter, width)) + "\n")
    sys.stdout.flush()  # so that the count comes last
    typer.echo(count_line(reasons, limited=reasons.total() == selection.limit), err=as_json)


async def _show(sequence: int, *, full: bool) -> None:
    async with nats_client(read_settings().nats) as client:
        letter = await stream.find(client, sequence)
    if letter is None:
        gone = "it was replayed or purged, or there never was one"
        complain(f"there is no dead letter {sequence} in {DLQ_STREAM}: {gone}; `relay dlq list` shows what is there")
        raise typer.Exit(1)
    for line in details(letter, dt.datetime.now(dt.UTC), full=full):
        typer.echo(line)


async def _replay(options: ReplayOptions) -> bool:
    async with nats_client(read_settings().nats) as client:
        return await replay_selected(client, options)


async def _plan(nats: NatsSettings, selection: Selection, export: Path | None) -> PurgePlan:
    async with nats_client(nats) as client:
        return await plan_purge(client, selection, export)


async def _remove(nats: NatsSettings, selection: Selection, plan: PurgePlan) -> int:
    async with nats_client(nats) as client:
        return await remove(client, selection, plan)
