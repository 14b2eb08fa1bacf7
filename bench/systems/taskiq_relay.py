"""taskiq-nats: a worker that runs one task per update, which forwards it over one WebSocket and awaits the reply.

Updates come as tasks that the producer sends, see `bench.systems.taskiq_publish`: this system needs the publisher's
transport `taskiq` and uses neither the stream JOB_STATUS nor its consumers. The broker is taskiq-nats'
PullBasedJetStreamBroker.

The worker is taskiq's receiver, run by `taskiq.api.run_receiver_task` as its documentation shows for use inside a
program: the same code as `taskiq worker --workers 1` without the process that supervises it. Tuned with what it
offers: pulls of a hundred, prefetching, no parsing of parameters, no result backend, acknowledgement after the task,
uvloop as the command line uses. `WINDOW` tasks share the connection, each waiting for its own reply.
"""

import asyncio
import json
import os
import signal
from typing import Any

import uvloop
from taskiq.acks import AcknowledgeType
from taskiq.api import run_receiver_task

from bench.systems.forwarding import WINDOW, connected
from bench.systems.taskiq_publish import BATCH, TASK, broker_of


async def main() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with connected() as facilitator, asyncio.TaskGroup() as group:
        broker = broker_of(os.environ["BENCH_NATS_URL"])
        broker.is_worker_process = True

        @broker.task(task_name=TASK)
        async def forward(payload: dict[str, Any]) -> None:
            await facilitator.forward(json.dumps(payload).encode())

        await broker.startup()
        receiving = group.create_task(
            run_receiver_task(
                broker,
                max_async_tasks=WINDOW,
                max_prefetch=BATCH,
                validate_params=False,
                ack_time=AcknowledgeType.WHEN_EXECUTED,
            )
        )
        print(json.dumps({"ready": True}), flush=True)
        await stop.wait()
        receiving.cancel()
        await asyncio.wait({receiving})
        await broker.shutdown()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
