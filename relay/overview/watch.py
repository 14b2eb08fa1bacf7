"""Reading snapshots one after another, and what happened in between."""

import asyncio
import datetime as dt
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final

from relay.contract.errors import RelayError
from relay.observability.logs import get_logger
from relay.overview.reader import SnapshotReader
from relay.overview.snapshot import Interval, Snapshot, between

_log = get_logger(__name__)
_BUG: Final = "what NATS says cannot be read ({!r}); this is a bug of the relay: `relay doctor` may say what is unusual"


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
    """A view every `every_s` seconds, without end. Errors of `reader` are views with a trouble. Cancelling is safe.

    Unexpected exceptions as well: people look on when something is out of order, such as what NATS says.
    """
    before: Snapshot | None = None
    latest: Snapshot | None = None
    last_success_s = time.monotonic()
    logged = ""
    while True:
        try:
            snapshot = await reader.read()
            interval = between(before, snapshot) if before is not None else None
        except Exception as error:  # noqa: BLE001
            if not isinstance(error, RelayError) and logged != (logged := repr(error)):
                _log.warning("the state cannot be read", exc_info=True)
            known = error if isinstance(error, RelayError) else RelayError(_BUG.format(error))
            trouble = f"for {time.monotonic() - last_success_s:.0f} s now: {known}"
            before = None  # rates must not cover the time without news
            yield View(dt.datetime.now(dt.UTC), latest, None, trouble, known)
        else:
            before = latest = snapshot
            last_success_s = time.monotonic()
            yield View(dt.datetime.now(dt.UTC), snapshot, interval)
        await asyncio.sleep(every_s)
