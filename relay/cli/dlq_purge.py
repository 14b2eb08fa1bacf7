"""`relay dlq purge`: the file to which dead letters are exported before they are removed."""

import contextlib
import os
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

import typer

from relay.dead_letters.purge import PurgePlan, exported
from relay.dead_letters.selection import Selection
from relay.nats.frames import FrameClient


async def plan_purge(client: FrameClient, selection: Selection, export: Path | None) -> PurgePlan:
    """Count what there is to remove, and write it to the new file `export`, if that is given.

    Raises BadParameter if the file is there already or cannot be written. If it fails or is cancelled, no file is left.
    """
    plan = PurgePlan()
    with _new_file(export) as file:
        async with contextlib.aclosing(exported(client, selection, plan)) as lines:
            async for line in lines:
                if file is not None:
                    file.write(line)
    return plan


@contextlib.contextmanager
def _new_file(path: Path | None) -> Generator[BinaryIO | None]:
    """The file to export to, which is on the disk when this ends; None if `path` is None."""
    if path is None:
        yield None
        return
    try:
        # It may soon be the only copy of these dead letters: never overwrite another one.
        with path.open("xb") as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                path.unlink()  # nobody shall take it for all of them
                raise
        folder = os.open(path.absolute().parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name of a new file is on the disk when its folder is
        finally:
            os.close(folder)
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be written ({error.strerror}); nothing was removed") from error
