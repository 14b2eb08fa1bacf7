"""FastStream: a NATS JetStream pull subscriber that forwards over one WebSocket and acknowledges after the reply.

Built as its page "Pull Subscriber" recommends for a large flow: `PullSub` with a batch size, on the stream that is
there already (`JStream(declare=False)`) and a durable consumer of its own, with the handler called per message.

Tuned with what it offers: `max_workers`, so that handlers run concurrently and the next fetch begins before
the last handler has ended; no dependency injection and no validation (`apply_types=False`); a decoder that passes the
body on as it came; no log line per message; uvloop, as `faststream run` would. The handlers share one connection, on
which up to `WORKERS` updates wait for their replies at once.

`PullSub(batch=True)`, one call of the handler for a list, costs less CPU time per update, but is no choice here: it
waits until the batch is full or its timeout is over. With 5 s (the default) that is the latency; with 10 or 50 ms some
updates came only after a redelivery, 30 s later.
"""

import asyncio
import json
import os
import signal
from collections import deque
from typing import Final

import uvloop
from faststream.middlewares import AckPolicy
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub
from websockets.asyncio.client import ClientConnection, connect

BATCH: Final = 100
"""The most that one request to NATS asks for: of 1, 10, 100 and 256, measured in turn, the one that carried most."""
WORKERS: Final = 32
"""How many unanswered updates the Facilitator allows a connection."""


class Facilitator:
    """One connection on which updates wait for their replies side by side: replies come in the order of the updates."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def forward(self, update: bytes) -> None:
        """Send one update and wait for its reply; raises ConnectionClosed if there is nobody to send to."""
        reply = asyncio.get_running_loop().create_future()
        self._waiting.append(reply)
        await self._socket.send(update, text=True)
        await reply

    async def read_replies(self) -> None:
        """Run for as long as the connection lives; raises RuntimeError for a refusal, which the sink never sends."""
        async for reply in self._socket:
            if json.loads(reply)["status"] != "success":
                raise RuntimeError(f"the sink refused an update: {reply!r}")
            answered = self._waiting.popleft()
            if not answered.done():  # its handler was cancelled: the process is being stopped
                answered.set_result(None)


async def undecoded(message: NatsMessage) -> bytes:
    return message.body


def subscribing_broker(nats_url: str, facilitator: Facilitator) -> NatsBroker:
    """The broker with its one subscriber, not started yet."""
    broker = NatsBroker(nats_url, apply_types=False, logger=None)
    subscriber = broker.subscriber(
        "job.status.*.*",
        stream=JStream("JOB_STATUS", declare=False),
        durable="faststream",
        pull_sub=PullSub(batch_size=BATCH),
        max_workers=WORKERS,
        decoder=undecoded,
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )
    subscriber(facilitator.forward)
    return broker


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
        async with subscribing_broker(os.environ["BENCH_NATS_URL"], facilitator) as broker:
            await broker.start()
            print(json.dumps({"ready": True}), flush=True)
            await stop.wait()
        reading.cancel()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
