"""Records what arrived and when, and answers questions about it on stdin. The sink uses it, and floors without a sink.

The process first prints a line `{"ready": true, ...}`, then answers each line of stdin with one line of JSON:

    count           how many updates have arrived since the last `take`: {"count": N}
    wait N SECONDS  the same, as soon as the count is N or more, or after SECONDS
    take PATH       the same; also writes (sent_ns, arrived_ns) of each as two native int64 to PATH, and forgets them
"""

import asyncio
import contextlib
import json
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import uvloop

_NOBODY_WAITS: Final = sys.maxsize
_PER_UPDATE: Final = 2


class Arrivals:
    """Pairs of times in nanoseconds, in order of arrival. Each pair takes 16 bytes until it is taken."""

    def __init__(self) -> None:
        self._pairs = array("q")
        self._awaited = _NOBODY_WAITS
        self._reached = asyncio.Event()

    def __len__(self) -> int:
        return len(self._pairs) // _PER_UPDATE

    def record(self, sent_ns: int) -> None:
        """Record that an update that was due at `sent_ns` arrives now."""
        pairs = self._pairs
        pairs.append(sent_ns)
        pairs.append(time.monotonic_ns())
        if len(pairs) >= self._awaited:
            self._reached.set()

    async def wait(self, count: int, timeout_s: float) -> None:
        """Return when `count` updates have arrived, or after `timeout_s`."""
        self._reached.clear()
        if len(self) >= count:
            return
        self._awaited = count * _PER_UPDATE
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._reached.wait()
        self._awaited = _NOBODY_WAITS

    def take(self, path: Path) -> int:
        """Write the pairs to `path` and forget them; returns how many there were."""
        with path.open("wb") as file:
            self._pairs.tofile(file)
        count = len(self)
        self._pairs = array("q")
        return count


async def answer(arrivals: Arrivals, **ready: Any) -> None:
    """Print the ready line with `ready`, and answer the harness's commands until it closes stdin."""
    say({"ready": True} | ready)
    async for line in await _stdin():
        match line.decode().split():
            case ["count"]:
                count = len(arrivals)
            case ["wait", wanted, seconds]:
                await arrivals.wait(int(wanted), float(seconds))
                count = len(arrivals)
            case ["take", path]:
                count = arrivals.take(Path(path))
            case unknown:
                raise ValueError(f"not a command: {unknown}; see bench/arrivals.py")
        say({"count": count})


def say(what: dict[str, Any]) -> None:
    """Print one line of JSON for the harness."""
    print(json.dumps(what), flush=True)


def run(main: Callable[[], Any]) -> None:
    """Run a coroutine function as the relay runs: on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def _stdin() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader
