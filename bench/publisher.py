"""The open-loop publisher: `python -m bench.publisher URL (--rate R --seconds S | --fill N)`.

Update k is due at start + k / rate, whatever the system does, and carries its *due* time. So if the publisher is late,
or waits for PubAcks, the delay counts as latency. `--fill` publishes as fast as possible instead. In both modes at most
OUTSTANDING publications wait for their confirmation. The updates go to the jobs `load.job_uuids(jobs)` in turn.

Prints one line of JSON at the end: `published`, `acked`, `refused`, `seconds`, and how late updates were published
(`late_p99_ms`, `late_max_ms`).

Transports: `jetstream` (PubAcks counted), `core` (plain NATS), or the name of a module `bench.systems.NAME_publish`
with `async def connect(url) -> publish`, where `await publish(uuid, payload)` does what the system's own client does
to send an update.
"""

import argparse
import asyncio
import ctypes
import gc
import importlib
import selectors
import sys
import time
from array import array
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from typing import Any, Final

from bench.arrivals import say
from bench.load import body, job_uuids, large_filler, payload
from bench.nats_line import UpdateLine

OUTSTANDING: Final = 1000
GIVE_UP_S: Final = 10.0
"""The publisher stops when it is this late, and waits this long for the last confirmations."""
_PATIENCE_S: Final = 30.0
_HEAD_START_NS: Final = 20_000_000
_NS: Final = 1_000_000_000
_PR_SET_TIMERSLACK: Final = 29

Publish = Callable[[str, dict[str, Any]], Awaitable[None]]


class Schedule:
    """When each of `total` updates is due: `rate` a second, or all at once if `rate` is None."""

    def __init__(
        self, uuids: Sequence[str], total: int, rate: float | None, large_bytes: int = 0, large_every: int = 0
    ) -> None:
        self.total = total
        self._filler = large_filler(large_bytes)
        self._large_every = large_every
        self.done = 0
        self._uuids = uuids
        self._late_ns = array("q")
        self._interval_ns = _NS / rate if rate else 0.0
        self.start_ns = time.monotonic_ns() + (_HEAD_START_NS if rate else 0)
        self._end_ns = self.start_ns + int(total * self._interval_ns + GIVE_UP_S * _NS) if rate else sys.maxsize

    @property
    def over(self) -> bool:
        return self.done >= self.total or time.monotonic_ns() > self._end_ns

    @property
    def due_ns(self) -> int:
        """When the next update is due."""
        return self.start_ns + int(self.done * self._interval_ns)

    @property
    def wait_s(self) -> float:
        """Seconds until the next update is due; 0 if it is due now."""
        return max(0.0, (self.due_ns - time.monotonic_ns()) / _NS) if self._interval_ns else 0.0

    def take(self) -> tuple[str, int]:
        """The job and the due time of the next update, which the caller sends now."""
        now_ns = time.monotonic_ns()
        due_ns = self.due_ns if self._interval_ns else now_ns
        self._late_ns.append(now_ns - due_ns)
        uuid = self._uuids[self.done % len(self._uuids)]
        self.done += 1
        return uuid, due_ns

    def filler(self) -> bytes:
        """The output with which the update that was taken last is large; empty if it is small."""
        return self._filler if self._large_every and self.done % self._large_every == 0 else b""

    def lateness(self) -> dict[str, float]:
        late = sorted(self._late_ns) or [0]
        return {"late_p99_ms": late[int(0.99 * (len(late) - 1))] / 1e6, "late_max_ms": late[-1] / 1e6}


