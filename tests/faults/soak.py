"""A long run of good and bad updates: checks that each ends as it must, and that the relay's memory does not grow.

    python -m tests.faults.soak [--updates 1000000] [--minutes 20] [--seed 1] [--json FILE]

It uses a real nats-server, `relay serve` as a process of its own, and the fast sink of the benchmarks. Each good
update carries its number where the sink looks for a time, so that each one is known at the end. The exit code is 1 if
an update was lost, reordered, left unsettled, or dead-lettered wrongly or for a wrong reason, or if the relay's memory
grew. Errors in the relay's log are only printed: nats-server may answer late on a machine that is busy with other work.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import time
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from typing import Any, Final
from uuid import UUID

import uvloop

from bench import machine
from bench.ending import end_in_order
from bench.load import body
from bench.nats_line import UpdateLine
from bench.processes import resident_mib
from bench.scene import Running, note, scene
from bench.systems import RELAY
from relay.contract.environment import load_settings
from relay.contract.settings import Settings
from relay.contract.subjects import DLQ_SUBJECTS, STATUS_STREAM, Reason, api_consumer_info, lane_consumer
from relay.dead_letters import stream
from relay.dead_letters.selection import Selection
from relay.dead_letters.stored import StoredDeadLetter
from relay.nats.connection import close, connect
from relay.nats.frames import FrameClient
from relay.nats.jetstream import api_request
from relay.observability import logs

LIVE_JOBS: Final = 1000
"""How many jobs have unfinished updates at a time."""
BAD_ONE_IN: Final = 20
SAMPLES: Final = 40
MOST_GROWTH_MIB: Final = 16.0
"""How much the median of the later samples may exceed that of the earlier ones, without the start.

When the machine stalls, the lanes fill, and the process keeps the memory for that: once, about 5 MiB.
"""
_BATCH: Final = 50
_OUTSTANDING: Final = 1000
_PATIENCE_S: Final = 120.0
_STATUSES: Final = ("received", "accepted", "executor_ready", "volumes_ready", "execution_done", "completed")
_WARM_UP: Final = 0.25


@dataclass(frozen=True, slots=True)
class PlannedUpdate:
    """One publish. `dead_letter` is the reason for which it must be dead-lettered; None if it must arrive."""

    number: int
    job: str
    body: bytes
    dead_letter: Reason | None = None


@dataclass(slots=True)
class Account:
    """What has been published so far: the job of each update, and which must be dead-lettered. Numbers count from 1."""

    jobs: "array[int]" = field(default_factory=lambda: array("Q", [0]))
    dead_letters: dict[int, Reason] = field(default_factory=dict[int, Reason])

    @property
    def published(self) -> int:
        return len(self.jobs) - 1

    @property
    def good(self) -> int:
        return self.published - len(self.dead_letters)


@dataclass(frozen=True, slots=True)
class Sample:
    elapsed_s: float
    published: int
    arrived: int
    resident_mib: float


def planned_updates(seed: int, account: Account) -> Iterator[PlannedUpdate]:
    """Random updates of new jobs, without end; each is recorded in `account` when it is made."""
    rng = Random(seed)
    live: list[tuple[str, int]] = [("", len(_STATUSES))] * LIVE_JOBS
    while True:
        place = rng.randrange(LIVE_JOBS)
        job, step = live[place]
        if step == len(_STATUSES):
            job, step = str(UUID(int=rng.getrandbits(128), version=4)), 0
        live[place] = job, step + 1
        number = len(account.jobs)
        good = body(job, number, _STATUSES[step])
        is_bad = rng.randrange(BAD_ONE_IN) == 0
        dead_letter, content = _spoil(rng, job, good) if is_bad else (None, _vary(rng, job, good))
        account.jobs.append(UUID(job).int >> 64)
        if dead_letter is not None:
            account.dead_letters[number] = dead_letter
        yield PlannedUpdate(number, job, content, dead_letter)


def _vary(rng: Random, job: str, good: bytes) -> bytes:
    """The same update, written or filled in differently."""
    match rng.randrange(10):
        case 0:
            return b'{"type":"job_status_update","payload":' + good + b"}"
        case 1:
            return good.replace(b'"message_type":"V0JobStatusUpdate",', b"")
        case 2:
            return good.replace(job.encode(), job.upper().encode(), 1)
        case 3:
            return good.replace(b'"docker_process_stderr":""', b'"docker_process_stderr":"\\u0000"')
        case 4:
            return good.replace(b'"docker_process_stderr":""', b'"docker_process_stderr":"%b"' % (b"x" * 20_000))
        case _:
            return good


def _spoil(rng: Random, job: str, good: bytes) -> tuple[Reason, bytes]:
    """The update with a fault because of which it must be dead-lettered, and the reason."""
    other = str(UUID(int=rng.getrandbits(128), version=4))
    return rng.choice(
        (
            (Reason.INVALID_JSON, good[: rng.randrange(len(good))]),
            (Reason.INVALID_JSON, rng.randbytes(200)),
            (Reason.INVALID_JSON, good.replace(b'"metadata":{', b'"metadata":{"x":NaN,')),
            (
                Reason.INVALID_JSON,
                good.replace(b'"metadata":{', b'"metadata":{"x":' + b"[" * 9000 + b"]" * 9000 + b","),
            ),
            (Reason.INVALID_SCHEMA, good.replace(b'"uuid":', b'"progress":1,"uuid":')),
            (Reason.UNKNOWN_STATUS, good.replace(b'"status":"', b'"status":"re-')),
            (Reason.INVALID_UUID, good.replace(job.encode(), b"job-" + job.encode(), 1)),
            (Reason.UUID_MISMATCH, good.replace(job.encode(), other.encode(), 1)),
        )
    )


def publish(url: str, wanted: Iterator[PlannedUpdate], rate_per_s: float) -> None:
    """Publish all, in order and at a steady rate. Raises ConnectionError if an update was not stored.

    It blocks, and so belongs in a thread: a client library would use the processor time that the relay needs.
    """
    with closing(UpdateLine(url, confirmed=True)) as line:
        began_s = time.monotonic()
        while batch := list(islice(wanted, _BATCH)):
            time.sleep(max(0.0, began_s + line.published / rate_per_s - time.monotonic()))
            line.publish([line.update(each.job, each.body) for each in batch])
            _await_acks(line, _OUTSTANDING)
        _await_acks(line, 0)
        if line.refused:
            raise ConnectionError(f"nats-server refused {line.refused} updates")


def _await_acks(line: UpdateLine, at_most: int) -> None:
    until_s = time.monotonic() + _PATIENCE_S
    line.read_at_hand()
    while line.outstanding > at_most:
        if time.monotonic() > until_s:
            raise ConnectionError(f"nats-server owes {line.outstanding} PubAcks for {_PATIENCE_S:g} s")
        line.read(1.0)


class DeadLetterCount:
    """Counts dead letters while they are written."""

    def __init__(self) -> None:
        self._count = 0
        self._news = asyncio.Event()

    async def watch(self, client: FrameClient) -> None:
        async def heard(_: Any) -> None:
            self._count += 1
            self._news.set()

        await client.subscribe(DLQ_SUBJECTS, cb=heard)
        await client.flush()

    async def wait(self, count: int, timeout_s: float) -> None:
        """Return when there are `count`, or after `timeout_s`; what is missing is reported at the end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._count < count:
                    self._news.clear()
                    await self._news.wait()


@contextlib.asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[FrameClient]:
    client = await connect(settings.nats, name="soak")
    try:
        yield client
    finally:
        await close(client)


async def soak(updates: int, minutes: float, seed: int) -> dict[str, Any]:
    """Do the whole run; `problems` in the result is empty if it went well."""
    account = Account()
    async with scene(RELAY, LIVE_JOBS) as place:
        settings = load_settings(place.environment, None)
        async with connected(settings) as client:
            letters = DeadLetterCount()
            await letters.watch(client)
            async with place.running() as running:
                wanted = islice(planned_updates(seed, account), updates)
                url, rate_per_s = place.broker.urls[0], updates / (60 * minutes)
                publishing = asyncio.create_task(asyncio.to_thread(publish, url, wanted, rate_per_s))
                watched = _watched(publishing, running, account, 60 * minutes / SAMPLES)
                samples = [sample async for sample in watched]
                await publishing
                await running.recorder.wait(account.good, _PATIENCE_S)
                await letters.wait(len(account.dead_letters), _PATIENCE_S)
            arrivals = await running.recorder.take()
            problems = await _problems(account, arrivals.sent_ns, client, settings.delivery.lanes)
        # At level error, each line of the relay's log is a complaint.
        complaints = (place.folder / "relay.log").read_text(errors="replace").splitlines()
    growth_mib = growth(samples)
    if growth_mib > MOST_GROWTH_MIB:
        problems.append(f"the relay's memory grew by {growth_mib:.1f} MiB")
    return {
        "updates": account.published,
        "good": account.good,
        "minutes": minutes,
        "seed": seed,
        "dead_letters": dict(Counter(account.dead_letters.values()).most_common()),
        "memory": [asdict(sample) for sample in samples],
        "memory_growth_mib": round(growth_mib, 2),
        "longest_still_s": round(longest_still_s(arrivals.arrived_ns), 1),
        "repeats": arrivals.duplicates,
        "complaints": complaints,
        "problems": problems,
    }


