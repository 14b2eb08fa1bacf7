"""`relay dlq replay`: from the selected dead letters to the summary at the end."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from relay.cli.common import complain
from relay.cli.stdin import without_mark
from relay.contract.subjects import DLQ_STREAM, STATUS_STREAM
from relay.contract.text import escape
from relay.dead_letters import stream
from relay.dead_letters.export import from_line
from relay.dead_letters.rehearsal import Rehearser
from relay.dead_letters.replay import ReplayResult
from relay.dead_letters.replay_all import ReplaySummary, replay_with
from relay.dead_letters.selection import Selection
from relay.dead_letters.stored import StoredDeadLetter
from relay.nats.frames import FrameClient

_ALLOCATIONS_PER_COLLECTION: Final = 20_000
_AGAIN: Final = "run the same command again: nothing is lost, and nothing is sent twice"


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """What to replay, and how: from the stream, or from a file if `path` is given."""

    selection: Selection
    path: Path | None
    dry_run: bool
    rate_per_s: float | None


async def replay_selected(client: FrameClient, options: ReplayOptions) -> bool:
    """Replay, and print how it went; returns whether everything that was selected is published.

    Cancelling it is safe: the same command can be run again.
    """
    given = _Input(client, options)
    if options.dry_run:
        async with contextlib.aclosing(given.letters(complain)) as letters:
            return await _rehearse(client, letters)
    total = await given.total()
    summary = ReplaySummary()
    try:
        await _replay(client, given, total, summary)
    except asyncio.CancelledError:
        _report(summary, given, total)
        complain(f"interrupted; to go on, {_AGAIN}")
        raise
    _report(summary, given, total)
    if summary.error is not None:
        complain(f"stopped: {summary.error}; when that is fixed, {_AGAIN}")
    return not (summary.error or summary.problems or given.missing)


async def _replay(client: FrameClient, given: "_Input", total: int | None, summary: ReplaySummary) -> None:
    # What was loaded stays to the end, and replays leave no cycles behind: collecting less often saves a tenth of the
    # time.
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS_PER_COLLECTION)
    with _progress() as progress:
        bar = progress.add_task("replaying", total=total)

        def say(text: str) -> None:
            # By the progress display, which puts it above the bar: a plain print would break the bar.
            progress.console.print(f"relay: {text}", markup=False, highlight=False, soft_wrap=True)

        def on_result(result: ReplayResult) -> None:
            if not progress.disable:
                progress.advance(bar)
            if result.problem:
                say(f"dead letter {result.letter.sequence} cannot be replayed, and is kept: {result.problem}")

        options = given.options
        async with contextlib.aclosing(given.letters(say)) as letters:
            await replay_with(
                client,
                letters,
                summary=summary,
                on_result=on_result,
                rate_per_s=options.rate_per_s,
                remove=options.path is None,
            )


class _Input:
    """The dead letters to replay, from the stream or from a file."""

    def __init__(self, client: FrameClient, options: ReplayOptions) -> None:
        self._client = client
        self.options = options
        self.missing = 0
        """How many of the given sequences are not in the stream."""

    async def total(self) -> int | None:
        """How many there are; None if that takes reading them all. Raises BadParameter for a bad file."""
        if self.options.path is not None:
            return sum(1 for _ in _in_file(self.options.path))
        return None if self.options.selection.reason else await stream.count(self._client, self.options.selection)

    async def letters(self, say: Callable[[str], None]) -> AsyncGenerator[StoredDeadLetter]:
        if self.options.path is not None:
            for letter in _in_file(self.options.path):
                yield letter
            return
        selection, up_to = self.options.selection, await stream.last_sequence(self._client)
        wanted = set(selection.sequences)
        async with contextlib.aclosing(stream.read(self._client, selection, up_to)) as letters:
            async for letter in letters:
                wanted.discard(letter.sequence)
                yield letter
        self.missing = len(wanted)
        for sequence in sorted(wanted):
            say(f"there is no dead letter {sequence} in {DLQ_STREAM}: replayed or purged before, or never there")


def _in_file(path: Path) -> Iterator[StoredDeadLetter]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(without_mark(lines), 1):
                if line.strip():
                    yield _parsed(path, number, line)
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error.strerror}") from error


def _parsed(path: Path, number: int, line: bytes) -> StoredDeadLetter:
    try:
        return from_line(line)
    except ValueError as error:
        raise typer.BadParameter(f"{path}, line {number}: {error}; nothing of it was replayed") from error


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal or console.is_dumb_terminal
    )


async def _rehearse(client: FrameClient, letters: AsyncGenerator[StoredDeadLetter]) -> bool:
    count = invalid = 0
    rehearser = Rehearser(client)
    async for letter in letters:
        rehearsal = await rehearser.rehearse(letter)
        count += 1
        invalid += rehearsal.fault is not None
        typer.echo(escape(f"would replay {letter.sequence} ({letter.reason}) on {letter.source_subject}"))
        for warning in rehearsal.warnings:
            typer.echo(escape(f"  {warning}"))
    typer.echo(f"{count} would be replayed" + (f", of which {invalid} would fail again as they are" if invalid else ""))
    return True


def _report(summary: ReplaySummary, given: _Input, total: int | None) -> None:
    stored = summary.already_stored
    typer.echo(f"replayed {summary.replayed}")
    if stored:
        typer.echo(f"{stored} had been replayed before: {STATUS_STREAM} has them, they were not sent again")
    if total is not None and (left := total - given.missing - summary.replayed - stored) > 0:
        typer.echo(f"left {left}")