def publish_on_nats(line: UpdateLine, schedule: Schedule) -> None:
    """Publish what is scheduled. Raises TimeoutError if PubAcks stop, ConnectionError if the server disconnects."""
    while not schedule.over:
        # Not read as soon as they come: waking up for each PubAck would cost as much as publishing.
        line.read_at_hand()
        time.sleep(schedule.wait_s)
        batch: list[bytes] = []
        while not schedule.over and not schedule.wait_s and line.outstanding + len(batch) < OUTSTANDING:
            uuid, sent_ns = schedule.take()
            text = body(uuid, sent_ns, filler=schedule.filler())
            batch.append(line.update(uuid, text))
        if batch:
            line.publish(batch)
        elif not schedule.wait_s:
            _await_acks(line, OUTSTANDING // 2)
    line.flush(_PATIENCE_S)
    _await_acks(line, 0)


def _await_acks(line: UpdateLine, at_most: int) -> None:
    until_s = time.monotonic() + _PATIENCE_S
    while line.outstanding > at_most:
        line.read(until_s - time.monotonic())
        if time.monotonic() > until_s:
            raise TimeoutError(f"nats-server still owes {line.outstanding} PubAcks after {_PATIENCE_S:g} s")


async def publish_with(publish: Publish, schedule: Schedule) -> int:
    """Publish what is scheduled; returns how many publishes raised. The first error goes to stderr."""
    errors: list[Exception] = []
    room = asyncio.Semaphore(OUTSTANDING)

    async def send(uuid: str, sent_ns: int) -> None:
        try:
            await publish(uuid, payload(uuid, sent_ns))
        except Exception as error:  # noqa: BLE001 - whatever the client raises, the update was not published
            errors.append(error)
        finally:
            room.release()

    async with asyncio.TaskGroup() as group:
        while not schedule.over:
            if wait_s := schedule.wait_s:
                await asyncio.sleep(wait_s)
            await room.acquire()
            group.create_task(send(*schedule.take()))
    if errors:
        print(f"{len(errors)} updates were refused, the first with {errors[0]!r}", file=sys.stderr)
    return len(errors)


async def _publish_by_library(transport: str, url: str, options: argparse.Namespace, uuids: list[str]) -> None:
    publish: Publish = await importlib.import_module(f"bench.systems.{transport}_publish").connect(url)
    schedule = _schedule(options, uuids)
    refused = await publish_with(publish, schedule)
    _report(schedule, acked=schedule.done - refused, refused=refused)


def _publish_by_line(url: str, options: argparse.Namespace, uuids: list[str]) -> None:
    with closing(UpdateLine(url, confirmed=options.transport == "jetstream")) as line:
        schedule = _schedule(options, uuids)
        publish_on_nats(line, schedule)
    _report(schedule, acked=line.acked, refused=line.refused)


def _schedule(options: argparse.Namespace, uuids: list[str]) -> Schedule:
    gc.freeze()
    gc.disable()
    total = options.fill or round(options.rate * options.seconds)
    rate = None if options.fill else options.rate
    return Schedule(uuids, total, rate, options.large_bytes, options.large_every)


def _report(schedule: Schedule, *, acked: int, refused: int) -> None:
    seconds = (time.monotonic_ns() - schedule.start_ns) / _NS
    say({"published": schedule.done, "acked": acked, "refused": refused, "seconds": seconds} | schedule.lateness())


def wake_up_in_time() -> None:
    # By default Linux may wake a sleeping process 50 microseconds late.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1)


def _precise_loop() -> asyncio.AbstractEventLoop:
    # epoll and uvloop round timeouts to milliseconds, select to microseconds.
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def main() -> None:
    arguments = argparse.ArgumentParser(prog="python -m bench.publisher", description="the open-loop publisher")
    arguments.add_argument("url", help="of the nats-server, or whatever the transport connects to")
    arguments.add_argument("--transport", default="jetstream")
    arguments.add_argument("--jobs", type=int, default=1000)
    arguments.add_argument("--seconds", type=float, default=1.0)
    arguments.add_argument("--large-every", type=int, default=0, help="each so many updates one is large")
    arguments.add_argument("--large-bytes", type=int, default=0, help="how large it is")
    how = arguments.add_mutually_exclusive_group(required=True)
    how.add_argument("--rate", type=float, help="updates a second")
    how.add_argument("--fill", type=int, help="this many updates, as fast as they are confirmed")
    options = arguments.parse_args()
    wake_up_in_time()
    uuids = job_uuids(options.jobs)
    if options.transport in ("jetstream", "core"):
        _publish_by_line(options.url, options, uuids)
    else:
        with asyncio.Runner(loop_factory=_precise_loop) as runner:
            runner.run(_publish_by_library(options.transport, options.url, options, uuids))


if __name__ == "__main__":
    main()
