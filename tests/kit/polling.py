"""Waiting for what tells nobody that it has happened; for everything else there is an event to wait for."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar, cast

T = TypeVar("T")

_LOOK_EVERY_S: Final = 0.01


async def until(look: Callable[[], Awaitable[T] | T], within_s: float = 20) -> T:
    """Look again and again, and return what `look` finds as soon as that is true.

    Raises TimeoutError if it finds nothing for `within_s`.
    """
    async with asyncio.timeout(within_s):
        while True:
            found = look()
            if seen := cast("T", await found if inspect.isawaitable(found) else found):
                return seen
            await asyncio.sleep(_LOOK_EVERY_S)
