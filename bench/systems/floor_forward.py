"""Floor: the relay's own pull loop on all lanes -> each body to the Facilitator, as it is -> ack when its reply comes.

Nothing is decoded, kept in order or tried again; a reply belongs to the oldest update without one.
"""

import asyncio
import contextlib
import json
import os
import signal
from collections import deque
from collections.abc import Sequence

import uvloop

from bench.systems.floor_pull import LANES, pull
from relay.contract.settings import NatsSettings
from relay.facilitator.websocket import WebSocket, connect
from relay.nats.connection import connect as connect_to_nats
from relay.network.dialer import Dialer
from relay.path.delivery import Delivery

MAX_REPLY_BYTES = 1024 * 1024
TIMEOUT_S = 10.0


async def acknowledge(socket: WebSocket, waiting: deque[Delivery]) -> None:
    """Acknowledge for each reply the oldest update that waits for one."""
    while True:
        first, *others = [waiting.popleft() for _ in await socket.receive()]
        first.ack(*others)


async def main() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    waiting: deque[Delivery] = deque()
    socket = await connect(
        os.environ["BENCH_FACILITATOR_URL"],
        dialer=Dialer(),
        max_size=MAX_REPLY_BYTES,
        open_timeout_s=TIMEOUT_S,
        close_timeout_s=TIMEOUT_S,
        on_writable=lambda: None,
    )
    socket.send(b"{}")
    await socket.receive()

    def take(deliveries: Sequence[Delivery]) -> None:
        waiting.extend(deliveries)
        socket.send(*[delivery.body for delivery in deliveries])

    nc = await connect_to_nats(NatsSettings(urls=(os.environ["BENCH_NATS_URL"],)), name="bench-floor-forward")
    async with asyncio.TaskGroup() as group:
        working = [group.create_task(acknowledge(socket, waiting))]
        working += await pull(nc, take, group)
        print(json.dumps({"ready": True, "lanes": LANES}), flush=True)
        await stop.wait()
        for task in working:
            task.cancel()
    with contextlib.suppress(TimeoutError):
        await socket.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
