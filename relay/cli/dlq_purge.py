"""`relay dlq purge`: count and export, then remove."""

import contextlib
import os
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import typer

from relay.dead_letters import stream
from relay.dead_letters.export import to_line
from relay.dead_letters.selection import Selection
from relay.dead_letters.sources import SourceUpdates
from relay.dead_letters.stored import StoredDeadLetter
from relay.dead_letters.window import for_each
from relay.nats.frames import FrameClient
from relay.nats.pipeline import pipelined


@dataclass(slots=True)
class PurgePlan:
    """What there is to remove: how many dead letters by reason, and the sequence of the newest one."""

    reasons: Counter[str] = field(default_factory=Counter[str])
    last_sequence: int = 0


async def plan_purge(client: FrameClient, selection: Selection, export: Path | None) -> PurgePlan:
    """Count what there is to remove, and write it to the new file `export`, if that is given.

    Raises BadParameter if the file is there already or cannot be written. Cancelling it leaves an incomplete file.
    """
    plan = PurgePlan()
    up_to = await stream.last_sequence(client)
    with _new_file(export) as file:
        async with contextlib.aclosing(stream.read(client, selection, up_to)) as letters:
            async for letter in letters:
                plan.reasons[letter.reason] += 1
                plan.last_sequence = letter.sequence
                if file is not None:
                    file.write(to_line(letter))
    return plan


async def remove(client: FrameClient, selection: Selection, up_to: int) -> int:
    """Remove what `plan_purge` counted, and nothing newer; returns how many of those were still there.

    `up_to` is the plan's last sequence. Each source is removed before its dead letter, so interrupting this is safe:
    the next purge completes it.
    """
    removed = 0
    async with pipelined(client) as pipeline:
        sources = SourceUpdates(pipeline)

        async def remove_one(letter: StoredDeadLetter) -> None:
            nonlocal removed
            await sources.remove(letter)
            if not selection.is_whole_subject:
                was_there = await stream.remove(pipeline, letter.sequence)
                removed += was_there

        async with contextlib.aclosing(stream.read(client, selection, up_to)) as letters:
            await for_each(letters, remove_one, key=lambda letter: letter.sequence)
    return await stream.remove_all(client, selection.subject, up_to) if selection.is_whole_subject else removed


@contextlib.contextmanager
def _new_file(path: Path | None) -> Generator[BinaryIO | None]:
    """The file to export to, which is on the disk when this ends; None if `path` is None."""
    if path is None:
        yield None
        return
    try:
        # It may soon be the only copy of these dead letters: never overwrite another one.
        with path.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        folder = os.open(path.absolute().parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name of a new file is on the disk when its folder is
        finally:
            os.close(folder)
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be written ({error.strerror}); nothing was removed") from error
