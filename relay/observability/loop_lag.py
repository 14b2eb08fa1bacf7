"""How late the event loop is: everything that this process does waits for that long."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

_EVERY_S: Final = 0.1


async def measure_loop_lag(report: Callable[[float], None]) -> None:
    """Report, ten times a second, by how many seconds the loop was late in calling a timer; until cancelled.

    uvloop's timers are accurate to about a millisecond.
    """
    while True:
        due_s = time.monotonic() + _EVERY_S
        await asyncio.sleep(_EVERY_S)
        report(max(0.0, time.monotonic() - due_s))
