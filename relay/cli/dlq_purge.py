"""`relay dlq purge`: export, ask, remove."""

import contextlib
import os
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import typer

from relay.dead_letters.flow import for_each
from relay.dead_letters.sources import Sources
from relay.dead_letters.store import DeadLetterStore
from relay.dead_letters.stored import Selection, StoredDeadLetter, to_line
from relay.nats.frames import FrameClient
from relay.nats.pipeline import pipelined


@dataclass(slots=True)
class Found:
    """What a selection was about when it was looked at."""

    reasons: Counter[str] = field(default_factory=Counter[str])
    last_sequence: int = 0


async def survey(store: DeadLetterStore, selection: Selection, export: Path | None) -> Found:
    """Count what is to be removed, and write it to the new file `export`, if that is given.

    Raises BadParameter if the file is there already or cannot be written.
    """
    found = Found()
    up_to = await store.last_sequence()
    with _new_file(export) as file:
        async with contextlib.aclosing(store.read(selection, up_to)) as letters:
            async for letter in letters:
                found.reasons[letter.reason] += 1
                found.last_sequence = letter.sequence
                if file is not None:
                    file.write(to_line(letter))
    return found


async def remove(client: FrameClient, selection: Selection, up_to: int) -> int:
    """Remove what `survey` found, and nothing that came later; returns how many that were still there.

    Each one's source goes first, so that what is interrupted is mended by being done again.
    """
    store, removed = DeadLetterStore(client), 0
    async with pipelined(client) as pipeline:
        sources = Sources(pipeline)

        async def remove_one(letter: StoredDeadLetter) -> None:
            nonlocal removed
            await sources.remove(letter)
            if not selection.is_plain:
                was_there = await store.remove(letter.sequence, pipeline)
                removed += was_there

        async with contextlib.aclosing(store.read(selection, up_to)) as letters:
            await for_each(letters, remove_one, turn=lambda letter: letter.sequence)
    return await store.remove_all(selection.subject, up_to) if selection.is_plain else removed


@contextlib.contextmanager
def _new_file(path: Path | None) -> Generator[BinaryIO | None]:
    """The file to export to, on the disk when this ends; None if there is none."""
    if path is None:
        yield None
        return
    try:
        # It may be the only copy of somebody's dead letters soon: never in the place of another.
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
