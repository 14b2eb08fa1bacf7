"""The clock that leases, waits and beats go by."""

import time


def now_s() -> float:
    """Seconds on the monotonic clock.

    Not the event loop's clock: uvloop reads that once a turn, and a process that was stopped for a while would take its
    leases for good still.
    """
    return time.monotonic()
