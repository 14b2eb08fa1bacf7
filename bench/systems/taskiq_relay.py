"""taskiq-nats: a worker that runs one task per update, which forwards it over one WebSocket and awaits the reply.

Updates come in as tasks that the producer kicks, see `bench.systems.taskiq_publish`: this system needs the publisher's
transport `taskiq` and uses neither the stream JOB_STATUS nor its consumers. The broker is taskiq-nats'
PullBasedJetStreamBroker.

The worker is taskiq's receiver, run by `taskiq.api.run_receiver_task` as its documentation shows for use inside a
program: the same code as `taskiq worker --workers 1` without the process that watches over it. Tuned with what it
offers: pulls of a hundred, prefetching, no parsing of parameters, no result backend, acknowledgement when the task has
been executed, uvloop as the command line has it. `WORKERS` tasks share the connection, each waiting for its own reply.
"""

import asyncio
import json
import os
import signal
from collections import deque
from typing import Any, Final

import uvloop
from taskiq.acks import AcknowledgeType
from taskiq.api import run_receiver_task
from websockets.asyncio.client import ClientConnection, connect

from bench.systems.taskiq_publish import BATCH, TASK, broker_of

WORKERS: Final = 32
"""How many unanswered updates the Facilitator allows a connection."""


class Facilitator:
    """One connection on which updates wait for their replies side by side: replies come in the order of the updates."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def forward(self, payload: dict[str, Any]) -> None:
        """Send one update and wait for its reply; raises ConnectionClosed if there is nobody to send to."""
        reply = asyncio.get_running_loop().create_future()
        self._waiting.append(reply)
        await self._socket.send(json.dumps(payload))
        await reply

    async def read_replies(self) -> None:
        """Run for as long as the connection lives; raises RuntimeError for a refusal, which the sink never sends."""
        async for reply in self._socket:
            if json.loads(reply)["status"] != "success":
                raise RuntimeError(f"the sink refused an update: {reply!r}")
            answered = self._waiting.popleft()
            if not answered.done():  # its task was cancelled: the process is being stopped
                answered.set_result(None)


async def main() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with (
        connect(os.environ["BENCH_FACILITATOR_URL"], compression=None, proxy=None) as socket,
        asyncio.TaskGroup() as group,
    ):
        await socket.send("{}")
        await socket.recv()
        facilitator = Facilitator(socket)
        reading = group.create_task(facilitator.read_replies())
        broker = broker_of(os.environ["BENCH_NATS_URL"])
        broker.is_worker_process = True

        @broker.task(task_name=TASK)
        async def forward(payload: dict[str, Any]) -> None:
            await facilitator.forward(payload)

        await broker.startup()
        receiving = group.create_task(
            run_receiver_task(
                broker,
                max_async_tasks=WORKERS,
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
        reading.cancel()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
