"""Waiting with a time limit."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator


async def set_within(event: asyncio.Event, timeout_s: float | None) -> bool:
    """Wait until the event is set, at most `timeout_s` seconds (None: no limit). Returns whether it is set.

    Cancelling is safe.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    return event.is_set()


@contextlib.asynccontextmanager
async def at_most(timeout_s: float, problem: str) -> AsyncGenerator[None]:
    """Cancel the block after `timeout_s` seconds; then raise a TimeoutError that says "`problem` within 2 s"."""
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if limit.expired():
            raise TimeoutError(f"{problem} within {timeout_s:g} s") from error
        raise
