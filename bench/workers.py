"""Several workers: how long a lane stops when its owner hands over or dies, and the throughput of more workers.

    python -m bench.workers [--rounds 5] [--json FILE]

Each round starts an embedded nats-server, the Facilitator simulator, and workers as processes of their own.

- Hand-over and crash: two workers share the lanes while a steady stream of updates goes through. One is stopped
  (SIGTERM) or killed (SIGKILL). The figure is the longest time without an arrival in one of its lanes, minus the
  longest such time in the lanes that kept their owner: the cost of the change of owner.
- Throughput: a backlog is relayed by 1, 2 and 4 workers. The simulator takes `SERVICE_TIME_S` for each update of a
  connection, as the real Facilitator does, so that connections are the bottleneck.
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import uvloop

from bench.ending import end_in_order
from relay.contract.environment import load_settings
from relay.contract.model import JobStatus, JobStatusUpdate
from relay.contract.subjects import lane_of
from relay.leases.leases import Leases
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer
from relay.nats.connection import close, connect
from relay.observability.logs import configure
from relay.producer import publish_update
from relay.topology.provision import provision, topology_of

LANES = 4
RATE_PER_S = 400
BEFORE_S, AFTER_S = 1.5, 1.5
LEASE_TTL_S = 5.0
BACKLOG = 4000
SERVICE_TIME_S = 0.002


@asynccontextmanager
async def scene(service_time_s: float = 0.0) -> AsyncIterator[tuple[dict[str, str], FacilitatorSimulator, Any]]:
    """The environment of the workers, the simulator, and a connection to the server."""
    async with NatsServer() as server, FacilitatorSimulator(service_time_s=service_time_s) as simulator:
        environment = {
            "RELAY_NATS_URL": server.url,
            "RELAY_FACILITATOR_URL": simulator.url,
            "RELAY_FACILITATOR_AUTH": "none",
            "RELAY_HTTP_PORT": "0",
            "RELAY_LANES": str(LANES),
            "RELAY_LEASE_TTL": str(LEASE_TTL_S),
            "RELAY_LOG_LEVEL": "error",
        }
        settings = load_settings(environment, None)
        nc = await connect(settings.nats, name="bench")
        await provision(nc, topology_of(settings.delivery))
        try:
            yield environment, simulator, nc
        finally:
            await close(nc)


async def start_worker(environment: dict[str, str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay", "serve"), env={**os.environ, **environment}
    )


async def owners(nc: Any, workers: int) -> dict[int, str]:
    """The worker that drives each lane, as soon as `workers` of them share all lanes evenly."""
    leases = Leases(nc, "bench", LEASE_TTL_S)
    await leases.watch()
    while True:
        leases.changed.clear()
        table = await leases.read()
        if len(table.owners) == LANES and len(set(table.owners.values())) == workers:
            return dict(table.owners)
        await leases.changed.wait()


def new_updates(rng: Random) -> Any:
    while True:
        yield JobStatusUpdate(uuid=str(UUID(int=rng.getrandbits(128))), status=JobStatus.ACCEPTED)


async def change_of_owner(how: signal.Signals, seed: int) -> float:
    """Seconds without progress in the lanes that changed owners, beyond the usual."""
    async with scene() as (environment, simulator, nc):
        first = await start_worker(environment)
        await owners(nc, 1)
        (old,) = set((await owners(nc, 1)).values())
        second = await start_worker(environment)
        shared = await owners(nc, 2)
        arrivals: dict[int, list[float]] = defaultdict(list)
        simulator.on_row = lambda row: arrivals[lane_of(row.uuid, LANES)].append(row.arrived_s)
        loading = asyncio.create_task(load(nc, Random(seed)))
        await asyncio.sleep(BEFORE_S)
        first.send_signal(how)
        await first.wait()
        await asyncio.sleep(AFTER_S + (2 * LEASE_TTL_S if how is signal.SIGKILL else 0))
        loading.cancel()
        second.terminate()
        await second.wait()
        moved = max(longest_gap(arrivals[lane]) for lane, owner in shared.items() if owner == old)
        stayed = max(longest_gap(arrivals[lane]) for lane, owner in shared.items() if owner != old)
        return max(0.0, moved - stayed)


def longest_gap(arrivals: list[float]) -> float:
    return max(after - before for before, after in pairwise(arrivals))


async def load(nc: Any, rng: Random) -> None:
    """A steady, open-loop stream of updates, each of a new job."""
    began_s = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number, update in enumerate(new_updates(rng)):
            await asyncio.sleep(max(0.0, began_s + number / RATE_PER_S - time.monotonic()))
            group.create_task(publish_update(nc, update))


async def throughput(workers: int, seed: int) -> float:
    """Updates a second, from the first to the last of a backlog."""
    async with scene(SERVICE_TIME_S) as (environment, simulator, nc):
        updates = new_updates(Random(seed))
        for _ in range(BACKLOG // 200):
            await asyncio.gather(*(publish_update(nc, next(updates)) for _ in range(200)))
        processes = [await start_worker(environment) for _ in range(workers)]
        await simulator.wait_for(lambda simulator: len(simulator.rows) == BACKLOG, 120)
        for process in processes:
            process.terminate()
        await asyncio.gather(*(process.wait() for process in processes))
        # The first tenth is left out: workers are still starting and sharing the lanes.
        rows = simulator.rows[BACKLOG // 10 :]
        return len(rows) / (rows[-1].arrived_s - rows[0].arrived_s)


async def measure(rounds: int) -> dict[str, Any]:
    """The median of every figure, with its samples; the systems alternate within a round."""
    figures: dict[str, list[float]] = defaultdict(list)
    for seed in range(rounds):
        figures["planned hand-over, ms without progress"].append(1e3 * await change_of_owner(signal.SIGTERM, seed))
        figures["crash, ms without progress"].append(1e3 * await change_of_owner(signal.SIGKILL, seed))
        for workers in (1, 2, 4):
            figures[f"throughput with {workers} workers, updates/s"].append(await throughput(workers, seed))
    return {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()},
        "rounds": rounds,
        "lease_ttl_s": LEASE_TTL_S,
        "figures": {
            name: {"median": statistics.median(values), "least": min(values), "most": max(values)}
            for name, values in figures.items()
        },
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--json", type=Path)
    options = arguments.parse_args()
    configure("warning", "console")
    end_in_order()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(measure(options.rounds))
    print(f"medians of {options.rounds} rounds (least to most), {result['machine']}")
    for name, figure in result["figures"].items():
        print(f"{name:45} {figure['median']:10.1f}   ({figure['least']:.1f} to {figure['most']:.1f})")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
