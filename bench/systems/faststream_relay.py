"""FastStream: a NATS JetStream pull subscriber that forwards over one WebSocket and acknowledges after the reply.

Built as its page "Pull Subscriber" recommends for a large flow: `PullSub` with a batch size, on the existing stream
(`JStream(declare=False)`), with a durable consumer of its own. The handler is called for each message.

Tuned with what it offers: `max_workers`, so that handlers run concurrently and the next fetch begins before
the last handler has ended; no dependency injection and no validation (`apply_types=False`); a decoder that passes the
body on unchanged; no log line per message; uvloop, as `faststream run` would use. The handlers share one connection, on
which up to `WINDOW` updates wait for their replies at once.

`PullSub(batch=True)`, one call of the handler for a list, costs less CPU time per update, but does not suit here: it
waits until the batch is full or its timeout is over. With 5 s (the default) that is the latency. With 10 or 50 ms some
updates came only after a redelivery, 30 s later.
"""

import asyncio
import json
import os
import signal
from typing import Final

import uvloop
from faststream.middlewares import AckPolicy
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub

from bench.systems.forwarding import WINDOW, Facilitator, connected

BATCH: Final = 100
"""The most updates that one request to NATS asks for. Of 1, 10, 100 and 256, this one had the highest throughput."""


async def undecoded(message: NatsMessage) -> bytes:
    return message.body


def subscribing_broker(nats_url: str, facilitator: Facilitator) -> NatsBroker:
    """The broker with its one subscriber, not yet started."""
    broker = NatsBroker(nats_url, apply_types=False, logger=None)
    subscriber = broker.subscriber(
        "job.status.*.*",
        stream=JStream("JOB_STATUS", declare=False),
        durable="faststream",
        pull_sub=PullSub(batch_size=BATCH),
        max_workers=WINDOW,
        decoder=undecoded,
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )
    subscriber(facilitator.forward)
    return broker


async def main() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with connected() as facilitator, subscribing_broker(os.environ["BENCH_NATS_URL"], facilitator) as broker:
        await broker.start()
        print(json.dumps({"ready": True}), flush=True)
        await stop.wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
