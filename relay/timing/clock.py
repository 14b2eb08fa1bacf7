"""The clock for durations and deadlines. For the time of day there is `time.time`."""

import sys
import time
from functools import partial

if sys.platform == "linux":
    # Python's monotonic clock stands still while the machine is suspended. A worker that went by it would believe after
    # a suspension that its leases are valid, although others drive its lanes by then.
    monotonic = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    """Seconds since some moment. It is never set, and counts the time in which the machine is suspended."""
else:
    monotonic = time.monotonic
