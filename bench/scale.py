"""Measures the relay under growth and failure: memory by number of jobs, recovery, start-up, cost of durability."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final

from bench.harness import Latency, Plan, latency, problem_of
from bench.processes import BenchError, resident_mib
from bench.scene import Broker, Published, Recorder, Running, Scene, cluster, note, scene, single_server
from bench.systems import RELAY

JOBS: Final = (10, 10_000, 1_000_000)
RATE: Final = 1000
BACKLOG: Final = 100_000
RECOVERY_S: Final = 30.0
TOLERANCE_MS: Final = 100.0
"""The relay has recovered once no more updates are late by more than this."""
DURABILITIES: Final[dict[str, Callable[[], AbstractAsyncContextManager[Broker]]]] = {
    "1 server, fsync every 2 minutes (default)": single_server,
    "1 server, fsync every second": lambda: single_server("1s"),
    "1 server, fsync always": lambda: single_server("always"),
    "3 servers, 3 replicas": cluster,
}
_LEAST_UPDATES: Final = 20_000
_SAMPLES: Final = 20
_SAMPLE_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident MiB of the relay by updates relayed, each of another job until `jobs` have one; then latency at RATE."""

    jobs: int
    round: int
    updates: list[int]
    resident_mib: list[float]
    quantiles_ms: list[float]
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Recovery:
    """Seconds from the relay's start until it had caught up with `backlog` updates and RATE new ones a second."""

    round: int
    backlog: int
    seconds: float
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class StartUp:
    """Seconds from the start of the process to the arrival of an update that was waiting."""

    round: int
    seconds: float
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Durability:
    """The cost of a way of storing: the highest rate of publishes a second, and the relay's latency at RATE."""

    variant: str
    round: int
    publishes_per_s: float
    quantiles_ms: list[float]
    problem: str | None = None


Measurement = Memory | Recovery | StartUp | Durability


async def measure_scale(plan: Plan) -> AsyncIterator[Measurement]:
    """Yield each measurement as it is taken. `plan.backlog` is a factor on jobs and backlogs."""
    for number in range(plan.rounds):
        note(f"round {number + 1} of {plan.rounds}: start-up and recovery")
        yield await start_up(number)
        yield await recovery(number, round(BACKLOG * plan.backlog), plan.jobs)
        for variant in DURABILITIES:
            note(f"round {number + 1} of {plan.rounds}: {variant}")
            yield await durability(variant, number, plan)
        for jobs in JOBS:
            note(f"round {number + 1} of {plan.rounds}: {jobs:,} jobs")
            yield await memory(max(1, round(jobs * plan.backlog)), number, plan)


async def memory(jobs: int, number: int, plan: Plan) -> Memory:
    updates: list[int] = []
    resident: list[float] = []
    latencies: list[Latency] = []

    async def relay_jobs() -> None:
        async with scene(RELAY, jobs) as place, place.running() as running:
            total = max(jobs, round(_LEAST_UPDATES * min(1.0, plan.backlog)))
            async with asyncio.TaskGroup() as group:
                group.create_task(place.fill(total))
                async for count, mib in _memory_curve(running, total):
                    updates.append(count)
                    resident.append(mib)
            await running.recorder.take()
            latencies.append(await latency(place, running, RATE, plan.seconds, number))

    problem = await problem_of(RELAY, relay_jobs)
    measured = latencies[0] if latencies else None
    problem = problem or (measured.problem if measured else None)
    return Memory(jobs, number, updates, resident, measured.quantiles_ms if measured else [], problem)


async def _memory_curve(running: Running, total: int) -> AsyncIterator[tuple[int, float]]:
    for sample in range(1, _SAMPLES + 1):
        wanted = total * sample // _SAMPLES
        count = await running.recorder.wait(wanted, _SAMPLE_S)
        if count < wanted:
            raise BenchError(f"{count:,} of {total:,} updates arrived, and no more in {_SAMPLE_S:g} s")
        yield count, resident_mib(running.child.pid)


async def recovery(number: int, backlog: int, jobs: int) -> Recovery:
    seconds: list[float] = []

    async def recover() -> None:
        async with scene(RELAY, jobs) as place:
            await place.fill(backlog)
            publishing = asyncio.create_task(place.publish_at(RATE, RECOVERY_S))
            try:
                began_ns = time.monotonic_ns()
                async with place.running() as running:
                    last_ns = await _last_late_ns(running.recorder, publishing, backlog)
                    seconds.append((last_ns - began_ns) / 1e9)
            finally:
                publishing.cancel()
                await asyncio.gather(publishing, return_exceptions=True)

    problem = await problem_of(RELAY, recover)
    return Recovery(number, backlog, seconds[0] if seconds else 0.0, problem)


async def _last_late_ns(recorder: Recorder, publishing: asyncio.Task[Published], backlog: int) -> int:
    published = await publishing
    await recorder.wait(backlog + published.expected, _SAMPLE_S)
    pairs = await recorder.take()
    last_ns = pairs.last_late_ns(TOLERANCE_MS)
    assert last_ns is not None, "the backlog waited for the relay to start"
    if len(pairs) < backlog + published.expected or last_ns > max(pairs.sent_ns):
        raise BenchError(f"not recovered from a backlog of {backlog:,} within {RECOVERY_S:g} s")
    return last_ns


async def start_up(number: int) -> StartUp:
    seconds: list[float] = []

    async def start() -> None:
        async with scene(RELAY, 1) as place:
            await place.fill(1)
            began_ns = time.monotonic_ns()
            async with place.running() as running:
                if not await running.recorder.wait(1, _SAMPLE_S):
                    raise BenchError(f"nothing arrived within {_SAMPLE_S:g} s")
                pairs = await running.recorder.take()
                seconds.append((pairs.arrived_ns[0] - began_ns) / 1e9)

    problem = await problem_of(RELAY, start)
    return StartUp(number, seconds[0] if seconds else 0.0, problem)


async def durability(variant: str, number: int, plan: Plan) -> Durability:
    results: list[tuple[float, Latency]] = []

    async def store_and_relay() -> None:
        async with scene(RELAY, plan.jobs, DURABILITIES[variant]()) as place:
            stored = await place.fill(max(1, round(_LEAST_UPDATES * plan.backlog)))
            async with place.running() as running:
                results.append((stored.published / stored.seconds, await _latency_after(place, running, stored, plan)))

    problem = await problem_of(RELAY, store_and_relay)
    if not results:
        return Durability(variant, number, 0.0, [], problem)
    per_s, measured = results[0]
    return Durability(variant, number, per_s, measured.quantiles_ms, measured.problem)


async def _latency_after(place: Scene, running: Running, stored: Published, plan: Plan) -> Latency:
    if await running.recorder.wait(stored.expected, _SAMPLE_S) < stored.expected:
        raise BenchError(f"the backlog was not relayed within {_SAMPLE_S:g} s")
    await running.recorder.take()
    return await latency(place, running, RATE, plan.seconds, 0)
