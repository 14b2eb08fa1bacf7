"""Waiting with a limit."""

import asyncio
import contextlib


async def set_within(event: asyncio.Event, timeout_s: float | None) -> bool:
    """Wait until the event is set, for at most so many seconds (None: no limit); whether it is set then.

    Cancelling it is safe.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    return event.is_set()
