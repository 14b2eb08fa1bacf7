"""Latency at fixed rates, and throughput of a backlog, of several systems in turn.

In each round every system is measured once, in fresh servers, and the round after begins with another one: whatever
else the machine does meanwhile, it does to all of them.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.figures import QUANTILES, SKIPPED, quantiles
from bench.processes import BenchError, cpu_s, resident_mib
from bench.scene import Published, Running, Scene, note, scene
from bench.systems import System
from relay.contract.errors import RelayError

RATES: Final = (200, 1000, 5000)
BEHIND_S: Final = 10.0
"""How long after the last publish the last update may arrive; a system that needs longer has fallen behind."""
WARM_UP: Final = (500, 2.0)
_BACKLOG_S: Final = 60.0
_LEAST_UPDATES: Final = 1000
"""At each rate, so that p99.9 stands for at least one of them."""


@dataclass(frozen=True, slots=True)
class Latency:
    """One round at one rate; `quantiles_ms` at figures.QUANTILES, empty if nothing arrived."""

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
    """One round of a backlog. Processor time in microseconds per update: the system's processes, and the brokers'."""

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
    """What to measure. `backlog` multiplies the size of each system's backlog."""

    systems: tuple[System, ...]
    latency: bool = True
    saturation: bool = True
    rounds: int = 5
    jobs: int = 1000
    rates: tuple[int, ...] = RATES
    seconds: float = 4.0
    backlog: float = 1.0


async def measure(plan: Plan) -> AsyncIterator[Latency | Saturation]:
    """Each measurement as it is taken; what cannot be measured carries its `problem` instead of figures."""
    for number in range(plan.rounds):
        for system in rotated(plan.systems, number):
            note(f"round {number + 1} of {plan.rounds}: {system.title}")
            if plan.latency:
                for result in await latencies(system, number, plan):
                    yield result
            if plan.saturation:
                yield await saturation(system, number, plan)


def rotated(systems: Sequence[System], by: int) -> list[System]:
    """The systems, beginning with another one in each round."""
    at = by % len(systems)
    return [*systems[at:], *systems[:at]]


async def latencies(system: System, number: int, plan: Plan) -> list[Latency]:
    """One start of the system, and all rates in turn."""
    results: list[Latency] = []

    async def measure_rates() -> None:
        async with scene(system, plan.jobs) as place, place.running() as running:
            await warm_up(place, running)
            for rate in plan.rates:
                seconds = max(plan.seconds, _LEAST_UPDATES / rate)
                results.append(await latency(place, running, rate, seconds, number))
                if results[-1].problem is not None:  # what is still on its way would count for the next rate
                    return

    problem = await problem_of(system, measure_rates) or "not tried after the rate before"
    measured = {result.rate for result in results}
    return results + [
        Latency(system.name, number, rate, 0, 0, 0, [], 0.0, problem) for rate in plan.rates if rate not in measured
    ]


async def warm_up(place: Scene, running: Running) -> None:
    """The first updates, which are not counted. Raises BenchError if they do not all arrive."""
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
    """A backlog first, then the system: from the first tenth of it on to the last."""
    results: list[Saturation] = []

    async def measure_backlog() -> None:
        async with scene(system, plan.jobs) as place:
            updates = round(system.backlog * plan.backlog)
            filled = None if system.keeps_nothing else await place.fill(updates)
            async with place.running() as running:
                results.append(await _work_off(place, running, updates, filled, number))

    problem = await problem_of(system, measure_backlog)
    return results[0] if results else Saturation(system.name, number, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, problem)


async def _work_off(place: Scene, running: Running, updates: int, filled: Published | None, number: int) -> Saturation:
    """With a system that keeps nothing, the publisher goes on as fast as it can meanwhile."""
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
    """Processor seconds until now: of the system, of its brokers."""
    return cpu_s(pid), sum(map(cpu_s, place.broker_pids))


async def problem_of(system: System, work: Callable[[], Coroutine[Any, Any, None]]) -> str | None:
    """Do the work; what keeps it from being done is a finding about this system, and the others go on."""
    if system.missing is not None:
        return f"not measured: {system.missing}"
    try:
        await work()
    except (BenchError, RelayError, OSError) as error:
        note(f"{system.title}: {error}")
        return str(error)
    return None
