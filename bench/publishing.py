"""`relay.producer` beside bare nats-py: `python -m bench.publishing [--rounds N]`. Takes about two minutes.

Each round measures both in turn, against one real nats-server with the relay's streams. Medians are printed at the end:
the throughput of 1,000 jobs at a time in one event loop, and of 32 threads; the latency of one publish after another.
Bare nats-py waits for its PubAcks as well, and sets the same `Nats-Msg-Id`; it does not try again, and keeps no order.
"""

import argparse
import asyncio
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import nats

from relay.contract.settings import NatsSettings
from relay.contract.subjects import MSG_ID_HEADER, status_subject
from relay.local.server import NatsServer
from relay.nats.connection import close, connect
from relay.producer import JobStatus, JobStatusUpdate, StatusPublisher, SyncStatusPublisher, message_id
from relay.topology.provision import Topology, provision

JOBS: Final = 1000
THREADS: Final = 32
UPDATES: Final = 5
ONE_BY_ONE: Final = 1000
_STATUSES: Final = [*JobStatus][:UPDATES]

Publish = Callable[[JobStatusUpdate], Awaitable[object]]
PublishNow = Callable[[JobStatusUpdate], object]


async def throughput(publish: Publish) -> float:
    """Updates a second: 1,000 jobs at a time, each one update after another."""

    async def run(job: str) -> None:
        for status in _STATUSES:
            await publish(JobStatusUpdate(uuid=job, status=status))

    jobs = [str(uuid.uuid4()) for _ in range(JOBS)]
    began_s = time.perf_counter()
    await asyncio.gather(*map(run, jobs))
    return JOBS * UPDATES / (time.perf_counter() - began_s)


async def latency_ms(publish: Publish) -> float:
    """The median of publishes one after another."""
    taken: list[float] = []
    for _ in range(ONE_BY_ONE):
        update = JobStatusUpdate(uuid=uuid.uuid4(), status="accepted")
        began_s = time.perf_counter()
        await publish(update)
        taken.append(time.perf_counter() - began_s)
    return statistics.median(taken) * 1000


def throughput_of_threads(publish: PublishNow) -> float:
    """Updates a second of 32 threads, each one update after another."""

    def run(_: int) -> None:
        for _ in range(JOBS // THREADS):
            job = str(uuid.uuid4())
            for status in _STATUSES:
                publish(JobStatusUpdate(uuid=job, status=status))

    began_s = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(run, range(THREADS)))
    return THREADS * (JOBS // THREADS) * UPDATES / (time.perf_counter() - began_s)


def latency_of_threads_ms(publish: PublishNow) -> float:
    """The median of publishes one after another in one thread."""

    async def in_a_task(update: JobStatusUpdate) -> None:
        publish(update)

    return asyncio.run(latency_ms(in_a_task))


async def measure(url: str, rounds: int) -> dict[str, list[float]]:
    loop = asyncio.get_running_loop()
    client = await nats.connect(url)
    jetstream = client.jetstream()
    figures: dict[str, list[float]] = {}

    async def bare(update: JobStatusUpdate) -> None:
        headers = {MSG_ID_HEADER: message_id(update)}
        await jetstream.publish(status_subject(update.uuid), update.to_json(), headers=headers)

    def bare_now(update: JobStatusUpdate) -> None:
        asyncio.run_coroutine_threadsafe(bare(update), loop).result()

    async with StatusPublisher(url) as publisher:
        sync_publisher = SyncStatusPublisher(url)
        for _ in range(rounds):
            for name, publish, publish_now in (
                ("nats-py", bare, bare_now),
                ("relay.producer", publisher.publish, sync_publisher.publish),
            ):
                for kind, value in (
                    ("updates/s, 1,000 jobs", await throughput(publish)),
                    ("p50 ms", await latency_ms(publish)),
                    ("updates/s, 32 threads", await asyncio.to_thread(throughput_of_threads, publish_now)),
                    ("p50 ms, in a thread", await asyncio.to_thread(latency_of_threads_ms, publish_now)),
                ):
                    figures.setdefault(f"{kind}: {name}", []).append(value)
        await asyncio.to_thread(sync_publisher.close)
    await client.close()
    return figures


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    async with NatsServer() as server:
        admin = await connect(NatsSettings(urls=(server.url,)), name="bench")
        await provision(admin, Topology(lanes=4, replicas=1, ack_wait_s=5, max_deliver=50, lease_ttl_s=5))
        await close(admin)
        figures = await measure(server.url, options.rounds)
    medians = {name: statistics.median(values) for name, values in figures.items()}
    for name in sorted(medians):
        kind, _, who = name.partition(": ")
        ratio = f"   {medians[name] / medians[f'{kind}: nats-py']:.2f} x nats-py" if who != "nats-py" else ""
        print(f"{name:40} {medians[name]:10.3f}{ratio}")


if __name__ == "__main__":
    asyncio.run(main())
