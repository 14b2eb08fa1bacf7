"""Work that goes on beside a block of code, and work that ends when the process is told to stop."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

R = TypeVar("R")


@asynccontextmanager
async def background(*work: Coroutine[Any, Any, None]) -> AsyncGenerator[None]:
    """Run `work` until the block ends, then cancel it. If one of it raises, the block ends with an ExceptionGroup."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in work]
        yield
        for task in tasks:
            task.cancel()


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, R]) -> R | None:
    """The result of `work`, or None if `stop` came first; `work` is cancelled then, or if this is cancelled."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)
