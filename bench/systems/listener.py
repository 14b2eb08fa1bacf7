"""The design that was replaced: one asyncio task per job on a Django Channels layer on Redis, and one WebSocket.

Each task loops on `receive` of its job's channel, as the Channels documentation shows it for a worker, and sends what
it gets over the one connection. Replies are read and dropped; the next update does not wait for them. An update that
is between Redis and the Facilitator when the process ends is lost.

The layer is configured as in the README of channels-redis. Each waiting `receive` holds a connection to Redis, and
redis-py allows a pool 100 of them by default, so with that many jobs or more the process ends and says so.
BENCH_REDIS_CONNECTIONS (a number) raises the limit, which the library passes on to redis-py, and shows what that
costs. Also tuned by uvloop, which the usual ASGI servers use, and by disabling compression.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop
from channels_redis.core import RedisChannelLayer
from redis.exceptions import MaxConnectionsError
from websockets.asyncio.client import ClientConnection, connect

from bench.load import job_uuids
from bench.systems.channels_publish import channel_of

Forward = Callable[[dict[str, Any]], Awaitable[None]]
"""What is done with an update: the `payload` of the message."""


def channel_layer() -> RedisChannelLayer:
    """The layer of BENCH_REDIS_URL; it connects when it is used."""
    # A `receive` blocks in Redis for up to 5 s. By default redis-py 8 gives up a read after the same time, so that
    # the listener of a job without updates would end.
    host: dict[str, Any] = {"address": os.environ["BENCH_REDIS_URL"], "socket_timeout": None}
    if connections := os.environ.get("BENCH_REDIS_CONNECTIONS"):
        host["max_connections"] = int(connections)
    return RedisChannelLayer(hosts=[host])


async def listen(layer: RedisChannelLayer, uuid: str, forward: Forward) -> None:
    """Forward the updates of one job forever; raises redis.exceptions.RedisError if no connection is available."""
    while True:
        message = await layer.receive(channel_of(uuid))
        await forward(message["payload"])


async def listen_to_all(forward: Forward) -> None:
    """One task per job of BENCH_JOBS until SIGTERM; prints the ready line once all wait. The first failure ends it.

    Ends the process with exit status 1 and one line if the Redis pool is exhausted.
    """
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    layer = channel_layer()
    jobs = job_uuids(int(os.environ["BENCH_JOBS"]))
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(listen(layer, uuid, forward)) for uuid in jobs]
            # By now the first request of each task must have a connection; otherwise the group ends here.
            await layer.connection(0).ping()
            print(json.dumps({"ready": True}), flush=True)
            await stop.wait()
            for task in tasks:
                task.cancel()
    except* MaxConnectionsError as failures:
        sys.exit(
            f"the connection pool to Redis is exhausted: {len(failures.exceptions)} of {len(jobs)} listeners got no"
            f" connection ({failures.exceptions[0]}). Each holds one while it waits. Use fewer jobs, or allow more"
            " connections with BENCH_REDIS_CONNECTIONS."
        )


async def drop_replies(socket: ClientConnection) -> None:
    async for _ in socket:
        pass


async def main() -> None:
    async with connect(os.environ["BENCH_FACILITATOR_URL"], compression=None, proxy=None) as socket:
        await socket.send("{}")
        await socket.recv()

        async def send(payload: dict[str, Any]) -> None:
            await socket.send(json.dumps(payload))

        async with asyncio.TaskGroup() as group:
            reading = group.create_task(drop_replies(socket))
            await listen_to_all(send)
            reading.cancel()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
