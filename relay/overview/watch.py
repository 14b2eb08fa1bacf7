"""Reading snapshots one after another, and what happened in between."""

import asyncio
import datetime as dt
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from relay.contract.errors import RelayError
from relay.overview.reader import SnapshotReader
from relay.overview.snapshot import Interval, Snapshot, between


@dataclass(frozen=True, slots=True)
class View:
    """What is known at one moment."""

    at: dt.datetime
    snapshot: Snapshot | None
    """The last one; None if there was none so far."""
    interval: Interval | None
    """What happened since the snapshot before; None if there are not two yet."""
    trouble: str | None = None
    """Why `snapshot` is outdated, in words; None if it is not."""
    error: RelayError | None = None
    """The error behind `trouble`."""


async def watch(reader: SnapshotReader, every_s: float) -> AsyncGenerator[View]:
    """A view every `every_s` seconds, without end. Errors of `reader` are views with a trouble. Cancelling is safe."""
    before: Snapshot | None = None
    latest: Snapshot | None = None
    last_success_s = time.monotonic()
    while True:
        try:
            snapshot = await reader.read()
        except RelayError as error:
            trouble = f"for {time.monotonic() - last_success_s:.0f} s now: {error}"
            before = None  # rates must not cover the time without news
            yield View(dt.datetime.now(dt.UTC), latest, None, trouble, error)
        else:
            interval = between(before, snapshot) if before is not None else None
            before = latest = snapshot
            last_success_s = time.monotonic()
            yield View(dt.datetime.now(dt.UTC), snapshot, interval)
        await asyncio.sleep(every_s)
