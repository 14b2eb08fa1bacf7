"""The clock for leases, waits and beats."""

import time


def now_s() -> float:
    """Seconds on the monotonic clock.

    Not the event loop's clock: uvloop reads that once per turn, and a process that was stopped for a while would still
    believe that its leases are valid.
    """
    return time.monotonic()
