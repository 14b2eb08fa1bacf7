"""Measures several systems in turn: latency at fixed rates, and the throughput of a backlog.

In each round every system is measured once, on fresh servers. The next round begins with another system, so that what
the machine does besides affects all of them alike.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final

from bench.figures import QUANTILES, SKIPPED, quantiles
from bench.processes import BenchError, cpu_s, resident_mib
from bench.scene import Broker, Published, Running, Scene, note, scene, single_server
from bench.stall import stalls
from bench.systems import System
from relay.contract.errors import RelayError

RATES: Final = (200, 1000, 5000)
BEHIND_S: Final = 10.0
"""How long after the last publish the last update may arrive. A system that needs longer has fallen behind."""
WARM_UP: Final = (500, 2.0)
_BACKLOG_S: Final = 60.0
_LEAST_UPDATES: Final = 1000
"""The least number of updates at each rate, so that at least one of them is above p99.9."""


@dataclass(frozen=True, slots=True)
class Latency:
    """One round at one rate. `quantiles_ms` are at figures.QUANTILES, and empty if nothing arrived."""

    system: str
    round: int
    rate: float
    published: int
    arrived: int
    duplicates: int
    quantiles_ms: list[float]
    late_p99_ms: float
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Saturation:
    """One round of a backlog. Processor time is in microseconds per update: of the system, and of the brokers."""

    system: str
    round: int
    published: int
    arrived: int
    duplicates: int
    per_s: float
    cpu_us: float
    broker_cpu_us: float
    resident_mib: float
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure, and on which servers.

    `backlog` is a factor on the size of each system's backlog; see `bench.stall` for `stall_ms`.
    """

    systems: tuple[System, ...]
    latency: bool = True
    saturation: bool = True
    rounds: int = 5
    jobs: int = 1000
    rates: tuple[int, ...] = RATES
    seconds: float = 4.0
    backlog: float = 1.0
    stall_ms: float = 0.0
    servers: Callable[[], AbstractAsyncContextManager[Broker]] = single_server


async def measure(plan: Plan) -> AsyncIterator[Latency | Saturation]:
    """Yield each measurement as it is taken. One that failed has its `problem` instead of figures."""
    async with stalls(plan.stall_ms):
        for number in range(plan.rounds):
            for system in rotated(plan.systems, number):
                note(f"round {number + 1} of {plan.rounds}: {system.title}")
                if plan.latency:
                    for result in await latencies(system, number, plan):
                        yield result
                if plan.saturation:
                    yield await saturation(system, number, plan)


def rotated(systems: Sequence[System], by: int) -> list[System]:
    """The systems in the order of a round: each round begins with another one."""
    at = by % len(systems)
    return [*systems[at:], *systems[:at]]


async def latencies(system: System, number: int, plan: Plan) -> list[Latency]:
    """Start the system once, and measure all rates in turn."""
    results: list[Latency] = []

    async def measure_rates() -> None:
        async with scene(system, plan.jobs, plan.servers()) as place, place.running() as running:
            await warm_up(place, running)
            for rate in plan.rates:
                seconds = max(plan.seconds, _LEAST_UPDATES / rate)
                results.append(await latency(place, running, rate, seconds, number))
                if results[-1].problem is not None:  # updates still on their way would count for the next rate
                    return

    problem = await problem_of(system, measure_rates) or "not tried after the rate before"
    measured = {result.rate for result in results}
    return results + [
        Latency(system.name, number, rate, 0, 0, 0, [], 0.0, problem) for rate in plan.rates if rate not in measured
    ]


async def warm_up(place: Scene, running: Running) -> None:
    """Send the first updates, which are not counted. Raises BenchError if they do not all arrive."""
    rate, seconds = WARM_UP
    published = await place.publish_at(rate, seconds)
    arrived = await running.recorder.wait(published.expected, 3 * BEHIND_S)
    if arrived < published.published:
        cut_short = f"only {arrived:,} of the first {published.published:,} updates arrived"
        raise BenchError(running.child.end_note or cut_short)
    await running.recorder.take()


async def latency(place: Scene, running: Running, rate: float, seconds: float, number: int) -> Latency:
    published = await place.publish_at(rate, seconds)
    await running.recorder.wait(published.expected, BEHIND_S)
    pairs = await running.recorder.take()
    arrived = len(pairs) - pairs.duplicates
    return Latency(
        place.system.name,
        number,
        rate,
        published.published,
        arrived,
        pairs.duplicates,
        quantiles(pairs.latencies_ms, QUANTILES) if len(pairs) else [],
        published.late_p99_ms,
        running.child.end_note or _shortfall(round(rate * seconds), published, arrived),
    )


def _shortfall(wanted: int, published: Published, arrived: int) -> str | None:
    if published.published < wanted:
        return f"fell behind: {published.published:,} of {wanted:,} could be published in time"
    if arrived < wanted:
        late = f"{arrived:,} of {wanted:,} had arrived {BEHIND_S:g} s after the last was published"
        return f"fell behind: {late}{_refused(published)}"
    return None


def _refused(published: Published) -> str:
    return f"; {published.refused:,} could not be published" if published.refused else ""


async def saturation(system: System, number: int, plan: Plan) -> Saturation:
    """Measure throughput: first a backlog is stored, then the system starts. The first tenth is not counted."""
    results: list[Saturation] = []

    async def measure_backlog() -> None:
        async with scene(system, plan.jobs, plan.servers()) as place:
            updates = round(system.backlog * plan.backlog)
            filled = None if system.keeps_nothing else await place.fill(updates)
            async with place.running() as running:
                results.append(await _work_off(place, running, updates, filled, number))

    problem = await problem_of(system, measure_backlog)
    return results[0] if results else Saturation(system.name, number, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, problem)


async def _work_off(place: Scene, running: Running, updates: int, filled: Published | None, number: int) -> Saturation:
    """Wait for the backlog. For a system that stores nothing, publish as fast as possible meanwhile."""
    recorder, pid = running.recorder, running.child.pid
    publishing = asyncio.create_task(place.fill(updates) if filled is None else asyncio.sleep(0, filled))
    try:
        begun = await recorder.wait(math.ceil(updates * SKIPPED), _BACKLOG_S)
        before = _costs(place, pid)
        published = await publishing
    finally:
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
    stuck = begun < updates * SKIPPED
    done = await recorder.wait(published.expected, 0 if stuck else _BACKLOG_S)
    after = _costs(place, pid)
    resident = resident_mib(pid)
    pairs = await recorder.take()
    arrived = len(pairs) - pairs.duplicates
    own_us, broker_us = (1e6 * (end - start) / max(1, done - begun) for start, end in zip(before, after, strict=True))
    lost = f"{arrived:,} of {published.published:,} arrived{_refused(published)}"
    problem = running.child.end_note or (lost if arrived < published.published else None)
    return Saturation(
        place.system.name,
        number,
        published.published,
        arrived,
        pairs.duplicates,
        pairs.per_s,
        own_us,
        broker_us,
        resident,
        problem,
    )


def _costs(place: Scene, pid: int) -> tuple[float, float]:
    """Processor seconds used until now: by the system, and by its brokers."""
    return cpu_s(pid), sum(map(cpu_s, place.broker_pids))


async def problem_of(system: System, work: Callable[[], Coroutine[Any, Any, None]]) -> str | None:
    """Do the work. An error is returned as a finding about this system, so that the others are still measured."""
    if system.missing is not None:
        return f"not measured: {system.missing}"
    try:
        await work()
    except (BenchError, RelayError, OSError) as error:
        note(f"{system.title}: {error}")
        return str(error)
    return None
