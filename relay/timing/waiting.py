"""Waiting for an event with a time limit."""

import asyncio
import contextlib


async def set_within(event: asyncio.Event, timeout_s: float | None) -> bool:
    """Wait until the event is set, at most `timeout_s` seconds (None: no limit). Returns whether it is set.

    Cancelling is safe.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    return event.is_set()
