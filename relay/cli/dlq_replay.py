"""`relay dlq replay`: from the selected dead letters to the account at the end."""

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

from relay.cli.console import complain
from relay.contract.subjects import DLQ_STREAM, STATUS_STREAM
from relay.contract.text import escape
from relay.contract.wire import Fault, decode
from relay.dead_letters.replay import Account, Replayed, Republisher, replay_all
from relay.dead_letters.store import DeadLetterStore
from relay.dead_letters.stored import Selection, StoredDeadLetter, from_line
from relay.nats.frames import FrameClient
from relay.nats.pipeline import Pipeline, pipelined

_ALLOCATIONS_PER_SEARCH: Final = 20_000
_AGAIN: Final = "run the same command again: nothing is lost, and nothing is sent twice"


@dataclass(frozen=True, slots=True)
class Source:
    """What to replay, and how: from the stream, or from a file if `path` is given."""

    selection: Selection
    path: Path | None
    dry_run: bool
    rate_per_s: float | None


async def replay_selected(client: FrameClient, source: Source) -> bool:
    """Replay, and print how it went; returns whether all that was selected is sent."""
    store, selected = DeadLetterStore(client), _Selected(source)
    if source.dry_run:
        async with contextlib.aclosing(selected.letters(store, complain)) as letters:
            return await _rehearse(letters)
    total = await selected.total(store)
    account = Account()
    try:
        await _replay(client, selected, total, account)
    except asyncio.CancelledError:
        _report(account, selected, total)
        complain(f"interrupted; to go on, {_AGAIN}")
        raise
    _report(account, selected, total)
    if account.failure is not None:
        complain(f"stopped: {account.failure}; when that is mended, {_AGAIN}")
    return not (account.failure or account.unfit or selected.missing)


async def _replay(client: FrameClient, selected: "_Selected", total: int | None, account: Account) -> None:
    # What was loaded stays to the end, and letters leave nothing behind that only a search finds: a tenth of the time.
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS_PER_SEARCH)
    async with pipelined(client) as pipeline:
        await _replay_with_progress(DeadLetterStore(client), selected, pipeline, total, account)


async def _replay_with_progress(
    store: DeadLetterStore, selected: "_Selected", pipeline: Pipeline, total: int | None, account: Account
) -> None:
    republisher = Republisher(pipeline)
    replay = republisher.move if selected.source.path is None else republisher.publish
    with _progress() as progress:
        bar = progress.add_task("replaying", total=total)

        def say(text: str) -> None:
            # Above the bar, where it would else write into it.
            progress.console.print(f"relay: {text}", markup=False, highlight=False, soft_wrap=True)

        def on_replayed(replayed: Replayed) -> None:
            if not progress.disable:
                progress.advance(bar)
            if replayed.unfit:
                say(f"dead letter {replayed.letter.sequence} cannot be replayed, and is kept: {replayed.unfit}")

        rate_per_s = selected.source.rate_per_s
        async with contextlib.aclosing(selected.letters(store, say)) as letters:
            await replay_all(letters, replay, account=account, on_replayed=on_replayed, rate_per_s=rate_per_s)


class _Selected:
    """What is to be replayed, from wherever it comes."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.missing = 0
        """How many sequences were asked for that are not there."""

    async def total(self, store: DeadLetterStore) -> int | None:
        """How many there are; None if only reading them all would tell. Raises BadParameter for a bad file."""
        if self.source.path is not None:
            return sum(1 for _ in _in_file(self.source.path))
        return None if self.source.selection.reason else await store.count(self.source.selection)

    async def letters(self, store: DeadLetterStore, say: Callable[[str], None]) -> AsyncGenerator[StoredDeadLetter]:
        if self.source.path is not None:
            for letter in _in_file(self.source.path):
                yield letter
            return
        selection = self.source.selection
        wanted = set(selection.sequences)
        async with contextlib.aclosing(store.read(selection, await store.last_sequence())) as letters:
            async for letter in letters:
                wanted.discard(letter.sequence)
                yield letter
        self.missing = len(wanted)
        for sequence in sorted(wanted):
            say(f"there is no dead letter {sequence} in {DLQ_STREAM}: replayed or purged before, or never there")


def _in_file(path: Path) -> Iterator[StoredDeadLetter]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
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


async def _rehearse(letters: AsyncGenerator[StoredDeadLetter]) -> bool:
    count = doomed = 0
    async for letter in letters:
        count += 1
        typer.echo(escape(f"would replay {letter.sequence} ({letter.reason}) on {letter.source_subject}"))
        fault = decode(letter.body, letter.job)
        if isinstance(fault, Fault):
            doomed += 1
            typer.echo(escape(f"  it would fail again, with {fault.reason}: {fault.error}"))
    typer.echo(f"{count} would be replayed" + (f", of which {doomed} would fail again as they are" if doomed else ""))
    return True


def _report(account: Account, selected: _Selected, total: int | None) -> None:
    typer.echo(f"replayed {account.replayed}")
    if account.were_there:
        typer.echo(f"{account.were_there} had been replayed before: {STATUS_STREAM} has them, they were not sent again")
    if total is not None and (left := total - selected.missing - account.replayed - account.were_there) > 0:
        typer.echo(f"left {left}")