async def _watched(
    publishing: asyncio.Task[None], running: Running, account: Account, interval_s: float
) -> AsyncIterator[Sample]:
    """A sample every `interval_s`, and a last one when all is published."""
    began_s = time.monotonic()
    while True:
        done, _ = await asyncio.wait({publishing}, timeout=interval_s)
        elapsed_s, mib = round(time.monotonic() - began_s, 1), round(resident_mib(running.child.pid), 2)
        sample = Sample(elapsed_s, account.published, await running.recorder.count(), mib)
        note(f"{sample.published:,} published, {sample.arrived:,} arrived, {sample.resident_mib} MiB")
        yield sample
        if done:
            return


def growth(samples: list[Sample]) -> float:
    """How many MiB the later samples exceed the earlier ones, without the first quarter."""
    warm = [sample.resident_mib for sample in samples[int(len(samples) * _WARM_UP) :]]
    half = len(warm) // 2
    return statistics.median(warm[half:]) - statistics.median(warm[:half]) if half else 0.0


def longest_still_s(arrived_ns: Sequence[int]) -> float:
    """The longest time without an arrival, in seconds."""
    return max((later - earlier for earlier, later in pairwise(arrived_ns)), default=0) / 1e9


async def _problems(account: Account, numbers: Sequence[int], client: FrameClient, lanes: int) -> list[str]:
    arrived = list(dict.fromkeys(numbers))  # only the first arrival of each counts
    expected = set(range(1, len(account.jobs))) - account.dead_letters.keys()
    # There was only this publisher, on an empty stream, so an update's number is its sequence.
    letters = {letter.source_sequence: letter.reason async for letter in _dead_letters(client)}
    untrue = {number for number, reason in letters.items() if account.dead_letters.get(number) != reason}
    return [
        *_named("did not arrive", expected - set(arrived)),
        *_named("arrived and must not", set(arrived) - expected),
        *_named("arrived after a later one of their job", set(_reordered(arrived, account.jobs))),
        *_named("are no dead letters and must be", account.dead_letters.keys() - letters.keys()),
        *_named("are dead letters for no or another reason", untrue),
        *[f"lane {lane} has {left} unsettled updates" for lane in range(lanes) if (left := await _left(client, lane))],
    ]


async def _dead_letters(client: FrameClient) -> AsyncIterator[StoredDeadLetter]:
    async for letter in stream.read(client, Selection(), await stream.last_sequence(client)):
        yield letter


async def _left(client: FrameClient, lane: int) -> int:
    info = await api_request(client, api_consumer_info(STATUS_STREAM, lane_consumer(lane)))
    return info["num_pending"] + info["num_ack_pending"]


def _reordered(arrived: Iterable[int], jobs: Sequence[int]) -> Iterator[int]:
    newest: dict[int, int] = {}
    for number in arrived:
        if number < newest.get(jobs[number], 0):
            yield number
        else:
            newest[jobs[number]] = number


def _named(what: str, numbers: Collection[int]) -> list[str]:
    if not numbers:
        return []
    return [f"{len(numbers)} updates {what}, such as {', '.join(map(str, sorted(numbers)[:5]))}"]


def show(result: dict[str, Any]) -> str:
    """The result in words, with the memory curve as a table."""
    lines = [
        f"{result['updates']:,} updates in {result['minutes']:g} minutes, seed {result['seed']}",
        f"good: {result['good']:,}",
        "dead letters: " + ", ".join(f"{reason} {count:,}" for reason, count in result["dead_letters"].items()),
        "",
        f"{'seconds':>8} {'published':>12} {'arrived':>12} {'resident MiB':>13}",
    ]
    lines += [
        f"{sample['elapsed_s']:8.1f} {sample['published']:12,} {sample['arrived']:12,} {sample['resident_mib']:13.2f}"
        for sample in result["memory"]
    ]
    lines += ["", f"growth of the resident memory after the first quarter: {result['memory_growth_mib']} MiB"]
    lines += [f"longest time in which nothing arrived: {result['longest_still_s']} s; repeats: {result['repeats']:,}"]
    lines += [f"the relay complained: {line}" for line in result["complaints"]]
    return "\n".join([*lines, *(f"BROKEN: {problem}" for problem in result["problems"] or ())])


def main() -> None:
    """Do the run; the exit code is 1 if it found a problem."""
    arguments = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=(__doc__ or "").split("\n")[0])
    arguments.add_argument("--updates", type=int, default=1_000_000)
    arguments.add_argument("--minutes", type=float, default=20.0, help="over which they are published (%(default)s)")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--json", type=Path, help="where the result goes")
    options = arguments.parse_args()
    say = sys.stdout.write
    logs.configure("warning", "console")
    end_in_order()
    say(machine.sentence(machine.describe()) + "\n")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(soak(options.updates, options.minutes, options.seed))
    say(show(result) + "\n")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(1 if result["problems"] else 0)


if __name__ == "__main__":
    main()
