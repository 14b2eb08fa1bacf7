"""Takes a core away from everybody for some milliseconds, a few times a second, as busy hosts of virtual machines do.

    python -m bench.stall CORE MS

Runs until it is ended. All cores lose the same moments. Needs the right to run before all others (root).
"""

import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Final

from bench.processes import Child

PER_S: Final = 4
_START_S: Final = 10.0
_PRIORITY: Final = 50
_SLOT_NS: Final = 1_000_000_000 // PER_S


@asynccontextmanager
async def stalls(ms: float) -> AsyncIterator[None]:
    """Meanwhile all cores are taken away for `ms` milliseconds, PER_S times a second; with 0 they are not.

    Raises BenchError if this is not permitted.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="relay-bench-")))
        for core in sorted(os.sched_getaffinity(0)) if ms else ():
            child = Child(f"stall-{core}", ("-m", "bench.stall", str(core), str(ms)), {}, folder)
            await (await stack.enter_async_context(child)).says(_START_S)
        yield


def main(core: int, ms: float) -> None:
    os.sched_setaffinity(0, {core})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
    print("{}", flush=True)
    slot = time.monotonic_ns() // _SLOT_NS
    while True:
        slot += 1
        # The moment within its slot is the same on every core, and looks random.
        begin_ns = slot * _SLOT_NS + Random(slot).randrange(_SLOT_NS - int(ms * 1e6))
        time.sleep(max(0, begin_ns - time.monotonic_ns()) / 1e9)
        while time.monotonic_ns() < begin_ns + ms * 1e6:
            pass


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
